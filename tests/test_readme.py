"""The README: its Python runs, and what it names exists."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import actprune
from actprune.allocation.budget import COSTS, read_keep
from actprune.cli.main import app
from actprune.demo import mnist_files
from actprune.methods import ALLOCATIONS, COMPENSATIONS, METHODS

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text("utf-8")
START, STAGES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def section(name: str) -> str:
    """The text under a heading."""
    return TEXT.split(f"\n## {name}\n")[1].split("\n## ")[0]


def first_cells(name: str, heading: str) -> list[str]:
    """The code in the first column of the table in section `name` whose first heading starts so."""
    table = section(name).split(f"| {heading}", 1)[1].split("\n\n")[0]
    rows = table.split("\n")[2:]
    return [code for row in rows for code in re.findall(r"`([^`]*)`", row.split("|")[1])]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the Python of the README leaves behind, run in an empty folder."""
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("readme"))
        torch.manual_seed(0)
        exec(compile(START, "README.md, quick start", "exec"), names)
        saved = sorted(path.name for path in Path("runs/digits").iterdir())
        names |= {"saved": saved, "first": names["small"]}
        exec(compile(STAGES, "README.md, stages", "exec"), names)
    return names


def test_the_quick_start_runs(ran: dict[str, Any]) -> None:
    result, accuracy = ran["result"], ran["accuracy"]
    assert accuracy(ran["model"]) > 0.88
    assert accuracy(result.model) > accuracy(ran["model"]) - 0.05
    assert result.report.pruned.macs <= result.report.dense.macs / 2
    assert result.plan.widths["0"] == 8  # protected
    assert ran["saved"] == ["plan.json", "report.json", "weights.safetensors"]
    torch.testing.assert_close(ran["first"](ran["x"]), result.model(ran["x"]))


def test_the_stages_run(ran: dict[str, Any]) -> None:
    dense = sum(p.numel() for p in ran["model"].parameters())
    small = sum(p.numel() for p in ran["small"].parameters())
    assert ran["proof"].passed and ran["proof"].params == small <= 0.4 * dense
    assert ran["accuracy"](ran["small"]) > ran["accuracy"](ran["model"]) - 0.05


def test_the_quick_start_is_short() -> None:
    lines = [line for line in START.splitlines() if line.strip()]
    assert len(lines) <= 22
    assert max(map(len, START.splitlines())) <= 120


def test_every_stage_is_shown() -> None:
    used = set(re.findall(r"\bap\.(\w+)", START + STAGES))
    assert used >= {"prune", "SGD", "load", "capture", "collect", "guide", "allocate", "compensate", "cut", "verify"}
    named = set(re.findall(r"\bap\.(\w+)", TEXT))
    assert named <= set(actprune.__all__)


def test_the_tables_are_complete() -> None:
    assert first_cells("Choices", "`method=`") and set(first_cells("Choices", "`method=`")) == set(METHODS)
    assert set(first_cells("Choices", "`allocation=`")) == set(ALLOCATIONS)
    budgets = [read_keep(text.strip('"')) for text in first_cells("Choices", "Budget") if text.startswith('"')]
    assert {budget.cost for budget in budgets} == set(COSTS)
    assert all(f'"{name}"' in section("Choices") for name in COMPENSATIONS)


def test_the_table_of_methods_says_what_the_presets_say() -> None:
    for row in section("Choices").split("| `method=`")[1].split("\n\n")[0].split("\n")[2:]:
        names, _, refit, allocation = (cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip("|")))
        for name in re.findall(r"`([^`]*)`", names):
            method = METHODS[name]
            assert (method.compensate or "none").replace("_", " ") == refit, name
            assert method.allocation == allocation.strip("`"), name


def test_arguments_and_options_exist() -> None:
    arguments = {*inspect.signature(actprune.prune).parameters, *inspect.signature(actprune.Distill).parameters}
    named = set(re.findall(r"`(\w+)=[^`]*`", TEXT))
    assert named - {"check", "macs", "params"} <= arguments
    helps = [[command.callback.__name__, "--help"] for command in app.registered_commands if command.callback]
    shown = "".join(CliRunner().invoke(app, words, env={"COLUMNS": "200", "TERM": "dumb"}).output for words in helps)
    options = set(re.findall(r"(--[a-z][a-z-]+)", TEXT)) - {"--help"}
    assert options and all(option in shown for option in options)


def test_the_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"^make (\w+)", TEXT, re.MULTILINE):
        assert f"\n{target}: " in makefile
    assert (ROOT / "benchmarks" / "main_job.py").is_file()


def test_the_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert links and all((ROOT / link).is_file() for link in links)


def test_the_source_of_the_data_is_named_right() -> None:
    assert mnist_files.REQUIREMENT in section("The command line")
    assert round(mnist_files.WHEEL_BYTES / 1e6) == 20


def test_the_results_are_the_measured_ones() -> None:
    """The marker says that they are still to come; else the table is the file's, cell for cell."""
    results, path = section("Results"), ROOT / "benchmarks" / "results" / "main_job.md"
    assert "<!-- results: main_job -->" in results or path.read_text("utf-8").strip() in results
