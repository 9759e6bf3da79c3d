"""Activation values of units: what the seed prunes by, and what reports tell."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from actprune.stats.spread import Spread


@dataclass(frozen=True, eq=False)
class Activation:
    """Activation values of a group's units, as its first consumer sees them.

    Attributes:
        signed: mean and deviations of a, per unit (n,).
        absolute: the same of |a|.
        positive: (n,) share of values above zero; one minus it is APoZ (Hu et al. 2016, Network Trimming).
        least, most: (n,) extremes.
    """

    signed: Spread
    absolute: Spread
    positive: Tensor
    least: Tensor
    most: Tensor

    @property
    def value(self) -> Tensor:
        """(n,) the seed's activation value, mean|a| + std|a|."""
        return self.absolute.mean + self.absolute.std

    def merge(self, other: Activation) -> Activation:
        """Of the values of both."""
        share = other.signed.count / (self.signed.count + other.signed.count)
        return Activation(
            self.signed.merge(other.signed),
            self.absolute.merge(other.absolute),
            self.positive.lerp(other.positive, share),
            torch.minimum(self.least, other.least),
            torch.maximum(self.most, other.most),
        )


def activation_of(values: Tensor, unit: Tensor, width: int) -> Activation:
    """Of values (columns, n), each column's row belonging to `unit`."""

    def total(x: Tensor) -> Tensor:
        return torch.zeros(width, dtype=torch.float64, device=x.device).index_add_(0, unit, x.sum(1))

    def extreme(x: Tensor, how: str) -> Tensor:
        zeros = torch.zeros(width, dtype=x.dtype, device=x.device)
        return zeros.scatter_reduce_(0, unit, x, how, include_self=False)

    def per_unit(x: Tensor) -> Spread:
        mean = total(x) / count
        return Spread(count, mean, total((x - mean[unit, None]) ** 2))

    count = values.numel() // width
    return Activation(
        per_unit(values),
        per_unit(values.abs()),
        total((values > 0).double()) / count,
        extreme(values.amin(1), "amin"),
        extreme(values.amax(1), "amax"),
    )
