"""Judging a support: the consumers refitted on some folds, their error measured on another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actprune.guidance.problem import Problem
from actprune.stats.moments import Moments, merge_all


def refit(problem: Problem, moments: Moments, units: Sequence[int] | Tensor) -> Tensor:
    """(o, p) the ridge refit of the consumer on the columns that stay, zero elsewhere."""
    kept = problem.kept(units)
    target = problem.weight @ moments.covariance[:, kept] + problem.ridge * problem.weight[:, kept]
    result = torch.zeros_like(problem.weight)
    result[:, kept] = _solve(_part(moments.covariance, kept), problem.ridge, target)
    return result


def held_out_error(group: Sequence[Problem], units: Sequence[int] | Tensor) -> float:
    """Error of the refitted consumers on folds they were not fitted on, as a share of the output variance.

    The mean is refitted too (it goes into the bias), so its shift between folds counts as error.
    """
    return Judge(group)(units)


class Judge:
    """`held_out_error` for many supports of one group: what they share is computed once."""

    def __init__(self, group: Sequence[Problem]) -> None:
        self._splits = [(problem, _splits(problem)) for problem in group]
        self._variance = sum(len(splits) * problem.variance for problem, splits in self._splits)

    def __call__(self, units: Sequence[int] | Tensor) -> float:
        error = 0.0
        for problem, splits in self._splits:
            kept = problem.kept(units)
            error += sum(split.lost(kept) for split in splits)
        return max(error, 0.0) / max(self._variance, 1e-30)


@dataclass(frozen=True, eq=False)
class _Split:
    """One fold held out. F is `Problem.factor`, C the covariance of the others (`rest`), H the second moments of
    the held rows about the mean of the others.

    Attributes:
        shift: (p,) δ, the held mean minus the others'.
        target: (r, p) F(C + λI).
        seen: (r, p) F H.
        whole: tr F H Fᵀ.
    """

    problem: Problem
    fold: Moments
    rest: int
    shift: Tensor
    target: Tensor
    seen: Tensor
    whole: float

    def lost(self, kept: Tensor) -> float:
        """tr (F̃ − F) H (F̃ − F)ᵀ with F̃ the refit on the columns `kept`, multiplied out."""
        shift, scatter = self.shift[kept], _part(self.fold.scatter, kept)
        outer = torch.outer(shift, shift)
        if self.rest == 0:  # a single fold judges itself
            covariance = scatter / self.fold.count
        else:
            total, share = _part(self.problem.total.scatter, kept), self.rest / self.problem.total.count
            covariance = (total - scatter - outer * (self.fold.count * share)) / self.rest
        new = _solve(covariance, self.problem.ridge, self.target[:, kept])
        held = scatter / self.fold.count + outer
        return float(((new @ held - 2 * self.seen[:, kept]) * new).sum()) + self.whole


def _splits(problem: Problem) -> list[_Split]:
    folds, factor = problem.folds, problem.factor
    found: list[_Split] = []
    for i, fold in enumerate(folds):
        train = fold if len(folds) == 1 else merge_all(folds[:i] + folds[i + 1 :])
        shift = fold.mean - train.mean
        target = factor @ train.covariance + problem.ridge * factor
        seen = factor @ fold.covariance + torch.outer(factor @ shift, shift)
        whole = float((seen * factor).sum())
        found.append(_Split(problem, fold, train.count if len(folds) > 1 else 0, shift, target, seen, whole))
    return found


def _part(matrix: Tensor, kept: Tensor) -> Tensor:
    return matrix[kept][:, kept]


def _solve(covariance: Tensor, ridge: float, target: Tensor) -> Tensor:
    """(r, k) target (C + λI)⁻¹."""
    inner = covariance + ridge * torch.eye(covariance.shape[0], dtype=covariance.dtype)
    return torch.cholesky_solve(target.T, torch.linalg.cholesky(inner)).T
