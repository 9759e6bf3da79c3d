"""Exchanging units of a support while the ridge objective J falls, by the sweep operator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from actprune.guidance.factors import block_costs, inverse_of
from actprune.guidance.problem import Problem


def swap(group: Sequence[Problem], units: Sequence[int], rounds: int) -> list[int]:
    """Improve a support by exchanging one kept unit for one removed, while the objective falls.

    Returns:
        as many units, sorted; at most `rounds` of them exchanged, the cheapest to lose for the one that gains most.
    """
    kept = set(units)
    everything = range(group[0].columns.shape[0])
    if len(kept) in (0, len(everything)):
        return sorted(kept)
    tableaus = [Tableau(problem, sorted(kept)) for problem in group]
    for _ in range(rounds):
        now = sorted(kept)
        leaving = now[int(_total(tableau.losses(now) for tableau in tableaus).argmin())]
        for tableau in tableaus:
            tableau.drop(leaving)
        outside = [unit for unit in everything if unit not in kept or unit == leaving]
        gains = _total(tableau.gains(outside) for tableau in tableaus)
        entering = outside[int(gains.argmax())]
        better = float(gains.max()) - float(gains[outside.index(leaving)])
        if entering == leaving or better <= 1e-9 * float(gains.max()):
            break
        for tableau in tableaus:
            tableau.add(entering)
        kept = kept - {leaving} | {entering}
    return sorted(kept)


class Tableau:
    """One consumer's normal equations, swept on the columns K that are kept; D are the others.

    With A = C + λI and F the weight (`Normal.factor`), the sweep operator (Goodnight 1979, A Tutorial on the SWEEP
    Operator) leaves

        table:   −A_KK⁻¹  |  A_KK⁻¹ A_KD                        rows:   F̃_K  |  (F − F̃) A_:D
                     ·    |  A_DD − A_DK A_KK⁻¹ A_KD

    so that what is lost by dropping a unit, tr F̃_g (A_KK⁻¹)_gg⁻¹ F̃_gᵀ, and what is gained by adding one,
    tr N_h S_hh⁻¹ N_hᵀ with S the Schur complement and N the right part of `rows`, are both read off its blocks.
    """

    def __init__(self, problem: Problem, units: Sequence[int]) -> None:
        normal = problem.normal
        self.columns = normal.columns
        gram, kept = normal.gram, normal.kept(units)
        inverse = inverse_of(gram[kept][:, kept])
        across = inverse @ gram[kept]  # (k, p)
        self.table = gram - gram[:, kept] @ across
        self.table[kept], self.table[:, kept] = across, across.T
        self.table[kept[:, None], kept] = -inverse
        target = normal.factor @ gram
        self.rows = target - target[:, kept] @ across
        self.rows[:, kept] = target[:, kept] @ inverse

    def losses(self, units: Sequence[int]) -> Tensor:
        """(len(units),) by how much the objective rises when one of these kept units goes."""
        return self._costs(units, -1)

    def gains(self, units: Sequence[int]) -> Tensor:
        """(len(units),) by how much the objective falls when one of these removed units is kept."""
        return self._costs(units, 1)

    def drop(self, unit: int) -> None:
        """Sweep a kept unit out."""
        self._sweep(unit, -1)

    def add(self, unit: int) -> None:
        """Sweep a removed unit in."""
        self._sweep(unit, 1)

    def _costs(self, units: Sequence[int], sign: int) -> Tensor:
        columns = self.columns[torch.as_tensor(units)]
        block = sign * self.table[columns[:, :, None], columns[:, None, :]]
        return block_costs(block, self.rows.T[columns])

    def _sweep(self, unit: int, sign: int) -> None:
        columns = self.columns[unit]
        across = self.table[columns].clone()
        pivot = torch.linalg.inv(across[:, columns])
        solved = pivot @ across
        own = self.rows[:, columns]
        self.table -= across.T @ solved
        self.rows -= own @ solved
        self.table[columns], self.table[:, columns] = sign * solved, sign * solved.T
        self.table[columns[:, None], columns] = -pivot
        self.rows[:, columns] = sign * own @ pivot


def _total(costs: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(costs)).sum(0)
