"""From an empty folder to a proved run folder, as a new user would go."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from actprune.artifacts.plan_file import read_plan
from actprune.cli.init import TEMPLATES, init
from actprune.cli.recipe import load_recipe
from actprune.errors import ArtifactError, CaptureError, PlanError
from actprune.report.frontier import Frontier, Point
from actprune.report.record import Report, Stage
from kill_and_resume import same_after
from test_cli import Run, run  # noqa: F401


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_walk(run: Run, tmp_path: Path) -> None:  # noqa: F811
    assert run("init")[0] == 0
    code, _, err = run("init")
    assert code == 1 and "can't be written" in err
    code, out, _ = run("prune", "recipe.py", "--keep", "macs=50%", "--method", "flap", "--dry-run", "--json")
    told = json.loads(out)
    assert code == 0 and told["pruned"]["macs"] <= told["dense"]["macs"] / 2
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ""] == ["recipe.py"]
    words = ("prune", "recipe.py", "--method", "flap", "--keep", "macs=50%", "--out", "runs/half")
    code, out, err = run(*words)
    assert code == 0 and "written to runs/half" in out, err
    report = json.loads((tmp_path / "runs" / "half" / "report.json").read_text())
    assert report["pruned"]["macs"] == told["pruned"]["macs"]
    code, out, err = run("verify", "runs/half")
    assert code == 0 and out.startswith("proved"), err
    code, out, err = run("export", "runs/half", "--pt2", "--fold")
    assert code == 0 and "written to runs/half/model.pt2" in out, err
    assert run("export", "runs/half")[0] == 2
    plan = tmp_path / "runs" / "half" / "plan.json"
    edited = json.loads(plan.read_text())
    name, group = next(iter(edited["groups"].items()))
    group["kept"] = group["kept"][:2]
    (tmp_path / "mine.json").write_text(json.dumps(edited, indent=1))
    words = ("prune", "recipe.py", "--method", "l2", "--plan", "mine.json", "--recover", "4", "--out", "runs/mine")
    code, out, err = run(*words, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert {g["name"]: g["after"] for g in told["groups"]}[name] == 2
    assert told["recovered"] is not None and any("4 steps" in note for note in told["notes"])


def test_rounds(run: Run, tmp_path: Path) -> None:  # noqa: F811
    assert run("init")[0] == 0
    words = ("prune", "recipe.py", "--method", "l2", "--rounds", "2", "--recover", "2", "--out", "runs/small")
    code, out, err = run(*words, "--keep", "params=30%", "--json")
    told = json.loads(out)
    assert code == 0 and told["pruned"]["params"] <= 0.3 * told["dense"]["params"], err
    assert any("2 rounds" in note for note in told["notes"])
    code, out, err = run("verify", "runs/small/final")
    assert code == 0 and out.startswith("proved"), err
    code, out, err = run(*words, "--keep", "params=30%", "--resume")
    assert code == 0 and "written to runs/small/final" in out, err
    assert run(*words)[0] == 2  # no budget to divide
    assert run(*words, "--keep", "params=30%", "--dry-run")[0] == 2


def test_a_further_fine_tune(run: Run, tmp_path: Path) -> None:  # noqa: F811
    assert run("init")[0] == 0
    text = (tmp_path / "recipe.py").read_text()
    (tmp_path / "plain.py").write_text(text[: text.index("def finetune")])
    (tmp_path / "worse.py").write_text(
        text[: text.index("def finetune")]
        + "def finetune(net):\n    with torch.no_grad():\n        net[-1].weight.neg_()\n"
    )
    code, _, err = run("prune", "plain.py", "--method", "l2", "--keep", "macs=30%", "--out", "runs/a")
    assert code == 0, err
    folder = tmp_path / "runs" / "a"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, _, err = run("finetune", "runs/a", "plain.py")
    assert code == 1 and "no fine-tune" in err
    code, out, err = run("finetune", "runs/a", "worse.py")
    assert code == 0 and "made the metric worse" in out and "→" in out, err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    code, out, err = run("finetune", "runs/a", "recipe.py", "--out", "runs/b", "--json")
    told = json.loads(out)
    assert code == 0 and told["kept"] and told["after"] >= told["before"] and told["run"] == "runs/b", err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    code, out, err = run("finetune", "runs/a", "recipe.py")
    assert code == 0 and "after fine-tune" in out and "written to runs/a" in out, err
    report = json.loads((folder / "report.json").read_text())
    assert report["finetuned"]["accuracy"] == told["after"] and len(report["losses"]) == 32
    assert "Fine-tuned after the run" in report["notes"][-1]
    assert run("verify", "runs/a")[0] == run("verify", "runs/b")[0] == 0
    code, _, err = run("finetune", "runs/a", "recipe.py", "--out", "runs/b")
    assert code == 1 and "can't be written here" in err


def test_a_sweep_is_run_folders_and_a_frontier(run: Run, tmp_path: Path) -> None:  # noqa: F811
    assert run("init")[0] == 0
    budgets = ("--keep", "macs=70%", "--keep", "params=40%")
    words = ("sweep", "recipe.py", *budgets, "--method", "l2", "--recover", "2", "--out", "runs/s")
    code, out, err = run(*words, "--json")
    assert code == 0, err
    told, home = json.loads(out), tmp_path / "runs" / "s"
    assert told == json.loads((home / "frontier.json").read_text())
    assert [one["folder"] for one in told["points"]] == ["macs-70", "params-40"]
    for one in told["points"]:
        report = json.loads((home / one["folder"] / "report.json").read_text())
        assert (one["macs"], one["accuracy"]) == (report["finetuned"]["macs"], report["finetuned"]["accuracy"])
        assert report["recovered"] is not None
        assert f"| {one['keep']} |" in (home / "frontier.md").read_text()
    assert told["points"][0]["macs"] <= 0.7 * told["dense"]["macs"]
    assert told["points"][1]["params"] <= 0.4 * told["dense"]["params"]
    assert run("verify", "runs/s/params-40")[0] == 0
    code, _, err = run(*words)
    assert code == 1 and "a sweep in this folder already" in err
    assert run("sweep", "--keep", "macs=50%", "--keep", "0.5")[0] == 2
    code, _, err = run("sweep", "--keep", "flops=50%")
    assert code == 1 and "unknown cost" in err
    assert run("sweep")[0] == 2


def test_the_frontier_leaves_out_what_another_run_beats() -> None:
    dense = Stage(0.9, 100, 100, 400, None)

    def point(accuracy: float | None, macs: int) -> Point:
        own = replace(dense, accuracy=accuracy, macs=macs)
        report = SimpleNamespace(final=own, dense=dense, model="Net", method="l2", seed=0, in_percent=True)
        return Point(f"macs={macs}%", f"macs-{macs}", cast("Report", report))

    points = [point(0.9, 70), point(0.8, 50), point(0.85, 50), point(0.85, 60), point(None, 10)]
    found = Frontier(points)
    assert [found.best(one) for one in points] == [True, False, True, False, None]
    table = found.to_table()
    assert [str(column.header) for column in table.columns] == [
        "budget",
        "accuracy",
        "params",
        "MACs",
        "ms",
        "frontier",
    ]
    assert table.row_count == 1 + len(points)


NEEDS = {"keras": "keras", "hf": "transformers", "timm": "timm"}
"""Template → the package that it needs."""


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_runs(template: str, run: Run, request: pytest.FixtureRequest) -> None:  # noqa: F811
    package = NEEDS.get(template, "torch")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    if package in ("transformers", "timm") and importlib.util.find_spec("torchvision") is not None:
        request.getfixturevalue("vision")  # they import it
    assert run("init", "mine.py", "--template", template)[0] == 0
    recipe = load_recipe("mine.py")
    assert recipe.functions.keys() == {"model", "calibration", "evaluate", "finetune"}
    code, _, err = run("init", "other.py", "--template", "cnm")
    assert code == 1 and "did you mean 'cnn'?" in err
    clear = importlib.import_module("keras").utils.clear_session if template == "keras" else lambda: None
    clear()  # as in a new process: the same names of layers
    if template != "cnn":  # of which `test_the_walk` is
        code, out, err = run("prune", "mine.py", "--method", "l2", "--keep", "units=70%", "--out", "runs/a", "--json")
        told = json.loads(out)
        assert code == 0 and told["finetuned"]["accuracy"] >= told["pruned"]["accuracy"], err
    if template == "keras":
        clear()
        code, out, err = run("verify", "runs/a", "mine.py")
        assert code == 0 and out.startswith("proved"), err
        clear()
        code, out, err = run("finetune", "runs/a", "mine.py", "--out", "runs/b", "--json")
        assert code == 0 and json.loads(out)["kept"] == Path("runs/b/model.keras").exists(), err


def test_what_is_no_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.py").write_text("def modle(): pass")
    with pytest.raises(CaptureError, match="did you mean 'modle'"):
        load_recipe("r.py")
    (tmp_path / "work").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "work")
        with pytest.raises(CaptureError):
            load_recipe("../r.py")
    assert capsys.readouterr().err.count("code from outside the working folder") == 1


def test_data_in_the_place_of_a_function(tmp_path: Path) -> None:
    text = "import torch\nmodel = torch.nn.Linear(4, 2)\ncalibration = [torch.zeros(8, 4)]\n"
    (tmp_path / "plain.py").write_text(text)
    recipe = load_recipe(str(tmp_path / "plain.py"))
    assert isinstance(recipe.model(), torch.nn.Linear) and recipe.calibration()[0].shape == (8, 4)


def test_what_a_recipe_raises_is_told_with_its_line(run: Run, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "mine.py").write_text("def model():\n    return help_me()\ndef help_me():\n    return weights\n")
    code, out, err = run("prune", "mine.py", "--out", "runs/mine")
    assert code == 1 and out == "" and "Traceback" not in err
    for words in ("The recipe's model() fails.", "got: NameError: name 'weights'", "where: mine.py, line 4"):
        assert words in err, err


def test_errors_in_a_plan_name_the_line(tmp_path: Path) -> None:
    good = {"schema": "actprune.plan/1", "model": "", "architecture": "", "dims": {}, "aliases": {}, "edits": {},
            "note": {}, "groups": {"a": {"key": 1, "width": 4, "kept": [0, 1]}}}  # fmt: skip
    path = tmp_path / "plan.json"
    for kept, line in ((["x", 1], 12), ([0, "x"], 13)):
        good["groups"]["a"]["kept"] = kept  # type: ignore[index]
        text = json.dumps(good, indent=1)
        path.write_text(text)
        with pytest.raises(PlanError) as caught:
            read_plan(path)
        expected = text[: text.index('"x"')].count("\n") + 1
        assert str(caught.value.where).endswith(f", line {expected}"), (caught.value.where, line)
    path.write_text('{\n "a": }')
    with pytest.raises(PlanError, match="line 2"):
        read_plan(path)
    with pytest.raises(ArtifactError, match="can't be read"):
        read_plan(tmp_path / "none.json")


@pytest.mark.slow
@pytest.mark.long
def test_killed_runs_end_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python tests/kill_and_resume.py 30` does so thirty times."""
    source = str(Path(__file__).resolve().parents[1] / "src")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")])))
    init(tmp_path / "recipe.py", "cnn")
    assert same_after(3, tmp_path) == 3


def test_a_keras_file_and_arrays(run: Run, tmp_path: Path) -> None:  # noqa: F811
    keras = pytest.importorskip("keras")
    layers = keras.layers
    parts = [keras.Input((6,)), layers.Dense(8, activation="relu"), layers.Dense(3, activation="softmax")]
    keras.Sequential(parts).save(tmp_path / "net.keras")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).random((64, 6), "float32"), y=np.zeros(64))
    code, out, err = run("prune", "net.keras", "--data", "data.npz", "--method", "l2", "--keep", "units=50%")
    assert code == 0 and "written to runs/pruned" in out, err
    small = keras.models.load_model(tmp_path / "runs" / "pruned" / "model.keras")
    assert [layer.units for layer in small.layers] == [4, 3]
    words = ("net.keras", "--data", "data.npz", "--method", "l2", "--keep", "macs=70%")
    code, out, err = run("prune", *words, "--dry-run", "--json")
    assert code == 0 and json.loads(out)["pruned"]["macs"] < json.loads(out)["dense"]["macs"], err
    code, out, err = run("sweep", *words)
    assert code == 0 and (tmp_path / "runs" / "sweep" / "macs-70" / "model.keras").exists(), err
    for command in (("prune", "--out", "runs/other"), ("verify", "runs/pruned"), ("export", "--pt2", "runs/pruned")):
        code, _, err = run(*command, "net.keras")
        assert code == 1 and "--data" in err
    assert run("prune", "recipe.py", "--data", "data.npz")[0] == 2


def test_a_run_of_a_keras_file_is_used_like_any_other(run: Run, tmp_path: Path) -> None:  # noqa: F811
    keras = pytest.importorskip("keras")
    parts = [keras.Input((6,)), keras.layers.Dense(8), keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    keras.Sequential(parts).save(tmp_path / "net.keras")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).random((64, 6), "float32"))
    given = ("net.keras", "--data", "data.npz")
    for name, budget in (("a", "units=50%"), ("b", "units=75%")):
        code, _, err = run("prune", *given, "--method", "l2", "--keep", budget, "--out", f"runs/{name}")
        assert code == 0, err
    code, out, err = run("verify", "runs/a", *given)
    assert code == 0 and out.startswith("proved"), err
    code, out, err = run("export", "runs/a", *given, "--pt2")
    assert code == 0 and (tmp_path / "runs" / "a" / "model.pt2").exists(), err
    code, _, err = run("export", "runs/a", *given, "--pt2", "--fold")
    assert code == 1 and "A Keras model isn't folded" in err
    code, out, err = run("compare", "runs/a", "runs/b", "--json")
    assert code == 0 and json.loads(out), err
    code, out, err = run("inspect", "net.keras", "--json")
    assert code == 0 and json.loads(out)["groups"][0]["name"].startswith("dense"), err
    assert run("inspect", "net.keras", "--input", "4,6")[0] == 0


def test_a_fine_tune_that_is_data_is_given_as_it_is(tmp_path: Path) -> None:
    """The engine shares it out to processes, and lets the dense network teach it."""
    from actprune.recovery.sgd import SGD

    path = tmp_path / "tuned.py"
    path.write_text(
        "import actprune as ap\nfinetune = ap.SGD([], max)\ndef model(): ...\ndef evaluate(m): return 1.0\n"
    )
    recipe = load_recipe(str(path))
    evaluate = recipe.optional("evaluate")
    assert isinstance(recipe.optional("finetune"), SGD) and evaluate is not None and evaluate(None) == 1.0
    assert recipe.optional("calibration") is None


def test_a_folder_of_several_runs_is_told_from_a_run(run: Run, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "several" / "final").mkdir(parents=True)
    (tmp_path / "several" / "final" / "plan.json").write_text("{}")
    code, _, err = run("report", "several")
    assert code == 1 and "run folders in it: final" in err and "name one of them" in err
