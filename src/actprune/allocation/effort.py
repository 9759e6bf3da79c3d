"""How much the search for widths may cost: multiply-adds and calls are counted, not seconds."""

from __future__ import annotations

from math import prod

from torch import Tensor
from torch.fx import Node

from actprune.allocation.cost import cost
from actprune.allocation.sensitivity import FRACTIONS
from actprune.axes.capture import Graph
from actprune.axes.site import Site
from actprune.graph.program import shape
from actprune.stats.patches import QUICK_ROWS, most_rows, row_names

MEASURE_SAMPLES = 2048
"""Calibration samples that candidates are refitted and compared on while widths are decided."""

CURVE_SAMPLES, CHANGE_SAMPLES = 128, 64
"""Held-out samples that the curves of single groups are measured on, and single changes of a large network that is cut;
whole networks are compared on all of them."""

MEASURE_WORK = 5e12
"""Multiply-adds that measuring all sensitivity curves may take; large models use fewer samples."""

WORK = 6e11
"""Multiply-adds that the improvement in context may spend; it takes `ROUNDS` of steps and `TRIALS` trades at most."""

REFIT_WORK = 2e13
"""Multiply-adds that its refits may spend: with a convolution of thousands of columns, one takes as much as hundreds of
forward passes. They may be more, since large matrix products are the fastest work there is."""

CALL = 2e5
"""A call takes at least as long as so many multiply-adds: a detector of two thousand calls that hardly multiply is not
small."""

ROUNDS, TRIALS = 12, 64

STARTS = 8
"""Networks that are measured at most before the improvement in context."""

FITTED = 3
"""So many samples are refitted on for each that candidates are compared on."""

STEPPED = 5
"""So often the refit of a recurrent call runs it, besides the two streams."""


def measured_samples(graph: Graph) -> int:
    """Held-out samples with which measuring every sensitivity curve keeps to `MEASURE_WORK`: `FRACTIONS` runs of every
    group, half of the network each, and two of what is refitted on."""
    per_sample = max(_run_work(graph) * (len(FRACTIONS) / 2 * len(graph.groups) + 2 * FITTED), 1)
    return max(graph.program.batch_size, min(MEASURE_SAMPLES // (1 + FITTED), int(MEASURE_WORK / per_sample)))


def affordable(graph: Graph, samples: int) -> tuple[int, int]:
    """(rounds, trials) that keep to `WORK` and `REFIT_WORK`: rounds first, trades with what they leave.

    A round runs and refits the whole network once, in two streams, on the samples of the refits, and takes two
    candidates of every group, each half a run on those that changes are compared on. A trade is such a candidate; those
    that look better are refitted as a whole.

    Args:
        samples: that networks are compared on.
    """
    fitted, compared = FITTED * samples, change_samples(graph, samples)
    run, steps = _run_work(graph), STEPPED * _stepped(graph)
    refits, groups = _refit_work(graph, fitted), len(graph.groups)
    each = run * (groups * compared + 2 * fitted) + steps * (groups + 1) * fitted, refits
    rounds = _whole(ROUNDS, (WORK, REFIT_WORK), each)
    left = WORK - rounds * each[0], REFIT_WORK - rounds * each[1]
    return rounds, _whole(TRIALS, left, (run * (compared + fitted) + steps * fitted, refits / 2))


def starts(graph: Graph, samples: int) -> int:
    """Networks that may be measured to find where the improvement begins: with half the work of all curves, and that of
    the refits."""
    fitted = FITTED * samples
    each = 2 * _run_work(graph) * fitted + STEPPED * _stepped(graph) * fitted, _refit_work(graph, fitted)
    return _whole(STARTS, (MEASURE_WORK / 2, REFIT_WORK), each)


def change_samples(graph: Graph, samples: int) -> int:
    """Of the samples that networks are compared on, those for single changes: all where the network is small."""
    return samples if is_small(graph, samples) else min(samples, max(CHANGE_SAMPLES, graph.program.batch_size))


def is_small(graph: Graph, samples: int) -> bool:
    """Whether all rounds with all samples would take no more than half of the work that is allowed, and the refits of
    all networks no more than the whole of it."""
    runs = ROUNDS * _run_work(graph) * samples * (len(graph.groups) + 2 * FITTED)
    refits = (STARTS + ROUNDS + TRIALS // 2) * _refit_work(graph, FITTED * samples)
    return 2 * runs <= WORK and refits <= WORK


def _run_work(graph: Graph) -> float:
    """Multiply-adds that a run takes for each sample, its calls among them."""
    calls = sum(node.op == "call_function" for node in graph.program.nodes)
    return cost(graph).macs + CALL * calls / graph.program.batch_size


def _whole(most: int, work: tuple[float, float], each: tuple[float, float]) -> int:
    """How often the work of both kinds suffices for one, at most `most`."""
    return min(most, *(int(total / max(one, 1)) for total, one in zip(work, each, strict=True)))


def _stepped(graph: Graph) -> int:
    """Multiply-adds per sample of the recurrent calls."""
    nodes = {node.name: node for node in graph.program.nodes}
    return sum(
        graph.program.tensors[site.weight].numel() * _positions(graph, nodes[site.node], site)
        for site in graph.sites
        if site.kind == "recurrent"
    )


def _positions(graph: Graph, call: Node, site: Site) -> int:
    """The rows per sample that a consumer's weight is multiplied with."""
    if site.kind == "recurrent":
        value = call.meta["val"]
        return prod((value if isinstance(value, Tensor) else value[0]).shape[:-1]) // graph.program.batch_size
    weight = graph.program.tensors[site.weight]
    return prod(shape(call)) // (site.outputs(weight) * site.matrices(weight) * graph.program.batch_size)


def _refit_work(graph: Graph, samples: int) -> int:
    """Multiply-adds of the normal equations where every consumer is refitted once: rows × columns²."""
    calls = {node.name: node for node in graph.program.nodes}
    total = 0
    for site in {site for group in graph.groups for site in group.consumers if site.node in calls}:
        weight = graph.program.tensors[site.weight]
        columns, rows = site.columns(weight), samples * _positions(graph, calls[site.node], site)
        total += len(row_names(site, weight)) * min(rows, most_rows(columns, QUICK_ROWS)) * columns**2
    return total
