"""The parts of the coverage benchmark that need no model: its tables, its memory of finished models, its reasons."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from benchmarks.cache import Cache  # noqa: E402
from benchmarks.coverage.frozen import frozen_reasons, general  # noqa: E402
from benchmarks.coverage.runner import KEY, measure_one, run_all  # noqa: E402
from benchmarks.coverage.suites import SUITES, names  # noqa: E402
from benchmarks.coverage.tables import frozen, markdown, summary  # noqa: E402
from benchmarks.coverage.words import plain  # noqa: E402

from actprune.axes.account import Account, Entry  # noqa: E402

OK: dict[str, Any] = {
    "suite": "timm",
    "model": "a",
    "ok": True,
    "params_left": 0.5,
    "total_seconds": 2.0,
    "peak_gb": 1.0,
    "heads_groups": 2,
    "heads_ok": True,
    "quick": {"ok": False},
    "helped": {"ok": True},
    "frozen_reasons": {"model output": {"whole": 10, "part": 5}},
}
FAILED: dict[str, Any] = {
    "suite": "torchvision",
    "model": "b",
    "ok": False,
    "failure": "capture: CaptureError: a | b",
    "has_heads": True,
    "frozen_reasons": {"model output": {"whole": 1, "part": 0}, "mixed": {"whole": 100, "part": 0}},
}


def test_summary_counts_every_column_over_its_own_models():
    assert [line[:6] for line in summary([OK, FAILED])] == [
        ["timm", "1", "1 of 1", "0 of 1", "1 of 1", "1 of 1"],
        ["torchvision", "1", "0 of 1", "–", "–", "0 of 1"],
        ["all", "2", "1 of 2", "0 of 1", "1 of 1", "1 of 2"],
    ]


def test_reasons_are_summed_and_those_of_most_parameters_come_first():
    assert frozen([OK, FAILED]) == [["mixed", "1", "100", "0"], ["model output", "2", "11", "5"]]


def test_failures_are_listed_and_cells_cannot_break_the_table():
    text = markdown([OK, FAILED])
    assert "| torchvision | b | capture: CaptureError: a \\| b |" in text
    assert "| timm | a | yes |" in text


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("mixed by aten.softmax.int at encoder.3, vit.py:120", "mixed by aten.softmax.int"),
        ("stands twice in a dimension of blocks.3.weight", "stands twice in a dimension of …"),
        ("it fails: shape '[2, 12]' is invalid for size 123", "it fails: shape … is invalid for size #"),
        ("a kernel size by aten.conv2d.default", "a kernel size by aten.conv2d.default"),
    ],
)
def test_reasons_lose_what_belongs_to_one_model(reason: str, expected: str):
    assert general(reason) == expected


def test_every_parameter_is_frozen_or_prunable():
    entries = (
        Entry("a", 0, 4, ("g",), ()),
        Entry("a", 1, 3, (), ("model input",)),
        Entry("b", 0, 5, (), ("model output",)),
        Entry("b", 1, 1, (), ("it has a single unit",)),
    )
    reasons, count = frozen_reasons(Account(entries, 18, 12), {"a": 12, "b": 5, "scalar": 1})
    assert reasons == {
        "model input": {"whole": 0, "part": 12},
        "model output": {"whole": 5, "part": 0},
        "a single number": {"whole": 1, "part": 0},
    }
    assert 12 + count == 18


def test_a_fresh_checkout_starts_from_the_published_rows(tmp_path: Path):
    path = tmp_path / "models.jsonl"
    assert Cache(path, KEY, known=[OK]).rows == {("timm", "a"): OK}
    assert Cache(path, KEY, known=[FAILED]).rows == {("timm", "a"): OK}  # what was measured here counts
    assert Cache(path, KEY, fresh=True, known=[OK]).rows == {}


def test_a_run_goes_on_where_it_stopped(tmp_path: Path):
    path, wanted = tmp_path / "deep" / "models.jsonl", [("timm", "a"), ("timm", "b"), ("timm", "c")]
    measured: list[str] = []

    def one(key: tuple[str, str], old: dict[str, Any] | None) -> dict[str, Any] | None:
        if old is not None:
            return None
        if key[1] == "b" and "b" not in measured:
            measured.append("b")
            raise KeyboardInterrupt
        measured.append(key[1])
        return {"suite": key[0], "model": key[1], "ok": True}

    with pytest.raises(KeyboardInterrupt):
        run_all(wanted[:2], Cache(path, KEY), one, lambda line: None)
    with path.open("a") as file:
        file.write('{"suite": "timm", "mod')  # ended while it wrote
    cache = Cache(path, KEY)
    assert list(cache.rows) == [("timm", "a")]
    lines: list[str] = []
    run_all(wanted, cache, one, lines.append)
    assert measured == ["a", "b", "b", "c"]
    assert "measured before" in lines[0]
    assert set(Cache(path, KEY).rows) == set(wanted)
    assert not Cache(path, KEY, fresh=True).rows


def test_a_row_with_all_its_columns_is_not_measured_again():
    assert measure_one(("timm", "a"), {**OK}, rivals=True, eval_folder=None) is None
    assert (
        measure_one(("timm", "a"), {"suite": "timm", "model": "a", "ok": True}, rivals=False, eval_folder=None) is None
    )


def test_names_are_plain_data_and_occur_once():
    counts = {suite: len(names(suite)) for suite in SUITES}
    assert counts["torchvision"] == 80 + 6 + 9 + 12
    assert counts["timm"] == 98
    assert counts["transformers"] >= 60
    assert counts["keras"] == 12
    assert counts["eval"] == 0
    assert all(len(set(names(suite))) == len(names(suite)) for suite in SUITES)


def test_folders_of_the_machine_do_not_reach_the_results():
    assert plain('File "/opt/lib/python3/site-packages/timm/layers.py", a/b and 1/2') == 'File "layers.py", a/b and 1/2'
    assert json.dumps(plain("a\n  b")) == '"a b"'
