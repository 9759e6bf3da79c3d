"""The report as one page of HTML that needs nothing else to be shown, and as Markdown.

The tables are written here, so that a page without scripts (or on paper) tells as much; a script in the template draws
the charts with plotly.js, which is part of the page.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import groupby
from typing import Any

from actprune.errors import ActpruneError
from actprune.plan import Plan
from actprune.report.record import GroupRow, Report, Sweep
from actprune.report.table import WIDTHS, cells, headings, metric, proof_line, width_cells
from actprune.report.templates import EXTRA, rendered

CHART_BYTES = 800_000
"""What the data of charts may take, beside the 4.8 MB of plotly.js: groups that would exceed it have no charts."""

LONGEST = 400
"""Letters of a list of units; of longer ones the start is told."""


def page(report: Report, plan: Plan, frontier: Sweep | None = None) -> str:
    """A page with everything that is known of a run, in light and dark, with charts.

    Args:
        frontier: the sweep that the run is part of.

    Raises:
        ActpruneError: jinja2 or plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ActpruneError(
            "The report's charts can't be made without plotly.",
            expected="the extra 'report' of actprune",
            got=str(error),
            where="report.html",
            hint=EXTRA,
        ) from error
    details = _details(report, plan)
    _add_maps(details, report)
    dense = report.dense
    charts = {
        "groups": [{"name": row.name, "before": row.before, "after": row.after} for row in report.groups],
        "details": details,
        "losses": report.losses,
        "frontier": [asdict(spot) for spot in frontier.points] if frontier is not None else [],
        "metrics": [dense.macs, dense.accuracy, report.final.macs, report.final.accuracy],
        "seconds": dict(report.seconds),
    }
    return rendered(
        "report.html",
        "report.html",
        EXTRA,
        report=report,
        tiles=_tiles(report),
        headings=headings(report.in_percent),
        stages=stage_rows(report),
        proof=proof_line(report),
        width_headings=WIDTHS,
        widths=[(width_cells(row), _keys(row)) for row in report.groups],
        kept={name: ranges(group.kept) for name, group in plan.groups.items()},
        without=len(report.groups) - len(details),
        rounds=_rounds(report),
        proof_facts=[(name.replace("_", " "), _shown(value)) for name, value in report.proof.items()],
        facts=facts(report),
        charts=charts,
        plotly=get_plotlyjs(),
    )


def markdown(report: Report, plan: Plan) -> str:
    """The tables of the report as Markdown."""
    proof = [proof_line(report), *report.notes]
    widths = [
        [*width_cells(row), ranges(plan.groups[row.name].kept)] for row in report.groups if row.name in plan.groups
    ]
    parts = [
        f"# {escaped(report.model)}: {escaped(title(report))}",
        "",
        *md_table(("network", *headings(report.in_percent)), ([name, *row] for name, row in stage_rows(report))),
        *(f"- {escaped(line)}" for line in proof),
        "",
        "## Widths",
        "",
        *md_table((*WIDTHS, "kept units"), widths),
        "## Rounds of correction" if report.rounds else "",
        "",
        *(md_table(("action", "metric", "drop", "accepted"), _rounds(report)) if report.rounds else ()),
        "## How it was made",
        "",
        *md_table(("", ""), facts(report)),
        "## Seconds",
        "",
        *md_table(("stage", "s"), ((name, f"{value:.1f}") for name, value in report.seconds.items())),
    ]
    return "\n".join(part for i, part in enumerate(parts) if part or parts[i - 1]).rstrip() + "\n"


def md_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A table in Markdown, and an empty line."""
    header = list(header)
    body = ("| " + " | ".join(map(escaped, row)) + " |" for row in rows)
    return ["| " + " | ".join(map(escaped, header)) + " |", "|" + "---|" * len(header), *body, ""]


def escaped(text: str) -> str:
    """A text that stays one cell, and no markup, whatever the names in it."""
    escaped = "".join(f"\\{letter}" if letter in "\\|`*_[]<>" else letter for letter in str(text))
    return " ".join(escaped.split())


def ranges(units: Iterable[int]) -> str:
    """ "0–3, 7": ascending numbers, shortened."""
    runs = [[i for _, i in run] for _, run in groupby(enumerate(units), lambda pair: pair[1] - pair[0])]
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rpartition(',')[0]}, …"


def stage_rows(report: Report) -> list[tuple[str, list[str]]]:
    """Name and figures of every network."""
    return [(name, cells(stage, report.dense, report.in_percent)) for name, stage in report.stages.items()]


def title(report: Report) -> str:
    """Method and budget."""
    return ", ".join(filter(None, (report.method, report.budget)))


def _tiles(report: Report) -> list[tuple[str, str, str, str]]:
    """What is told first: name, before, after, what remains."""
    dense, final = report.dense, report.final
    found: list[tuple[str, str, str, str]] = []
    if final.accuracy is not None:
        change = "" if dense.accuracy is None else _change(final.accuracy - dense.accuracy, report.in_percent)
        before, after = (metric(stage.accuracy, report.in_percent) for stage in (dense, final))
        found.append((headings(report.in_percent)[0], before, after, change))
    for name, before, after in (
        ("parameters", dense.params, final.params),
        ("MACs", dense.macs, final.macs),
        ("bytes", dense.bytes, final.bytes),
    ):
        found.append((name, f"{before:,}", f"{after:,}", f"{100 * after / max(before, 1):.1f}% stay"))
    if dense.latency_ms and final.latency_ms:
        faster = f"{dense.latency_ms / final.latency_ms:.2f}× as fast"
        found.append(("latency", f"{dense.latency_ms:.2f} ms", f"{final.latency_ms:.2f} ms", faster))
    return found


def _change(value: float, percent: bool) -> str:
    return f"{100 * value:+.2f} points" if percent else f"{value:+.4g}"


def _keys(row: GroupRow) -> list[str | float | None]:
    """By what the cells of a group are sorted."""
    share = row.after / max(row.before, 1)
    return [row.name, row.after, share, row.natural, row.mean, row.std, row.error, row.criterion]


def _details(report: Report, plan: Plan) -> dict[str, dict[str, Any]]:
    """Group name → what its charts show; the first groups, as far as there is room."""
    found: dict[str, dict[str, Any]] = {}
    left = CHART_BYTES
    for row in report.groups:
        group = plan.groups.get(row.name)
        own = {
            "kept": None if group is None else group.states,
            "curve": row.curve,
            "beta": row.guide,
            "natural": row.natural,
            "after": row.after,
            "sureness": asdict(row.sureness) if row.sureness is not None else None,
            **(asdict(row.units) if row.units is not None else {}),
        }
        left -= len(json.dumps(own))
        if left < 0:
            break
        found[row.name] = own
    return found


def _add_maps(details: dict[str, dict[str, Any]], report: Report) -> None:
    """Heat maps of as many groups as there is room for; every group's other charts go first."""
    left = CHART_BYTES - sum(len(json.dumps(own)) for own in details.values())
    for row in report.groups:
        if row.name in details:
            own = {
                "correlation": asdict(row.correlation) if row.correlation is not None else None,
                "places": asdict(row.places) if row.places is not None else None,
            }
            left -= len(json.dumps(own))
            if left < 0:
                break
            details[row.name] |= own


def _rounds(report: Report) -> list[list[str]]:
    return [[_shown(one.get(name)) for name in ("action", "metric", "drop", "accepted")] for one in report.rounds]


def _shown(value: Any) -> str:
    """A JSON value for a reader."""
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def facts(report: Report) -> list[tuple[str, str]]:
    """How the run was made: name, value."""
    return [
        ("command", report.command or "from Python"),
        ("method", report.method),
        ("budget", report.budget or "none"),
        ("allocation", report.allocation),
        ("compensation", report.compensation),
        ("seed", str(report.seed)),
        ("calibration", _listed(report.calibration)),
        ("latency", _listed(report.latency) or "not measured"),
        ("peak memory", f"{report.peak_bytes / 1e9:.2f} GB" if report.peak_bytes else "not known"),
        ("versions", _listed(report.versions)),
    ]


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
