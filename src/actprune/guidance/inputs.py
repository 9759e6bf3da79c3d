"""What is known of the input rows of a consumer: of all its columns, and of those of one group alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from actprune.stats.moments import Centred, Few, Moments, merge_all, moments

RIDGE = 1e-3
"""λ as a fraction of the mean variance of the columns."""

HELD = 8
"""What a group asks of single folds is held where the consumer has so many times more columns than the group."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """The input rows of one consumer, of which all groups that it reads ask the same.

    Attributes:
        folds: their moments, one per fold.
    """

    folds: tuple[Moments, ...]

    @cached_property
    def total(self) -> Moments:
        """All folds together."""
        return merge_all(self.folds)

    @cached_property
    def ridge(self) -> float:
        """λ."""
        return self.total.ridge(RIDGE)

    @cached_property
    def varies(self) -> Tensor:
        """(p,) see `Moments`."""
        return self.total.varies


@dataclass(frozen=True, eq=False)
class Rest:
    """The rows of the folds that are not held out, and those that are.

    Attributes:
        held: the moments of the fold.
        count: number of rows in the others; 0 where there is but one fold, which then judges itself.
        shift: (p,) δ, the held mean minus the others'.
    """

    held: Moments
    count: int
    shift: Tensor

    @property
    def pull(self) -> float:
        """The weight of δδᵀ in the scatter of the fold and the others together."""
        return self.held.count * self.count / (self.held.count + self.count)

    def covariances(self, total: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """((k, k), (k, k)) of these columns the covariance of the others, and the second moments of the held rows
        about the others' mean, from the scatter of all folds (k, k): no merged scatter is ever held."""
        held, shift = self.held.part(columns).scatter, self.shift[columns]
        moved, count = torch.outer(shift, shift), self.held.count
        fitted = (total - held - moved * self.pull) / self.count if self.count else held / count
        return fitted, held / count + moved


def rest_of(inputs: Inputs, fold: int) -> Rest:
    """With this fold held out."""
    total, held = inputs.total, inputs.folds[fold]
    count = total.count - held.count
    return Rest(held, count, (held.mean - total.mean) * (total.count / max(count, 1)))


@dataclass(frozen=True, eq=False)
class Own:
    """The same of the q columns g of one group, where a consumer reads others o as well, which stay whatever the group
    loses (behind a concatenation): what the others can say is taken out of the normal equations once,

        S = A_gg − A_go A_oo⁻¹ A_og,   A = C + λI,

    and with S for A and the group's own columns of the weight every support costs what it did. So a search among 32
    columns of 1,000 takes matrices of 32.

    Attributes:
        inputs: of all columns.
        columns: (n, b) see `Problem`.
    """

    inputs: Inputs
    columns: Tensor
    _folds: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict[int, "tuple[Tensor, Tensor]"], repr=False)

    @cached_property
    def others(self) -> Tensor:
        """(p − q,)"""
        mask = torch.ones(len(self.inputs.varies), dtype=torch.bool)
        mask[self.columns.reshape(-1)] = False
        return mask.nonzero().reshape(-1)

    @cached_property
    def moments(self) -> Moments:
        """Of the q columns, unit after unit, with S − λI for a covariance; of few rows as few."""
        total, ridge, own = self.inputs.total, self.inputs.ridge, self.columns.reshape(-1)
        if isinstance(total, Few):  # S = λI + R_gᵀ λ(R_o R_oᵀ + λI)⁻¹ R_g with RᵀR = C (Woodbury 1950)
            others = total.part(self.others).root
            small = others @ others.T
            small.diagonal().add_(ridge)
            rows = torch.linalg.solve_triangular(
                torch.linalg.cholesky(small), total.part(own).rows.double() * ridge**0.5, upper=False
            )
            return moments(Centred(total.mean[own], rows))
        gram = total.covariance
        gram.diagonal().add_(ridge)
        left, _ = _taken_out(gram, own, self.others)
        left.diagonal().sub_(ridge)
        return Moments(total.count, total.mean[own], left.mul_(total.count))

    def fold(self, i: int) -> tuple[Tensor, Tensor]:
        """((q, q), (q, q)): S of the folds but one, and the second moments of that one's rows of g less what the others
        say of them."""
        if i in self._folds:
            return self._folds[i]
        rest, own, others = rest_of(self.inputs, i), self.columns.reshape(-1), self.others
        fitted, held = rest.covariances(self.inputs.total.scatter, torch.arange(len(rest.shift)))
        fitted.diagonal().add_(self.inputs.ridge)
        left, said = _taken_out(fitted, own, others)
        rows = held[others]
        across = said.T @ rows[:, own]
        seen = held[own][:, own] - across - across.T + said.T @ (rows[:, others] @ said)
        if HELD * own.numel() <= len(rest.shift):
            self._folds[i] = left, seen
        return left, seen

    def forget(self) -> None:
        """What was computed, all but small."""
        vars(self).pop("moments", None)
        self._folds.clear()


def _taken_out(gram: Tensor, own: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """((q, q), (p − q, q)): S of A, and A_oo⁻¹ A_og."""
    rows = gram[others]
    across = rows[:, own]
    said = torch.cholesky_solve(across, torch.linalg.cholesky(rows[:, others]))
    return gram[own][:, own] - across.T @ said, said
