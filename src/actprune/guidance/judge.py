"""Judging a support: the consumers refitted on some folds, their error measured on another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from actprune.guidance.problem import Problem
from actprune.stats.moments import Few, Moments

REFITS = 10
"""A support is judged by so many refits at least, where there are as many: a group with many consumers by each of
them on fewer folds, since their errors are summed anyway."""


class Judge:
    """The held-out error of the supports of one group; what they share is computed once.

    It is the error of the refitted consumers on folds they were not fitted on, as a share of the output variance. The
    mean is refitted too (it goes into the bias), so its shift between folds counts as error.
    """

    def __init__(self, group: Sequence[Problem]) -> None:
        each = ceil(REFITS / max(len(group), 1))
        self._courts = [_court(problem, i, each) for i, problem in enumerate(group)]
        self._variance = sum(len(court.held) * court.problem.variance for court in self._courts)

    def __call__(self, units: Sequence[int] | Tensor) -> float:
        error = sum(court.lost(units) for court in self._courts)
        return max(error, 0.0) / max(self._variance, 1e-30)


def _court(problem: Problem, first: int, count: int) -> _Court | _RowCourt:
    """One consumer, judged on `count` of its folds, from the `first` one on and round."""
    held = [(first + i) % len(problem.folds) for i in range(min(count, len(problem.folds)))]
    few = problem.total
    return _RowCourt(problem, few, held) if isinstance(few, Few) else _Court(problem, held)


class _Court:
    """By the moments of the folds."""

    def __init__(self, problem: Problem, held: Sequence[int]) -> None:
        self.problem, self.held = problem, _splits(problem, [problem.folds[i] for i in held])

    def lost(self, units: Sequence[int] | Tensor) -> float:
        kept = self.problem.kept(units)
        total = self.problem.total.part(kept).scatter
        return sum(_lost(split, total, self.problem.ridge, kept) for split in self.held)


class _RowCourt:
    """By the rows themselves, where they are fewer than the columns.

    With Z the rows, K the columns that are kept and D the others, the refit on the m rows a predicts of the rows h

        Z_D F_Dᵀ ≈ Z_K,h Z_K,aᵀ (Z_K,a Z_K,aᵀ + m λ I)⁻¹ Z_D,a F_Dᵀ,

    all less the mean of a: the refit's dual form (Saunders, Gammerman and Vovk 1998, Ridge Regression Learning
    Algorithm in Dual Variables). The products of the rows serve all folds.
    """

    def __init__(self, problem: Problem, few: Few, held: Sequence[int]) -> None:
        self.problem, self.rows = problem, few.rows.double()  # fold after fold
        fold = torch.repeat_interleave(torch.tensor([one.count for one in problem.folds]))
        self.held = [fold == i for i in held]
        self.products = self.rows @ self.rows.T

    def lost(self, units: Sequence[int] | Tensor) -> float:
        gone = torch.ones(self.rows.shape[1], dtype=torch.bool)
        gone[self.problem.kept(units)] = False
        rows = self.rows[:, gone]
        kept, said = self.products - rows @ rows.T, rows @ self.problem.factor[:, gone].T  # (N, N), (N, r)
        return sum(self._unpredicted(kept, said, held) for held in self.held)

    def _unpredicted(self, kept: Tensor, said: Tensor, held: Tensor) -> float:
        """The mean square, over the rows that are held out, of what the others don't predict."""
        rest = held if bool(held.all()) else ~held  # one fold judges itself
        own = kept[:, rest] - kept[:, rest].mean(1, keepdim=True)
        own -= own[rest].mean(0)  # (N, m) centred on the others on both sides
        said = said - said[rest].mean(0)
        inner = own[rest]
        inner.diagonal().add_(self.problem.ridge * len(inner))
        found = own[held] @ torch.cholesky_solve(said[rest], torch.linalg.cholesky(inner))
        return float((said[held] - found).square().sum()) / int(held.sum())


@dataclass(frozen=True, eq=False)
class _Split:
    """One fold held out. F is `Problem.factor`, C the covariance of the others, H the second moments of the held rows
    about the mean of the others.

    Attributes:
        held: the moments of the fold.
        rest: number of rows in the others; 0 where there is but one fold, which then judges itself.
        shift: (p,) δ, the held mean minus the others'.
        target: (r, p) F(C + λI).
        seen: (r, p) F H.
        whole: tr F H Fᵀ.
    """

    held: Moments
    rest: int
    shift: Tensor
    target: Tensor
    seen: Tensor
    whole: float


def _splits(problem: Problem, folds: Sequence[Moments]) -> list[_Split]:
    """Of these folds. The others' moments are the total's less the fold's, so no merged scatter is ever held."""
    total, factor = problem.total, problem.factor
    every = factor @ total.scatter
    found: list[_Split] = []
    for fold in folds:
        rest = total.count - fold.count
        shift = (fold.mean - total.mean) * (total.count / max(rest, 1))
        moved = torch.outer(factor @ shift, shift)
        seen = factor @ fold.scatter
        fitted = every - seen - moved * _pull(fold, rest) if rest else seen
        target = fitted / (rest or fold.count) + problem.ridge * factor
        seen = seen / fold.count + moved
        found.append(_Split(fold, rest, shift, target, seen, float((seen * factor).sum())))
    return found


def _lost(split: _Split, total: Tensor, ridge: float, kept: Tensor) -> float:
    """tr (F̃ − F) H (F̃ − F)ᵀ with F̃ the refit on the columns `kept`, multiplied out; `total` is all folds' scatter."""
    held, rest, shift = split.held.part(kept).scatter, split.rest, split.shift[kept]
    moved = torch.outer(shift, shift)
    fitted = (total - held - moved * _pull(split.held, rest)) / rest if rest else held / split.held.count
    new = _solve(fitted, ridge, split.target[:, kept])
    seen = new @ (held / split.held.count + moved)
    return float(((seen - 2 * split.seen[:, kept]) * new).sum()) + split.whole


def _pull(fold: Moments, rest: int) -> float:
    """The weight of δδᵀ in the scatter of a fold and the others together."""
    return fold.count * rest / (fold.count + rest)


def _solve(covariance: Tensor, ridge: float, target: Tensor) -> Tensor:
    """(r, k) target (C + λI)⁻¹."""
    inner = covariance + ridge * torch.eye(covariance.shape[0], dtype=covariance.dtype)
    return torch.cholesky_solve(target.T, torch.linalg.cholesky(inner)).T
