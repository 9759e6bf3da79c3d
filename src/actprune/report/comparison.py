"""Two runs side by side: the content of `actprune compare`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group
from rich.text import Text

from actprune.report.record import Report, Stage
from actprune.report.table import cells, headings, new_table


@dataclass(frozen=True)
class Comparison:
    """What two runs returned.

    Attributes:
        a, b: the reports; names: what they are called.
        widths: group name → units that stay in a and in b, where these differ; None where a run has no such group.
        notes: what a reader of the figures must know.
    """

    names: tuple[str, str]
    a: Report
    b: Report
    widths: Mapping[str, tuple[int | None, int | None]]
    notes: tuple[str, ...]

    def to_data(self) -> dict[str, Any]:
        """JSON values."""
        runs = [
            {"run": name, "model": own.model, "method": own.method, "budget": own.budget, "dense": asdict(own.dense),
             "final": asdict(own.final)}
            for name, own in zip(self.names, (self.a, self.b), strict=True)
        ]  # fmt: skip
        return {"runs": runs, "widths": {name: list(pair) for name, pair in self.widths.items()}, "notes": self.notes}


def compared(names: tuple[str, str], a: Report, b: Report) -> Comparison:
    """The runs `a` and `b`, and where they differ."""
    first, second = ({row.name: row.after for row in own.groups} for own in (a, b))
    both = {name: (first.get(name), second.get(name)) for name in dict.fromkeys([*first, *second])}
    differing = {name: pair for name, pair in both.items() if pair[0] != pair[1]}
    return Comparison(names, a, b, differing, tuple(_notes(a, b)))


def comparison_tables(found: Comparison) -> Group:
    """Networks of both runs, then the widths that differ."""
    networks = new_table(" and ".join(found.names))
    networks.add_column("network", overflow="fold")
    percent = found.a.in_percent and found.b.in_percent
    for name in headings(percent):
        networks.add_column(name, justify="right", no_wrap=True)
    for label, stage, own in _rows(found):
        networks.add_row(Text(label), *cells(stage, own.dense, percent))
    widths = new_table(f"widths that differ: {len(found.widths)}")
    for name in ("group", *found.names):
        widths.add_column(Text(name), justify="left" if name == "group" else "right", overflow="fold")
    for name, pair in found.widths.items():
        widths.add_row(Text(name), *("–" if width is None else str(width) for width in pair))
    return Group(networks, *([widths] if found.widths else []), *map(Text, found.notes))


def _rows(found: Comparison) -> list[tuple[str, Stage, Report]]:
    """Label, network and its run; the dense one once, where both runs began with the same."""
    (first, second), a, b = found.names, found.a, found.b
    dense = [("dense", a.dense, a)]
    if not _same_dense(a, b):
        dense = [(f"{first}, dense", a.dense, a), (f"{second}, dense", b.dense, b)]
    return [*dense, (first, a.final, a), (second, b.final, b)]


def _same_dense(a: Report, b: Report) -> bool:
    """As far as the reports tell; milliseconds are never twice the same."""
    return a.model == b.model and all(
        getattr(a.dense, name) == getattr(b.dense, name) for name in ("accuracy", "params", "macs", "bytes")
    )


def _notes(a: Report, b: Report) -> list[str]:
    notes: list[str] = []
    if not _same_dense(a, b):
        notes.append("The runs began with different dense networks: shares are of each one's own.")
    if a.latency != b.latency:
        notes.append("Milliseconds were measured under different conditions.")
    return notes
