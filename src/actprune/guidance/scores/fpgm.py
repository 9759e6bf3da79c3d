"""Filters that the others can stand in for."""

from __future__ import annotations

import torch
from torch import Tensor

from actprune.axes.capture import Graph
from actprune.axes.groups import Group
from actprune.guidance.scores.parts import unit_filters
from actprune.stats.statistics import Stats


def fpgm(graph: Graph, stats: Stats | None, group: Group, seed: int) -> Tensor:
    """Σ_j ‖F_i − F_j‖₂ over all filters of the layer: those nearest to the geometric median go first (He et al. 2019,
    Filter Pruning via Geometric Median, eq. 6).

    Units that several layers make (a shortcut) have one long filter, those layers' filters end to end.
    """
    filters = torch.cat([unit_filters(graph, group, site) for site in group.producers], 1)
    # the matrix product that cdist may use instead loses the small distances between near-equal filters
    return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
