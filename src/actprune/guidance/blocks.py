"""The greedy order of a wide group, by blocks: each time the cheapest of a few candidates, then one downdate for many.

One by one, as `greedy` does it, every removal touches the whole inverse and the whole weight: with p columns and r
outputs n (p² + p r) numbers move through memory. Here `REMOVED` units at a time are chosen by the exact costs among
the `CANDIDATES` that are cheapest before, on the candidates' own part of the inverse, and then taken out of the whole
in one product. That is an approximation only where a unit outside the candidates would have become cheaper than those
inside; the costs that the curve sums up are exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from actprune.guidance.problem import Problem, inverse_of

WIDE = 2048
"""Groups of more units, of one column each, are ranked so."""

REMOVED, CANDIDATES = 64, 160


def by_blocks(group: Sequence[Problem]) -> bool:
    """Whether a group is ranked so."""
    return bool(group) and all(p.columns.shape[0] > WIDE and p.columns.shape[1] == 1 for p in group)


class _State:
    """One consumer: the inverse M over the columns of the units that are there, then those of none, and W̃ᵀ."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._others = problem.kept(())

    def restart(self, units: Tensor) -> None:
        """Compute everything afresh with only `units`; they are rows 0, 1, … from now on."""
        kept = torch.cat([self.problem.columns[units].reshape(-1), self._others])
        self.inverse = inverse_of(self.problem.gram[kept][:, kept])
        target = self.problem.factor @ self.problem.gram[:, kept]
        self.weight = self.inverse @ target.T

    def remove(self, rows: Tensor) -> None:
        across = self.inverse[rows]  # (m, p)
        solved = torch.linalg.solve(across[:, rows], across)
        self.weight.addmm_(solved.T, self.weight[rows], alpha=-1)
        self.inverse.addmm_(across.T, solved, alpha=-1)

    def costs(self, rows: Tensor) -> Tensor:
        return self.weight[rows].pow(2).sum(1) / self.inverse.diagonal()[rows]


def eliminate_by_blocks(
    group: Sequence[Problem], removed_at_once: int = REMOVED, candidates: int = CANDIDATES
) -> tuple[list[int], list[float]]:
    """As `greedy.eliminate`: units from the most important to the first removed, and the curve."""
    states = [_State(problem) for problem in group]
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
        chosen, spent = _cheapest(states, rows[pool], min(removed_at_once, len(pool)))
        gone = pool[chosen]
        removed += alive[gone].tolist()
        curve += (curve[-1] + spent.cumsum(0)).tolist()
        stays = torch.ones(len(alive), dtype=torch.bool)
        stays[gone] = False
        for state in states if bool(stays.any()) else ():
            state.remove(rows[gone])
        alive, rows = alive[stays], rows[stays]
    return removed[::-1], curve[::-1]


def _cheapest(states: Sequence[_State], rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(count,) places in `rows`, each the cheapest once those before it are out, and what they cost.

    With M the candidates' part of the inverse, w the rows of W̃ᵀ and G = wwᵀ, the costs are diag G / diag M; when a unit
    j goes, w loses a w_j and M loses a M_j, with a = M_:j / M_jj. So w itself is not needed.
    """
    parts = [(state.inverse[rows][:, rows], state.weight[rows]) for state in states]
    parts = [(m, w @ w.T) for m, w in parts]
    gone = torch.zeros(len(rows), dtype=torch.bool)
    chosen: list[int] = []
    spent: list[float] = []
    for _ in range(count):
        costs = torch.stack([g.diagonal() / m.diagonal() for m, g in parts]).sum(0)
        costs[gone] = torch.inf
        j = int(costs.argmin())
        chosen.append(j)
        spent.append(max(float(costs[j]), 0.0))
        gone[j] = True
        for m, g in parts:
            pull = m[:, j] / m[j, j]
            half = g[:, j] - g[j, j] / 2 * pull
            g.addr_(pull, half, alpha=-1).addr_(half, pull, alpha=-1)
            m.addr_(pull, m[j].clone(), alpha=-1)
            m[j, j] = 1
    return torch.tensor(chosen), torch.tensor(spent, dtype=torch.float64)
