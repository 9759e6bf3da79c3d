"""Sensitivity curves: what cutting one group alone does to the network's outputs.

Measured at a few widths with the group's consumers refitted, then interpolated monotonically in E(k), the exact
layer objective of guidance. E orders the widths of one group well, but says little between groups; the
measured distances put the groups on one scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from actprune.allocation.space import Space, Widths
from actprune.guidance.guide import Guide

Measure = Callable[[Widths], float]
"""Widths → distance of that candidate's outputs from the dense ones, on held-out samples."""

Around = Callable[[Widths], Measure]
"""Widths → (some other widths → the distance of the candidate that has these, and the first ones elsewhere)."""

Progress = Callable[[int, int], None]

FRACTIONS = (0.75, 0.5, 0.25, 0.0)
"""Where the curves are measured, as fractions of the group."""

FLAT = 1e-9
"""Errors and distances below so much of the largest are nothing."""

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"


@dataclass(frozen=True)
class Curve:
    """Distance against width of one group.

    Attributes:
        widths: allowed widths, ascending.
        costs: distance at each, falling to 0 at the dense width.
        measured: width → measured distance.
    """

    widths: tuple[int, ...]
    costs: tuple[float, ...]
    measured: Mapping[int, float]

    def __call__(self, k: int) -> float:
        return self.costs[self.places[k]]

    @cached_property
    def places(self) -> Mapping[int, int]:
        """Width → its place among `widths`."""
        return {k: i for i, k in enumerate(self.widths)}

    def within(self, options: tuple[int, ...]) -> Curve:
        """The curve over fewer widths."""
        return Curve(options, tuple(map(self, options)), self.measured)


def measure_curves(space: Space, guide: Guide, measure: Measure, progress: Progress | None = None) -> dict[str, Curve]:
    """The sensitivity curve of every group that leaves a choice."""
    names = [name for name, options in space.options.items() if len(options) > 1]
    curves: dict[str, Curve] = {}
    for i, name in enumerate(names):
        options = space.options[name]
        at = sorted({options[min(int(f * (len(options) - 1)), len(options) - 2)] for f in FRACTIONS})
        measured = {k: measure({name: k}) for k in at}
        errors = np.mean([guide.groups[one].curve for one in space.tied.get(name, (name,))], axis=0)
        curves[name] = interpolate(options, tuple(errors.tolist()), measured)
        if progress is not None:
            progress(i + 1, len(names))
    return curves


def interpolate(options: tuple[int, ...], errors: tuple[float, ...], measured: Mapping[int, float]) -> Curve:
    """The monotone curve through the measured points.

    Between them the distance is a smooth power of E(k): cubic in the logarithms of both (Fritsch and Carlson 1980), so
    that a width is as good a choice where it was not measured. Straight pieces bend at the measured widths alone, and
    every multiplier of a budget would choose one of those. Beyond the widest one the distance is in proportion to E.

    Args:
        options: allowed widths, ascending.
        errors: (n + 1,) E(k).
        measured: width → distance.
    """
    points = sorted(measured, reverse=True)
    x = [0.0, *np.maximum.accumulate([max(errors[k], 0.0) for k in points])]
    y = [0.0, *np.maximum.accumulate([max(measured[k], 0.0) for k in points])]
    costs = _between(np.asarray(x), np.asarray(y), np.asarray([max(errors[k], 0.0) for k in options]))
    costs[-1] = 0.0
    # E may be flat where the distance is not: never let a narrower width look cheaper
    costs = np.maximum.accumulate(costs[::-1])[::-1]
    return Curve(options, tuple(float(c) for c in costs), dict(measured))


def _between(x: Array, y: Array, at: Array) -> Array:
    """y at `at`, given it at x, both ascending; straight where there are no logarithms."""
    straight = np.interp(at, x + 1e-15 * np.arange(len(x)), y)
    rising = np.flatnonzero((np.diff(x, prepend=0.0) > FLAT * x[-1]) & (y > FLAT * y[-1]))
    if len(rising) < 2:
        return straight
    from scipy.interpolate import PchipInterpolator  # a second, which others need not wait for

    x, y = x[rising], y[rising]
    smooth = np.exp(PchipInterpolator(np.log(x), np.log(y))(np.log(np.clip(at, x[0], x[-1]))))
    return np.where((at >= x[0]) & (at <= x[-1]), smooth, straight)
