"""Interrupted runs: killed at any moment and resumed, they end with the bytes of a run that nobody disturbed."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import actprune as ap
from actprune.artifacts import journal as journals
from actprune.artifacts.journal import Journal
from actprune.errors import ArtifactError, BudgetError
from nets import build

pytestmark = pytest.mark.accurate  # the run that all are compared with is made before any test

SAME = ("weights.safetensors", "plan.json")


def arguments(**more: Any) -> dict[str, Any]:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    loader = list(zip(x.split(8), x[:, 0].gt(0).long().split(8), strict=True))
    found: dict[str, Any] = {
        "calibration": loader,
        "keep": "params=60%",
        "evaluate": lambda model: float((model(x).argmax(1) == x[:, 0].gt(0)).float().mean()),
        "recover": ap.Distill(steps=5),
        "finetune": ap.SGD(loader, loss=F.cross_entropy, epochs=1),
    }
    return {**found, **more}


def content(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in SAME]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    ap.prune(build("chain")[0], **arguments(), save_to=folder)
    return folder


def test_nothing_is_left_of_a_journal(whole: Path) -> None:
    assert [path.name for path in whole.parent.iterdir()] == ["run"]
    assert json.loads((whole / "report.json").read_text())["losses"][-1][0] == 8


@pytest.mark.parametrize("stage", ["statistics", "plan", "rewrite", "fine-tuned", "save"])
def test_a_run_goes_on_after_any_stage(
    stage: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends behind one stage; the stages before it are not done again."""
    made: list[str] = []
    keep = Journal.keep

    def stopping(self: Journal, name: str, kind: Any, make: Any) -> Any:
        found = keep(self, name, kind, lambda: (made.append(name.partition("-0")[0]), make())[1])
        if made[-1:] == [stage] and name.startswith(stage):
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "keep", stopping)
        if stage == "save":
            patch.setattr("actprune.result.save", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ap.prune(build("chain")[0], **arguments(), save_to=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    before = list(made)
    monkeypatch.setattr(Journal, "keep", stopping)
    stage = "none"
    ap.prune(build("chain")[0], **arguments(), save_to=tmp_path / "run", resume=True)
    assert sorted(made) == ["fine-tuned", "guide", "plan", "recovered", "rewrite", "statistics"]
    assert made[: len(before)] == before
    assert content(tmp_path / "run") == content(whole)


def test_a_finished_run_is_not_made_again(whole: Path, tmp_path: Path) -> None:
    """A fine-tune, or exported files, may have come after it."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "model.onnx").write_text("made of it")
    with pytest.raises(ArtifactError, match="is finished") as caught:
        ap.prune(build("chain")[0], **arguments(), save_to=folder, resume=True)
    assert "run.unfinished" in str(caught.value.expected)
    assert (folder / "model.onnx").exists()


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The journal of a run that ended just before its folder was written."""
    tmp_path = tmp_path_factory.mktemp("unfinished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("actprune.result.save", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ap.prune(build("chain")[0], **arguments(), save_to=tmp_path / "run")
    return tmp_path / "run.unfinished"


def test_another_run_is_not_gone_on_with(unfinished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run.unfinished"
    shutil.copytree(unfinished, folder)
    other = build("chain")[0]
    with torch.no_grad():
        other.fc1.weight[0, 0] += 1
    for model, more, said in (
        (build("chain")[0], {"keep": "params=50%"}, "keep"),
        (build("chain")[0], {"seed": 3}, "seed"),
        (build("chain")[0], {"distance": "mse"}, "distance"),
        (build("chain")[0], {"recover": ap.Distill(steps=4, augment=torch.neg)}, "recover"),
        (other, {}, "model"),
        (build("chain")[0], {"calibration": [torch.zeros(8, 6) + torch.eye(8, 6)]}, "data"),
    ):
        with pytest.raises(ArtifactError, match="another one") as caught:
            ap.prune(model, **arguments(**more), save_to=tmp_path / "run", resume=True)
        assert str(caught.value.got).startswith(f"{said}=")
    assert folder.is_dir()
    # anew
    result = ap.prune(build("chain")[0], **arguments(keep="params=50%"), save_to=tmp_path / "run")
    assert result.report.pruned.params <= 0.5 * result.report.dense.params and not folder.exists()


def test_functions_are_told_by_name(tmp_path: Path) -> None:
    """The address of a function is another one in the process that goes on with the run."""
    recover = ap.Distill(steps=4, augment=torch.neg)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("actprune.result.save", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ap.prune(build("chain")[0], **arguments(recover=recover), save_to=tmp_path / "run")
    assert " at 0x" not in "".join(path.read_text() for path in (tmp_path / "run.unfinished").glob("*.json"))


@pytest.mark.parametrize("name", ["statistics-0.safetensors", "plan-0.json", "rewrite-0.safetensors"])
def test_damaged_stages_are_refused(name: str, unfinished: Path, tmp_path: Path) -> None:
    """Truncated, a pickle in front, empty."""
    shutil.copytree(unfinished, tmp_path / "run.unfinished")
    path = tmp_path / "run.unfinished" / name
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"\x80\x04]" + whole, b""):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"can't be read") as caught:
            ap.prune(build("chain")[0], **arguments(), save_to=tmp_path / "run", resume=True)
        assert journals.ANEW in str(caught.value)


def test_several_budgets_of_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    collect = ap.collect
    monkeypatch.setattr("actprune.looking.collect", lambda *a, **k: (passes.append(1), collect(*a, **k))[1])
    given = arguments(recover=None)
    model = build("chain")[0]
    keeps = ["params=70%", "params=40%"]
    found = list(ap.sweep(model, given.pop("calibration"), keeps, **{k: v for k, v in given.items() if k != "keep"}))
    assert len(passes) == 1
    for keep, result in zip(keeps, found, strict=True):
        alone = ap.prune(model, **arguments(recover=None, keep=keep))
        assert result.plan.widths == alone.plan.widths and result.report.budget == keep
        assert result.plan.groups == alone.plan.groups


def test_a_sweep_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    given = arguments()
    calibration = given.pop("calibration")
    del given["keep"]
    budgets, names = ("macs=70%", "macs=50%"), ("macs-70", "macs-50")

    def swept(name: str, **more: Any) -> list[ap.Result]:
        return list(ap.sweep(build("chain")[0], calibration, budgets, **given, save_to=tmp_path / name, **more))

    swept("whole")
    half = ap.sweep(build("chain")[0], calibration, budgets, **given, save_to=tmp_path / "half")
    next(half)
    half.close()  # type: ignore[attr-defined]
    assert (tmp_path / "half.unfinished").is_dir() and not (tmp_path / "half" / "macs-50").exists()
    with pytest.raises(ArtifactError, match="exists"):
        swept("half")
    assert len(swept("half", resume=True)) == 2
    for name in names:
        assert content(tmp_path / "half" / name) == content(tmp_path / "whole" / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "whole"]


def test_a_prediction_is_what_comes(tmp_path: Path) -> None:
    model, given = build("chain")[0], arguments()
    told = ap.predict(model, **given)
    result = ap.prune(model, **given)
    assert told.plan.groups == result.plan.groups
    assert (told.after.params, told.after.macs) == (result.report.pruned.params, result.report.pruned.macs)
    assert told.before_ms > 0 and json.dumps(told.to_data())
    again = ap.prune(model, **arguments(keep=result.plan))
    assert again.plan.groups == result.plan.groups and again.report.budget == "explicit widths"
    with pytest.raises(TypeError):
        ap.predict(model, given["calibration"], kep=0.5)
    with pytest.raises(BudgetError):
        list(ap.sweep(model, given["calibration"], ["params=50%", "params=0%"]))


def test_a_fine_tune_may_return_a_network_of_its_own(tmp_path: Path) -> None:
    made: list[torch.nn.Module] = []

    def finetune(model: torch.nn.Module) -> torch.nn.Module:
        made.append(copy.deepcopy(model))
        return made[-1]

    result = ap.prune(build("chain")[0], **arguments(finetune=finetune), save_to=tmp_path / "run")
    assert result.model is made[0] and [path.name for path in tmp_path.iterdir()] == ["run"]
