"""The report as two tables for a terminal."""

from __future__ import annotations

import io

from rich.console import Console, Group
from rich.table import Table

from actprune.report.record import Report, Stage


def tables(report: Report) -> Group:
    """Before and after of the whole network, then widths layer by layer."""
    return Group(_summary(report), _groups(report), *report.notes)


def render(report: Report, width: int = 110) -> str:
    """The tables as plain text."""
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(tables(report))
    return out.getvalue().rstrip()


def _summary(report: Report) -> Table:
    budget = f", {report.budget}" if report.budget else ""
    table = Table(title=f"{report.model}: {report.method}{budget}", title_justify="left")
    table.add_column("network")
    for name in ("accuracy %", "parameters", "MACs", "bytes", "latency ms"):
        table.add_column(name, justify="right")
    rows: list[tuple[str, Stage | None]] = [
        ("dense", report.dense),
        *((f"{name}, same widths", stage) for name, stage in report.rivals.items()),
        ("after cut", report.pruned),
        ("after recovery", report.recovered),
        ("after fine-tune", report.finetuned),
    ]
    for name, stage in rows:
        if stage is not None:
            table.add_row(name, *_cells(stage, report.dense))
    proof = report.proof
    table.caption = (
        f"{'proved' if proof['passed'] else 'NOT PROVED'}: relative error {proof['max_rel_error']:.1e} in float64"
    )
    table.caption_justify = "left"
    return table


def _cells(stage: Stage, dense: Stage) -> list[str]:
    def part(now: float, before: float) -> str:
        return f"{100 * now / before:.1f} %" if before else "–"

    return [
        "–" if stage.accuracy is None else f"{100 * stage.accuracy:.2f}",
        f"{stage.params:,} ({part(stage.params, dense.params)})",
        f"{stage.macs:,} ({part(stage.macs, dense.macs)})",
        f"{stage.bytes:,}",
        "–" if stage.latency_ms is None else f"{stage.latency_ms:.2f}",
    ]


def _groups(report: Report) -> Table:
    table = Table(title="widths", title_justify="left")
    for name, justify in (
        ("group", "left"), ("kind", "left"), ("before → after", "right"), ("kept", "right"), ("natural", "right"),
        ("mean", "right"), ("std", "right"), ("criterion", "left"), ("held-out error", "right"),
    ):  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in report.groups:
        table.add_row(
            row.name,
            row.kind,
            f"{row.before} → {row.after}",
            f"{100 * row.after / row.before:.0f} %",
            *(("–" if value is None else f"{value:.3g}") for value in (row.natural, row.mean, row.std)),
            row.criterion,
            "–" if row.error is None else f"{100 * row.error:.2f} %",
        )
    return table
