"""Scores of the activations of a unit, as its first consumer sees them."""

from __future__ import annotations

import torch
from torch import Tensor

from actprune.axes.capture import Graph
from actprune.axes.groups import Group
from actprune.guidance.factors import inverse_of
from actprune.guidance.problem import problems
from actprune.guidance.scores.parts import activation_of, given
from actprune.stats.statistics import Stats


def mean(graph: Graph, stats: Stats | None, group: Group, seed: int) -> Tensor | None:
    """Size of the mean activation (Molchanov et al. 2017, Pruning Convolutional Neural Networks for Resource Efficient
    Inference, §2.2, "activation", who have it behind a ReLU, where no mean is negative)."""
    unit = activation_of(stats, group)
    return None if unit is None else unit.signed.mean.abs()


def std(graph: Graph, stats: Stats | None, group: Group, seed: int) -> Tensor | None:
    """Standard deviation of the activation (Molchanov et al. 2017, §2.2)."""
    unit = activation_of(stats, group)
    return None if unit is None else unit.signed.std


def activation(graph: Graph, stats: Stats | None, group: Group, seed: int) -> Tensor | None:
    """The seed's activation value, mean|a| + std|a|."""
    unit = activation_of(stats, group)
    return None if unit is None else unit.value


def apoz(graph: Graph, stats: Stats | None, group: Group, seed: int) -> Tensor | None:
    """Share of positive activations, so that a high average percentage of zeros goes first (Hu et al. 2016, Network
    Trimming, eq. 1). It counts the zeros of a ReLU: of units that take values below zero it says nothing."""
    unit = activation_of(stats, group)
    return None if unit is None or bool((unit.least < 0).any()) else unit.positive


def correlation(graph: Graph, stats: Stats | None, group: Group, seed: int) -> Tensor | None:
    """What the other units can't predict linearly: 1 − R², averaged over a unit's columns and consumers."""
    found = problems(graph, given(stats), group)
    if not found:
        return None
    total = torch.zeros(group.width, dtype=torch.float64)
    for problem in found:
        normal = problem.normal
        own = normal.columns
        inverse = inverse_of(normal.gram)[own[:, :, None], own[:, None, :]]
        # (M_gg)⁻¹ is what is left of C_gg + λI when the others have predicted what they can
        unexplained = torch.linalg.inv(inverse).diagonal(dim1=1, dim2=2) - problem.ridge
        variance = problem.total.variances[problem.columns]
        share = torch.where(variance > 0, unexplained.clamp_min(0) / variance.clamp_min(1e-30), 0.0)
        total += share.mean(1) / len(found)
    return total
