"""Scores of the feature maps of a unit, measured sample by sample: see `actprune.stats.maps`."""

from __future__ import annotations

from torch import Tensor

from actprune.axes.capture import Graph
from actprune.axes.groups import Group
from actprune.guidance.scores.parts import measure_of
from actprune.stats.statistics import Stats


def hrank(graph: Graph, stats: Stats | None, group: Group, seed: int) -> Tensor | None:
    """Mean rank of a unit's feature maps (Lin et al. 2020, HRank: Filter Pruning using High-Rank Feature Map, eq. 4).

    Where a unit has one value or a vector per sample, its rank is 0 or 1: the mean is the share of samples in which
    the unit is not zero, which tells units behind a ReLU apart. Where all units of a group have the same mean rank
    (vectors behind a smooth activation), ranks say nothing: None.
    """
    ranks = measure_of(stats, "hrank", group)
    return None if ranks is None or bool((ranks == ranks[0]).all()) else ranks


def chip(graph: Graph, stats: Stats | None, group: Group, seed: int) -> Tensor | None:
    """Channel independence (Sui et al. 2021, CHIP: CHannel Independence-based Pruning, eq. 4): by how much the nuclear
    norm of all feature maps of a layer, one row per unit, falls when a unit's row is set to zero.

    Units with one value per sample have the samples of a batch for their map. None for groups so wide that a single
    sample would cost more than `actprune.stats.maps.WORK`.
    """
    return measure_of(stats, "chip", group)
