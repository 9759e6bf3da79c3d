"""The report as two tables for a terminal, and the inspection likewise."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Protocol

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from actprune.report.inspection import Inspection
from actprune.report.record import GroupRow, Report, Stage

if TYPE_CHECKING:
    from actprune.allocation.cost import Cost
    from actprune.plan import Plan


class Prediction(Protocol):
    """What `actprune.predict` returns, as far as it is shown here."""

    @property
    def plan(self) -> Plan: ...
    @property
    def before(self) -> Cost: ...
    @property
    def after(self) -> Cost: ...
    @property
    def before_ms(self) -> float: ...
    @property
    def after_ms(self) -> float: ...


_COUNTED_TWICE = "group: params and MACs that would go with all of it; a weight between two groups counts for both"

_COUNTED_ONCE = "frozen: each parameter counted once, under the reason that holds the most; dims: those of parameters"


def tables(report: Report) -> Group:
    """Before and after of the whole network, then widths layer by layer."""
    return Group(_summary(report), _groups(report), *map(Text, report.notes))


def prediction_table(found: Prediction) -> Group:
    """What a plan would leave: costs before and after, and the width of every group."""
    costs = new_table(f"{found.plan.model}: predicted, nothing is written")
    for name in ("network", "params", "MACs", "bytes", "ms"):
        costs.add_column(name, justify="left" if name == "network" else "right", no_wrap=True)
    for name, own, ms in (("dense", found.before, found.before_ms), ("after cut", found.after, found.after_ms)):
        costs.add_row(name, f"{own.params:,}", f"{own.macs:,}", f"{own.bytes:,}", f"{ms:.2f}")
    widths = new_table("widths")
    widths.add_column("group", overflow="fold")
    widths.add_column("before → after", justify="right", no_wrap=True)
    for name, group in found.plan.groups.items():
        widths.add_row(Text(name), f"{group.width} → {len(group.kept)}")
    return Group(costs, widths)


def render(report: Report, width: int = 160) -> str:
    """The tables as plain text; wide enough that no figure is cut off."""
    return _plain(tables(report), width)


def inspection_tables(found: Inspection) -> Group:
    """What can be cut, what is frozen and why, and the share of the parameters as a last line."""
    notes = [_COUNTED_TWICE, _COUNTED_ONCE, *(f"op without a rule: {name}" for name in found.unknown_ops)]
    return Group(_governed(found), _frozen(found), *map(Text, [*notes, found.summary]))


def render_inspection(found: Inspection, width: int = 160) -> str:
    """Those tables as plain text."""
    return _plain(inspection_tables(found), width)


def _plain(shown: Group, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False, color_system=None).print(shown)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip()


def _summary(report: Report) -> Table:
    budget = f", {report.budget}" if report.budget else ""
    table = new_table(f"{report.model}: {report.method}{budget}")
    table.add_column("network", no_wrap=True)
    for name in headings(report.in_percent):
        table.add_column(name, justify="right", no_wrap=True)
    for name, stage in report.stages.items():
        table.add_row(name, *cells(stage, report.dense, report.in_percent))
    table.caption = proof_line(report)
    table.caption_justify = "left"
    return table


def proof_line(report: Report) -> str:
    """Whether the cut was proved, and of what the milliseconds are."""
    state = "proved" if report.proof["passed"] else "NOT PROVED"
    error = report.proof["max_rel_error"]
    return f"{state}: relative error {error:.1e} in float64; ms: one forward pass of a batch"


def headings(percent: bool) -> tuple[str, ...]:
    """What stands above the cells of a network."""
    return "accuracy" if percent else "metric", "params", "", "MACs", "", "bytes", "ms"


def cells(stage: Stage, dense: Stage, percent: bool) -> list[str]:
    """The figures of a network as texts, with shares of the dense one; the metric in percent, if that fits it."""
    return [
        metric(stage.accuracy, percent),
        f"{stage.params:,}",
        f"{100 * stage.params / max(dense.params, 1):.1f}%",
        f"{stage.macs:,}",
        f"{100 * stage.macs / max(dense.macs, 1):.1f}%",
        f"{stage.bytes:,}",
        "–" if stage.latency_ms is None else f"{stage.latency_ms:.2f}",
    ]


def metric(value: float | None, percent: bool) -> str:
    """A metric as a text, in percent where it is between 0 and 1 throughout."""
    if value is None:
        return "–"
    return f"{100 * value:.2f} %" if percent else f"{value:.4g}"


def new_table(title: str) -> Table:
    """An empty table in the style of all of them."""
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


WIDTHS = ("group", "before → after", "kept", "natural", "mean", "std", "held-out", "support by")
"""What stands above the cells of a group."""


def width_cells(row: GroupRow) -> list[str]:
    """The figures of a group as texts."""
    return [
        row.name,
        f"{row.before} → {row.after}",
        f"{100 * row.after / max(row.before, 1):.0f}%",
        *(("–" if value is None else f"{value:.3g}") for value in (row.natural, row.mean, row.std)),
        "–" if row.error is None else f"{100 * row.error:.2f}%",
        row.criterion,
    ]


def _groups(report: Report) -> Table:
    table = new_table("widths")
    for name in WIDTHS:
        table.add_column(name, justify="left" if name in (WIDTHS[0], WIDTHS[-1]) else "right", no_wrap=True)
    for row in report.groups:
        table.add_row(*map(Text, width_cells(row)))
    return table


def _governed(found: Inspection) -> Table:
    groups = "1 group" if len(found.groups) == 1 else f"{len(found.groups)} groups"
    table = new_table(f"{found.model}: {found.params:,} parameters, {found.macs:,} MACs, {groups}")
    table.add_column("group", overflow="fold")
    table.add_column("kind", no_wrap=True)
    for name in ("width", "params", "", "MACs", ""):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("read by", overflow="fold")
    counted = any(group.peers for group in found.groups)
    if counted:
        table.add_column("one width with", overflow="fold")
    for group in found.groups:
        table.add_row(
            Text(group.name),  # names of modules are not markup
            group.kind,
            str(group.width),
            f"{group.params:,}",
            f"{100 * group.share:.1f}%",
            f"{group.macs:,}",
            f"{100 * group.macs / max(found.macs, 1):.1f}%",
            Text(several(group.consumers)),
            *([Text(several(group.peers, 1))] if counted else []),
        )
    return table


def _frozen(found: Inspection) -> Table:
    table = new_table(f"frozen: {found.frozen:,} parameters")
    table.add_column("reason", overflow="fold")
    for name in ("params", "", "dims", "places"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("first", overflow="fold")
    for reason in found.reasons:
        table.add_row(
            Text(reason.reason),
            f"{reason.params:,}",
            f"{100 * reason.params / max(found.params, 1):.1f}%",
            f"{reason.dims:,}",
            str(reason.places or "–"),
            Text(reason.first),
        )
    return table


def several(names: tuple[str, ...], most: int = 2) -> str:
    """The first names of a list, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" + {rest}" if rest > 0 else "")
