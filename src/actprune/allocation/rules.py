"""Allocation rules without measurement: how one ratio ρ becomes a width for every group.

Under a budget each rule's ρ is found by bisection; units that still fit are then added one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import exp, floor, log, prod

import numpy as np

from actprune.allocation.space import Space, Widths
from actprune.allocation.walks import fill, largest
from actprune.errors import PlanError
from actprune.graph.program import shape
from actprune.guidance.guide import Guide

Rule = Callable[[Space, Guide], tuple[float, Widths]]
"""(space, guide) → (ρ, widths)."""


def layerwise(space: Space, guide: Guide | None = None) -> tuple[float, Widths]:
    """The seed's rule: N_new = max(⌊ρ · N⌋, 1) in every layer."""

    def at(ratio: float) -> Widths:
        return {name: space.at_most(name, max(floor(ratio * o[-1] + 1e-9), 1)) for name, o in space.options.items()}

    return _filled(space, at, _share(space))


def spatial(space: Space, guide: Guide) -> tuple[float, Widths]:
    """The seed's rates: C_new = ⌊C · ρ^(1/(h·w))⌋ with the size h × w of the layer's map; its per-row rate is ρ^(1/h).

    Large early maps are hardly cut, small late ones most. ρ can be tiny, so it is searched as −log ρ.
    """
    places = {name: _places(space, name) for name in space.options}
    deepest = max(places[name] * log(2 * o[-1]) for name, o in space.options.items())

    def at(share: float) -> Widths:
        t = (1 - share) * deepest  # −log ρ
        return {
            name: space.at_most(name, max(floor(o[-1] * exp(-t / places[name]) + 1e-9), 1))
            for name, o in space.options.items()
        }

    share, widths = _filled(space, at, _share(space))
    return exp(-(1 - share) * deepest), widths


def global_(space: Space, guide: Guide) -> tuple[float, Widths]:
    """One threshold for the scores of all groups: the least important units of the whole model go first."""
    members = {name: space.tied.get(name, (name,)) for name in space.options}
    scores = {  # of tied groups: what the k-th best of each has on average
        name: np.mean([sorted(guide.groups[one].scores, reverse=True) for one in ones], axis=0).tolist()
        for name, ones in members.items()
    }
    every = sorted({score for name in scores for score in scores[name]})

    def at(ratio: float) -> Widths:
        threshold = every[min(int((1 - ratio) * len(every)), len(every) - 1)]
        if ratio == 0:
            return space.narrowest
        return {
            name: space.at_most(name, max(sum(score >= threshold for score in scores[name]), 1))
            for name in space.options
        }

    above = {name: [score - every[0] for score in found] for name, found in scores.items()}  # standardised: may be < 0
    return _filled(space, at, lambda name, now, more: sum(above[name][now:more]))


def natural(space: Space, guide: Guide) -> tuple[float, Widths]:
    """The natural widths of the guide, whatever they cost."""
    found: Widths = {}
    for name in space.options:
        widths = [guide.groups[one].natural for one in space.tied.get(name, (name,))]
        width = max((k for k in widths if k is not None), default=None)  # None of one is None of all
        if width is None:
            raise PlanError(
                f"Method {guide.method!r} has no natural widths.",
                expected="a method with a LASSO guide or a threshold, or a budget",
                got="keep=None",
                where="keep",
                hint='say how much may stay, for example keep="macs=50%"',
            )
        found[name] = space.at_most(name, width)
    return 1.0, found


def units(space: Space, guide: Guide | None = None) -> tuple[float, Widths]:
    """The same share of every group, at least one unit: ⌊keep · n⌋."""
    keep = space.budget.keep
    return keep, {
        name: space.at_most(name, max(floor(keep * options[-1] + 1e-9), 1)) for name, options in space.options.items()
    }


RULES: Mapping[str, Rule] = {
    "uniform": layerwise,
    "layerwise": layerwise,
    "spatial": spatial,
    "global": global_,
    "natural": natural,
}


def _filled(
    space: Space, at: Callable[[float], Widths], gain: Callable[[str, int, int], float]
) -> tuple[float, Widths]:
    """The widths of the largest ratio within the budget, and what still fits by `gain(group, width now, then)`."""
    ratio, widths = largest(space, at)
    if not space.fits(widths):
        widths = space.narrowest
    return ratio, fill(space, widths, gain)


def _share(space: Space) -> Callable[[str, int, int], float]:
    """The gain of units where they all count alike: their share of the group."""
    return lambda name, now, more: (more - now) / space.options[name][-1]


def _places(space: Space, name: str) -> int:
    """h · w of the map that a group's units live on; 1 for neurons."""
    site = space.graph[name].producers[0]
    node = next((n for n in space.graph.program.nodes if n.name == site.node), None)
    return max(prod(shape(node)[2:]), 1) if node is not None and "conv" in site.kind else 1
