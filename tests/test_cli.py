"""The command line: help, the demo on a few synthetic digits, exit codes, and errors that say what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

from actprune import __version__
from actprune.artifacts.checkpoint import load
from actprune.cli.main import app, main
from actprune.cli.progress import bars, progress_of
from actprune.demo import keras_job, main_job
from actprune.demo.lenet5 import LeNet5
from actprune.demo.mnist import Mnist
from actprune.errors import DataError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`actprune …` in this process: (exit code, what it printed, what it complained)."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")

    def start(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["actprune", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        code = left.value.code
        out = capsys.readouterr()
        return (code if isinstance(code, int) else 0), out.out, out.err

    return start


def digits() -> Mnist:
    """In the place of MNIST: noise with a bright bar, whose column is the label."""
    rng = np.random.default_rng(0)

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.integers(0, 10, count).astype(np.uint8)
        images = rng.integers(0, 40, (count, 28, 28)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[4:24, 4 + 2 * label : 6 + 2 * label] = 255
        return images, labels

    return Mnist(*part(640), *part(60))


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Run) -> Run:
    """`actprune demo …` on those digits, with a cache of its own."""
    monkeypatch.setattr(main_job, "load_mnist", lambda data, cache: digits())
    monkeypatch.setattr(keras_job, "load_mnist", lambda data, cache: digits())
    for job in (main_job, keras_job):
        monkeypatch.setattr(job, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return lambda *words: run("demo", *words)


# ---- help


def test_help(run: Run) -> None:
    for words in (("--help",), ("demo", "--help")):
        code, out, err = run(*words)
        assert (code, err) == (0, "")
    for option in ("--keep", "--max-drop", "--method", "--allocation", "--threshold", "--finetune-epochs", "--epochs",
                   "--seed", "--data", "--out", "--overwrite", "--device", "--framework"):  # fmt: skip
        assert option in out
    assert "Example: actprune demo" in out


def test_no_command_shows_the_help(run: Run) -> None:
    code, out, err = run()
    assert code == 2 and "Usage" in out + err


def test_the_version(run: Run) -> None:
    assert run("--version")[:2] == (0, f"actprune {__version__}\n")


@pytest.mark.parametrize("command", ["demo", "inspect"])
def test_help_loads_no_torch(command: str) -> None:
    """It takes two seconds to import."""
    code = (
        f"import sys; sys.argv = ['actprune', '{command}', '--help']; sys.path.insert(0, 'src')\n"
        "from actprune.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.rstrip().endswith("False")


# ---- the demo


def test_the_demo(demo: Run, tmp_path: Path) -> None:
    words: tuple[str | Path, ...] = ("--epochs", "1", "--finetune-epochs", "1", "--keep", "params=30%")
    code, out, _ = demo(*words, "--allocation", "uniform", "--out", tmp_path / "run")
    assert code == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["schema"] == "actprune.report/1"
    assert report["budget"] == "params=30%"
    assert report["pruned"]["params"] <= 0.3 * report["dense"]["params"] == 0.3 * 44_426
    for stage in ("dense", "pruned", "finetuned"):
        assert 0 <= report[stage]["accuracy"] <= 1 and 0 <= report[stage]["validation"] <= 1
        assert f"{report[stage]['params']:,}" in out and f"{report[stage]['macs']:,}" in out
    assert report["finetuned"]["validation"] >= report["pruned"]["validation"]
    for group in report["groups"]:
        assert f"{group['before']} → {group['after']}" in out
    for words in ("pruning guide", "widths", "after cut", "after fine-tune", "proved", "L2 norm, same widths",
                  "correction: ", "rounds on the validation split", "written to"):  # fmt: skip
        assert words in out, words
    assert type(load(tmp_path / "run", LeNet5())) is LeNet5
    assert report["seconds"]["train"] > 0

    # the second time: the dense network is cached, the folder is not overwritten unless asked for
    words = ("--epochs", "1", "--finetune-epochs", "0", "--max-drop", "50", "--method", "l2", "--out", tmp_path / "run")
    code, _, err = demo(*words)
    assert code == 1 and "run" in err and "expected: " in err
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == report
    code, out, _ = demo(*words, "--overwrite")
    assert code == 0 and "after fine-tune" not in out
    again = json.loads((tmp_path / "run" / "report.json").read_text())
    assert again["dense"]["accuracy"] == report["dense"]["accuracy"]
    assert "train" not in again["seconds"] and again["finetuned"] is None
    assert again["budget"] == "max_drop=0.5"
    assert again["pruned"]["validation"] >= again["dense"]["validation"] - 0.5


def test_the_demo_on_keras(demo: Run, tmp_path: Path) -> None:
    """The seed's own script: compile, fit, evaluate, SGD-AP, fit, evaluate."""
    words: tuple[str | Path, ...] = ("--epochs", "2", "--finetune-epochs", "1", "--keep", "params=30%")
    code, out, err = demo("--framework", "keras", *words, "--allocation", "uniform", "--out", tmp_path / "run")
    assert code == 0, err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["pruned"]["params"] <= 0.3 * report["dense"]["params"] == 0.3 * 44_426
    assert report["dense"]["macs"] == 281_640
    for stage in ("dense", "pruned", "finetuned"):
        assert 0 <= report[stage]["accuracy"] <= 1 and 0 <= report[stage]["validation"] <= 1
    assert report["dense"]["validation"] > 0.5  # chance is a tenth: it was trained
    small = keras.models.load_model(tmp_path / "run" / "model.keras")
    assert isinstance(small, keras.Sequential)
    assert [layer.name for layer in small.layers] == [layer.name for layer in keras_job.lenet5().layers]
    assert {group["name"]: group["after"] for group in report["groups"]} == {
        name: small.get_layer(name).get_config().get("filters") or small.get_layer(name).units
        for name in ("conv1", "conv2", "fc1", "fc2")
    }
    for words in ("pruning guide", "after fine-tune", "proved", "L2 norm, same widths"):
        assert words in out, words
    assert report["seconds"]["train"] > 0
    words = ("--epochs", "2", "--finetune-epochs", "0", "--keep", "params=30%", "--method", "l2")
    code, _, err = demo("--framework", "keras", *words, "--out", tmp_path / "again")
    assert code == 0, err
    again = json.loads((tmp_path / "again" / "report.json").read_text())
    assert again["dense"]["accuracy"] == report["dense"]["accuracy"] and "train" not in again["seconds"]
    code, _, err = demo("--framework", "keras", "--device", "cuda", "--out", tmp_path / "other")
    assert code == 1 and "leave --device out" in err
    code, _, err = demo("--framework", "kears")
    assert code == 1 and "keras" in err


def test_the_seeds_filter_pruning(demo: Run, tmp_path: Path) -> None:
    code, _, _ = demo("--epochs", "1", "--finetune-epochs", "0", "--method", "filter", "--threshold", "0.02")
    assert code == 0
    report = json.loads((tmp_path / "runs" / "lenet5-mnist" / "report.json").read_text())
    assert (report["method"], report["allocation"], report["budget"]) == ("filter", "natural", None)


# ---- errors


def untouched(tmp_path: Path) -> bool:
    return not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "sgdap"], ["no method named 'sgdap'", "did you mean 'sgd-ap'?"]),
        (["--allocation", "unifrom"], ["did you mean 'uniform'?"]),
        (["--keep", "macs=0%"], ["out of range", "got: macs=0%"]),
        (["--keep", "[half]"], ["can't be read", "got: '[half]'"]),
        (["--keep", "flops=50%"], ["unknown cost", "macs, params, bytes, latency, units"]),
        (["--method", "filter"], ["needs a threshold", "--threshold 0.01"]),
        (["--device", "abacus"], ["device can't be used", "abacus"]),
    ],
    ids=lambda words: words[-1],
)
def test_errors_are_told_before_the_work(demo: Run, tmp_path: Path, words: list[str], said: list[str]) -> None:
    code, out, err = demo(*words)
    assert code == 1 and out == ""
    assert err.startswith("error: ")
    for word in ("expected: ", "got: ", "where: ", "next: ", *said):
        assert word in err, err
    assert "Traceback" not in err
    assert untouched(tmp_path)


def test_an_error_of_a_later_stage(demo: Run, tmp_path: Path) -> None:
    code, _, err = demo("--epochs", "1", "--keep", "macs=1%")
    assert code == 1 and "can't be reached" in err
    assert not (tmp_path / "runs").exists()


def test_missing_data(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run("demo", "--data", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert code == 1 and "nowhere" in err and "next: " in err
    assert untouched(tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dmeo"], "Did you mean 'demo'?"),
        (["demo", "--keeep", "macs=50%"], "possible options: --help, --keep"),
        (["demo", "--seed", "one"], "valid integer"),
        (["demo", "--max-drop", "-1"], "--max-drop"),
        (["demo", "--epochs", "0"], "--epochs"),
    ],
)
def test_wrong_usage(run: Run, words: list[str], said: str) -> None:
    code, _, err = run(*words)
    assert code == 2
    assert said.lower() in " ".join(err.lower().replace("│", " ").split())


def test_an_interrupt(demo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(main_job, "run", interrupted)
    code, _, err = demo()
    assert code == 130 and "Traceback" not in err and err.endswith("interrupted\n")


def test_an_interrupt_tells_how_to_go_on(run: Run, tmp_path: Path) -> None:
    (tmp_path / "stopped.py").write_text(
        "def model():\n    raise KeyboardInterrupt\n\n\ncalibration = model\n", "utf-8"
    )
    code, _, err = run("prune", tmp_path / "stopped.py", "--out", tmp_path / "run")
    assert code == 130 and err.endswith("interrupted; the same command with --resume goes on\n")


def test_errors_reach_those_who_call_the_app_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the console script turns them into text."""
    monkeypatch.chdir(tmp_path)  # where there is no run folder of an earlier demo
    result = CliRunner().invoke(app, ["demo", "--data", "/nowhere/at/all"])
    assert isinstance(result.exception, DataError)


# ---- progress


def test_progress_is_quiet_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with bars() as tell:
        tell("train", 0, 10)
        tell("train", 10, 10)
        tell("allocate", 1, 3)
    out = capsys.readouterr()
    assert out.out == out.err == ""


def test_progress_as_lines_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_of(log_json=True) as tell:
        tell("train", 0, 10)
        tell("allocate", 1, 3)
    out = capsys.readouterr()
    told = [json.loads(line) for line in out.err.splitlines()]
    assert out.out == "" and [(one["stage"], one["done"], one["total"]) for one in told] == [
        ("train", 0, 10),
        ("allocate", 1, 3),
    ]
    assert all(one["seconds"] >= 0 for one in told)


def test_progress_has_one_bar_a_stage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    with bars() as tell:
        for done in range(4):
            tell("train", done, 3)
        tell("allocate", 1, 3)
    err = capsys.readouterr().err
    assert "train" in err and "3/3" in err and "allocate" in err and "1/3" in err


BLOCKS = """
from pathlib import Path
import torch
from torch import nn
import actprune as ap

class Residual(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
        self.body[2].weight.data.mul_(weight)
        self.body[2].bias.data.zero_()

    def forward(self, x):
        return x + self.body(x)

def model():
    net = nn.Sequential(nn.Linear(5, 6), *(Residual(weight) for weight in (1.0, 0.01, 2.0, 0.1)), nn.Linear(6, 3))
    plan = Path(__file__).with_name("depth.json")
    return ap.DepthPlan.from_json(plan.read_text()).apply(net) if plan.exists() else net

def calibration():
    return list(torch.randn(32, 5).split(8))

def evaluate(net):
    assert not net.training
    return float(len(net))
"""


def test_shorten_writes_which_blocks_stay_and_a_recipe_goes_on_with_them(run: Run, tmp_path: Path) -> None:
    recipe, plan = tmp_path / "recipe.py", tmp_path / "depth.json"
    recipe.write_text(BLOCKS)
    code, out, err = run("shorten", recipe, "--keep", 2, "--out", plan, "--json")
    found = json.loads(out)
    assert code == 0, err
    assert list(found["removed"]) == ["2", "4"] and found["blocks"] == ["1", "3"] and found["proved"]
    assert (found["dense"]["metric"], found["shorter"]["metric"]) == (6, 4)
    assert found["shorter"]["params"] < found["dense"]["params"] and plan.exists()
    assert run("prune", recipe, "--keep", "macs=70%", "--out", tmp_path / "run")[0] == 0
    code, out, _ = run("verify", tmp_path / "run", recipe)
    assert code == 0 and "proved" in out


def test_shorten_tells_what_it_did_and_overwrites_nothing(run: Run, tmp_path: Path) -> None:
    recipe, plan = tmp_path / "recipe.py", tmp_path / "new" / "other.json"
    recipe.write_text(BLOCKS)
    (tmp_path / "file").touch()
    code, _, err = run("shorten", recipe, "--out", tmp_path / "file" / "depth.json")
    assert code == 1 and "folder that can be made" in err
    code, out, err = run("shorten", recipe, "--keep", "blocks=75%", "--protect", "2", "--out", plan)
    assert code == 0, err
    assert "without 4" in out and "metric 6 → 5" in out and "proved" in out and "apply(dense)" in out
    written = plan.read_text()
    code, _, err = run("shorten", recipe, "--out", plan)
    assert code == 1 and "already" in err and plan.read_text() == written
    for other in (tmp_path / "hf", tmp_path / "hf" / "depth.json"):
        assert run("shorten", recipe, "--out", other, "--hf", tmp_path / "hf")[0] == 2
    fourth = tmp_path / "fourth.json"
    code, _, err = run("shorten", recipe, "--out", fourth, "--hf", tmp_path / "hf")
    assert code == 1 and "transformers" in err and fourth.exists()  # the work is not lost
    assert run("shorten", recipe, "--keep", "macs=50%", "--out", tmp_path / "third.json")[0] == 1
    assert not (tmp_path / "third.json").exists()
