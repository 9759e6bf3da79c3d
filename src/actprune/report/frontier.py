"""What a sweep found, run by run: the content of `frontier.json` and `frontier.md`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from actprune.report.page import md_table
from actprune.report.record import FRONTIER, Report, Stage
from actprune.report.table import cells, headings, new_table


@dataclass(frozen=True)
class Point:
    """One run of a sweep: its budget, the name of its folder, and its report."""

    keep: str
    folder: str
    report: Report


@dataclass(frozen=True)
class Frontier:
    """The runs of a sweep so far, in the order in which they were asked for; one at least."""

    points: Sequence[Point]

    def best(self, point: Point) -> bool | None:
        """Whether no other run has a better metric for at most as many MACs, or the same for fewer; None unmeasured."""
        own = point.report.final
        if own.accuracy is None:
            return None
        others = (other.report.final for other in self.points)
        return not any(_beats(other, own, own.accuracy) for other in others)

    def to_data(self) -> dict[str, Any]:
        """JSON values, with the schema first."""
        first = self.points[0].report
        points = [
            {
                "keep": one.keep, "method": one.report.method, "seed": one.report.seed, "folder": one.folder,
                **asdict(one.report.final), "frontier": self.best(one),
            }
            for one in self.points
        ]  # fmt: skip
        return {
            "schema": FRONTIER, "model": first.model, "method": self._methods(), "dense": asdict(first.dense),
            "points": points,
        }  # fmt: skip

    def to_markdown(self) -> str:
        """A table, one row for each network."""
        first = self.points[0].report
        header, rows = self._table()
        return "\n".join([f"# {first.model}: {self._methods()}", "", *md_table(header, rows)])

    def to_table(self) -> Table:
        """The same for a terminal, without what 80 columns have no room for."""
        header, rows = self._table()
        shown = [i for i, name in enumerate(header) if name not in ("", "bytes", "run")]
        table = new_table(f"{self.points[0].report.model}: {header[1]} against cost")
        for i in shown:
            table.add_column(header[i], justify="right" if i else "left", no_wrap=True)
        for row in rows:
            table.add_row(*(row[i] for i in shown))
        return table

    def _methods(self) -> str:
        return ", ".join(dict.fromkeys(one.report.method for one in self.points))

    def _label(self, point: Point) -> str:
        """The budget, and what else tells the run from others."""
        methods, seeds = ({getattr(one.report, key) for one in self.points} for key in ("method", "seed"))
        own = [point.report.method] if len(methods) > 1 else []
        own += [f"seed {point.report.seed}"] if len(seeds) > 1 else []
        return ", ".join([point.keep, *own])

    def _table(self) -> tuple[list[str], list[list[str]]]:
        dense = self.points[0].report.dense
        percent = all(one.report.in_percent for one in self.points)
        marks = {None: "–", True: "yes", False: "no"}
        rows = [
            [self._label(one), *cells(one.report.final, dense, percent), marks[self.best(one)], one.folder]
            for one in self.points
        ]
        header = ["budget", *headings(percent), "frontier", "run"]
        return header, [["dense", *cells(dense, dense, percent), "", ""], *rows]


def _beats(other: Stage, own: Stage, metric: float) -> bool:
    if other.accuracy is None or other.accuracy < metric or other.macs > own.macs:
        return False
    return other.accuracy > metric or other.macs < own.macs
