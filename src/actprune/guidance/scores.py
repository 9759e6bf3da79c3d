"""Scores: one number per unit, larger = more important. Each is a small function in a table.

A score sees the graph, the statistics, and the group. To add one, write a function and put it into `SCORES`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from actprune.axes.capture import Graph
from actprune.axes.expr import positions
from actprune.axes.groups import Group
from actprune.guidance.problem import inverse_of, measured, problems, unit_columns
from actprune.stats.collect import Activation, Stats
from actprune.stats.patches import weight_matrix

Score = Callable[[Graph, Stats | None, Group, int], Tensor]
"""(graph, stats, group, seed) → (n,) float64."""


def per_unit(graph: Graph, group: Group, weight: str, dim: int, of: Callable[[Tensor], Tensor]) -> Tensor:
    """(n,) per unit, the sum of what `of` says of a weight's (size, …) rows in dimension `dim` that belong to it."""
    rows = graph.program.tensors[weight].detach().movedim(dim, 0).flatten(1)
    unit = torch.as_tensor(positions(graph.tensor_axes[weight][dim], group.key))
    held = unit >= 0
    # some rows at a time: float64 copies of a large weight would be most of the time and of the memory
    values = torch.cat([of(part.double().cpu()) for part in rows.split(max(1, _AT_ONCE // max(1, rows.shape[1])))])
    return torch.zeros(group.width, dtype=torch.float64).index_add_(0, unit[held], values[held])


_AT_ONCE = 2**18
"""So many elements of a weight are scored at once: they fit a processor's cache."""


def filter_norm(graph: Graph, group: Group, order: int) -> Tensor:
    """(n,) Lᵖ norm of the producers' filters (Li et al. 2017, Pruning Filters for Efficient ConvNets)."""
    total = torch.zeros(group.width, dtype=torch.float64)
    for site in group.producers:
        total += per_unit(graph, group, site.weight, site.out_dim, lambda rows: rows.abs().pow(order).sum(1))
    return total.pow(1 / order)


def l1(graph: Graph, stats: Stats | None, group: Group, seed: int) -> Tensor:
    return filter_norm(graph, group, 1)


def l2(graph: Graph, stats: Stats | None, group: Group, seed: int) -> Tensor:
    return filter_norm(graph, group, 2)


def random(graph: Graph, stats: Stats | None, group: Group, seed: int) -> Tensor:
    """Uniform noise: the floor that every criterion has to beat."""
    return torch.rand(group.width, generator=torch.Generator().manual_seed(seed + group.key), dtype=torch.float64)


def mean(graph: Graph, stats: Stats | None, group: Group, seed: int) -> Tensor:
    """Mean activation."""
    return _unit(stats, group).signed.mean


def std(graph: Graph, stats: Stats | None, group: Group, seed: int) -> Tensor:
    """Standard deviation of the activation."""
    return _unit(stats, group).signed.std


def activation(graph: Graph, stats: Stats | None, group: Group, seed: int) -> Tensor:
    """The seed's activation value, mean|a| + std|a|."""
    return _unit(stats, group).value


def apoz(graph: Graph, stats: Stats | None, group: Group, seed: int) -> Tensor:
    """Share of positive activations, so that a high average percentage of zeros goes first (Hu et al. 2016)."""
    return _unit(stats, group).positive


def correlation(graph: Graph, stats: Stats | None, group: Group, seed: int) -> Tensor:
    """What the other units can't predict linearly: 1 − R², averaged over a unit's columns and consumers."""
    found = problems(graph, _given(stats), group)
    total = torch.zeros(group.width, dtype=torch.float64)
    for problem in found:
        own = problem.columns
        inverse = inverse_of(problem.gram)[own[:, :, None], own[:, None, :]]
        # (M_gg)⁻¹ is what is left of C_gg + λI when the others have predicted what they can
        unexplained = torch.linalg.inv(inverse).diagonal(dim1=1, dim2=2) - problem.ridge
        variance = problem.total.covariance.diagonal()[own]
        share = torch.where(variance > 0, unexplained.clamp_min(0) / variance.clamp_min(1e-30), 0.0)
        total += share.mean(1) / len(found)
    return total


def flap(graph: Graph, stats: Stats | None, group: Group, seed: int) -> Tensor:
    """Fluctuation × squared weight norm (An et al. 2024, Fluctuation-based Adaptive Structured Pruning, eq. 5).

    Per column where a consumer has moments of its rows, else per unit (depthwise, transposed and very wide ones).
    """
    total = torch.zeros(group.width, dtype=torch.float64)
    sites = measured(graph, _given(stats), group)
    for site in group.consumers:
        if site in sites:
            matrix = weight_matrix(site, graph.program.tensors[site.weight].detach()).double().cpu()
            variance = _given(stats).moments(site.node).covariance.diagonal().cpu()
            total += (matrix.pow(2).sum(0) * variance)[unit_columns(graph, site, group, matrix.shape[1])].sum(1)
        else:
            norm = per_unit(graph, group, site.weight, site.in_dim, lambda rows: rows.pow(2).sum(1))
            total += norm * _unit(stats, group).signed.std.cpu() ** 2
    return total


SCORES: dict[str, Score] = {
    "l1": l1,
    "l2": l2,
    "random": random,
    "mean": mean,
    "std": std,
    "activation": activation,
    "apoz": apoz,
    "correlation": correlation,
    "flap": flap,
}


def _given(stats: Stats | None) -> Stats:
    if stats is None:
        raise ValueError("this score needs statistics")
    return stats


def _unit(stats: Stats | None, group: Group) -> Activation:
    return _given(stats).units[group.name]
