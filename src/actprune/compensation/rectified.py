"""Refitting in front of a ReLU: where the dense network is switched off, any negative value is right.

Plain least squares spends half of its strength on reproducing how negative a value was. Here the error of a sample
whose dense value v is ≤ 0 is only what is left above zero (compare the asymmetric reconstruction of Zhang et al.
2016, Accelerating Very Deep Convolutional Networks, §3.2):

    Σ_{v > 0} (ŷ − t)² + Σ_{v ≤ 0} max(ŷ − θ, 0)²

with θ the output at which the ReLU switches on. That is convex. It is minimised by majorisation: put the
target of a switched-off sample to min(ŷ, θ) and refit, with the same Gram matrix every time; Nesterov's (1983)
extrapolation makes a dozen rounds enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actprune.compensation.ridge import Fit, Normal, normal, solve
from actprune.stats.moments import Moments, cross, merge


@dataclass(frozen=True, eq=False)
class Rectified:
    """Targets of one batch of rows.

    Attributes:
        target: (n, o) t.
        off: (n, o) where the dense ReLU is switched off.
        bound: (n, o) θ.
        sign: (o,) +1 where the ReLU switches on above θ, −1 where the gain between is negative.
    """

    target: Tensor
    off: Tensor
    bound: Tensor
    sign: Tensor

    def reachable(self, value: Tensor) -> Tensor:
        """The nearest target to `value` that is right: itself where it is off as it should be."""
        beyond = torch.where(self.sign > 0, torch.minimum(value, self.bound), torch.maximum(value, self.bound))
        return torch.where(self.off, beyond, self.target)


def rectified_fit(
    rows: Callable[[], Iterable[Tensor]],
    targets: Sequence[Rectified],
    equations: Normal,
    first: Fit,
    start: Tensor,
    ridge: float,
    intercept: bool,
    rounds: int,
) -> Fit:
    """Improve `first` for outputs that a ReLU reads.

    Args:
        rows: gives the input rows (n, k) of every batch, again on every call.
        targets: one per batch.
        equations: of all rows; only their inner part is used.
        start, ridge, intercept: as for `solve`.
        rounds: of majorisation.
    """
    now, at, t = first, first, 1.0
    for _ in range(rounds):
        outer: Moments | None = None
        for x, wanted in zip(rows(), targets, strict=True):
            value = torch.addmm(at.bias.to(x.dtype), x, at.weight.T.to(x.dtype))
            outer = merge(outer, cross(wanted.reachable(value), x))
        if outer is None:
            return first
        new = solve(Normal(equations.inner, outer), start, ridge, intercept)
        following = (1 + (1 + 4 * t * t) ** 0.5) / 2
        step = (t - 1) / following
        at = Fit(new.weight + step * (new.weight - now.weight), new.bias + step * (new.bias - now.bias))
        now, t = new, following
    return now


__all__ = ["Rectified", "normal", "rectified_fit"]
