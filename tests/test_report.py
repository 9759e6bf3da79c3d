"""`actprune report`: from a run folder to pages that need nothing else, whatever the names and the files hold."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import actprune as ap
from actprune.errors import ArtifactError
from actprune.report import groups
from actprune.report.comparison import compared, comparison_tables
from actprune.report.frontier import Frontier, Point
from actprune.report.page import CHART_BYTES, markdown, page, ranges
from actprune.report.reading import read_report
from actprune.report.record import CURVE_POINTS
from actprune.result import Result
from nets import build
from test_cli import Run, run  # noqa: F401


@pytest.fixture(scope="module")
def result() -> Result:
    model, x = build("chain")
    torch.manual_seed(0)
    data = [torch.randn_like(x) for _ in range(8)]
    return ap.prune(model, data, keep="units=60%")


@pytest.fixture
def folder(result: Result, tmp_path: Path) -> Path:
    return result.save(tmp_path / "run")


def charts(text: str) -> dict[str, Any]:
    """The data of the charts of a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


# ---- what report.json holds of every group


def test_the_curve_and_every_unit_are_recorded(result: Result) -> None:
    for row in result.report.groups:
        own, stats = result.guide.groups[row.name], result.stats
        assert stats is not None and row.units is not None and row.units.mean and row.units.std
        assert [k for k, _ in row.curve] == list(range(row.before + 1))
        assert [e for _, e in row.curve] == pytest.approx(own.curve, rel=1e-3)
        assert row.units.scores == pytest.approx(own.scores, rel=1e-3)
        signed = stats.units[row.name].signed
        assert row.units.mean == pytest.approx(signed.mean.tolist(), rel=1e-3)
        assert row.units.std == pytest.approx(signed.std.tolist(), rel=1e-3)


def test_units_that_a_plan_gave_are_no_criterions() -> None:
    model, x = build("chain")
    graph = ap.capture(model, x)
    name = graph.groups[0].name
    guide = ap.guide(graph, None, method="l2")
    best, *_, worst = guide.groups[name].orders["l2"]
    for unit, told in ((best, "l2"), (worst, "given")):
        row = next(
            row for row in groups.group_rows(graph, guide, None, ap.make_plan(graph, {name: [unit]})) if row.after == 1
        )
        assert (row.name, row.criterion) == (name, told)


def test_heat_maps_and_confidence() -> None:
    torch.manual_seed(0)
    model, x = build("lenet")
    data = [torch.rand_like(x) for _ in range(8)]
    found = ap.prune(model, data, keep="units=60%", method="flap", confidence=2)
    stats = found.stats
    assert stats is not None
    for row in found.report.groups:
        site = found.graph[row.name].consumers[0]
        count = len(row.correlation.units) if row.correlation else 0
        assert row.correlation and len(row.correlation.percent) == count * (count - 1) // 2
        if stats.correlation(site.name).shape[0] == row.before <= 64:  # a linear layer that reads this group alone
            assert row.correlation.percent[0] == round(100 * float(stats.correlation(site.name)[0, 1]))
        assert row.sureness and len(row.sureness.kept) == row.before and 0 <= row.sureness.agreement <= 1
    assert read_report(found.report.to_json()).to_json() == found.report.to_json()
    assert any(row.places for row in found.report.groups)
    pytest.importorskip("plotly")
    shown = charts(page(found.report, found.plan))["details"]
    assert all(own["correlation"] and own["sureness"] for own in shown.values())
    with pytest.raises(ap.DataError, match="confidence"):
        ap.prune(model, data, keep="units=60%", confidence="of course")


def test_the_report_says_where_confidence_can_not_be_told() -> None:
    torch.manual_seed(0)
    model, x = build("lenet")
    asked = [ap.prune(model, [x, x], keep="units=60%", method=name, confidence=2) for name in ("l2", "wanda")]
    assert [any("How sure the ranking is" in note for note in found.report.notes) for found in asked] == [True, False]
    assert repr(asked[0]).startswith(f"Result({asked[0].report.model}: ") and repr(asked[0]).endswith("proved)")


def test_a_run_of_a_sweep_shows_it(run: Run, folder: Path, result: Result) -> None:  # noqa: F811
    pytest.importorskip("plotly")
    points = [Point("macs=60%", folder.name, result.report), Point("macs=30%", "other", result.report)]
    place = folder.parent / "frontier.json"
    for text, count in ((json.dumps(Frontier(points).to_data()), 2), ("[" * 10**5, 0), ('{"schema": 3}', 0)):
        place.write_text(text)
        assert run("report", folder)[0] == 0
        assert len(charts((folder / "report.html").read_text())["frontier"]) == count


def test_what_is_recorded_is_bounded(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    curve = [1 / (k + 1) for k in range(1001)]
    points = groups._points(curve, 7)
    assert len(points) == CURVE_POINTS and points[0][0] == 0 and points[-1][0] == 1000
    assert dict(points)[7] == pytest.approx(1 / 8)
    first = result.report.groups[0]
    monkeypatch.setattr(groups, "MOST_UNITS", first.before)
    rows = groups.group_rows(result.graph, result.guide, result.stats, result.plan)
    assert [row.units is not None for row in rows] == [True] + [False] * (len(rows) - 1)


# ---- reading it


def test_a_report_comes_back_as_it_was(result: Result, folder: Path) -> None:
    assert read_report((folder / "report.json").read_text()).to_json() == result.report.to_json()


def test_older_and_newer_reports_are_read(result: Result) -> None:
    data = json.loads(result.report.to_json()) | {"invented": 1}
    for row in data["groups"]:
        del row["curve"], row["units"]
    found = read_report(json.dumps(data))
    assert found.pruned == result.report.pruned and found.groups[0].units is None


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("schema", "actprune.report/9", "schema"),
        ("seed", True, "a whole number"),
        ("dense/params", "many", "a whole number"),
        ("dense", [], "an object"),
        ("groups/0/name", 3, "text"),
        ("groups/0/curve/1", [1], "2 values"),
        ("groups", {}, "an array"),
        ("proof/max_rel_error", None, "a number"),
        ("seconds/guide", "1", "a number"),
    ],
)
def test_what_is_no_report(result: Result, place: str, value: Any, told: str) -> None:
    data = json.loads(result.report.to_json())
    *way, last = [int(part) if part.isdecimal() else part for part in place.split("/")]
    target = data
    for part in way:
        target = target[part]
    target[last] = value
    with pytest.raises(ArtifactError, match=told) as caught:
        read_report(json.dumps(data), "report.json")
    assert f"where: report.json: {place}" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": NaN}', "[" * 100_000])
def test_what_is_no_json_of_a_report(text: str) -> None:
    with pytest.raises(ArtifactError, match="no report of actprune"):
        read_report(text)


# ---- the pages


def test_a_page_needs_nothing_else(result: Result) -> None:
    pytest.importorskip("plotly")
    report = replace(result.report, losses=((0, 2.0), (1, None)))
    text = page(report, result.plan)
    assert len(text.encode()) < 6_000_000
    assert text.count("plotly.js v") == 1  # its banner: it is there once
    own = re.sub(r"<script>/\*.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"""(src|href)\s*=|@import|url\(|https?:""", own)
    data = charts(text)
    assert {row.name for row in report.groups} == set(data["details"])
    for name, shown in data["details"].items():
        assert [i for i, one in enumerate(shown["kept"]) if one == "1"] == list(result.plan.groups[name].kept)
        assert shown["curve"] and shown["scores"] and shown["mean"] and shown["std"]
    for told in (f"{report.final.params:,}", "prefers-color-scheme: dark", "@media print", "width=device-width"):
        assert told in text


def test_names_are_no_markup(result: Result) -> None:
    pytest.importorskip("plotly")
    bad = "</script><b>|`x`"
    report = replace(result.report, model=bad, notes=(bad,), groups=(replace(result.report.groups[0], name=bad),))
    text = page(report, result.plan)
    assert "<b>|" not in text and set(charts(text)["details"]) == {bad}
    assert "<b>" not in markdown(report, result.plan).replace("\\<b\\>", "")


def test_charts_leave_room(result: Result) -> None:
    pytest.importorskip("plotly")
    row = result.report.groups[0]
    wide = replace(row, guide=[0.123456789] * (CHART_BYTES // 40))
    report = replace(result.report, groups=tuple(replace(wide, name=f"g{i}") for i in range(20)))
    text = page(report, result.plan)
    assert len(text.encode()) < 6_000_000
    assert 1 <= len(charts(text)["details"]) < 20 and "of 20 groups have no charts here" in text


def test_markdown_has_the_tables(result: Result) -> None:
    text = markdown(result.report, result.plan)
    for row in result.report.groups:
        assert f"{row.before} → {row.after}" in text
        assert ranges(result.plan.groups[row.name].kept) in text
    assert f"{result.report.final.macs:,}" in text


def test_lists_of_units_are_shortened() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0–2, 5, 7–8"
    assert ranges([]) == ""
    assert ranges(range(0, 4000, 2)).endswith(", …")


# ---- the command


def test_report_writes_both_pages(run: Run, folder: Path, result: Result) -> None:  # noqa: F811
    pytest.importorskip("plotly")
    for _ in range(2):  # a second time replaces the first
        code, out, err = run("report", folder)
        assert (code, err) == (0, "")
        assert out == "".join(f"written to {folder / name}\n" for name in ("report.html", "report.md", "README.md"))
    told = (folder / "README.md").read_text()
    for figure in (f"{result.report.final.params:,}", f"{result.report.final.macs:,}", "proved", "actprune.load"):
        assert figure in told
    result.save(folder, overwrite=True)  # all count as files of a run
    code, _, err = run("report", folder, "--open", "noo")
    assert code == 1 and "did you mean 'no'?" in err
    code, _, err = run("report", folder / "none")
    assert code == 1 and "expected: a run folder" in err


@pytest.mark.parametrize("missing", ["jinja2", "plotly"])
def test_the_extra_is_named(
    missing: str,
    run: Run,  # noqa: F811
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    code, _, err = run("report", folder)
    assert code == 1 and f"without {missing}" in err and "pip install 'actprune[report]'" in err
    assert not (folder / "report.md").exists()


def test_the_command_line_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    from actprune.report.measure import command

    for program, told in (("/x/bin/actprune", True), ("/x/actprune/__main__.py", True), ("train.py", False)):
        monkeypatch.setattr(sys, "argv", [program, "prune", "my recipe.py"])
        assert command() == ("actprune prune 'my recipe.py'" if told else None)


def test_a_run_that_can_not_be_read(folder: Path, run: Run) -> None:  # noqa: F811
    (folder / "report.json").write_text("{}")
    code, _, err = run("report", folder)
    assert code == 1 and "no report of actprune" in err


# ---- two of them


def test_compare_shows_what_differs(run: Run, result: Result, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    first, *rest = result.report.groups
    changed = replace(result.report, groups=(replace(first, after=first.after - 1), *rest))
    other = replace(result, report=changed).save(tmp_path / "other")
    code, out, err = run("compare", folder, other, "--json")
    told = json.loads(out)
    assert (code, err) == (0, "") and told["widths"] == {first.name: [first.after, first.after - 1]}
    assert told["runs"][0]["final"]["macs"] == result.report.final.macs and told["notes"] == []
    code, out, _ = run("compare", folder, other)
    assert code == 0 and "widths that differ: 1" in out and out.count("dense") == 1
    code, out, _ = run("compare", folder, folder)
    assert code == 0 and "widths" not in out


def test_compare_tells_that_the_dense_networks_differ(result: Result) -> None:
    dense = replace(result.report.dense, params=1)
    other = replace(result.report, dense=dense, latency={}, groups=result.report.groups[1:])
    found = compared(("a", "b"), result.report, other)
    assert [note.split()[0] for note in found.notes] == ["The", "Milliseconds"]
    first = result.report.groups[0]
    assert found.widths == {first.name: (first.after, None)}
    assert len(comparison_tables(found).renderables) == 4
