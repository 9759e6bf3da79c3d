"""Heat maps of the report: how the units of a group go together, and where in a layer's map they are active."""

from __future__ import annotations

import torch
from torch import Tensor

from actprune.axes.capture import Graph
from actprune.axes.groups import Group
from actprune.guidance import patterns
from actprune.report.record import MAP_PLACES, MAP_UNITS, Correlation, Places
from actprune.stats.statistics import Stats


def correlation(graph: Graph, stats: Stats, group: Group) -> Correlation | None:
    """Between units, in the middle of the kernel where they meet a convolution; None where nothing was measured."""
    units = _some(group.width, MAP_UNITS)
    found = patterns.correlation(graph, stats, group, units)
    if found is None:
        return None
    square = (100 * found.cpu()).round().clamp(-100, 100).int()
    above = torch.triu_indices(len(units), len(units), offset=1)
    return Correlation(tuple(units.tolist()), tuple(square[above[0], above[1]].tolist()))


def places(stats: Stats, group: Group) -> Places | None:
    """Mean and deviation of units at places of the map; None where the group's consumer is no convolution."""
    found = stats.maps.get(group.name)
    if found is None or found.mean.dim() != 2:
        return None
    units, where = _some(found.mean.shape[0], MAP_PLACES), _some(found.mean.shape[1], MAP_PLACES)
    mean, std = (_rows(one.cpu()[units][:, where]) for one in (found.mean, found.std))
    return Places(tuple(units.tolist()), mean, std)


def _some(count: int, most: int) -> Tensor:
    """At most so many of the first `count` numbers, evenly spread."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def _rows(values: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(f"{value:.3g}") for value in row) for row in values.tolist())
