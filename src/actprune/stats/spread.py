"""Streaming mean and deviation of many scalars, each for itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Spread:
    """Count, mean and sum of squared deviations of many scalars, each for itself; merged like `Moments`.

    Attributes:
        count: number of values per entry.
        mean: (…) float64.
        deviations: (…) float64, Σ (x − mean)².
    """

    count: int
    mean: Tensor
    deviations: Tensor

    @property
    def variance(self) -> Tensor:
        """(…) divided by the count."""
        return self.deviations / max(self.count, 1)

    @property
    def std(self) -> Tensor:
        """(…) standard deviation."""
        return self.variance.sqrt()

    def merge(self, other: Spread) -> Spread:
        """Of the values of both."""
        count = self.count + other.count
        delta, share = other.mean - self.mean, other.count / max(count, 1)
        return Spread(
            count,
            self.mean + delta * share,
            self.deviations + other.deviations + delta**2 * (self.count * share),
        )


def spread(x: Tensor) -> Spread:
    """Over the first dimension of x (n, …)."""
    x = x.double()
    mean = x.mean(0)
    return Spread(x.shape[0], mean, ((x - mean) ** 2).sum(0))
