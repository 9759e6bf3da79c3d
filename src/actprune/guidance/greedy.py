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

from actprune.guidance.problem import Problem

REFACTOR_EVERY = 64
"""Removals after which the inverse is computed afresh, against the drift of the downdates."""


class Elimination:
    """The state of one consumer during elimination: the inverse Gram and the compensated weight."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.restart(torch.arange(problem.columns.shape[0]))

    def restart(self, units: Tensor) -> None:
        """Compute everything afresh with only `units` kept."""
        problem = self.problem
        kept = problem.kept(units)
        p = problem.weight.shape[1]
        inverse = torch.linalg.inv(problem.gram[kept][:, kept])
        self.inverse = torch.zeros(p, p, dtype=torch.float64)
        self.inverse[kept[:, None], kept] = (inverse + inverse.T) / 2
        self.weight = torch.zeros_like(problem.weight)
        # W_K + W_D (C + λI)_DK (C + λI)_KK⁻¹ is W (C + λI)_:K (C + λI)_KK⁻¹
        self.weight[:, kept] = problem.weight @ problem.gram[:, kept] @ inverse

    def costs(self, units: Tensor) -> Tensor:
        """(len(units),) S_g of each unit."""
        columns = self.problem.columns[units]
        block = self.inverse[columns[:, :, None], columns[:, None, :]]
        weight = self.weight[:, columns].permute(1, 0, 2)  # (n, o, b)
        solved = torch.linalg.solve(block, weight.transpose(1, 2))  # (n, b, o)
        return (weight.transpose(1, 2) * solved * self.problem.rows).sum((1, 2))

    def remove(self, unit: int) -> None:
        """Take the unit's columns out and let the others take over what they can."""
        columns = self.problem.columns[unit]
        across = self.inverse[columns]  # (b, p)
        solved = torch.linalg.solve(across[:, columns], across)
        self.weight -= self.weight[:, columns] @ solved
        self.inverse -= across.T @ solved
        self.weight[:, columns] = 0
        self.inverse[columns] = 0
        self.inverse[:, columns] = 0


def eliminate(group: Sequence[Problem]) -> tuple[list[int], list[float]]:
    """Remove unit after unit, each time the cheapest.

    Returns:
        (order, curve): units from the most important to the first removed; curve[k] is the rise of the
        objective when the first k of them are kept (curve[n] = 0, curve[0] of the last unit extrapolated
        by its own cost).
    """
    n = group[0].columns.shape[0]
    states = [Elimination(problem) for problem in group]
    alive = list(range(n))
    removed: list[int] = []
    curve = [0.0]
    while alive:
        units = torch.tensor(alive)
        costs = sum((state.costs(units) for state in states), torch.zeros(len(alive), dtype=torch.float64))
        cheapest = int(costs.argmin())
        curve.append(curve[-1] + max(float(costs[cheapest]), 0.0))
        removed.append(alive.pop(cheapest))
        if alive and len(removed) % REFACTOR_EVERY == 0:
            for state in states:
                state.restart(torch.tensor(alive))
        elif alive:
            for state in states:
                state.remove(removed[-1])
    return removed[::-1], curve[::-1]


def swap(group: Sequence[Problem], units: Sequence[int], rounds: int) -> list[int]:
    """Improve a support by exchanging one kept unit for one removed, while the objective falls.

    Removing g costs S_g; adding h then gains tr(N_h S_hh⁻¹ N_hᵀ) with the Schur complement S = A_DD − A_DK A_KK⁻¹ A_KD
    of the removed columns and N = W_D S.
    """
    n = group[0].columns.shape[0]
    kept = sorted(units)
    if len(kept) in (0, n):
        return kept
    states = [Elimination(problem) for problem in group]
    for _ in range(rounds):
        for state in states:
            state.restart(torch.tensor(kept))
        now = torch.tensor(kept)
        costs = sum((state.costs(now) for state in states), torch.zeros(len(kept), dtype=torch.float64))
        leaving = kept[int(costs.argmin())]
        without = [unit for unit in kept if unit != leaving]
        outside = [unit for unit in range(n) if unit not in without]
        gains = sum((_gains(problem, without, outside) for problem in group), torch.zeros(len(outside)).double())
        entering = outside[int(gains.argmax())]
        better = float(gains.max()) - float(gains[outside.index(leaving)])
        if entering == leaving or better <= 1e-9 * float(gains.max()):
            break
        kept = sorted([*without, entering])
    return kept


def _gains(problem: Problem, kept: Sequence[int], outside: Sequence[int]) -> Tensor:
    """(len(outside),) by how much the objective falls when one more unit is kept."""
    stay = problem.kept(kept)
    gone = problem.columns[torch.tensor(outside)]
    flat = gone.reshape(-1)
    gram = problem.gram
    schur = gram[flat][:, flat]
    if stay.numel():
        cross = gram[stay][:, flat]
        schur = schur - cross.T @ torch.linalg.solve(gram[stay][:, stay], cross)
    n, b = gone.shape
    numerator = (problem.weight[:, flat] @ schur).reshape(-1, n, b).permute(1, 0, 2)  # (n, o, b)
    index = torch.arange(n * b).reshape(n, b)
    block = schur[index[:, :, None], index[:, None, :]]
    solved = torch.linalg.solve(block, numerator.transpose(1, 2))
    return (numerator.transpose(1, 2) * solved * problem.rows).sum((1, 2))
