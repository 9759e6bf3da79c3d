"""How many folds the statistics of each consumer are kept in, so that all covariances together keep to a limit."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.stats.patches import row_names

FOLDS = 5
WIDE = 1024
"""Consumers with more columns than this get two folds instead of five."""

JUDGED_COLUMNS = 2048
"""Where a consumer has more columns, supports are not compared on held-out folds (each comparison solves systems of
that size): the first criterion decides, and the natural width is read off its curve."""

_NUMBER = 8
"""Bytes of a float64."""


def folds_within(graph: Graph, folds: int = FOLDS, limit: float = inf) -> dict[str, int]:
    """Name of every consumer of a group that eval mode calls on rows → number of folds.

    Where the covariances take more than `limit` bytes there are two folds of every consumer, then one; then the widest
    ones are left out, whose inputs are ranked by their other consumers or by magnitude.
    """
    columns = _columns(graph)

    def held(chosen: Mapping[str, int]) -> int:
        return sum(_NUMBER * count * columns[name] ** 2 for name, count in chosen.items())

    chosen = {name: folds if p <= WIDE else min(folds, 2) for name, p in columns.items()}
    for most in (2, 1):
        if held(chosen) > limit:
            chosen = {name: min(count, most) for name, count in chosen.items()}
    for name in sorted(columns, key=lambda name: (-columns[name], name)):
        if held(chosen) <= limit:
            break
        del chosen[name]
    return chosen


def folds_on_disk(graph: Graph, folds: int = FOLDS) -> dict[str, int]:
    """The same, for a large model: its statistics lie on disk. The widest consumers, for which no supports are
    compared on held-out folds, have one."""
    return {name: (folds, min(folds, 2), 1)[(p > WIDE) + (p > JUDGED_COLUMNS)] for name, p in _columns(graph).items()}


def statistics_bytes(graph: Graph) -> int:
    """What the statistics of the widest consumer take while they are gathered: its folds, and one batch in float32."""
    folds = folds_on_disk(graph)
    return max(((_NUMBER * folds[name] + 4) * p**2 for name, p in _columns(graph).items()), default=0)


def last_read(graph: Graph) -> Node | None:
    """The last call that statistics are taken of."""
    read = {site.node for group in graph.groups for site in group.consumers if site in graph.sites}
    return next((node for node in reversed(graph.program.nodes) if node.name in read), None)


def _columns(graph: Graph) -> dict[str, int]:
    """What the statistics of every consumer with rows are known by → its columns."""
    tensors = graph.program.tensors
    return {
        name: site.columns(tensors[site.weight])
        for site in dict.fromkeys(site for group in graph.groups for site in group.consumers)
        if site in graph.sites
        for name in row_names(site, tensors[site.weight])
    }
