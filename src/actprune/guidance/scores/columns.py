"""Scores of the weights that read a unit, times what passes through them: FLAP and Wanda."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from actprune.axes.capture import Graph
from actprune.axes.groups import Group
from actprune.guidance.problem import measured, unit_columns
from actprune.guidance.scores.parts import activation_of, given, per_unit
from actprune.stats.patches import matrices_by_name
from actprune.stats.spread import Spread
from actprune.stats.statistics import Stats


def flap(graph: Graph, stats: Stats | None, group: Group, seed: int) -> Tensor | None:
    """Fluctuation × squared weight norm (An et al. 2024, Fluctuation-based Adaptive Structured Pruning, eq. 5).

    Per column where a consumer has moments of its rows, else per unit (transposed and very wide ones).
    """
    return _summed(_fluctuations(graph, stats, group))


def standardised(graph: Graph, stats: Stats | None, group: Group, seed: int) -> Tensor | None:
    """FLAP's scale between groups (§3.3): each column's score less the mean of its layer, over their deviation.

    A unit of several columns, such as a head, gets the mean of theirs; several consumers count alike. For ranking the
    units of different groups only: among the units of one consumer the order is that of `flap`.
    """
    scaled: list[Tensor] = []
    for scores in _fluctuations(graph, stats, group):
        spread = scores.std(correction=0)
        scaled.append(((scores - scores.mean()) / spread.clamp_min(1e-30)).mean(1))
    return torch.stack(scaled).mean(0) if scaled else None


def wanda(graph: Graph, stats: Stats | None, group: Group, seed: int) -> Tensor | None:
    """|W| · ‖x‖₂ of every weight that reads the unit, summed (Sun et al. 2024, A Simple and Effective Pruning Approach
    for Large Language Models, eq. 1; summed per unit as in the structured variant that An et al. 2024 compare with).

    ‖x‖₂ is taken over the rows of a consumer, and divided by the root of their number: the numbers of two consumers
    of one unit then don't decide between them.
    """

    def by_column(weight: Tensor, column: Spread) -> Tensor:
        return weight.abs().sum(0) * (column.mean.square() + column.variance).sqrt().cpu()

    def by_unit(rows: Tensor) -> Tensor:
        return rows.abs().sum(1)

    return _summed(_columns(graph, stats, group, by_column, by_unit, lambda mean, std: (mean**2 + std**2).sqrt()))


def _fluctuations(graph: Graph, stats: Stats | None, group: Group) -> list[Tensor]:
    """Per consumer (n, b): FLAP's score of each of its columns."""

    def by_column(weight: Tensor, column: Spread) -> Tensor:
        return weight.pow(2).sum(0) * column.variance.cpu()

    def by_unit(rows: Tensor) -> Tensor:
        return rows.pow(2).sum(1)

    return list(_columns(graph, stats, group, by_column, by_unit, lambda mean, std: std**2))


def _columns(
    graph: Graph,
    stats: Stats | None,
    group: Group,
    by_column: Callable[[Tensor, Spread], Tensor],
    by_unit: Callable[[Tensor], Tensor],
    size: Callable[[Tensor, Tensor], Tensor],
) -> Iterator[Tensor]:
    """Per consumer (n, b) scores of the columns of each unit, or (n, 1) where only the units' own moments are known.

    Args:
        by_column: (weight (o, p), the (p,) columns of the rows) → (p,).
        by_unit: weights (size, …) → (size,), to be multiplied with `size(mean, deviation)` of the unit.
    """
    found, unit = measured(graph, given(stats), group), activation_of(stats, group)
    for site in group.consumers:
        if site in found:
            held = matrices_by_name(site, graph.program.tensors[site.weight].detach())
            for name in found[site]:
                scores = by_column(held[name].double().cpu(), given(stats).columns(name))
                yield scores[unit_columns(graph, site, group, held[name].shape[1])]
        elif unit is not None:
            weights = sum(per_unit(graph, group, site.weight, dim, by_unit) for dim in site.in_dims)
            yield (weights * size(unit.signed.mean.cpu(), unit.signed.std.cpu()))[:, None]


def _summed(parts: list[Tensor] | Iterator[Tensor]) -> Tensor | None:
    """(n,) over all columns and consumers; None without a consumer."""
    found = [scores.sum(1) for scores in parts]
    return torch.stack(found).sum(0) if found else None
