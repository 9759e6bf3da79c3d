"""What the scores share: their type, and sums and rows per unit."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from actprune.axes.capture import Graph
from actprune.axes.expr import positions
from actprune.axes.groups import Group
from actprune.axes.site import Site
from actprune.errors import PlanError
from actprune.stats.activation import Activation
from actprune.stats.statistics import Stats

Score = Callable[[Graph, Stats | None, Group, int], Tensor | None]
"""(graph, stats, group, seed) → (n,) float64, larger = more important; None where the criterion says nothing of the
group. L2 then decides, under its own name, so that the report tells."""


def per_unit(graph: Graph, group: Group, weight: str, dim: int, of: Callable[[Tensor], Tensor]) -> Tensor:
    """(n,) per unit, the sum of what `of` says of a weight's (size, …) rows in dimension `dim` that belong to it."""
    tensor = graph.program.tensors[weight].detach()
    rows = _real(tensor.movedim(dim, 0).reshape(tensor.shape[dim], -1))
    unit = torch.as_tensor(positions(graph.tensor_axes[weight][dim], group.key))
    held = unit >= 0
    # some rows at a time: float64 copies of a large weight would be most of the time and of the memory
    values = torch.cat([of(part.double().cpu()) for part in rows.split(max(1, _AT_ONCE // max(1, rows.shape[1])))])
    return torch.zeros(group.width, dtype=torch.float64).index_add_(0, unit[held], values[held])


_AT_ONCE = 2**18
"""So many elements of a weight are scored at once: they fit a processor's cache."""


def _real(rows: Tensor) -> Tensor:
    """(units, weights), complex ones (the modes of a Fourier layer) as two numbers each: torch would drop one."""
    return torch.view_as_real(rows.resolve_conj()).flatten(1) if rows.is_complex() else rows


def unit_filters(graph: Graph, group: Group, site: Site) -> Tensor:
    """(n, weights) everything in a producer's weight that makes each unit, as one vector per unit."""
    weight, outs = graph.program.tensors[site.weight].detach().cpu(), site.out_dims
    rows = _real(weight.movedim(outs, tuple(range(len(outs)))).reshape(site.outputs(weight), -1)).double()
    unit = torch.as_tensor(positions(site.out_axis(graph.tensor_axes[site.weight]), group.key))
    order = torch.argsort(unit, stable=True)
    return rows[order[unit[order] >= 0]].reshape(group.width, -1)


def given(stats: Stats | None) -> Stats:
    if stats is None:
        raise ValueError("this score needs statistics")
    return stats


def activation_of(stats: Stats | None, group: Group) -> Activation | None:
    """The activation values of a group's units; None where no consumer in eval mode sees them."""
    return given(stats).units.get(group.name)


def measure_of(stats: Stats | None, measure: str, group: Group) -> Tensor | None:
    """(n,) the mean of a measure; None for a group where it can't be taken.

    Raises:
        PlanError: the measure was not asked for when the statistics were collected.
    """
    known = given(stats).measures
    if measure not in known:
        raise missing_measure(measure, known)
    found = known[measure].get(group.name)
    return None if found is None else found.mean.cpu()


def missing_measure(measure: str, known: Iterable[str]) -> PlanError:
    names = ", ".join(map(repr, known)) or "none"
    return PlanError(
        f"The statistics hold no measure {measure!r}.",
        expected=f"statistics with {measure!r}, which costs a pass of its own and is taken only where asked for",
        got=f"measures: {names}",
        where="stats",
        hint=f'pass stats=collect(graph, calibration, measures=("{measure}",))',
    )
