"""The greedy order of a wide group, by blocks: each time the cheapest of a few candidates, then one downdate for many.

One by one, as `greedy` does it, every removal touches the whole inverse and the whole weight: with p columns and r
outputs n (p² + p r) numbers move through memory. Here some units at a time (`REMOVED`) are chosen by the exact costs
among those that are cheapest before (`CANDIDATES`), on the candidates' own part of the inverse, and then taken out of
the whole in one product. That is an approximation only where a unit outside the candidates would have become cheaper
than those inside; the costs that the curve sums up are exact.

From few rows a removal is cheap (`inverse.FewRows`): there blocks of one unit, which are no approximation, do for all
but the largest groups of small units.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt

import torch
from torch import Tensor

from actprune.guidance.greedy import eliminate
from actprune.guidance.inverse import Part, state_of
from actprune.guidance.problem import Problem
from actprune.stats.moments import Few

WIDE, MOVED = 2048, 6e9
"""Groups are ranked so, if they have many units or few rows, that have more columns in one of their consumers, or whose
removals one by one would move more numbers (1,024 units that seven layers read). What 1,536 units cost one layer of 384
outputs was the same to 0.2 % either way, now more, now less."""

REMOVED, CANDIDATES = 64, 160
"""Units of one column; of units of b columns √b times fewer."""

ALONE = 64
"""Units of so many columns are taken out one by one: their part of the inverse would be as large as the whole."""


def by_blocks(group: Sequence[Problem]) -> bool:
    """Whether a group is ranked so."""
    asked = [p for p in group if len(p.columns) > CANDIDATES or isinstance(p.moments, Few)]
    return any(p.columns.numel() > WIDE for p in asked) or sum(map(_moved, asked)) > MOVED


def _moved(problem: Problem) -> int:
    """Numbers that the removals of all units pass over, one by one."""
    (n, b), rows = problem.columns.shape, problem.moments
    return n * n * b * ((rows.count if isinstance(rows, Few) else n * b) + min(problem.matrix.shape))


def greedy_order(group: Sequence[Problem]) -> tuple[list[int], list[float]]:
    """As `greedy.eliminate`, by what is the least work: few rows make a removal so cheap that it needs no blocks."""
    if by_blocks(group):
        return eliminate_by_blocks(group)
    few = all(isinstance(problem.moments, Few) for problem in group)
    return eliminate_by_blocks(group, 1, 1) if few else eliminate(group)


def eliminate_by_blocks(
    group: Sequence[Problem], removed_at_once: int = REMOVED, candidates: int = CANDIDATES
) -> tuple[list[int], list[float]]:
    """As `greedy.eliminate`: units from the most important to the first removed, and the curve."""
    states = [state_of(problem) for problem in group]
    widest = max(state.width for state in states)
    fewer = ceil(sqrt(widest)) if widest < ALONE else max(removed_at_once, candidates)
    removed_at_once, candidates = max(removed_at_once // fewer, 1), max(candidates // fewer, 1)
    alive = torch.arange(group[0].columns.shape[0])
    removed: list[int] = []
    curve = [0.0]
    fresh, rows = 0, alive
    while len(alive):
        if len(alive) <= fresh // 2 or not fresh:  # afresh: against drift, and to let go of what is gone
            for state in states:
                state.restart(alive)
            fresh, rows = len(alive), torch.arange(len(alive))
        costs = torch.stack([state.costs(rows) for state in states]).sum(0)
        pool = costs.topk(min(candidates, len(alive)), largest=False).indices
        parts = [state.part(rows[pool]) for state in states]
        chosen, spent = _cheapest(parts, len(pool), min(removed_at_once, len(pool)))
        gone = pool[chosen]
        removed += alive[gone].tolist()
        curve += (curve[-1] + spent.cumsum(0)).tolist()
        stays = torch.ones(len(alive), dtype=torch.bool)
        stays[gone] = False
        for state in states if bool(stays.any()) else ():
            state.remove(rows[gone])
        alive, rows = alive[stays], rows[stays]
    return removed[::-1], curve[::-1]


def _cheapest(parts: Sequence[Part], candidates: int, count: int) -> tuple[Tensor, Tensor]:
    """(count,) candidates, each the cheapest once those before it are out, and what they cost."""
    gone = torch.zeros(candidates, dtype=torch.bool)
    chosen: list[int] = []
    spent: list[float] = []
    for _ in range(count):
        costs = torch.stack([part.costs() for part in parts]).sum(0)
        costs[gone] = torch.inf
        j = int(costs.argmin())
        chosen.append(j)
        spent.append(max(float(costs[j]), 0.0))
        gone[j] = True
        for part in parts:
            part.remove(j)
    return torch.tensor(chosen), torch.tensor(spent, dtype=torch.float64)
