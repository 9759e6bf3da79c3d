"""Backward greedy elimination with exact costs.

    S_g = Σ_c tr( R_c W̃_g [M_gg]⁻¹ W̃_gᵀ ),   M = (C + λI)⁻¹ over the kept columns

is exactly what the ridge objective J rises by when unit g goes and the others are refitted (the block form of
Optimal Brain Surgeon, Hassibi and Stork 1992, on the layer's own objective). For one column it reads ‖w̃‖² σ² (1 − R²):
weight × fluctuation × what the other units can't predict, the three statistics of the seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from actprune.guidance.factors import block_costs
from actprune.guidance.problem import Problem

REFACTOR_EVERY = 64
"""Removals after which the inverse is computed afresh, against the drift of the downdates; at least a quarter of
the units, so that all these inversions together stay of the order of the first."""

GATHER, GATHER_UNITS = 64, 8
"""Downdates of the inverse are gathered until they touch so many columns, or units where those have many columns each,
then applied in one matrix product: one by one they would be bound by memory, not by arithmetic."""


class Elimination:
    """The state of one consumer during elimination: the inverse M, and the compensated weight W̃ as `Normal.factor`.

    Columns are those of the units still there, unit after unit.
    """

    def __init__(self, problem: Problem) -> None:
        self._normal = problem.normal
        self._width = problem.columns.shape[1]
        self.restart(torch.arange(problem.columns.shape[0]))

    def restart(self, units: Tensor) -> None:
        """Compute everything afresh with only `units` kept."""
        self._hold(units, *self._normal.refitted(units))

    def costs(self, units: Tensor) -> Tensor:
        """(len(units),) S_g of each unit."""
        return self._unit_costs()[self._row[units]]

    def remove(self, unit: int) -> None:
        """Take the unit's columns out and let the others take over what they can."""
        row, b = int(self._row[unit]), self._width
        columns = slice(row * b, row * b + b)
        left, right = self._left[: self._gathered], self._right[: self._gathered]
        across = self._inverse[columns] - left[:, columns].T @ right  # (b, p)
        solved = torch.linalg.solve(across[:, columns], across)
        self._weight -= solved.T @ self._weight[columns]
        own, other = (self._per_unit(x.T) for x in (across, solved))  # (n, b, b)
        self._blocks -= own @ other.transpose(1, 2)
        self._weight[columns] = 0
        self._blocks[row] = torch.eye(b, dtype=torch.float64)
        self._row[unit] = -1
        self._left[self._gathered : self._gathered + b] = across
        self._right[self._gathered : self._gathered + b] = solved
        self._gathered += b
        if self._gathered + b > self._left.shape[0]:
            self._apply()

    def _hold(self, units: Tensor, inverse: Tensor, weight: Tensor) -> None:
        """Set the state: `weight` is (p, r), so that the rows of a unit lie together."""
        n, b = units.numel(), self._width
        self._row = torch.full((self._normal.columns.shape[0],), -1)
        self._row[units] = torch.arange(n)
        self._inverse, self._weight = inverse, weight
        index = torch.arange(n * b).reshape(n, b)
        self._blocks = inverse[index[:, :, None], index[:, None, :]]
        size = max(GATHER, GATHER_UNITS * b)
        self._left, self._right = torch.empty(2, size, inverse.shape[0], dtype=torch.float64)
        self._gathered = 0

    def _apply(self) -> None:
        """Apply the gathered downdates and let go of what was removed."""
        self._inverse -= self._left[: self._gathered].T @ self._right[: self._gathered]
        units = (self._row >= 0).nonzero().reshape(-1)
        rows, b = self._row[units], self._width
        kept = (rows[:, None] * b + torch.arange(b)).reshape(-1)
        inverse = self._inverse[kept][:, kept]
        self._hold(units, (inverse + inverse.T) / 2, self._weight[kept])

    def _unit_costs(self) -> Tensor:
        return block_costs(self._blocks, self._per_unit(self._weight))

    def _per_unit(self, x: Tensor) -> Tensor:
        """(p, …) → (n, b, …)."""
        return x.reshape(*self._blocks.shape[:2], -1)


def eliminate(group: Sequence[Problem], order: Sequence[int] | None = None) -> tuple[list[int], list[float]]:
    """Remove unit after unit, each time the cheapest, or the last of a given `order`.

    Returns:
        (order, curve): units from the most important to the first removed; curve[k] is the rise of the objective when
        the first k of them are kept (curve[n] = 0).
    """
    states = [Elimination(problem) for problem in group]
    alive = list(range(group[0].columns.shape[0]))
    removed: list[int] = []
    curve = [0.0]
    since = 0
    while alive:
        costs = torch.stack([state.costs(torch.tensor(alive)) for state in states]).sum(0)
        chosen = int(costs.argmin()) if order is None else alive.index(order[len(alive) - 1])
        curve.append(curve[-1] + max(float(costs[chosen]), 0.0))
        removed.append(alive.pop(chosen))
        since += 1
        afresh = since >= max(REFACTOR_EVERY, len(alive) // 4)
        for state in states if alive else ():
            if afresh:
                state.restart(torch.tensor(alive))
            else:
                state.remove(removed[-1])
        since = 0 if afresh else since
    return removed[::-1], curve[::-1]
