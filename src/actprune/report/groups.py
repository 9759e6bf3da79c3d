"""The rows of the report, one per group: widths before and after, and why."""

from __future__ import annotations

from actprune.axes.capture import Graph
from actprune.guidance.guide import Guide
from actprune.plan import Plan
from actprune.report.record import GroupRow
from actprune.stats.collect import Stats


def group_rows(graph: Graph, guide: Guide, stats: Stats | None, plan: Plan) -> tuple[GroupRow, ...]:
    """What `plan` does to every group of `graph`."""
    choices = guide.choices(plan.widths)
    rows: list[GroupRow] = []
    for group in graph.groups:
        own, choice = guide.groups[group.name], choices[group.name]
        unit = stats.units.get(group.name) if stats is not None else None
        rows.append(
            GroupRow(
                name=group.name,
                kind=group.kind,
                before=group.width,
                after=len(choice.units),
                guide=own.beta,
                natural=own.natural,
                criterion=choice.criterion,
                error=choice.error,
                mean=None if unit is None else float(unit.signed.mean.mean()),
                std=None if unit is None else float(unit.signed.std.mean()),
            )
        )
    return tuple(rows)
