"""Refitting in front of a ReLU: where the dense network is switched off, any negative value is right.

Plain least squares spends half of its strength on reproducing how negative a value was. Here the error of a sample
whose dense value v is ≤ 0 is only what is left above zero (compare the asymmetric reconstruction of Zhang et al.
2016, Accelerating Very Deep Convolutional Networks, §3.2):

    Σ_{v > 0} (ŷ − t)² + Σ_{v ≤ 0} max(ŷ − θ, 0)²

with θ the output at which the ReLU switches on. That is convex. It is minimised by majorisation: put the
target of a switched-off sample to min(ŷ, θ) and refit, with the same Gram matrix every time; Nesterov's (1983)
extrapolation makes a dozen rounds enough. It may overshoot, so every point is judged, output by output, and the
best one is the result: never worse than the plain fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actprune.compensation.ridge import Fit, Ridge
from actprune.stats.moments import Centred, Moments, cross, merge


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


Rows = Callable[[], Iterable[Centred]]
"""Gives the input rows (n, k) of every batch, again on every call."""


def rectified_fit(
    rows: Rows, targets: Sequence[Rectified], ridge: Ridge, first: Fit, start: Tensor, rounds: int
) -> Fit:
    """Improve `first` for outputs that a ReLU reads.

    Args:
        targets: one per batch of `rows`.
        ridge: of all rows.
        first: its fit of the targets as they are.
        start: what the weights shrink to.
        rounds: of majorisation.
    """
    best, lowest = first, torch.full_like(first.bias, float("inf"))
    now, at, t, before = first, first, 1.0, float("inf")
    for _ in range(rounds):
        loss, outer = _majorise(rows, targets, at)
        best, lowest = _better(best, lowest, at, loss)
        new = ridge.fit(outer, start)
        total = float(loss.sum())
        t = t if total <= before else 1.0  # overshot: the extrapolation starts afresh
        following = (1 + (1 + 4 * t * t) ** 0.5) / 2
        step = (t - 1) / following
        at = Fit(new.weight + step * (new.weight - now.weight), new.bias + step * (new.bias - now.bias))
        now, t, before = new, following, total
    return _better(best, lowest, now, _majorise(rows, targets, now)[0])[0]


def _majorise(rows: Rows, targets: Sequence[Rectified], at: Fit) -> tuple[Tensor, Moments]:
    """(o,) the loss of a fit, and the cross moments of what its outputs should rather be with the rows."""
    loss = torch.zeros_like(at.bias)
    outer: Moments | None = None
    for x, wanted in zip(rows(), targets, strict=True):
        bias = at.bias + at.weight @ x.mean
        value = torch.addmm(bias.to(x.rows.dtype), x.rows, at.weight.T.to(x.rows.dtype))
        right = wanted.reachable(value)
        loss += ((value - right) ** 2).sum(0, dtype=loss.dtype)
        outer = merge(outer, cross(right, x))
    if outer is None:
        raise ValueError("no rows to fit")
    return loss, outer


def _better(best: Fit, lowest: Tensor, other: Fit, loss: Tensor) -> tuple[Fit, Tensor]:
    """The better fit of every output: the outputs do not depend on each other."""
    lower = loss < lowest
    fit = Fit(torch.where(lower[:, None], other.weight, best.weight), torch.where(lower, other.bias, best.bias))
    return fit, torch.where(lower, loss, lowest)
