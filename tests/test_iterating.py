"""A strong cut in several rounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import actprune as ap
from actprune.artifacts.checkpoint import proved_folder
from actprune.asked import Finished
from actprune.errors import ArtifactError, BudgetError, DataError
from nets import build


def data() -> list[Tensor]:
    return list(torch.randn(32, 6, generator=torch.Generator().manual_seed(0)).split(8))


def pruned(**given: Any) -> list[Any]:
    return list(ap.prune_in_rounds(build("chain")[0], data(), **{"keep": "params=25%", "rounds": 2, **given}))


def params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("keep", ["params=25%", "macs=30%", "units=25%"])
def test_every_round_is_proved_and_the_last_meets_the_budget(keep: str) -> None:
    whole = params(build("chain")[0])
    first, last = pruned(keep=keep)
    assert first.proof.passed and last.proof.passed
    assert whole > params(first.model) > params(last.model)
    assert last.report.dense.params == params(first.model)
    dense, left = first.report.dense, last.report.pruned
    cost = keep.partition("=")[0]
    if cost != "units":
        assert getattr(left, cost) <= float(keep[-3:-1]) / 100 * getattr(dense, cost)


def test_rounds_to_an_amount() -> None:
    most = params(build("chain")[0]) // 3
    first, last = pruned(keep=ap.Amount("params", most))
    assert most < params(first.model) and 0.7 * most < params(last.model) <= most
    assert last.proof.passed


def test_recovery_and_fine_tune_aim_at_the_first_network(monkeypatch: pytest.MonkeyPatch) -> None:
    model, teachers = build("chain")[0], []
    monkeypatch.setattr(ap.SGD, "run", lambda self, small, teacher, *rest: teachers.append(teacher))
    recover = ap.Distill.run

    def recovered(self: ap.Distill, small: nn.Module, dense: nn.Module, *rest: Any, **more: Any) -> Any:
        teachers.append(dense)
        return recover(self, small, dense, *rest, **more)

    monkeypatch.setattr(ap.Distill, "run", recovered)
    tune = ap.SGD([(data()[0], torch.zeros(8))], loss=lambda out, _: out.square().mean(), epochs=1)
    list(ap.prune_in_rounds(model, data(), keep="params=25%", rounds=2, recover=ap.Distill(steps=2), finetune=tune))
    assert len(teachers) == 4
    assert all(teacher is model for teacher in teachers)


def test_an_interrupted_call_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    model = build("chain")[0]
    whole = [result.plan.groups for result in pruned(save_to=tmp_path / "whole")]
    next(ap.prune_in_rounds(model, data(), keep="params=25%", save_to=tmp_path / "half"))
    first, last = pruned(save_to=tmp_path / "half", resume=True)
    assert isinstance(first, Finished) and not isinstance(last, Finished)
    assert [first.plan.groups, last.plan.groups] == whole
    middle = ap.load(tmp_path / "half" / "round-1", model)
    again = ap.load(tmp_path / "half" / "round-2", middle)
    x = data()[0]
    torch.testing.assert_close(again(x), last.model(x), rtol=0, atol=0)
    with pytest.raises(ArtifactError, match="exists"):
        pruned(save_to=tmp_path / "half")
    with pytest.raises(ArtifactError, match="another one"):
        pruned(save_to=tmp_path / "half", resume=True, seed=5)


@pytest.mark.parametrize(
    ("name", "form"),
    [(name, "class") for name in "chain lenet residual dense depthwise grouped tied reused".split()]
    + [("residual", "graph"), ("chain", "norms")],
)
def test_all_rounds_are_one_cut_of_the_first_network(name: str, form: str, tmp_path: Path) -> None:
    model, x = build(name)
    how: dict[str, Any] = {"method": "flap", "recover": ap.Distill(steps=2), "save_to": tmp_path / "run"}
    how |= {"norms": True} if form == "norms" else {"form": form}
    if form == "norms":
        model = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 3)).eval()
    rounds = list(ap.prune_in_rounds(model, [x], keep="params=40%", rounds=2, **how))
    model.eval()
    again = ap.load(tmp_path / "run" / "final", model, x)
    with torch.no_grad():
        torch.testing.assert_close(again(x), rounds[-1].model.eval()(x))
    report = json.loads((tmp_path / "run" / "final" / "report.json").read_text())
    assert report["dense"]["params"] == params(model) and report["pruned"]["params"] == params(again)
    assert report["proof"]["passed"] and report["budget"] == "params=40%" and report["request"] is None
    assert len(report["notes"]) == 1 and "2 rounds" in report["notes"][0]
    assert {row["name"]: row["before"] for row in report["groups"]} == {
        group.name: group.width for group in rounds[0].graph.groups
    }
    assert proved_folder(tmp_path / "run" / "final", model, again, x).passed


@pytest.mark.parametrize("rounds", [0, True, 1.5, "2"])
def test_no_number_of_rounds(rounds: Any) -> None:
    with pytest.raises(DataError, match="rounds"):
        pruned(rounds=rounds)


def test_only_a_budget_is_met_in_rounds() -> None:
    with pytest.raises(BudgetError, match="Only a budget"):
        pruned(keep={"0": 2})
    with pytest.raises(BudgetError, match="ask for a share"):
        pruned(keep="latency=5ms")
    with pytest.raises(TypeError, match="max_drop"):
        pruned(max_drop=0.1)
    with pytest.raises(BudgetError, match="out of range"):
        pruned(keep=1.5)
