"""Improvement in context: what a group is worth in the network that is already cut, and width moved accordingly.

Curves tell what a cut does to the dense network. In a network that is cut everywhere the same unit may be worth more
(what could stand in for it is gone) or less (its reader is). So every group is tried a step narrower and a step wider
around the widths so far, the curves are bent to what that shows, and the budget is solved again within these steps. The
result is measured whole; where it is no better, the steps are halved. Then single trades between two groups are
measured, for what groups do to each other no curve of one group can show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from actprune.allocation.sensitivity import Around, Curve, Measure
from actprune.allocation.solve import solve_from, trades
from actprune.allocation.space import Space, Widths

STEP, LEAST_STEP = 0.25, 0.01
"""A group's first step and its last, as shares of the units that it keeps."""


def improve(
    space: Space, widths: Widths, curves: Mapping[str, Curve], around: Around, rounds: int, trials: int
) -> tuple[Widths, float]:
    """Move width between groups while the measured distance of the whole network falls.

    Args:
        rounds: of steps of all groups.
        trials: of single trades.

    Returns:
        (widths, distance): the best found, and its distance.
    """
    best, measure = steps(space, widths, curves, around, rounds)
    return traded(space, best, measure, curves, around, trials)


def steps(
    space: Space, widths: Widths, curves: Mapping[str, Curve], around: Around, rounds: int
) -> tuple[Widths, Measure]:
    """(widths, what measures around them) where no step of all groups together lowers the distance."""
    best, measure = dict(widths), around(widths)
    distance, step = measure({}), STEP
    bent: dict[str, Curve] = {}
    for _ in range(rounds):
        near = _within(space, best, step)
        if not bent:
            asked = {name: curve for name, curve in curves.items() if len(near.options[name]) > 1}
            bent = {name: _bent(curve, near.options[name], best[name], distance, partial(_alone, measure, name))
                    for name, curve in asked.items()}  # fmt: skip
        found = solve_from(near, {name: curve.within(near.options[name]) for name, curve in bent.items()}, best)
        there = around(found) if found != best else measure
        lower = there({}) if found != best else distance
        if lower < distance * (1 - 1e-6):
            best, measure, distance, bent = found, there, lower, {}
            continue
        step /= 2  # the same figures, less far
        if step < LEAST_STEP:
            break
    return best, measure


def traded(
    space: Space,
    widths: Widths,
    measure: Measure,
    curves: Mapping[str, Curve],
    around: Around,
    trials: int,
) -> tuple[Widths, float]:
    """(widths, distance) after trades that lowered the distance.

    One trade shrinks one group by a step and lets one other grow into the room; steps halve when no trade helps. Those
    that look better from where we are, are measured whole.
    """
    best, distance = dict(widths), measure({})
    names = [name for name in curves if len(space.options[name]) > 1]
    seen = {tuple(best.values())}
    step = STEP
    while trials > 0 and step >= LEAST_STEP:
        improved = False
        for trade in trades(space, best, names, step, curves):
            if trials <= 0:
                break
            if tuple(trade.values()) in seen:
                continue
            seen.add(tuple(trade.values()))
            trials -= 1
            if measure({name: k for name, k in trade.items() if k != best[name]}) >= distance * (1 - 1e-6):
                continue
            there = around(trade)
            found = there({})
            if found < distance * (1 - 1e-6):
                best, distance, measure, improved = trade, found, there, True
                break
        if not improved:
            step /= 2
    return best, distance


def _alone(measure: Measure, name: str, k: int) -> float:
    return measure({name: k})


def _bent(curve: Curve, options: tuple[int, ...], now: int, here: float, measure: Callable[[int], float]) -> Curve:
    """A group's curve in context: the change against `here` at the ends of `options`, and in between."""
    found = {k: measure(k) - here for k in {options[0], options[-1]} - {now}}
    return Curve(options, tuple(_between(curve, found, now, k) for k in options), found)


def _between(curve: Curve, found: Mapping[int, float], now: int, k: int) -> float:
    """The change at width k, in proportion to the curve where that one falls, else to the width."""
    if k == now:
        return 0.0
    end = next(e for e in found if (e > now) == (k > now))
    whole = curve(end) - curve(now)
    share = (curve(k) - curve(now)) / whole if whole else (k - now) / (end - now)
    return share * found[end]


def _within(space: Space, widths: Widths, step: float) -> Space:
    """The space of what may be chosen a step around these widths: one option further at least where there is one."""
    options: dict[str, tuple[int, ...]] = {}
    for name, choice in space.options.items():
        place = choice.index(widths[name])
        places = max(1, round(step * (place + 1)))
        options[name] = choice[max(place - places, 0) : place + places + 1]
    return replace(space, options=options)
