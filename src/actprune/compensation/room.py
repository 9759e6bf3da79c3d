"""The least memory that a model whose weights lie in files can be pruned in: what one of its layers needs."""

from __future__ import annotations

from collections.abc import Iterator

from actprune.axes.capture import Graph
from actprune.compensation.layer import SOLVED
from actprune.compensation.schedule import refitted_calls
from actprune.errors import DataError
from actprune.graph.room import held_bytes
from actprune.mapped import any_mapped
from actprune.memory import MemoryLimit, limit_bytes
from actprune.stats.patches import LAYERS, has_rows


def needed_bytes(graph: Graph) -> int:
    """For the statistics, ranking and refit of the widest layer, and the values of one batch in two networks."""
    return 2 * held_bytes(refitted_calls(graph)) + matrix_bytes(graph)


def matrix_bytes(graph: Graph) -> int:
    """The matrices of float64 of the layer that needs most.

    With p columns and o outputs: a ranking holds the covariance, what it is factorised into, its inverse and two steps
    between (5 p²), and the weight three times; a refit three p², the cross moments (o p, with one batch of them in
    float32), and four times what is solved for at once.
    """
    return max(_of_layers(graph), default=0)


def _of_layers(graph: Graph) -> Iterator[int]:
    readers = {site for group in graph.groups for site in group.consumers}
    for site in (site for site in graph.sites if site.kind in LAYERS):
        weight = graph.program.tensors[site.weight]
        if has_rows(site, weight):
            outputs = site.outputs(weight)
            columns = weight.numel() // outputs
            refit = 28 * columns**2 + 12 * outputs * columns + 32 * min(SOLVED, outputs * columns)
            ranking = 40 * columns**2 + 24 * min(outputs, columns) * columns
            yield max(refit, ranking) if site in readers else refit


def check_room(graph: Graph, limit: MemoryLimit) -> None:
    """Before the work.

    Raises:
        DataError: the limit is below what one layer of a model that lies in files needs.
    """
    if not any_mapped(graph.program.tensors.values()):
        return
    given, least = limit_bytes(limit), needed_bytes(graph)
    if given < least:
        batch = graph.program.batch_size
        raise DataError(
            "The memory limit is below what one layer needs.",
            expected=f"at least {_told(least)}: {_told(matrix_bytes(graph))} for the matrices of the widest layer, and "
            f"{_told(least - matrix_bytes(graph))} for the values of one batch of {batch} samples",
            got=_told(given),
            where="memory_limit",
            hint="give more, or pass smaller calibration batches",
        )


def _told(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
