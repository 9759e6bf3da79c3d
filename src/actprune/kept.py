"""The units that are to stay: whether a network can have them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from actprune.axes.capture import Graph
from actprune.axes.groups import Group
from actprune.errors import PlanError


def checked_units(graph: Graph, kept: Mapping[str, Iterable[int]]) -> dict[str, tuple[int, ...]]:
    """Group name → its units that stay, ascending; all of those of groups that are not named.

    Raises:
        PlanError: see `actprune.make_plan`.
    """
    names = {group.name for group in graph.groups}
    for name in kept:
        if name not in names:
            raise PlanError(
                f"There is no group named {name!r}.",
                expected=f"one of {', '.join(sorted(names)[:20])}",
                got=repr(name),
                where="plan",
                hint="graph.groups lists the groups of the captured model",
            )
    stays: dict[str, tuple[int, ...]] = {}
    for group in graph.groups:
        units = _numbers(group.name, kept.get(group.name, range(group.width)))
        stays[group.name] = possible(group.name, group.width, units, "plan")
        _check_aligned(group, len(units))
    for name, peers in graph.peers.items():
        _check_alike(stays, name, peers)
    return stays


def possible(name: str, width: int, units: tuple[int, ...], where: str) -> tuple[int, ...]:
    """Units of a group that has so many."""
    inside = bool(units) and units[0] >= 0 and units[-1] < width
    ascending = all(a < b for a, b in pairwise(units))
    if not (inside and ascending):
        raise PlanError(
            f"Group {name!r} would keep an impossible set of units.",
            expected=f"at least one of the units 0 to {width - 1}, ascending, none twice",
            got=f"{len(units)} units: {list(units)[:10]}",
            where=f"{where}: groups/{name}/kept",
            hint="every group keeps at least one unit",
        )
    return units


def _numbers(name: str, units: Iterable[Any]) -> tuple[int, ...]:
    """Ascending, each once. A mask of booleans would silently mean the units 0 and 1: refused."""
    numbers: set[int] = set()
    for unit in units:
        try:
            if "bool" in str(getattr(unit, "dtype", type(unit).__name__)):
                raise TypeError
            numbers.add(operator.index(unit))
        except TypeError as error:
            raise PlanError(
                f"Group {name!r} is given a unit that is no number.",
                expected="the numbers of the units that stay",
                got=f"{unit!r}, a {type(unit).__name__}",
                where=f"plan: groups/{name}/kept",
                hint="turn a mask into numbers with mask.nonzero()",
            ) from error
    return tuple(sorted(numbers))


def _check_aligned(group: Group, count: int) -> None:
    if count < group.width and count % group.multiple:
        raise PlanError(
            f"Group {group.name!r} can't have {count} units.",
            expected=f"all {group.width}, or a multiple of {group.multiple}: its kernel demands aligned rows",
            got=f"{count} units",
            where=f"plan: groups/{group.name}/kept",
            hint="keep some units more or less; group.widths are the widths that a group can have",
        )


def _check_alike(stays: Mapping[str, tuple[int, ...]], name: str, peers: Iterable[str]) -> None:
    for other in peers:
        if len(stays[other]) != len(stays[name]):
            raise PlanError(
                f"Groups {name!r} and {other!r} can't have different widths.",
                expected="as many units in each of them: one number of the class counts both, such as hidden_size",
                got=f"{len(stays[name])} and {len(stays[other])} units",
                where=f"plan: groups/{other}/kept",
                hint="keep as many of the one as of the other; they need not be the same ones",
            )
