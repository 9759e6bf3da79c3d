"""Streaming mean and covariance that can be merged, after Chan, Golub and LeVeque (1983).

Where there are far fewer vectors than entries, the vectors themselves are kept (`Few`): they are the smaller ones, and
what is asked of the covariance is quicker to get from them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from actprune.stats.spread import Spread

ROUNDING = 1e-7
"""Relative precision of the values that are seen: float32."""

TINY = 1e-34
"""No λ is smaller: products of numbers of 1e-19 are beyond float32, in which they are summed, and a covariance of such
numbers is not positive definite."""

FEW, LONG = 4, 512
"""Vectors are kept where there are so many times fewer of them than entries, of vectors that have so many."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and scatter of vectors.

    Products are taken in float32, of values in float64 in that, less the mean of their batch; sums are kept in
    float64: never E[x²] − μ², which loses all digits where the mean is large.

    Attributes:
        count: number of vectors.
        mean: (p,) float64.
        scatter: (p, q) float64, Σ (x − mean)(y − mean_y)ᵀ; q = p and y = x unless made by `cross`.
        other: (q,) mean of y, where this is a cross moment.
    """

    count: int
    mean: Tensor
    scatter: Tensor
    other: Tensor | None = None

    @property
    def covariance(self) -> Tensor:
        """(p, q) float64, divided by the count."""
        return self.scatter / max(self.count, 1)

    @property
    def variances(self) -> Tensor:
        """(p,) the diagonal of the covariance."""
        return self.scatter.diagonal() / max(self.count, 1)

    @property
    def varies(self) -> Tensor:
        """(p,) whether a value fluctuates by more than its rounding."""
        return self.variances > (ROUNDING * self.mean) ** 2

    @property
    def entries(self) -> Spread:
        """(p,) each for itself; not of cross moments."""
        return Spread(self.count, self.mean, self.variances * self.count)

    @property
    def second(self) -> Tensor:
        """(p, q) float64, E[x yᵀ], not centred."""
        right = self.mean if self.other is None else self.other
        return self.covariance + torch.outer(self.mean, right)

    def ridge(self, share: float, intercept: bool = True) -> float:
        """λ as a share of the mean variance of the entries, or of their mean square where there is no intercept.

        In the units of the entries squared: whatever they are measured in, a fit comes to the same. No less than what
        rounding makes of entries that are constant.
        """
        variances = self.variances
        variance, square = float(variances.mean()), float((variances + self.mean**2).mean())
        return max(share * (variance if intercept else square), ROUNDING**2 * square, TINY)

    def spread_along(self, weight: Tensor) -> float:
        """tr W C Wᵀ of weights W (r, p): the variance of W x, all entries together."""
        return float(((weight @ self.covariance) * weight).sum())

    def part(self, columns: Tensor) -> Moments:
        """Of these entries alone; not of cross moments."""
        return Moments(self.count, self.mean[columns], self.scatter[columns][:, columns])

    @property
    def held(self) -> Tensor:
        """The largest tensor that is held."""
        return self.scatter

    def holding(self, mean: Tensor, held: Tensor) -> Moments:
        """With the same numbers in other tensors."""
        return replace(self, mean=mean, scatter=held)

    def mapped(self, weight: Tensor, constant: Tensor) -> Moments:
        """Cross moments of weight (o, p) · x + constant (o,) with y, from those of x with y."""
        return Moments(self.count, weight @ self.mean + constant, weight @ self.scatter, self.other)


class Few(Moments):
    """Of fewer vectors than they have entries.

    Attributes:
        rows: (count, p) the vectors less their mean, at least float32.
    """

    rows: Tensor

    def __init__(self, count: int, mean: Tensor, rows: Tensor) -> None:
        vars(self).update(count=count, mean=mean, rows=rows, other=None)

    @property
    def scatter(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(p, p), made whenever something asks for it."""
        return _gram(self.rows).double()

    @property
    def variances(self) -> Tensor:
        return self.rows.double().square().sum(0) / max(self.count, 1)

    @property
    def root(self) -> Tensor:
        """(count, p) float64, R with RᵀR = C."""
        return self.rows.double() / max(self.count, 1) ** 0.5

    def spread_along(self, weight: Tensor) -> float:
        return float((self.root @ weight.T).square_().sum())

    def part(self, columns: Tensor) -> Few:
        return Few(self.count, self.mean[columns], self.rows[:, columns])

    @property
    def held(self) -> Tensor:
        return self.rows

    def holding(self, mean: Tensor, held: Tensor) -> Few:
        return Few(self.count, mean, held)


@dataclass(frozen=True, eq=False)
class Centred:
    """Rows without their mean, for those that go into several moments.

    Attributes:
        mean: (p,) float64.
        rows: (n, p), at least float32.
    """

    mean: Tensor
    rows: Tensor


def moments(x: Tensor | Centred) -> Moments:
    """Of rows x (n, p); n may be 0."""
    x = centred(x)
    return _of_rows(x.mean, x.rows)


def _of_rows(mean: Tensor, rows: Tensor) -> Moments:
    """Of vectors less their mean."""
    count, p = rows.shape
    if p >= LONG and 0 < count * FEW <= p:
        return Few(count, mean, rows)
    return Moments(count, mean, _gram(rows).double())


def cross(x: Tensor | Centred, y: Tensor | Centred) -> Moments:
    """Of rows x (n, p) with y (n, q): scatter (p, q)."""
    x, y = centred(x), centred(y)
    return Moments(len(x.rows), x.mean, (x.rows.T @ y.rows).double(), y.mean)


def absorb(total: Moments | None, x: Tensor | Centred) -> Moments:
    """`merge(total, moments(x))` without a second matrix in float64: `total` may be used no more."""
    x = centred(x)
    if total is None or total.count == 0:
        return moments(x)
    if isinstance(total, Few):
        return merge(total, moments(x))
    return total if not len(x.rows) else _added(total, len(x.rows), x.mean, _gram(x.rows), None)


def absorb_cross(total: Moments | None, x: Tensor | Centred, y: Tensor | Centred) -> Moments:
    """`merge(total, cross(x, y))`, likewise."""
    x, y = centred(x), centred(y)
    if total is None or total.count == 0:
        return cross(x, y)
    return total if not len(x.rows) else _added(total, len(x.rows), x.mean, x.rows.T @ y.rows, y.mean)


BLOCK = 1024
"""Columns of a strip of a large Gram matrix."""


def _gram(rows: Tensor) -> Tensor:
    """rowsᵀ · rows; of a large one only the half above the diagonal is computed."""
    p = rows.shape[1]
    if p < 2 * BLOCK:
        return rows.T @ rows
    found = rows.new_empty(p, p)
    for start in range(0, p, BLOCK):
        stop = min(start + BLOCK, p)
        found[start:stop, start:] = rows[:, start:stop].T @ rows[:, start:]
        found[stop:, start:stop] = found[start:stop, stop:].T
    return found


def _added(a: Moments, count: int, mean: Tensor, scatter: Tensor, other: Tensor | None) -> Moments:
    """Into the scatter of `a`, which has vectors as these have: how many, their mean, their scatter, the mean of y."""
    total = a.count + count
    delta = mean - a.mean
    delta_y = delta if other is None or a.other is None else other - a.other
    a.scatter.add_(scatter).addr_(delta, delta_y, alpha=a.count * count / total)
    joint = None if a.other is None else a.other + delta_y * (count / total)
    return Moments(total, a.mean + delta * (count / total), a.scatter, joint)


def centred(x: Tensor | Centred) -> Centred:
    """Twice, for the mean of large values is itself rounded: the second mean is that of small ones."""
    if isinstance(x, Centred):
        return x
    x = x if x.dtype == torch.float64 else x.float()
    if x.shape[0] == 0:
        return Centred(torch.zeros(x.shape[1], dtype=torch.float64, device=x.device), x)
    mean = x.mean(0)
    rows = x - mean
    rest = rows.mean(0)
    return Centred(mean.double() + rest.double(), rows.sub_(rest))


def merge(a: Moments | None, b: Moments) -> Moments:
    """The moments of both sets of vectors together."""
    if a is None or a.count == 0:
        return b
    if b.count == 0:
        return a
    count = a.count + b.count
    delta = b.mean - a.mean
    if isinstance(a, Few) and isinstance(b, Few):
        mean = a.mean + delta * (b.count / count)
        return _of_rows(mean, torch.cat([own.rows + (own.mean - mean).to(own.rows.dtype) for own in (a, b)]))
    if a.other is None or b.other is None:
        delta_y, other = delta, None
    else:
        delta_y = b.other - a.other
        other = a.other + delta_y * (b.count / count)
    scatter = a.scatter + b.scatter + torch.outer(delta, delta_y) * (a.count * b.count / count)
    return Moments(count, a.mean + delta * (b.count / count), scatter, other)


def merge_all(parts: Iterable[Moments]) -> Moments:
    """The moments of all parts together; there must be at least one."""
    total: Moments | None = None
    for part in parts:
        total = merge(total, part)
    if total is None:
        raise ValueError("no moments to merge")
    return total
