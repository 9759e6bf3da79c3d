"""Sensitivity curves: what cutting one group alone does to the network's outputs.

Measured at a few widths with the group's consumers refitted, then interpolated monotonically in E(k), the exact
layer objective of guidance. E orders the widths of one group well, but says little between groups; the
measured distances put the groups on one scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from actprune.allocation.space import Space, Widths
from actprune.guidance.guide import Guide

Measure = Callable[[Widths], float]
"""Widths → distance of that candidate's outputs from the dense ones, on held-out samples."""

Progress = Callable[[int, int], None]

FRACTIONS = (0.75, 0.5, 0.25, 0.0)
"""Where the curves are measured, as fractions of the group."""


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
        return self.costs[self.widths.index(k)]


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
    """The curve through the measured points, monotone, linear in E(k) between them.

    Args:
        options: allowed widths, ascending.
        errors: (n + 1,) E(k).
        measured: width → distance.
    """
    points = sorted(measured, reverse=True)
    x = [0.0, *(max(errors[k], 0.0) for k in points)]
    y = [0.0, *np.maximum.accumulate([max(measured[k], 0.0) for k in points])]
    x = list(np.maximum.accumulate(np.asarray(x) + 1e-15 * np.arange(len(x))))
    costs = np.interp([max(errors[k], 0.0) for k in options], x, y)
    costs[-1] = 0.0
    # E may be flat where the distance is not: never let a narrower width look cheaper
    costs = np.maximum.accumulate(costs[::-1])[::-1]
    return Curve(options, tuple(float(c) for c in costs), dict(measured))
