"""The budget solver: widths that lose least, by Lagrange multiplier, then trimmed by true counts.

Minimise Σ p_g(k_g) subject to cost(k) ≤ target. MACs are bilinear in neighbouring widths, so the cost of
each group is linearised at the current widths and the problem is solved again until nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from actprune.allocation.rules import layerwise
from actprune.allocation.sensitivity import Curve
from actprune.allocation.space import Space, Widths
from actprune.allocation.walks import fill, trim

ROUNDS = 6


def solve(space: Space, curves: Mapping[str, Curve]) -> Widths:
    """The widths with the smallest sum of curves found within the budget."""
    return solve_from(space, curves, layerwise(space)[1])


def solve_from(space: Space, curves: Mapping[str, Curve], start: Widths) -> Widths:
    """The same from given widths; what is found first wins among equals."""

    def total(widths: Widths) -> float:
        return sum(curve(widths[name]) for name, curve in curves.items())

    def change(name: str, now: int, then: int) -> float:
        if name not in curves:
            return 0.0
        # a hair of preference for balanced widths decides where the curves are flat
        return abs(curves[name](now) - curves[name](then)) + 1e-12 * abs(then - now) / space.options[name][-1]

    candidates = [start]
    for _ in range(ROUNDS):
        found = fill(space, trim(space, _lagrange(space, curves, start), change), change)
        candidates.append(found)
        if found == start:
            break
        start = found
    return min((c for c in candidates if space.fits(c)), key=total, default=space.narrowest)


def _lagrange(space: Space, curves: Mapping[str, Curve], around: Widths) -> Widths:
    """Every group's best width for the smallest multiplier at which the (linearised) budget holds."""
    costs = {name: space.costs_along(name, around, curve.widths) for name, curve in curves.items()}
    losses = {name: np.asarray(curve.costs) for name, curve in curves.items()}

    def needs(widths: Widths) -> float:
        return sum(float(costs[name][curve.places[widths[name]]]) for name, curve in curves.items())

    room = space.target - space.cost(around) + needs(around)

    def at(multiplier: float) -> Widths:
        chosen = dict(around)
        for name, curve in curves.items():
            values = losses[name] + multiplier * costs[name]
            chosen[name] = curve.widths[len(values) - 1 - int(values[::-1].argmin())]  # the widest of equals
        return chosen

    low, high = 0.0, 1e-12
    while needs(at(high)) > room and high < 1e12:
        low, high = high, high * 4
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if needs(at(middle)) <= room else (middle, high)
    return at(high)


def trades(
    space: Space, widths: Widths, names: list[str], share: float, curves: Mapping[str, Curve]
) -> Iterator[Widths]:
    """Every trade of one step, the most promising by the curves first; built when it is asked for."""
    base = space.cost(widths)
    less = {name: space.neighbour(name, widths[name], -_step(space, widths, name, share)) for name in names}
    narrower = {n: k for n, k in less.items() if k is not None}
    freed = {n: base - after for n, after in space.with_each(widths, narrower).items()}
    lost = {n: curves[n](k) - curves[n](widths[n]) for n, k in narrower.items()}
    more = space.steps({n: widths[n] for n in names}, 1)
    rate = {
        n: (curves[n](widths[n]) - curves[n](more[n])) / max(after - base, 1e-9)
        for n, after in space.with_each(widths, more).items()
    }
    pairs = [(rate[taker] * freed[giver] - lost[giver], giver, taker) for giver in freed for taker in rate]
    for _, giver, taker in sorted((p for p in pairs if p[1] != p[2]), key=lambda pair: -pair[0]):
        trade = {**widths, giver: less[giver] or widths[giver]}
        options = space.options[taker]
        for k in options[options.index(widths[taker]) + 1 :]:
            if not space.fits({**trade, taker: k}):
                break
            trade[taker] = k
        if trade[taker] != widths[taker]:
            # what is left over after the trade goes to whoever can use it
            yield fill(space, trade, lambda n, a, b: curves[n](a) - curves[n](b) if n in curves else 0.0)


def _step(space: Space, widths: Widths, name: str, share: float) -> int:
    return max(1, round(share * space.options[name].index(widths[name])))
