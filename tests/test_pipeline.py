"""`prune` from end to end on tiny networks: what it gives, what it records, and that the caller's model stays."""

from __future__ import annotations

import copy
import gc
import json
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import actprune as ap
from actprune.allocation.budget import parse
from actprune.compensation.refit import compensate
from actprune.data.take import fit
from actprune.deciding import QUICK_ROUNDS
from actprune.errors import (
    ActpruneError,
    ArtifactError,
    BudgetError,
    DataError,
    EquivalenceError,
    PlanError,
    UnsupportedModelError,
)
from actprune.methods import METHODS
from actprune.pipeline import prune
from actprune.recovery.batchnorm import reestimate_batchnorm
from actprune.result import Result
from actprune.stats.patches import QUICK_ROWS
from nets import NETS, build
from test_repair import Table


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which every cut network is ten times as fast as the dense one."""
    monkeypatch.setattr("actprune.latency.bench.side_by_side", lambda calls, *_, **__: [1.0] + [0.1] * (len(calls) - 1))


@cache
def data_of(name: str, batches: int = 8, batch: int = 8) -> list[Any]:
    """Calibration batches of one of the tiny networks."""
    torch.manual_seed(1)
    found = [NETS[name].inputs(batch) for _ in range(batches)]
    return [(each, 0) for each in found] if isinstance(found[0], tuple) else found


def net(name: str = "residual") -> Any:
    """A tiny network in eval mode; `residual` as if trained: units nearly repeat others, its norms know the data."""
    model, _ = build(name)
    if name == "residual":
        x = torch.cat(data_of(name))
        torch.manual_seed(0)
        with torch.no_grad():
            for part, copies in ((model.stem, 3), (model.conv2, 3), (model.conv1, 2)):
                for held in (part.weight, part.bias):
                    held[-copies:] = held[:copies] + 0.002 * torch.randn_like(held[:copies])
            reestimate_batchnorm(model, (lambda m, batch: m(batch), [x], x.device))
            model.fc.bias -= model(x).mean(0)
    return model


@cache
def labelled() -> tuple[Tensor, Tensor]:
    """Images for `residual`, and the classes that the dense network gives them."""
    torch.manual_seed(2)
    images = torch.randn(128, 3, 5, 5)
    with torch.no_grad():
        return images, net()(images).argmax(1)


def accuracy(model: nn.Module) -> float:
    images, labels = labelled()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def loader(batch: int = 16) -> list[tuple[Tensor, Tensor]]:
    images, labels = labelled()
    return list(zip(images.split(batch), labels.split(batch), strict=True))


def pruned(name: str = "residual", **how: Any) -> Result:
    how.setdefault("keep", None if "max_drop" in how else "macs=60%")
    return prune(net(name), data_of(name), **how)


def call(model: nn.Module, batch: Any) -> list[Any]:
    """The flat outputs for a calibration batch."""
    batch = batch[0] if isinstance(batch, tuple) else batch
    if isinstance(batch, dict):
        batch = {key: value for key, value in batch.items() if key != "label"}
        return pytree.tree_leaves(model(**batch))
    return pytree.tree_leaves(model(*batch) if isinstance(batch, tuple) else model(batch))


# ---- every network, every method


@pytest.mark.parametrize("method", ["sgd-ap", "l2"])
@pytest.mark.parametrize(
    "name", ["chain", "residual", "zero_gain", "in_place", "dense", "depthwise", "grouped", "tied_heads", "reused",
             "channel_fastest", "auxiliary", "keywords", "two_inputs"],
)  # fmt: skip
def test_every_network(name: str, method: str) -> None:
    model, _ = build(name)
    result = prune(model, data_of(name), keep="macs=60%", method=method)
    assert type(result.model) is type(model)
    assert result.proof.passed and result.proof.max_rel_error < 1e-9
    dense, after = result.report.dense, result.report.pruned
    assert after.macs <= 0.6 * dense.macs
    assert after.params == sum(p.numel() for p in result.model.parameters()) < dense.params
    assert (result.proof.params, result.proof.macs) == (after.params, after.macs)
    assert after.bytes < dense.bytes and after.latency_ms > 0
    expected, found = call(model, data_of(name)[0]), call(result.model, data_of(name)[0])
    assert [getattr(a, "shape", a) for a in expected] == [getattr(b, "shape", b) for b in found]
    assert result.before_finetune is None
    assert [group.name for group in result.graph.groups] == [row.name for row in result.report.groups]
    assert {row.name: row.after for row in result.report.groups} == result.plan.widths
    assert (result.stats is None) == (method == "l2")


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method: str) -> None:
    result = pruned(method=method, keep="params=60%", threshold=0.05)
    preset = METHODS[method]
    report = result.report
    assert report.method == method
    assert report.pruned.params <= 0.6 * report.dense.params
    assert report.allocation == ("uniform" if preset.allocation == "natural" else preset.allocation)
    assert report.compensation == (preset.compensate or "none")
    assert result.proof.passed
    assert {row.criterion for row in report.groups} <= {
        *preset.criteria,
        "whole",
        *(f"{c}, swapped" for c in preset.criteria),
    }


@pytest.mark.parametrize("compensation", ["least_squares", "bias", "none"])
@pytest.mark.parametrize("allocation", ["sensitivity", "uniform", "layerwise", "spatial", "global"])
def test_criterion_allocation_and_compensation_can_be_told_apart(allocation: str, compensation: str) -> None:
    report = pruned("chain", method="std", allocation=allocation, compensate=compensation).report
    assert (report.method, report.allocation, report.compensation) == ("std", allocation, compensation)
    assert report.pruned.macs <= 0.6 * report.dense.macs


def test_least_squares_loses_less_than_nothing() -> None:
    model, x, errors = net(), torch.cat(data_of("residual")), []
    for compensation in ("least_squares", "bias", "none"):
        small = pruned(method="l2", keep="units=60%", compensate=compensation, batchnorm=False).model
        with torch.no_grad():
            errors.append(float(((small(x) - model(x)) ** 2).sum()))
    assert errors[0] < errors[1] < errors[2]


def test_filters_without_weight_go() -> None:
    """The seed's filter pruning: small weights become zero, filters without any weight left are removed."""
    model, _ = build("chain")
    with torch.no_grad():
        model.fc1.weight[[1, 4]] *= 1e-3
        model.fc2.weight[2] *= 1e-3
    result = prune(model, data_of("chain"), method="filter", threshold=0.01)
    assert result.plan.groups["fc1"].kept == (0, 2, 3, 5, 6, 7)
    assert result.plan.groups["fc2"].kept == (0, 1, 3, 4, 5, 6)
    kept = model.fc1.weight[[0, 2, 3, 5, 6, 7]]
    assert torch.equal(result.model.fc1.weight, torch.where(kept.abs() < 0.01, 0.0, kept))
    assert result.report.allocation == "natural" and result.report.budget is None


# ---- budgets


@pytest.mark.parametrize(
    ("keep", "cost", "share"),
    [("macs=50%", "macs", 0.5), ("params=40%", "params", 0.4), ("bytes=45%", "bytes", 0.45), (0.5, "macs", 0.5),
     (ap.Budget("params", 0.5), "params", 0.5)],
)  # fmt: skip
def test_every_form_of_budget(keep: Any, cost: str, share: float) -> None:
    report = pruned(method="flap", keep=keep).report
    assert getattr(report.pruned, cost) <= share * getattr(report.dense, cost)
    assert report.budget == str(parse(keep))


def test_amounts() -> None:
    report = pruned(method="flap", keep="params=0.3K").report
    assert 200 < report.pruned.params <= 300 < report.dense.params
    assert report.budget is not None and report.budget.startswith("params=0.3K (params=")
    whole = pruned(method="flap", keep="macs=5G").report
    assert whole.pruned.macs == whole.dense.macs
    assert "The dense network is within macs=5G as it is." in whole.notes


def test_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actprune.latency.bench.side_by_side", lambda calls, *_, **__: [4.0] * len(calls))
    found = ap.predict(net(), data_of("residual"), method="flap", keep="latency=8ms")
    assert found.after == found.before
    with pytest.raises(BudgetError, match=r"can't be reached|No cut makes"):  # however narrow, it takes as long
        ap.predict(net(), data_of("residual"), method="flap", keep="latency=2ms")


def test_units_and_explicit_widths() -> None:
    result = pruned(method="l2", keep="units=70%")
    assert result.plan.widths == {"stem": 5, "conv1": 4}
    assert result.report.budget == "units=70%"
    result = pruned(keep={"conv1": 2})
    assert result.plan.widths == {"stem": 8, "conv1": 2}
    assert (result.report.budget, result.report.allocation) == ("explicit widths", "explicit")


def test_natural_widths() -> None:
    result = pruned("chain", keep=None)
    assert result.plan.widths == {row.name: row.natural for row in result.report.groups}
    assert result.report.budget is None


def test_protected_and_rounded() -> None:
    result = pruned("lenet", keep="macs=70%", method="l2", protect="conv1", round_to=4)
    assert result.plan.widths["conv1"] == 6
    assert all(k % 4 == 0 for name, k in result.plan.widths.items() if name != "conv1")


def test_correction_within_a_budget() -> None:
    result = pruned(keep="macs=25%", evaluate=accuracy)
    rounds = result.report.rounds
    assert rounds[0]["action"] == "plan" and rounds[0]["accepted"]
    assert result.report.pruned.macs <= 0.25 * result.report.dense.macs
    assert result.report.dense.accuracy == 1.0
    *compared, told = rounds  # plans are compared by their refit; the network that is returned has its blocks fitted
    assert result.report.pruned.accuracy == accuracy(result.model) == told["metric"]
    assert told["widths"] == max((one for one in compared if one["accepted"]), key=lambda one: one["metric"])["widths"]
    for one in rounds:
        assert {"widths", "prune_states", "remaining_ratios", "rho", "drop"} <= one.keys()
        assert one["drop"] == pytest.approx(1 - one["metric"])


def test_the_smallest_network_within_a_drop() -> None:
    result = pruned(max_drop=0.05, evaluate=accuracy)
    report = result.report
    assert accuracy(result.model) == report.pruned.accuracy >= 0.95
    assert report.budget == "max_drop=0.05"
    accepted = [one for one in report.rounds if one["accepted"]]
    assert report.pruned.macs == min(_macs(result, one["widths"]) for one in accepted)
    assert all(one["metric"] >= 0.95 for one in accepted)
    assert len(report.rounds) > 1


def _macs(result: Result, widths: Any) -> int:
    return ap.cost(result.graph, widths).macs


def test_a_budget_that_would_lose_too_much_is_raised_and_the_report_says_so(fast: None) -> None:
    result = pruned(keep="macs=12%", max_drop=0.02, evaluate=accuracy)
    assert result.report.pruned.macs > 0.12 * result.report.dense.macs
    assert accuracy(result.model) >= 0.98
    assert result.report.budget == "macs=12%, max_drop=0.02"
    assert any("macs=12% would lose more than max_drop=0.02" in note for note in result.report.notes)
    assert str(result.report).count("would lose more") == 1
    easy = pruned(keep="macs=50%", max_drop=0.9, evaluate=accuracy)
    (note,) = easy.report.notes
    assert len(easy.report.rounds) == 1 and "fitted as a whole" in note


def test_units_within_a_drop() -> None:
    result = pruned(keep="units=20%", max_drop=0.1, evaluate=accuracy)
    assert accuracy(result.model) >= 0.9
    shares = {row.after / row.before for row in result.report.groups}
    assert max(shares) - min(shares) < 0.2


# ---- recovery without labels


def test_a_recovery_comes_nearer_to_the_dense_network() -> None:
    result = pruned(keep="macs=20%", compensate="none", recover=ap.Distill(steps=60), evaluate=accuracy)
    report = result.report
    assert report.recovered is not None and result.before_finetune is not None
    assert report.recovered.accuracy == accuracy(result.model) > report.pruned.accuracy
    assert report.pruned.accuracy == accuracy(result.before_finetune)
    assert result.proof.passed and report.recovered.params == report.pruned.params
    assert any("the distance to the dense network went from" in note for note in report.notes)


def test_a_recovery_that_does_harm_is_left_out() -> None:
    """Steps that are far too long: the state before them is the best that held-out samples have seen."""
    result = pruned(keep="macs=50%", recover=ap.Distill(steps=10, lr=50.0))
    before = pruned(keep="macs=50%")
    for name, value in before.model.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], value)


def test_a_recovery_and_then_a_fine_tune() -> None:
    tune = ap.SGD(loader(), F.cross_entropy, lr=0.05, epochs=1)
    result = pruned(keep="macs=20%", recover=ap.Distill(steps=20), finetune=tune)
    assert result.report.recovered is not None and result.report.finetuned is not None


@pytest.mark.parametrize("recover", [3, "distill"])
def test_what_is_no_recovery(recover: Any) -> None:
    with pytest.raises(DataError, match=r"actprune\.Distill"):
        pruned(keep="macs=50%", recover=recover)


def test_a_large_batch_is_proved_on_a_few_of_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pruned(keep="macs=50%")
    monkeypatch.setattr("actprune.forms.PROOF_WORK", 0.0)
    monkeypatch.setattr("actprune.forms.PROOF_SAMPLES", 2)
    few = pruned(keep="macs=50%")
    assert few.proof.passed and few.plan.groups == whole.plan.groups and few.proof.macs == whole.proof.macs
    assert few.proof.real_error != whole.proof.real_error


# ---- fine-tune


def test_a_fine_tune_by_sgd() -> None:
    tune = ap.SGD(loader(), F.cross_entropy, lr=0.2, epochs=12)
    result = pruned(keep="macs=20%", evaluate=accuracy, finetune=tune)
    report = result.report
    assert report.finetuned is not None and result.before_finetune is not None
    assert report.finetuned.accuracy == accuracy(result.model) > report.pruned.accuracy
    assert report.pruned.accuracy == accuracy(result.before_finetune)
    assert report.finetuned.params == report.pruned.params
    assert {"fine-tune", "evaluate"} <= report.seconds.keys()
    assert not result.model.training
    assert all(p.grad is None for p in result.model.parameters())


@pytest.mark.parametrize("returns", [True, False])
def test_any_callable_fine_tunes(returns: bool) -> None:
    seen: list[nn.Module] = []

    def finetune(model: nn.Module) -> Any:
        seen.append(model)
        model.train()
        with torch.no_grad():
            model.fc.bias += 1.0
        return model if returns else None

    result = pruned(finetune=finetune)
    assert result.model is seen[0] and not result.model.training
    assert result.before_finetune is not None
    assert torch.allclose(result.model.fc.bias, result.before_finetune.fc.bias + 1)
    assert result.report.finetuned is not None and result.report.finetuned.accuracy is None


def test_a_callable_may_return_another_model() -> None:
    result = pruned(finetune=lambda model: nn.Sequential(model, nn.Identity()))
    assert isinstance(result.model, nn.Sequential)


def spoil(model: nn.Module) -> None:
    with torch.no_grad():
        model.fc.weight.zero_()


@pytest.mark.parametrize("how", [{"keep": "macs=60%"}, {"max_drop": 0.1}, {"keep": {"conv1": 4}}], ids=str)
def test_a_fine_tune_that_makes_it_worse_is_dropped_and_recorded(how: dict[str, Any]) -> None:
    result = pruned(evaluate=accuracy, finetune=spoil, **how)
    report = result.report
    assert accuracy(result.model) == report.pruned.accuracy > 0.5
    assert result.before_finetune is None
    assert report.finetuned is not None and report.finetuned.accuracy == report.pruned.accuracy
    last = report.rounds[-1]
    assert last["action"] == "fine-tune" and not last["accepted"] and last["widths"] == result.plan.widths
    assert last["metric"] < report.pruned.accuracy
    assert any("fine-tune made the metric worse" in note for note in report.notes)


def test_a_tuned_network_beyond_the_allowed_drop_is_recorded() -> None:
    """Within the drop before the fine-tune, beyond it after: the drop is what was promised."""
    result = pruned(max_drop=0.02, evaluate=accuracy, finetune=spoil)
    assert result.report.rounds[-1]["drop"] > 0.02
    assert accuracy(result.model) >= 0.98


def test_a_fine_tune_inside_no_grad() -> None:
    with torch.no_grad():
        result = pruned(finetune=ap.SGD(loader(), F.cross_entropy, epochs=1))
    assert result.before_finetune is not None
    assert not torch.equal(result.model.fc.weight, result.before_finetune.fc.weight)


# ---- the caller's model


class Snapshot:
    """All that must be as it was."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.tensors = dict(model.state_dict(keep_vars=True))
        self.values = {name: held.detach().clone() for name, held in self.tensors.items()}
        self.about = self._about()
        self.random = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[union-attr]

    def _about(self) -> list[Any]:
        return [
            (path, type(module), module.training, module.extra_repr(), len(module._forward_hooks),
             len(module._forward_pre_hooks), len(module._backward_hooks), sorted(vars(module)))
            for path, module in self.model.named_modules()
        ]  # fmt: skip

    def check(self) -> None:
        now = self.model.state_dict(keep_vars=True)
        assert now.keys() == self.tensors.keys()
        for name, held in now.items():
            assert held is self.tensors[name]
            assert held.dtype == self.values[name].dtype and torch.equal(held, self.values[name])
            assert held.grad is None
        assert self.about == self._about()
        assert torch.equal(torch.get_rng_state(), self.random[0])
        assert np.array_equal(np.random.get_state()[1], self.random[1])  # type: ignore[index]
        assert random.getstate() == self.random[2]


def callers_model() -> Any:
    """As a user may have left it: partly in training mode, partly frozen, hooked."""
    model = net()
    model.train()
    model.bn1.eval()
    model.stem.weight.requires_grad_(False)
    model.conv1.register_forward_hook(lambda module, args, out: None)
    model.fc.register_forward_pre_hook(lambda module, args: None)
    return model


def restless(model: nn.Module) -> float:
    """An `evaluate` that draws from every global generator and leaves the model in training mode."""
    torch.rand(3), np.random.rand(3), random.random()
    found = accuracy(model)
    model.train()
    return found


@pytest.mark.parametrize(
    "how",
    [
        {"keep": "macs=50%"},
        {"max_drop": 0.1, "evaluate": restless},
        {"keep": "params=50%", "evaluate": restless, "finetune": ap.SGD(loader(), F.cross_entropy, epochs=1)},
        {"keep": "params=50%", "finetune": lambda model: restless(model)},
        {"keep": "units=50%", "method": "random"},
        {"threshold": 0.1, "method": "filter"},
    ],
    ids=lambda how: "-".join(how),
)
def test_the_callers_model_stays_as_it_was(how: dict[str, Any]) -> None:
    model = callers_model()
    before = Snapshot(model)
    result = prune(model, data_of("residual"), **how)
    before.check()
    assert result.model is not model
    held = {id(p) for p in model.parameters()}
    assert not any(id(p) in held for p in result.model.parameters())
    # and the result is like it
    assert result.model.training and not result.model.bn1.training
    assert not result.model.stem.weight.requires_grad and result.model.fc.weight.requires_grad
    assert len(result.model.conv1._forward_hooks) == 1


def only_dense(model: nn.Module) -> float:
    return float(sum(p.numel() for p in model.parameters()) == 1182)


def raising(model: nn.Module) -> Any:
    torch.rand(3), np.random.rand(3), random.random()
    model.train()
    raise RuntimeError("no GPU left")


def interrupted(stage: str) -> Callable[[str, int, int], None]:
    def tell(name: str, done: int, total: int) -> None:
        if name == stage and done:
            raise KeyboardInterrupt

    return tell


ERRORS: dict[str, tuple[type[BaseException], dict[str, Any]]] = {
    "evaluate raises": (RuntimeError, {"keep": "macs=50%", "evaluate": raising}),
    "evaluate gives NaN": (DataError, {"keep": "macs=50%", "evaluate": lambda model: float("nan")}),
    "evaluate gives None": (DataError, {"keep": "macs=50%", "evaluate": lambda model: None}),
    "fine-tune raises": (RuntimeError, {"keep": "macs=50%", "finetune": raising}),
    "unreachable": (BudgetError, {"keep": "macs=0.1%"}),
    "unknown method": (PlanError, {"keep": "macs=50%", "method": "l3"}),
    "drop that nothing keeps": (BudgetError, {"max_drop": 0.01, "evaluate": only_dense}),
    "interrupted": (KeyboardInterrupt, {"keep": "macs=50%", "progress": interrupted("sensitivity")}),
    "interrupted late": (KeyboardInterrupt, {"keep": "macs=50%", "progress": interrupted("report")}),
}  # fmt: skip


@pytest.mark.parametrize("kind", ERRORS)
def test_the_callers_model_stays_as_it_was_after_an_error(kind: str, tmp_path: Path) -> None:
    """Also where it was to be changed, and a folder to be written; the finished stages stay, to be gone on from."""
    error, how = ERRORS[kind]
    model = callers_model()
    before = Snapshot(model)
    with pytest.raises(error):
        prune(model, data_of("residual"), inplace=True, save_to=tmp_path / "run", **how)
    before.check()
    assert {path.name for path in tmp_path.iterdir()} <= {"run.unfinished"}


def test_a_failed_proof_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(*args: Any, **how: Any) -> Any:
        raise EquivalenceError("The cut does not compute what the plan promises.")

    monkeypatch.setattr("actprune.attempting.verify", fails)
    model = callers_model()
    before = Snapshot(model)
    with pytest.raises(EquivalenceError):
        prune(model, data_of("residual"), keep="macs=50%", inplace=True, save_to=tmp_path / "run")
    before.check()
    assert {path.name for path in tmp_path.iterdir()} <= {"run.unfinished"}


def test_in_place() -> None:
    model, copied = callers_model(), callers_model()
    how: dict[str, Any] = {"keep": "macs=50%", "finetune": ap.SGD(loader(), F.cross_entropy, epochs=1)}
    result = prune(model, data_of("residual"), inplace=True, **how)
    other = prune(copied, data_of("residual"), **how)
    assert result.model is model
    assert result.plan == other.plan
    for name, held in other.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], held), name
    assert model.training and not model.bn1.training and len(model.conv1._forward_hooks) == 1
    assert not model.stem.weight.requires_grad
    assert model.conv1.out_channels == result.plan.widths["conv1"]
    assert result.graph.program.tensors["conv1.weight"].shape == (6, 8, 3, 3)  # the graph is still the dense one


def test_in_place_takes_no_other_model_from_a_fine_tune() -> None:
    model = callers_model()
    before = Snapshot(model)
    with pytest.raises(DataError, match="can't replace the caller's") as caught:
        prune(model, data_of("residual"), keep="macs=50%", inplace=True, finetune=lambda m: nn.Sequential(m))
    for label in ("expected: ", "got: ", "where: finetune", "next: "):
        assert label in str(caught.value)
    before.check()


def test_a_folder_that_can_not_be_written_leaves_the_model_uncut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **how: Any) -> Any:
        raise ArtifactError("The run folder can't be written.", got="No space left on device")

    monkeypatch.setattr("actprune.result.save", full)
    model = callers_model()
    before = Snapshot(model)
    with pytest.raises(ArtifactError):
        prune(model, data_of("residual"), keep="macs=50%", inplace=True, save_to=tmp_path / "run")
    before.check()


def test_the_calibration_data_stays_as_it_was() -> None:
    """Also where the model writes into its inputs."""

    class Rude(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = NETS["chain"].make()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x.mul_(2.0))

    torch.manual_seed(0)
    model = Rude().eval()
    batches = [torch.randn(8, 6) for _ in range(6)]
    before = copy.deepcopy(batches)
    result = prune(model, batches, keep="macs=50%")
    assert all(torch.equal(a, b) for a, b in zip(batches, before, strict=True))
    assert result.proof.passed
    quiet = prune(NETS["chain"].make().eval(), batches, keep="macs=50%", method="l2")
    assert quiet.proof.passed


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    model, _ = build("residual")
    result = prune(model.to(dtype), [x.to(dtype) for x in data_of("residual")], keep="macs=50%")
    assert {held.dtype for held in result.model.parameters()} == {dtype}
    assert result.proof.passed


# ---- data


class Mixed(nn.Module):
    """Called with some arguments by position and some by name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(2, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, y: Tensor, gain: float = 1.0, *, square: bool = False) -> Tensor:
        z = torch.relu(self.a(x) + gain * self.b(y))
        return self.c(z * z if square else z)


def test_a_forward_with_arguments_of_both_kinds() -> None:
    torch.manual_seed(0)
    model = Mixed().eval()
    batches = [{"x": torch.randn(8, 6), "y": torch.randn(8, 2)} for _ in range(6)]
    forwards: list[Callable[[Any, Any], Any]] = [
        lambda m, b: m(b["x"], y=b["y"], gain=2.0, square=True),
        lambda m, b: m(b["x"], b["y"], square=True, gain=2.0),
        lambda m, b: m(x=b["x"], y=b["y"], gain=2.0, square=True),
    ]
    results = [prune(model, batches, forward=forward, keep="macs=50%", method="flap") for forward in forwards]
    for result in results:
        assert result.plan.groups == results[0].plan.groups
        assert set(result.graph.program.kwarg_names) == {"x", "y", "gain", "square"}
    small = results[0].model
    assert small(batches[0]["x"], batches[0]["y"]).shape == (8, 3)


@pytest.mark.parametrize(
    "forward",
    [lambda m, b: m(b, x=b), lambda m, b: m(b, b, 1.0, True, square=True)],
    ids=["twice", "too many"],
)
def test_a_forward_that_the_model_can_not_be_captured_with(forward: Callable[[Any, Any], Any]) -> None:
    with pytest.raises(DataError, match="can't be captured with") as caught:
        prune(Mixed(), [torch.randn(8, 6)], forward=forward)
    for words in ("expected: each argument of forward(x", "got: ", "where: forward", "next: pass all of them"):
        assert words in str(caught.value)


def test_generators_ragged_loaders_and_sizes() -> None:
    def batches() -> Iterator[Any]:
        for x in data_of("residual"):
            yield x, torch.zeros(len(x))
        yield torch.randn(3, 3, 5, 5), torch.zeros(3)

    model, _ = build("residual")
    result = prune(model, batches(), keep="macs=50%", method="l2", calibration_size=1000)
    assert result.report.calibration == {"samples": 64, "left_over": 3, "batch_size": 8, "distance": "mse"}
    assert result.report.notes[0] == "3 calibration samples did not fill a batch and were not used."
    few = prune(model, batches(), keep="macs=50%", method="greedy", calibration_size=16)
    assert few.report.calibration == {"samples": 16, "left_over": 0, "batch_size": 2, "distance": "mse"}  # of two


def test_samples_of_few_classes_are_told() -> None:
    """A loader that does not shuffle may give one class after the other."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 10)).eval(), torch.randn(64, 6)
    labels = {"sorted": torch.arange(64) // 16, "drawn": torch.arange(64) % 10, "real": torch.rand(64, 10)}
    told: dict[str, list[str]] = {}
    for name, y in labels.items():
        data = list(zip(x.split(16), y.split(16), strict=True))
        notes = prune(model, data, keep="units=50%", method="l2").report.notes
        told[name] = [note for note in notes if "of 10 labels" in note]
    assert told["sorted"] and told["sorted"][0].startswith("The calibration samples have 4 of 10 labels")
    assert not told["drawn"] and not told["real"]


@pytest.mark.parametrize(("scale", "method", "told"), [(1.0, "greedy", 0), (1000.0, "greedy", 1), (1000.0, "l2", 0)])
def test_outputs_of_unlike_scale_are_told(scale: float, method: str, told: int) -> None:
    """A refit of a layer that gives kilometres and metres brings the kilometres nearer."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), torch.randn(64, 6)
    with torch.no_grad():
        model[2].weight[0] *= scale
    notes = prune(model, x.split(16), keep="units=50%", method=method).report.notes
    assert len([note for note in notes if note.startswith("One layer gives outputs of unlike scale")]) == told


def test_samples_that_come_one_by_one_are_told() -> None:
    """A linear layer takes a vector for a sample: a data set iterated over works, with entries for samples."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(64, 6)
    alone, batches = (prune(model, list(data), keep="units=50%", method="l2").report.notes for data in (x, x.split(16)))
    assert any(note.startswith("0 sums over the first dimension of the calibration inputs, 6") for note in alone)
    assert not any("sums over the first" in note for note in batches)


def test_too_few_rows_are_told(fast: None) -> None:
    report = pruned("chain", calibration_size=8).report
    assert any("fewer than 10 calibration rows per column" in note for note in report.notes)
    assert not pruned("chain", calibration_size=8, method="l2").report.notes


# ---- what is recorded


def test_the_report_as_a_table() -> None:
    result = pruned(keep="params=50%", evaluate=accuracy, finetune=ap.SGD(loader(), F.cross_entropy, epochs=1))
    text = str(result.report)
    report = result.report
    for stage in (report.dense, report.pruned, report.finetuned):
        assert stage is not None
        for words in (f"{stage.params:,}", f"{stage.macs:,}", f"{stage.bytes:,}", f"{100 * stage.accuracy:.2f} %"):
            assert words in text
    for row in report.groups:
        assert f"{row.before} → {row.after}" in text
    for words in ("Residual: sgd-ap, params=50%", "after cut", "after fine-tune", "proved: relative error"):
        assert words in text
    assert "…" not in text


def test_a_metric_that_is_no_accuracy_is_not_shown_as_percent() -> None:
    text = str(pruned("chain", method="l2", evaluate=lambda model: -3.25).report)
    assert "-3.25" in text and "metric" in text and "-325" not in text


def test_long_names_and_notes_are_shown_whole() -> None:
    model, _ = build("chain")
    nested = nn.Sequential()
    nested.add_module("a_rather_long_name_of_a_module_in_a_deep_network_with_blocks", model)
    result = prune(nested.eval(), data_of("chain"), keep="macs=50%", method="l2")
    assert "a_rather_long_name_of_a_module_in_a_deep_network_with_blocks.fc1" in str(result.report)
    assert "…" not in str(result.report)


def test_report_json(tmp_path: Path) -> None:
    result = pruned(keep="macs=40%", evaluate=accuracy, finetune=ap.SGD(loader(), F.cross_entropy, epochs=1))
    result.save(tmp_path / "run")
    data = json.loads((tmp_path / "run" / "report.json").read_text())
    assert data == json.loads(result.report.to_json())
    assert data["schema"] == "actprune.report/1"
    for stage in ("dense", "pruned", "finetuned"):
        assert {"accuracy", "params", "macs", "bytes", "latency_ms"} <= data[stage].keys()
        assert 0 <= data[stage]["accuracy"] <= 1 and data[stage]["latency_ms"] > 0
    assert data["recovered"] is None
    assert [group["name"] for group in data["groups"]] == ["stem", "conv1"]
    for group, held in zip(data["groups"], result.graph.groups, strict=True):
        assert group["before"] == held.width and group["after"] == result.plan.widths[held.name]
        assert len(group["guide"]) == held.width and min(group["guide"]) >= 0
    assert data["proof"]["passed"] is True and data["proof"]["max_rel_error"] < 1e-9
    assert data["budget"] == "macs=40%" and data["seed"] == 0
    assert data["rounds"] and all(set("01") >= set(s) for s in data["rounds"][0]["prune_states"].values())
    assert {"capture", "statistics", "guide", "allocate", "cut and verify", "fine-tune"} <= data["seconds"].keys()
    assert {"python", "actprune", "torch", "numpy"} <= data["versions"].keys()


@pytest.mark.parametrize("finetuned", [False, True])
@pytest.mark.parametrize("name", ["residual", "tied_heads", "grouped"])
def test_saved_and_loaded(name: str, finetuned: bool, tmp_path: Path) -> None:
    def nudge(model: nn.Module) -> None:
        with torch.no_grad():
            for p in model.parameters():
                p += 0.01

    model, x = build(name)
    result = prune(
        model, data_of(name), keep="macs=50%", finetune=nudge if finetuned else None, save_to=tmp_path / "run"
    )
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["plan.json", "report.json", "weights.safetensors"]
    loaded = ap.load(tmp_path / "run", NETS[name].make().eval())
    assert type(loaded) is type(model)
    for key, held in result.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], held)
    assert torch.equal(loaded(x), result.model(x))
    plan = ap.Plan.from_json((tmp_path / "run" / "plan.json").read_text())
    assert plan.groups == result.plan.groups
    result.save(tmp_path / "again")
    assert torch.equal(ap.load(tmp_path / "again", NETS[name].make().eval())(x), result.model(x))


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    pruned(
        keep="macs=50%", evaluate=accuracy, finetune=ap.SGD(loader(), F.cross_entropy, epochs=1),
        progress=lambda *state: told.append(state),
    )  # fmt: skip
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages[:4] == ["capture", "evaluate", "statistics", "guide"]
    assert {"allocate", "sensitivity", "cut and verify", "fine-tune", "report"} <= set(stages)
    assert all(0 <= done <= total for _, done, total in told)


# ---- again, and step by step


def test_the_same_seed_gives_the_same_network() -> None:
    for method in ("sgd-ap", "random"):
        one, two = (pruned("lenet", method=method, keep="units=30%", seed=3) for _ in range(2))
        assert one.plan == two.plan
        for name, held in one.model.state_dict().items():
            assert torch.equal(two.model.state_dict()[name], held)
    other = pruned("lenet", method="random", keep="units=30%", seed=4)
    assert other.plan.groups != two.plan.groups
    assert other.report.seed == 4


def test_a_shuffled_loader_draws_the_same_samples() -> None:
    data = torch.utils.data.DataLoader(torch.randn(64, 6), batch_size=8, shuffle=True)
    model, _ = build("chain")
    one, two = (prune(model, data, keep="macs=50%", calibration_size=32) for _ in range(2))
    assert one.plan == two.plan
    assert torch.equal(one.model.fc3.weight, two.model.fc3.weight)


@pytest.mark.parametrize(
    ("method", "allocation"),
    [("sgd-ap", "sensitivity"), ("sgd-ap", "uniform"), ("flap", None), ("l2", None), ("activation", "spatial")],
)
def test_stage_by_stage_gives_the_same_network(method: str, allocation: str | None) -> None:
    """As the issue writes it down; sensitivity is measured on a held-out part, and refits are quick."""
    name = "dense" if method == "flap" else "residual"
    model, inputs = build(name, 8)
    calibration = data_of(name)
    graph = ap.capture(model, inputs)
    stats = ap.collect(graph, calibration)
    guide = ap.guide(graph, stats, method=method)
    fitted, held = fit(graph.program, calibration).holdout(0.25)
    how = METHODS[method].compensate

    def rewrite(plan: ap.Plan) -> ap.Rewrite:
        alone = sum(len(group.kept) < group.width for group in plan.groups.values()) == 1
        return compensate(
            graph,
            plan,
            fitted,
            method=how,
            rounds=QUICK_ROUNDS,
            rows=QUICK_ROWS,
            batchnorm=False,
            scope="cut" if alone else "all",
        )

    plan = ap.allocate(graph, guide, held, keep="macs=50%", allocation=allocation, rewrite=rewrite)
    found = ap.compensate(graph, plan, calibration, method=how)
    small = ap.cut(model, plan, found)
    proof = ap.verify(model, small, plan, inputs, rewrite=found)
    assert proof.passed
    result = prune(model, calibration, keep="macs=50%", method=method, allocation=allocation)
    assert result.plan.groups == plan.groups
    for key, value in small.state_dict().items():
        assert torch.equal(result.model.state_dict()[key], value), key


def test_a_class_that_can_not_follow_a_cut_is_cut_elsewhere() -> None:
    """It writes down the width of its first layer: that group is frozen, the other one pays."""

    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x)).view(-1, 8)
            return self.c(torch.relu(self.b(x)))

    torch.manual_seed(0)
    result = prune(Stubborn().eval(), data_of("chain"), keep="macs=60%")
    assert result.plan.widths.get("a", 8) == 8 and result.plan.widths["b"] < 12
    assert result.proof.passed


class Narrow(nn.Module):
    """Does something else, or nothing, where a layer is narrower than any trial makes it."""

    def __init__(self, least: dict[str, int], raises: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.d = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.least, self.raises = least, raises

    def forward(self, x: Tensor) -> Tensor:
        for name in "abc":
            x = torch.relu(getattr(self, name)(x))
            if getattr(self, name).weight.shape[0] < self.least.get(name, 0):
                if self.raises:
                    raise ValueError("too narrow")
                x = 2 * x
        return self.d(x)


def test_a_cut_that_fails_only_as_planned_is_made_elsewhere() -> None:
    result = prune(Narrow({"b": 6}).eval(), data_of("chain"), keep="units=30%", method="l2")
    assert result.plan.widths == {"a": 4, "c": 4}
    assert "a cut here can't be proved" in str(result.graph.account())
    assert result.proof.passed


def test_as_many_plans_as_it_takes() -> None:
    """Without `a` the plan is narrower in `b`, which only then fails."""
    how: dict[str, Any] = {"keep": "macs=65%", "method": "l2"}
    first = prune(Narrow({}).eval(), data_of("chain"), **how).plan.widths
    second = prune(Narrow({"a": 16}).eval(), data_of("chain"), **how).plan.widths
    assert second.keys() == {"b", "c"} and second["b"] < first["b"]
    result = prune(Narrow({"a": first["a"] + 1, "b": first["b"]}).eval(), data_of("chain"), **how)
    assert result.plan.widths.keys() == {"c"} and result.proof.passed


def test_budgets_of_a_sweep_freeze_each_their_own(tmp_path: Path) -> None:
    """The first one can't cut `b`, the second one can; nobody asks behind the last."""
    model, keeps = Narrow({"b": 6}).eval(), ["units=30%", "units=70%"]
    found = ap.sweep(model, data_of("chain"), keeps, method="l2", save_to=tmp_path / "all")
    several = [next(found) for _ in keeps]
    for keep, one in zip(keeps, several, strict=True):
        assert one.plan.widths == prune(model, data_of("chain"), keep=keep, method="l2").plan.widths
    assert several[0].plan.widths.keys() == {"a", "c"} and several[1].plan.widths["b"] == 11
    assert [path.name for path in tmp_path.iterdir()] == ["all"]


def test_a_sweep_that_is_left_halfway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a reference cycle a folder's finalizer comes before the generator's end."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found: list[Any] = [ap.sweep(Narrow({}).eval(), data_of("chain"), ["units=70%", "units=50%"], method="l2")]
    next(found[0])
    found.append(found)
    assert not list(tmp_path.iterdir())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        del found
        gc.collect()
    assert not [one for one in told if one.category is ResourceWarning]


def test_a_cut_that_only_the_metric_runs_into() -> None:
    how: dict[str, Any] = {"keep": "units=30%", "method": "l2"}
    x = data_of("chain")[0]
    result = prune(
        Narrow({"a": 8}, True).eval(), data_of("chain"), evaluate=lambda m: float(m(x).detach().sum()), **how
    )
    assert result.plan.widths == {"b": 4, "c": 4}


def test_an_error_of_the_metric_is_the_callers() -> None:
    def evaluate(model: Any) -> float:
        if model.a.out_features < 16:
            raise KeyError("of the caller's own")
        return 1.0

    with pytest.raises(KeyError, match="of the caller's own"):
        prune(Narrow({}).eval(), data_of("chain"), keep="units=30%", method="l2", evaluate=evaluate)


def test_nothing_is_left_that_can_be_proved() -> None:
    with pytest.raises(EquivalenceError, match="Nothing in Narrow can be cut and proved") as caught:
        prune(Narrow(dict.fromkeys("abc", 6)).eval(), data_of("chain"), keep="units=30%", method="l2")
    assert 'try form="graph"' in str(caught.value) and "a cut here can't be proved" in str(caught.value)


class Turned(nn.Module):
    """A number that is read from a tensor decides what a recorded run computes (the delays of an Autoformer)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu())
        return torch.roll(x, int(x.abs().sum(0).argmax()), 1)


def test_a_model_that_another_capture_would_not_give_again_is_told_so() -> None:
    with pytest.raises(EquivalenceError, match="Turned can't be proved, whether it is cut or not") as caught:
        prune(Turned().eval(), data_of("chain"), keep="units=30%", method="l2")
    assert "x.item()" in str(caught.value)


# ---- the captured graph instead of the class


def test_the_graph_where_the_class_can_follow_nothing(tmp_path: Path) -> None:
    model, x = Table().eval(), torch.randn(16, 6)
    with pytest.raises(UnsupportedModelError):
        prune(model, [x], keep="units=50%", method="l2")
    train = ap.SGD([(x, torch.zeros(16, dtype=torch.long))], F.cross_entropy, epochs=2)
    result = prune(
        model, [x, x], keep="units=50%", form="auto", finetune=train, evaluate=lambda m: -float(m(x).detach().std()),
        save_to=tmp_path / "run",
    )  # fmt: skip
    assert result.plan.note["form"] == "graph" and any("captured graph" in note for note in result.report.notes)
    assert result.proof.passed and result.plan.widths == {"first": 4}
    assert {name: tuple(t.shape) for name, t in result.model.state_dict().items()} == {
        "first.weight": (4, 6), "first.bias": (4,), "second.weight": (3, 4), "second.bias": (3,),
    }  # fmt: skip
    loaded = ap.load(tmp_path / "run", Table(), x)
    assert torch.equal(loaded(x[:5]), result.model(x[:5]))


def test_the_class_where_it_can_follow() -> None:
    result = pruned("residual", form="auto", method="l2")
    assert type(result.model) is type(net("residual"))
    assert result.plan.note["form"] == "class" and any("of the class" in note for note in result.report.notes)


def test_auto_goes_over_to_the_graph_after_a_failed_proof() -> None:
    model = Narrow(dict.fromkeys("abc", 6)).eval()
    result = prune(model, data_of("chain"), keep="units=30%", form="auto")
    assert result.plan.note["form"] == "graph" and set(result.plan.widths.values()) == {4}
    assert result.proof.passed


@pytest.mark.parametrize("name", ["residual", "auxiliary", "tied_heads", "keywords", "two_inputs", "zero_gain"])
def test_any_network_as_a_graph(name: str, tmp_path: Path) -> None:
    model, _ = build(name)
    result = prune(model, data_of(name), keep="macs=60%", form="graph", save_to=tmp_path / "run")
    assert result.proof.passed and result.report.pruned.macs <= 0.6 * result.report.dense.macs
    batch = data_of(name)[0]
    loaded = ap.load(tmp_path / "run", NETS[name].make().eval(), batch[0] if isinstance(batch, tuple) else batch)
    for a, b in zip(call(loaded, batch), call(result.model, batch), strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


@pytest.mark.parametrize("form", ["graph", "auto"])
def test_a_graph_is_no_change_in_place(form: str) -> None:
    with pytest.raises(DataError, match="can't take the place of the model") as caught:
        pruned(form=form, inplace=True)
    assert 'form="class" with inplace=True' in str(caught.value)


def test_an_unknown_form() -> None:
    with pytest.raises(PlanError, match="no form named 'grap'"):
        pruned(form="grap")


def test_errors_are_all_of_one_kind() -> None:
    for error in (ArtifactError, BudgetError, DataError, EquivalenceError, PlanError):
        assert issubclass(error, ActpruneError)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_quantized_model_is_told_to_be_pruned_first() -> None:
    dense = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    quantized = torch.ao.quantization.quantize_dynamic(dense, {nn.Linear}, torch.qint8)
    with pytest.raises((EquivalenceError, ap.PlanError)) as caught:
        ap.prune(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 8), quantized), torch.randn(64, 4), keep=0.5)
    assert "are quantized" in str(caught.value) and "quantize what is left" in str(caught.value)
