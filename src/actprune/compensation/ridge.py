"""Ridge regression on kept columns, shrunk to the weights that are there, with λ chosen on held-out folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import isfinite
from typing import TypeAlias

import torch
from torch import Tensor

from actprune.errors import DataError
from actprune.stats.moments import (
    Centred,
    Few,
    Moments,
    absorb,
    absorb_cross,
    centred,
    cross,
    merge,
    merge_all,
    moments,
)

RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""λ candidates, as fractions of the mean variance of the kept columns."""

LARGE, SAID = 5, 4
"""From this place on they all but leave the weights as they are; looked at where rows say little of what to change:
where there are fewer than so many for each column."""

USUAL = 2
"""The place of the usual candidate."""

Chosen: TypeAlias = dict[tuple[str, int, int], float]
"""(call, group of a convolution, magnitude of its columns) → λ, for refits of widths near each other."""

MAX_CHOSEN = 1024
"""With more columns than this λ is the usual one: each choice costs nine to twenty-one factorisations."""


@dataclass(frozen=True, eq=False)
class Normal:
    """The normal equations of one set of samples.

    Attributes:
        inner: moments of the inputs x̃ (k,).
        outer: cross moments of the targets t (o,) with x̃: scatter (o, k).
    """

    inner: Moments
    outer: Moments


def normal(x: Tensor | Centred, t: Tensor) -> Normal:
    """Of rows x (n, k) and t (n, o)."""
    x = centred(x)
    return Normal(moments(x), cross(t, x))


def absorbed(total: Normal | None, x: Tensor | Centred, t: Tensor, inner: Moments | None = None) -> Normal:
    """`merged(total, normal(x, t))`, for which `total` is used up.

    Args:
        inner: the moments of the inputs of all samples, where they are known: then only the targets count.
    """
    x = centred(x)
    if inner is not None:
        return Normal(inner, absorb_cross(total.outer if total else None, t, x))
    return Normal(absorb(total.inner if total else None, x), absorb_cross(total.outer if total else None, t, x))


def merged(a: Normal | None, b: Normal) -> Normal:
    """Of the samples of both together."""
    return b if a is None else Normal(merge(a.inner, b.inner), merge(a.outer, b.outer))


def merged_all(parts: Sequence[Normal]) -> Normal:
    """Of all samples together."""
    return Normal(merge_all(part.inner for part in parts), merge_all(part.outer for part in parts))


@dataclass(frozen=True, eq=False)
class Fit:
    """t ≈ weight · x̃ + bias. weight: (o, k); bias: (o,), zero where no intercept was wanted."""

    weight: Tensor
    bias: Tensor


class Ridge:
    """The minimum of E|t − W x̃ − b|² + λ‖W − start‖² for one set of inputs and any targets.

    The Gram matrix C = RᵀR is factorised once; where it is singular beyond what λ mends, λ is raised. With fewer rows R
    than columns it is the smaller one, RRᵀ: (C + λI)⁻¹ = (I − Rᵀ(RRᵀ + λI)⁻¹R) / λ (Woodbury 1950).

    Args:
        inner: moments of the inputs.
        ridge: λ as a fraction of the mean variance of the columns.
        intercept: whether there is a bias; without one the moments are not centred.

    Raises:
        DataError: the inputs are not finite: no λ mends that.
    """

    def __init__(self, inner: Moments, ridge: float, intercept: bool) -> None:
        self._inner, self._intercept = inner, intercept
        self._size = inner.ridge(ridge, intercept)
        if not isfinite(self._size):
            raise _not_finite()
        self._root = _root(inner, intercept)
        gram = _gram(inner, intercept) if self._root is None else self._root @ self._root.T
        diagonal = gram.diagonal().clone()
        while True:
            gram.diagonal().copy_(diagonal + self._size)
            self._factor, failed = torch.linalg.cholesky_ex(gram)
            if not bool(failed):
                break
            self._size *= 10

    def fit(self, outer: Moments, start: Tensor) -> Fit:
        """For targets with these cross moments, shrunk to `start` (o, k)."""
        right = (outer.covariance if self._intercept else outer.second) + self._size * start
        weight = self._solved(right)
        bias = outer.mean - weight @ self._inner.mean if self._intercept else torch.zeros_like(outer.mean)
        return Fit(weight, bias)

    def _solved(self, right: Tensor) -> Tensor:
        """(o, k) right (C + λI)⁻¹"""
        if self._root is None:
            return torch.cholesky_solve(right.T, self._factor).T
        across = torch.cholesky_solve(self._root @ right.T, self._factor)
        return torch.addmm(right, across.T, self._root, alpha=-1).div_(self._size)


def _gram(inner: Moments, intercept: bool) -> Tensor:
    """(k, k) a matrix of its own: λ is added in place."""
    return inner.covariance if intercept else inner.second


def _root(inner: Moments, intercept: bool) -> Tensor | None:
    """(m, k) R with RᵀR the covariance, or the second moments without an intercept; None where it has no fewer rows."""
    if not isinstance(inner, Few) or inner.count + (not intercept) >= len(inner.mean):
        return None
    return inner.root if intercept else torch.cat([inner.root, inner.mean[None]])


def _not_finite() -> DataError:
    return DataError(
        "Activations are not finite.",
        expected="finite inputs of every layer on all calibration data",
        got="NaN or infinite values, or ones whose squares are",
        where="the equations of a refit",
        hint="look for NaN or infinite entries in the calibration data; collect(graph, data) names the layer",
    )


def solve(equations: Normal, start: Tensor, ridge: float, intercept: bool) -> Fit:
    """One fit, see `Ridge`."""
    return Ridge(equations.inner, ridge, intercept).fit(equations.outer, start)


def usual_ridge() -> float:
    """Where λ is not chosen, and where the choice begins."""
    return RIDGES[USUAL]


def choose_ridge(folds: Sequence[Normal], start: Tensor, intercept: bool) -> float:
    """The λ whose fits have the smallest error on the folds that they were not made on.

    Walked to from the usual one: too little of λ and too much both make the error larger.
    """
    if len(folds) < 2 or start.shape[1] > MAX_CHOSEN:
        return usual_ridge()
    few = sum(fold.inner.count for fold in folds) < SAID * start.shape[1]
    sizes = RIDGES if few else RIDGES[:LARGE]
    pairs = [(fold, merged_all([part for i, part in enumerate(folds) if i != held])) for held, fold in enumerate(folds)]

    @cache
    def error(place: int) -> float:
        return sum(_error(fold, solve(rest, start, sizes[place], intercept)) for fold, rest in pairs)

    best = USUAL
    while near := [i for i in (best - 1, best + 1) if 0 <= i < len(sizes) and error(i) < error(best)]:
        best = min(near, key=error)
    return sizes[best]


def _error(equations: Normal, fit: Fit) -> float:
    """E|t − W x̃ − b|² without E|t|², which all candidates share."""
    inner, right = equations.inner, equations.outer.second
    x, t, w, b = inner.mean, equations.outer.mean, fit.weight, fit.bias
    quadratic = inner.spread_along(w) + float((w @ x).square().sum()) - 2 * float((w * right).sum())
    return quadratic + float(b @ b) + 2 * float(b @ (w @ x - t))
