"""One consumer while units of a group are taken out many at a time: the inverse M, and the compensated weight W̃.

From the covariance, or from the rows themselves where they are few; and a part of either, on which single removals are
tried out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from actprune.guidance.factors import block_costs, traces
from actprune.guidance.problem import Normal, Problem
from actprune.stats.moments import Few


class Inverse:
    """One consumer: the inverse M over the columns of the units that are there, and W̃ᵀ; and what each unit costs that
    has nothing to do with the others."""

    def __init__(self, normal: Normal) -> None:
        self.normal, self.width = normal, normal.columns.shape[1]
        self._alone = torch.zeros(len(normal.columns), dtype=torch.float64)

    def restart(self, units: Tensor) -> None:
        """Compute everything afresh with only `units`; they are rows 0, 1, … from now on."""
        self.inverse, self.weight = self.normal.refitted(units)
        self.alone = self._alone[units]

    def remove(self, rows: Tensor) -> None:
        columns = self.columns(rows).reshape(-1)
        across = self.inverse[columns]  # (m b, p)
        solved = torch.linalg.solve(across[:, columns], across)
        self.weight.addmm_(solved.T, self.weight[columns], alpha=-1)
        self.inverse.addmm_(across.T, solved, alpha=-1)

    def own(self, at: Tensor) -> Tensor:
        """(m, q, q) what the columns of each row of `at` (m, q) have with each other in M."""
        return self.inverse[at[:, :, None], at[:, None, :]]

    def columns(self, rows: Tensor) -> Tensor:
        """(m, b) those of some units, as they lie in M."""
        return rows[:, None] * self.width + torch.arange(self.width)

    def costs(self, rows: Tensor) -> Tensor:
        at = self.columns(rows)
        return block_costs(self.own(at), self.weight[at]) + self.alone[rows]

    def part(self, rows: Tensor) -> Part:
        columns = self.columns(rows).reshape(-1)
        weight = self.weight[columns]
        return Part(self.own(columns[None])[0], weight @ weight.T, self.width, self.alone[rows])


class FewRows(Inverse):
    """The same where the covariance is FᵀF of fewer rows F (n, p) than columns: of M there is A = (FFᵀ + λI)⁻¹ F alone.

    M = (I − FᵀA) / λ (Woodbury 1950), and W̃ is W on what is kept and W_D F_Dᵀ A for what the columns D said that are
    gone. When the columns g go, A gains A_g T⁻¹ F_gᵀA with T = I − F_gᵀA_g.

    A unit of more columns than rows is turned so that all its rows lie in its first n columns, and the others are let
    go: no unit can stand in for those, and they cost λ‖w‖².
    """

    def __init__(self, normal: Normal, rows: Few) -> None:
        super().__init__(normal)
        self._all, self._factor, self._units = rows.root, normal.factor, normal.columns
        if len(self._all) < self.width:
            self._turn()

    def _turn(self) -> None:
        rows, factor, units = self._all, self._factor, self._units
        turns = torch.linalg.qr(rows[:, units].permute(1, 2, 0)).Q  # (units, b, n)
        turned = [torch.einsum("xub,ubn->xun", x[:, units], turns) for x in (rows, factor)]
        gone = factor[:, units].square().sum((0, 2)) - turned[1].square().sum((0, 2))
        self._alone = self.normal.ridge * gone.clamp_min(0.0)
        self._all, self._factor = (own.flatten(1) for own in turned)
        self.width = len(rows)
        self._units = torch.arange(units.shape[0] * self.width).view(-1, self.width)

    def restart(self, units: Tensor) -> None:
        kept = self._units[units].reshape(-1)
        factor, rows = self._factor, self._all[:, kept]
        gone = factor @ self._all.T - factor[:, kept] @ rows.T  # (r, n)
        small = rows @ rows.T
        small.diagonal().add_(self.normal.ridge)
        self.rows, self.answer = rows, torch.cholesky_solve(rows, torch.linalg.cholesky(small))
        self.weight = torch.addmm(factor[:, kept].T, self.answer.T, gone.T)
        self.alone = self._alone[units]

    def remove(self, rows: Tensor) -> None:
        columns = self.columns(rows).reshape(-1)
        across = self.rows[:, columns].T @ self.answer  # (m b, p)
        own = torch.eye(len(columns), dtype=across.dtype)
        solved = torch.linalg.solve(own - across[:, columns], torch.cat([across, own], 1))
        pulled, inverse = solved.tensor_split([across.shape[1]], 1)
        of_gone = self.weight[columns]
        self.weight.addmm_(pulled.T, of_gone)
        self.weight[columns] -= inverse.T @ of_gone
        self.answer.addmm_(self.answer[:, columns], pulled)

    def own(self, at: Tensor) -> Tensor:
        product = torch.einsum("nmb,nmc->mbc", self.rows[:, at], self.answer[:, at])
        return (torch.eye(at.shape[1], dtype=product.dtype) - product) / self.normal.ridge


def state_of(problem: Problem) -> Inverse:
    normal = problem.normal
    few = normal.moments
    return FewRows(normal, few) if isinstance(few, Few) else Inverse(normal)


class Part:
    """The candidates of one consumer: their part M of the inverse, and G = wwᵀ of their rows w of W̃ᵀ.

    When a unit j goes, w loses a w_j and M loses a M_j:, with a = M_:j M_jj⁻¹. The costs are tr M_jj⁻¹ G_jj: w itself
    is not needed.
    """

    def __init__(self, inverse: Tensor, products: Tensor, width: int, alone: Tensor) -> None:
        self.inverse, self.products, self.width, self.alone = inverse, products, width, alone

    def costs(self) -> Tensor:
        """(c,) of each candidate."""
        return traces(self._own(self.inverse), self._own(self.products)) + self.alone

    def remove(self, j: int) -> None:
        m, g, own = self.inverse, self.products, slice(j * self.width, (j + 1) * self.width)
        row = m[own].clone()
        pull = torch.linalg.solve(row[:, own], row).T  # (c b, b)
        half = g[:, own] - pull @ g[own, own] / 2
        g.addmm_(pull, half.T, alpha=-1).addmm_(half, pull.T, alpha=-1)
        m.addmm_(pull, row, alpha=-1)
        m[own, own] = torch.eye(self.width, dtype=m.dtype)

    def _own(self, matrix: Tensor) -> Tensor:
        """(c, b, b) what each candidate has with itself."""
        count = len(matrix) // self.width
        return matrix.view(count, self.width, count, self.width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
