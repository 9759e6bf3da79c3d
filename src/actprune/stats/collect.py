"""`collect`: one pass over the calibration data that gathers the activation statistics of every consumer.

For each contraction that consumes a group: mean and covariance of its input rows (the seed's mean, standard
deviation and correlation), per fold, so that later choices can be judged on data that they were not made on.
For each group: the activation values of its units.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.data.samples import Calibration
from actprune.data.take import fit
from actprune.errors import DataError
from actprune.graph.room import calls_until, held_bytes
from actprune.graph.run import run_batch, run_by_layers
from actprune.mapped import any_mapped
from actprune.memory import MemoryLimit, limit_bytes
from actprune.stats.collector import Collector
from actprune.stats.gradients import Loss
from actprune.stats.measures import Measures
from actprune.stats.room import FOLDS, folds_on_disk, folds_within, last_read, statistics_bytes
from actprune.stats.statistics import Stats


def collect(
    graph: Graph,
    calibration: Iterable[Any] | Calibration,
    *,
    folds: int = FOLDS,
    measures: Iterable[str] = (),
    loss: Loss | None = None,
    total: int | None = None,
    first: int = 0,
    memory_limit: MemoryLimit = None,
) -> Stats:
    """Gather the statistics of every consumer and group of `graph`.

    Args:
        calibration: any iterable of batches, see `actprune.prune`.
        folds: number of parts for cross-validation; samples are dealt to them in turn.
        measures: what else to take, which costs more: "taylor" or "fisher" (gradients), "hrank" or "chip"
            (feature maps).
        loss: for "taylor" and "fisher": (outputs as the model returns them, labels) → scalar. Labels are then the
            element behind the inputs in every calibration tuple, or "labels" in a dict. Without it, the loss of the
            model's own predictions.
        total: number of samples of all parts together, where these are one part of what will be merged. The patches of
            a convolution overlap: of large maps only so many positions count that there are `ROWS` rows for each
            column, and every part must take the same.
        first: number of samples of the parts before this one, for samples are dealt to the folds by their number.
        memory_limit: what all covariances together may take; where they would take more there are fewer folds, then the
            widest consumers have none: "4GB", bytes, or None for a quarter of what there is.

    Raises:
        DataError: no folds, no data, data of another shape, no labels for a loss, or activations that are not finite.
        PlanError: an unknown measure.
    """
    if not isinstance(folds, int) or folds < 1:
        raise DataError(
            "This is no number of folds.",
            expected="a whole number ≥ 1",
            got=repr(folds),
            where="collect(folds=…)",
            hint=f"leave it out for {FOLDS}",
        )
    others = Measures(graph, measures, loss, first)
    data = fit(graph.program, calibration, labels=others.labelled)
    limit = limit_bytes(memory_limit)
    large = any_mapped(graph.program.tensors.values())
    room = folds_on_disk(graph, folds) if large else folds_within(graph, folds, limit)
    collector = Collector(graph, room, total or data.samples, first)
    if large and not others.found:
        _by_layers(collector, data, limit)
        return collector.result({})

    def observe(node: Node, args: tuple[Any, ...], value: Any) -> None:
        collector(node, args, value)
        others.observe(node, value)

    for i, batch in enumerate(data.batches):
        collector.inputs = batch
        run_batch(graph.program, batch, i, observe)
        collector.samples += graph.program.batch_size
        others.differentiate(batch, None if data.labels is None else data.labels[i])
    return collector.result(others.found)


def _by_layers(collector: Collector, data: Calibration, limit: int) -> None:
    """One pass, all batches through one layer after another: as many of them at a time as there is room for."""
    graph, size = collector.graph, collector.graph.program.batch_size
    last = last_read(graph)
    if last is None:
        return
    calls = calls_until(graph.program, last)
    at_once = max((limit - statistics_bytes(graph)) // max(held_bytes(calls), 1), 1)
    for start in range(0, len(data.batches), at_once):

        def observe(i: int, node: Node, args: tuple[Any, ...], value: Any, start: int = start) -> None:
            collector.samples, collector.inputs = (start + i) * size, data.batches[start + i]
            collector(node, args, value)

        run_by_layers(graph.program, data.batches[start : start + at_once], observe, last, collector.put_aside)
    collector.samples = data.samples
