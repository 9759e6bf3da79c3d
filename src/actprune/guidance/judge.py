"""Judging a support: the consumers refitted on some folds, their error measured on another."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor

from actprune.guidance.inputs import Own, rest_of
from actprune.guidance.problem import Problem
from actprune.stats.moments import Few

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


def _court(problem: Problem, first: int, count: int) -> _Court | _OwnCourt | _RowCourt:
    """One consumer, judged on `count` of its folds, from the `first` one on and round."""
    held = [(first + i) % len(problem.folds) for i in range(min(count, len(problem.folds)))]
    few = problem.total
    if isinstance(few, Few):
        return _RowCourt(problem, few, held)
    return _Court(problem, held) if problem.alone is None else _OwnCourt(problem, problem.alone, held)


class _Court:
    """By the moments of the folds. With F `Problem.factor`, C the covariance of the folds but one and H the second
    moments of that one's rows about their mean, it holds F(C + λI) and F H of each (r, p), and tr F H Fᵀ."""

    def __init__(self, problem: Problem, held: Sequence[int]) -> None:
        self.problem, self.held = problem, [rest_of(problem.inputs, i) for i in held]
        factor = problem.factor
        self.targets, self.seen, self.wholes = list[Tensor](), list[Tensor](), list[float]()
        every = factor @ problem.total.scatter
        for rest in self.held:
            count, moved = rest.held.count, torch.outer(factor @ rest.shift, rest.shift)
            seen = factor @ rest.held.scatter
            fitted = every - seen - moved * rest.pull if rest.count else seen
            self.targets.append(fitted / (rest.count or count) + problem.ridge * factor)
            self.seen.append(seen / count + moved)
            self.wholes.append(float((self.seen[-1] * factor).sum()))

    def lost(self, units: Sequence[int] | Tensor) -> float:
        kept = self.problem.kept(units)
        total = self.problem.total.part(kept).scatter
        error = sum(self.wholes)
        for rest, target, seen in zip(self.held, self.targets, self.seen, strict=True):
            fitted, held = rest.covariances(total, kept)
            fitted.diagonal().add_(self.problem.ridge)
            error += _changed(fitted, held, target[:, kept], seen[:, kept])
        return error


class _OwnCourt:
    """The same where a consumer has columns that always stay: among those of the group alone."""

    def __init__(self, problem: Problem, alone: Own, held: Sequence[int]) -> None:
        normal = problem.normal
        self.problem, self.normal, self.held = problem, normal, [alone.fold(i) for i in held]
        self.targets = [normal.factor @ gram for gram, _ in self.held]
        self.seen = [normal.factor @ held for _, held in self.held]
        self.whole = sum(float((seen * normal.factor).sum()) for seen in self.seen)

    def lost(self, units: Sequence[int] | Tensor) -> float:
        kept = self.normal.kept(units)
        error = self.whole
        for (gram, held), target, seen in zip(self.held, self.targets, self.seen, strict=True):
            error += _changed(gram[kept][:, kept], held[kept][:, kept], target[:, kept], seen[:, kept])
        return error


def _changed(gram: Tensor, held: Tensor, target: Tensor, seen: Tensor) -> float:
    """tr (F̃ − F) H (F̃ − F)ᵀ − tr F H Fᵀ, multiplied out, with F̃ the refit on the columns that are kept: of these A, H,
    F A and F H."""
    new = torch.cholesky_solve(target.T, torch.linalg.cholesky(gram)).T
    return float(((new @ held - 2 * seen) * new).sum())


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
