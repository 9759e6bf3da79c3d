"""Judging a support: the consumers refitted on some folds, their error measured on another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from actprune.guidance.problem import Problem
from actprune.stats.moments import Moments

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
        self._splits = [(problem, _splits(problem, i, each)) for i, problem in enumerate(group)]
        self._variance = sum(len(splits) * problem.variance for problem, splits in self._splits)

    def __call__(self, units: Sequence[int] | Tensor) -> float:
        error = 0.0
        for problem, splits in self._splits:
            kept = problem.kept(units)
            total = _part(problem.total.scatter, kept)
            error += sum(_lost(split, total, problem.ridge, kept) for split in splits)
        return max(error, 0.0) / max(self._variance, 1e-30)


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


def _splits(problem: Problem, first: int, count: int) -> list[_Split]:
    """Of `count` folds, from the `first` one on and round.

    The others' moments are the total's less the fold's, so no merged scatter is ever held.
    """
    total, factor, folds = problem.total, problem.factor, problem.folds
    every = factor @ total.scatter
    found: list[_Split] = []
    for fold in [folds[(first + i) % len(folds)] for i in range(min(count, len(folds)))]:
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
    held, rest, shift = _part(split.held.scatter, kept), split.rest, split.shift[kept]
    moved = torch.outer(shift, shift)
    fitted = (total - held - moved * _pull(split.held, rest)) / rest if rest else held / split.held.count
    new = _solve(fitted, ridge, split.target[:, kept])
    seen = new @ (held / split.held.count + moved)
    return float(((seen - 2 * split.seen[:, kept]) * new).sum()) + split.whole


def _pull(fold: Moments, rest: int) -> float:
    """The weight of δδᵀ in the scatter of a fold and the others together."""
    return fold.count * rest / (fold.count + rest)


def _part(matrix: Tensor, kept: Tensor) -> Tensor:
    return matrix[kept][:, kept]


def _solve(covariance: Tensor, ridge: float, target: Tensor) -> Tensor:
    """(r, k) target (C + λI)⁻¹."""
    inner = covariance + ridge * torch.eye(covariance.shape[0], dtype=covariance.dtype)
    return torch.cholesky_solve(target.T, torch.linalg.cholesky(inner)).T
