"""Where the improvement in context starts: streams that many layers read are tried whole.

The curve of such a stream is measured in a network whose layers are whole, and they make up for what it lacks. In a
network that is cut everywhere they can't. No small step leads back from there, since a wider stream makes every layer
dearer: width would have to move from all of them at once. So streams are held whole, one after the other, the budget is
solved with what is left, and the measured distance decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from actprune.allocation.rules import layerwise
from actprune.allocation.sensitivity import Around, Curve
from actprune.allocation.solve import solve
from actprune.allocation.space import Space, Widths

READERS = 3
"""A group is a stream where so many layers read from it."""

LOWER, FAR_LOWER = 1 - 1e-6, 0.9
"""A start is taken for a stream that is whole where it has this share of the distance; for anything else the second:
what is a little nearer at the start need not be so at the end."""


def best_start(space: Space, curves: Mapping[str, Curve], around: Around, trials: int, more: int = 0) -> Widths:
    """The solution of the budget, with such streams whole as lower the measured distance.

    Args:
        trials: networks that may be measured.
        more: networks that may be measured besides, of small models: equal shares, and all other groups that are held
            whole, what loses most of its units first. What one layer reads may be a stream as well, where products read
            it too (the table of embeddings of a factorisation machine).
    """
    best, held = solve(space, curves), set[str]()
    streams = [name for name in curves if len(space.graph[name].consumers) >= READERS]
    if (not streams and not more) or trials < 2:
        return best
    distance = around(best)({})
    best, distance, held = _with_whole(space, curves, around, (best, distance, held), streams, trials - 1, LOWER)
    if more < 2:
        return best
    equal = layerwise(space)[1]
    if equal != best and (found := around(equal)({})) < distance * FAR_LOWER:
        best, distance, held = equal, found, set()
    others = sorted(curves.keys() - set(streams), key=lambda name: (best[name] / space.options[name][-1], name))
    return _with_whole(space, curves, around, (best, distance, held), others, more - 1, FAR_LOWER)[0]


def _with_whole(
    space: Space,
    curves: Mapping[str, Curve],
    around: Around,
    start: tuple[Widths, float, set[str]],
    names: Sequence[str],
    trials: int,
    share: float,
) -> tuple[Widths, float, set[str]]:
    """(widths, distance, what is held whole) after one group after the other was held whole that lowers the distance
    most, at least to this share."""
    best, distance, held = start
    while trials > 0:
        found: dict[str, tuple[float, Widths]] = {}
        for name in [name for name in names if best[name] < space.options[name][-1]][:trials]:
            widths = _holding(space, curves, {*held, name})
            if widths is not None and widths != best:
                found[name] = around(widths)({}), widths
                trials -= 1
        name = min(found, key=lambda one: found[one][0], default=None)
        if name is None or found[name][0] >= distance * share:
            break
        (distance, best), held = found[name], {*held, name}
    return best, distance, held


def _holding(space: Space, curves: Mapping[str, Curve], held: set[str]) -> Widths | None:
    """The solution with these groups whole; None where the budget can't be met so."""
    options = {name: widths[-1:] if name in held else widths for name, widths in space.options.items()}
    fixed = replace(space, options=options)
    if not fixed.fits(fixed.narrowest):
        return None
    return solve(fixed, {name: curve.within(options[name]) for name, curve in curves.items()})
