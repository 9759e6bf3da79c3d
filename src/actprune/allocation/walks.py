"""Ways through a space of widths to its budget: along a ratio, and greedily group by group, up or down."""

from __future__ import annotations

from collections.abc import Callable

from actprune.allocation.space import Space, Widths

HALVINGS = 60
"""Of an interval of ρ: more than float64 can tell apart."""


def largest(space: Space, widths_at: Callable[[float], Widths]) -> tuple[float, Widths]:
    """The largest ρ in [0, 1] at which `widths_at(ρ)` fits the budget, by bisection, and its widths."""
    if space.fits(widths_at(1.0)):
        return 1.0, widths_at(1.0)
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if space.fits(widths_at(middle)) else (low, middle)
    return low, widths_at(low)


def fill(space: Space, widths: Widths, gain: Callable[[str, int, int], float]) -> Widths:
    """Grow group by group while the budget allows, always where `gain(name, now, next)` per cost is largest."""
    widths = dict(widths)
    while True:
        now = space.cost(widths)
        best: tuple[float, str, int] | None = None
        wider = space.steps(widths, 1)
        for name, after in space.with_each(widths, wider).items():
            more = wider[name]
            if after <= space.target:
                rate = gain(name, widths[name], more) / max(after - now, 1e-9)
                if best is None or rate > best[0]:
                    best = rate, name, more
        if best is None:
            return widths
        widths[best[1]] = best[2]


def trim(space: Space, widths: Widths, loss: Callable[[str, int, int], float]) -> Widths:
    """Shrink group by group until the budget fits, always where `loss(name, now, next)` per cost is smallest."""
    widths = dict(widths)
    while not space.fits(widths):
        now = space.cost(widths)
        best: tuple[float, str, int] | None = None
        narrower = space.steps(widths, -1)
        for name, after in space.with_each(widths, narrower).items():
            less, saved = narrower[name], now - after
            rate = loss(name, widths[name], less) / max(saved, 1e-9)
            if saved > 0 and (best is None or rate < best[0]):
                best = rate, name, less
        if best is None:  # what is left to cut saves nothing of this cost
            return space.narrowest
        widths[best[1]] = best[2]
    return widths
