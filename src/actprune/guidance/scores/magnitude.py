"""Scores of the weights that make a unit: norms of its filters."""

from __future__ import annotations

import torch
from torch import Tensor

from actprune.axes.capture import Graph
from actprune.axes.groups import Group
from actprune.guidance.scores.parts import per_unit
from actprune.stats.statistics import Stats


def filter_norm(graph: Graph, group: Group, order: int) -> Tensor:
    """(n,) Lᵖ norm of the producers' filters (Li et al. 2017, Pruning Filters for Efficient ConvNets, §3.1)."""
    total = torch.zeros(group.width, dtype=torch.float64)
    for site, dim in ((made, dim) for made in group.producers for dim in made.out_dims):
        total += per_unit(graph, group, site.weight, dim, lambda rows: rows.abs().pow(order).sum(1))
    return total.pow(1 / order)


def l1(graph: Graph, stats: Stats | None, group: Group, seed: int) -> Tensor:
    return filter_norm(graph, group, 1)


def l2(graph: Graph, stats: Stats | None, group: Group, seed: int) -> Tensor:
    return filter_norm(graph, group, 2)
