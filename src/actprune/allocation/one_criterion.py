"""The units of one criterion in all groups, against the best support of each.

The best support of a group is that with the least error of what reads it. Errors of one layer may do more harm in the
next than others do, such as those of states that a recurrent network passes on. So when the widths are found, the
networks that each criterion would make of them by itself are measured as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from actprune.allocation.space import Widths
from actprune.guidance.guide import Guide

Supports: TypeAlias = "Mapping[str, tuple[int, ...]]"
"""Group name → the units that stay."""

DistanceOf: TypeAlias = "Callable[[Supports], float]"
"""The units that stay → the distance of their network to the dense one."""

NEARER = 0.98
"""One criterion decides where it leaves no more than this share of the distance."""


def one_criterion(
    guide: Guide, widths: Widths, distance: float, distance_of: DistanceOf, trials: int
) -> tuple[str | None, float]:
    """(criterion, distance) where one for all groups is nearer than the best one for each; else (None, as before).

    Args:
        distance: of the network of these widths, with the best support of each group.
        trials: networks that may be measured.
    """
    best, seen = (None, distance), [guide.supports(widths)]
    for criterion in dict.fromkeys(name for group in guide.groups.values() for name in group.orders):
        supports = guide.by(criterion, widths)
        if supports not in seen and len(seen) <= trials:
            seen.append(supports)
            found = distance_of(supports)
            if found < min(best[1], distance * NEARER):
                best = criterion, found
    return best
