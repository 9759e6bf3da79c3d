"""The rows of the report, one per group: widths before and after, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from actprune.axes.capture import Graph
from actprune.guidance.confidence import Confidence
from actprune.guidance.guide import WHOLE, Choice, GroupGuide, Guide
from actprune.plan import Plan
from actprune.report.maps import correlation, places
from actprune.report.record import CURVE_POINTS, MOST_MAPS, MOST_UNITS, GroupRow, Sureness, Units
from actprune.stats.activation import Activation
from actprune.stats.statistics import Stats

GIVEN = "given"
"""In the place of a criterion where the plan came with other units than the guide would have kept."""


def group_rows(
    graph: Graph, guide: Guide, stats: Stats | None, plan: Plan, sure: Mapping[str, Confidence] | None = None
) -> tuple[GroupRow, ...]:
    """What `plan` does to every group of `graph`.

    Args:
        sure: group name → its confidence, where it was asked for.
    """
    choices, only = guide.choices(plan.widths), plan.note.get("criterion")
    rows: list[GroupRow] = []
    room = MOST_UNITS
    for group in graph.groups:
        own, choice = guide.groups[group.name], choices[group.name]
        given = only is None and tuple(plan.groups[group.name].kept) != choice.units
        unit = stats.units.get(group.name) if stats is not None else None
        rows.append(
            GroupRow(
                name=group.name,
                kind=group.kind,
                before=group.width,
                after=len(choice.units),
                guide=own.beta,
                natural=own.natural,
                criterion=GIVEN if given else _criterion(own, choice, only),
                error=choice.error if only is None and not given else None,
                mean=None if unit is None else float(unit.signed.mean.mean()),
                std=None if unit is None else float(unit.signed.std.mean()),
                curve=_points(own.curve, len(choice.units)),
                units=_units(own, unit) if group.width <= room else None,
                correlation=correlation(graph, stats, group) if stats is not None and len(rows) < MOST_MAPS else None,
                places=places(stats, group) if stats is not None and len(rows) < MOST_MAPS else None,
                sureness=_sureness((sure or {}).get(group.name)),
            )
        )
        room -= group.width if group.width <= room else 0
    return tuple(rows)


def _criterion(own: GroupGuide, choice: Choice, only: Any) -> str:
    """Which criterion has chosen the units: one for all groups, or the one whose support was best in this group."""
    return choice.criterion if choice.criterion == WHOLE or only not in own.orders else str(only)


def _sureness(found: Confidence | None) -> Sureness | None:
    if found is None:
        return None
    return Sureness(_short(found.agreement), _short(found.chance), tuple(map(_short, found.kept)))


def _points(curve: Sequence[float], kept: int) -> tuple[tuple[int, float], ...]:
    """(k, E(k)) at evenly spaced widths k, with both ends and the width that is kept."""
    last, steps = len(curve) - 1, CURVE_POINTS - 2
    widths = {round(i * last / steps) for i in range(steps + 1)} | {kept}
    return tuple((k, _short(curve[k])) for k in sorted(widths))


def _units(own: GroupGuide, unit: Activation | None) -> Units:
    def short(values: Iterable[float]) -> tuple[float, ...]:
        return tuple(map(_short, values))

    if unit is None:
        return Units(short(own.scores), None, None)
    return Units(short(own.scores), short(unit.signed.mean.tolist()), short(unit.signed.std.tolist()))


def _short(value: float) -> float:
    """To four digits: what a chart shows."""
    return float(f"{value:.4g}")
