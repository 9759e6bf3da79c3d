"""Bad input of every kind: the right error, that says what was expected, what came, where, and what to do next.

And nothing changes: neither the caller's model nor anything on the disk.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.data import DataLoader, TensorDataset

import actprune as ap
from actprune.demo.mnist import load_mnist
from actprune.errors import (
    ActpruneError,
    ArtifactError,
    BudgetError,
    CaptureError,
    DataError,
    PlanError,
    UnsupportedModelError,
)
from nets import NETS, build

Act = Callable[[Any, Path], Any]
"""What is done with a model and an empty folder."""


def images(count: int = 32, **planted: float) -> Tensor:
    x = torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    for place, value in planted.items():
        x[int(place.removeprefix("at_")), 0, 2, 2] = value
    return x


def prune(**how: Any) -> Act:
    """`ap.prune` of the model on images, with other settings than good ones."""
    settings: dict[str, Any] = {"calibration": list(images().split(8)), "keep": "macs=50%", **how}
    return lambda model, folder: ap.prune(model, settings.pop("calibration"), **settings)


def planted(tensor: str, value: float, **how: Any) -> Act:
    """A weight that is not finite."""

    def act(model: Any, folder: Path) -> Any:
        with torch.no_grad():
            dict(model.named_parameters())[tensor].view(-1)[0] = value
        return prune(**how)(model, folder)

    return act


class Hidden(nn.Module):
    """A branch on values, which export refuses, and a call out of sight, which can't be recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        with _disable_current_modes():
            x = torch.sin(x if float(x.sum()) > 0 else -x)
        return self.b(x)


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("the tokenizer is missing")


class Streaming(nn.Module):
    """A stream that a norm runs over, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.c = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.c(x + self.b(self.norm(x)))


class Lonely(nn.Module):
    """Inputs and outputs only: nothing between them that could be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x)


def other(model: nn.Module) -> Act:
    return lambda _, folder: ap.prune(model.eval(), [torch.ones(8, 4)], keep="macs=50%")


def staged(step: Callable[[Any, Any], Any]) -> Act:
    """A stage of its own, on a graph captured with batches of eight."""
    return lambda model, folder: step(model, ap.capture(model, images(8)))


CHAIN = NETS["chain"].make()

NAN, INF = float("nan"), float("inf")

CASES: dict[str, tuple[type[ActpruneError], Act, tuple[str, ...]]] = {
    # calibration
    "an empty list": (
        DataError, prune(calibration=[]),
        ("The calibration data is empty", "where: calibration", "got: list"),
    ),
    "a generator that is used up": (
        DataError, prune(calibration=(x for x in ())),
        ("got: generator", "used up before"),
    ),
    "batches without samples": (
        DataError, prune(calibration=[torch.zeros(0, 3, 5, 5)]),
        ("calibration data is empty",),
    ),
    "no iterable": (DataError, prune(calibration=7), ("can't be iterated over", "got: int", "[batch]")),
    "nothing known": (DataError, prune(calibration=["a.png", "b.png"]), ("of no kind", "got: str", "forward=")),
    "no samples wanted": (DataError, prune(calibration_size=0), ("calibration_size", "got: 0")),
    "sizes that differ": (
        DataError, prune(calibration=[images(8), torch.randn(8, 3, 6, 6)]),
        ("do not fit together", "shape (3, 5, 5)", "got: shape (3, 6, 6)", "resize"),
    ),
    "types that differ": (
        DataError, prune(calibration=[images(8), images(8).double()]),
        ("float32", "got: ", "float64"),
    ),
    "channels that the model lacks": (
        CaptureError, prune(calibration=[torch.randn(8, 1, 5, 5)]),
        ("Residual could not be captured", "got: RuntimeError", "inputs of shape (8, 1, 5, 5)"),
    ),
    "a loader in place of a batch": (
        CaptureError, lambda model, folder: ap.capture(model, DataLoader(TensorDataset(images(8)), 4)),
        ("given no tensor", "got: DataLoader", "next(iter(loader))"),
    ),
    "an array in place of a tensor": (
        CaptureError, lambda model, folder: ap.capture(model, images(8).numpy()),
        ("given no tensor", "got: ndarray", "torch.as_tensor(x)"),
    ),
    "a shape in place of a tensor": (
        CaptureError, lambda model, folder: ap.capture(model, (1, 3, 5, 5)),
        ("given no tensor", "got: tuple", "torch.randn(1, 3, 5, 5)"),
    ),
    "labels beside the inputs": (
        CaptureError, lambda model, folder: ap.capture(model, (images(8), torch.zeros(8))),
        ("could not be captured", "2 positional arguments but 3 were given", "without what stands beside them"),
    ),
    "another type than that of the weights": (
        CaptureError, prune(calibration=[images(8).double()]),
        ("the inputs are float64 and the weights float32", "x.to(torch.float32)", "x.astype('float32')"),
    ),
    "images of whole numbers": (
        CaptureError, prune(calibration=[images(8).to(torch.uint8)]),
        ("the inputs are uint8 and the weights float32", "x.to(torch.float32)"),
    ),
    "images without a batch": (CaptureError, prune(calibration=[torch.randn(5)]), ("Residual", "inputs of shape (5,)")),
    "keys that the model lacks": (
        DataError, prune(calibration=[{"picture": images(8)}]),
        ("keys among x", "got: picture", "model(batch['picture'])", "model(batch) if it takes the dict itself"),
    ),
    "two inputs and labels side by side": (
        DataError, prune(calibration=(images(8), torch.zeros(8, 4).numpy(), torch.zeros(8, dtype=torch.long))),
        ("three batches", "shape (8, 4)", "{'a': a, 'b': b}"),
    ),
    "lists of a tokenizer": (
        DataError, prune(calibration={"input_ids": [[1, 2], [3, 4]], "attention_mask": [[1, 1], [1, 0]]}),
        ("as tensors, and this one has none", "got: input_ids: list", "return_tensors='pt'"),
    ),
    "a distance of two tensors": (
        DataError, prune(distance=lambda dense, other: (dense - other).abs().mean()),
        ("distance= can't be taken", "expected: a function of two lists", "got: TypeError", "a[0], b[0]"),
    ),
    "another shape than captured": (
        DataError, staged(lambda m, g: ap.collect(g, [torch.ones(8, 3, 7, 7)])),
        ("captured shape", "samples of shape (3, 5, 5)", "got: samples of shape (3, 7, 7)", "input 0 of Residual"),
    ),
    "fewer samples than a batch": (
        DataError, staged(lambda m, g: ap.compensate(g, ap.make_plan(g, {"conv1": [0]}), [images(3)])),
        ("at least 8 samples", "got: 3"),
    ),
    # values that are not finite
    "NaN in the data": (
        DataError, prune(calibration=[images(8, at_3=NAN)]),
        ("not finite", "NaN", "input", "aten.conv2d"),
    ),
    "NaN in a later batch": (
        DataError, prune(calibration=[images(8), images(8, at_3=NAN)]), ("got: NaN values in the input", "at stem"),
    ),
    "infinity in the data": (DataError, prune(calibration=[images(8, at_3=INF)]), ("infinite", "at stem")),
    "NaN and weights alone": (
        DataError, prune(calibration=[images(8, at_3=NAN)], method="l2"),
        ("Activations are not finite", "got: NaN values in the input", "at stem"),
    ),
    "a weight of NaN": (DataError, planted("conv1.weight", NAN), ("got: NaN values in the output", "at conv1")),
    "an infinite weight": (
        DataError, planted("fc.weight", INF, method="l2"), ("got: infinite values in the output", "at fc"),
    ),
    # models
    "a branch and a call out of sight": (
        CaptureError, other(Hidden()),
        ("Hidden could not be captured", "out of sight", "torch.export: "),
    ),
    "a forward that raises": (CaptureError, other(Broken()), ("got: RuntimeError: the tokenizer is missing",)),
    "nothing to cut": (
        UnsupportedModelError, other(Lonely()),
        ("Nothing in Lonely can be cut", "the account says why"),
    ),
    "nothing but under a norm": (
        UnsupportedModelError, other(Streaming()),
        ("Nothing in Streaming can be cut", "try norms=True", "normalised over"),
    ),
    # budgets
    "a budget of nothing": (BudgetError, prune(keep="macs=0%"), ("out of range", "got: macs=0%", "where: keep")),
    "a budget of more than all": (BudgetError, prune(keep="params=110%"), ("at most 100 %", "got: params=110%")),
    "a percentage without a sign": (BudgetError, prune(keep=50), ("got: macs=5000%", "a bare number is a fraction")),
    "a budget that is negative": (BudgetError, prune(keep=-0.5), ("got: macs=-50%",)),
    "a budget out of reach": (
        BudgetError, prune(keep="macs=1%"),
        ("can't be reached", "at least macs=", "got: macs=1%"),
    ),
    "a budget that can't be read": (BudgetError, prune(keep="half"), ("can't be read", "got: 'half'", "macs=50%")),
    "an unknown cost": (BudgetError, prune(keep="flops=50%"), ("unknown cost", "macs, params, bytes, latency, units")),
    "what depth is asked for by": (BudgetError, prune(keep="blocks=50%"), ("unknown cost", "actprune.shorten(")),
    "a group that is not there": (PlanError, prune(keep={"conv9": 2}), ("no group named 'conv9'", "stem, conv1")),
    "a width of nothing": (BudgetError, prune(keep={"conv1": 0}), ("can't have 0 units", "1 to 6")),
    "no natural widths": (PlanError, prune(keep=None, method="l2"), ("no natural widths", "keep=None")),
    "a drop without a metric": (BudgetError, prune(max_drop=0.1), ("max_drop needs a metric", "evaluate=")),
    "a drop that is negative": (BudgetError, prune(max_drop=-1, evaluate=lambda m: 1.0), ("out of range", "got: -1")),
    "a drop that is no number": (BudgetError, prune(max_drop=True, evaluate=lambda m: 1.0), ("got: True",)),
    "a drop in words": (BudgetError, prune(max_drop="1%", evaluate=lambda m: 1.0), ("got: '1%'", "where: max_drop")),
    "a drop and all widths": (
        BudgetError, prune(max_drop=0.1, keep={"conv1": 2}, evaluate=lambda m: 1.0),
        ("got: both", "leave one of them out"),
    ),
    # names
    "an unknown method": (PlanError, prune(method="sgdap"), ("no method named 'sgdap'", "did you mean 'sgd-ap'?")),
    "an unknown allocation": (PlanError, prune(allocation="globl"), ("no allocation named", "did you mean 'global'?")),
    "an unknown compensation": (PlanError, prune(compensate="least squares"), ("did you mean 'least_squares'?",)),
    "an unknown distance": (PlanError, prune(distance="l1"), ("no distance named 'l1'", "auto, kl, mse")),
    "an unknown distance, method l2": (PlanError, prune(distance="l1", method="l2"), ("no distance named 'l1'",)),
    "an unknown BatchNorm setting": (PlanError, prune(batchnorm="always"), ("batchnorm", "got: 'always'", "auto")),
    "a pattern that matches nothing": (
        PlanError, prune(protect=["head"]),
        ("'head' matches no module", "where: protect"),
    ),
    "everything protected": (PlanError, prune(protect="*"), ("Nothing in Residual can be cut", "2 of them protected")),
    "rounding to nothing": (PlanError, prune(round_to=0), ("where: round_to", "got: 0")),
    "rounding before any work": (PlanError, prune(round_to="no", calibration=[]), ("where: round_to", "got: 'no'")),
    "an unknown distance before any work": (PlanError, prune(distance="l1", calibration=[]), ("no distance named",)),
    "a filter without a threshold": (
        PlanError, prune(method="filter", keep=None),
        ("a threshold", 'guide(method="filter")'),
    ),
    # functions of the user
    "an evaluate that gives NaN": (
        DataError, prune(evaluate=lambda m: NAN),
        ("finite number", "got: nan", "where: evaluate"),
    ),
    "an evaluate that gives nothing": (DataError, prune(evaluate=lambda m: None), ("got: None", "where: evaluate")),
    "an evaluate that is no function": (
        DataError, prune(evaluate=0.9),
        ("evaluate can't be called", "got: 0.9", "model → metric"),
    ),
    "a metric of nothing": (
        DataError, prune(evaluate=lambda: 0.9), ("evaluate can't be called", "got: <lambda>()", "model → metric"),
    ),
    "a metric of every sample": (
        DataError, prune(evaluate=lambda model: torch.zeros(99, 2)), ("no", "got: Tensor: tensor([[0., 0.], …"),
    ),
    "a fine-tune of nothing": (DataError, prune(finetune=lambda: None), ("finetune can't be called",)),
    "a loss that is a class": (
        DataError, lambda model, folder: ap.SGD([], nn.CrossEntropyLoss), ("loss is no loss", "nn.CrossEntropyLoss()"),
    ),
    "a number to protect": (DataError, prune(protect=0), ("holds what is no pattern", "got: (0,)")),
    "a path in place of data": (DataError, prune(calibration="data.npz"), ("got: 'data.npz'", "numpy.load(path)")),
    "a function in place of data": (DataError, prune(calibration=lambda: [images(8)]), ("pass what it returns",)),
    "a path in place of a budget": (BudgetError, prune(keep="run/plan.json"), ("keep=Plan.from_json(Path(",)),
    "a path in place of a plan": (
        PlanError, lambda model, folder: ap.Plan.from_json("run/plan.json"), ("Path('run/plan.json').read_text()",),
    ),
    "a fine-tune that is no function": (DataError, prune(finetune="sgd"), ("finetune can't be called", "got: 'sgd'")),
    "a fine-tune that returns the dense network": (
        DataError, prune(finetune=lambda m: build("residual")[0]),
        ("another network than the pruned one", "where: finetune", "of shape"),
    ),
    "a negative learning rate": (
        DataError, lambda model, folder: ap.SGD([], nn.functional.cross_entropy, lr=-1.0), ("got: -1.0", "SGD(lr=…)"),
    ),
    "a seed that is no number": (DataError, prune(seed="a"), ("got: 'a'", "prune(seed=…)")),
    "a seed below zero": (DataError, prune(seed=-1), ("got: -1", "prune(seed=…)")),
    "a switch that is a word": (DataError, prune(norms="no"), ("got: 'no'", "True or False, or 'auto'")),
    "half a resample": (DataError, prune(confidence=0.5), ("no number of resamples", "got: 0.5")),
    "half a sample": (DataError, prune(calibration_size=10.5), ("whole number", "got: 10.5")),
    "a data set of single samples": (
        DataError, prune(calibration=TensorDataset(images())), ("samples, not batches", "DataLoader(dataset"),
    ),
    "inputs and labels that are whole": (
        DataError, prune(calibration=(images(), torch.arange(32))), ("two batches", "zip(x.split(32), y.split(32))"),
    ),
    "a method in capitals": (PlanError, prune(method="L2"), ("no method", "did you mean 'l2'?")),
    "a share of one group": (
        BudgetError, prune(keep={"stem": 0.5}, method="l2"), ("got: 0.5", "is that share of it", 'keep="units=50%"'),
    ),
    "a file of Keras's in place of a model": (
        CaptureError, lambda model, folder: ap.prune("net.keras", [images()]), ("no model", "load_model(path)"),  # type: ignore[arg-type]
    ),
    "a class in place of a model": (
        CaptureError, lambda model, folder: ap.prune(nn.Linear, [images()]), ("no model", "the class Linear"),  # type: ignore[arg-type]
    ),
    "a model without weights": (
        DataError, lambda model, folder: ap.prune(build("residual")[0].to("meta"), [images()]), ("meta device",),
    ),
    "a fine-tune without data": (
        DataError, prune(finetune=ap.SGD([], nn.functional.cross_entropy)), ("loader is empty", "where: SGD.loader"),
    ),
    "a distance of NaN": (DataError, prune(distance=lambda a, b: NAN), ("no finite number", "where: distance")),
    "a forward that calls nothing": (
        DataError, prune(forward=lambda m, b: b),
        ("did not call the model", "where: forward"),
    ),
    "a forward that takes the batch alone": (
        DataError, prune(forward=lambda batch: batch),
        ("no function of a model and a batch", "got: <lambda>(batch)", "where: forward", "lambda model, batch"),
    ),
    "a forward that is a name": (
        DataError, prune(forward="call"), ("no function of a model and a batch", "got: str"),
    ),
    # plans and stages
    "widths in place of a plan": (
        PlanError, staged(lambda m, g: ap.cut(m, {"conv1": 2})),  # type: ignore[arg-type]
        ("This is no plan", "got: dict", "where: cut", "make_plan(graph"),
    ),
    "widths in place of a plan to prove": (
        PlanError, staged(lambda m, g: ap.verify(m, m, {"conv1": 2}, images(8))),  # type: ignore[arg-type]
        ("This is no plan", "where: verify"),
    ),
    "a plan for another model": (
        PlanError, staged(lambda m, g: ap.cut(CHAIN, ap.make_plan(g, {"conv1": [0]}))),
        ("The plan does not fit", "expected: a dense Residual", "got: Chain"),
    ),
    "sensitivity without data": (
        BudgetError, staged(lambda m, g: ap.allocate(g, ap.guide(g, None, method="l2"), allocation="sensitivity")),
        ("needs data",),
    ),
    "statistics that are missing": (
        PlanError, staged(lambda m, g: ap.guide(g, None, method="flap")), ("needs activation statistics", "collect"),
    ),
}  # fmt: skip


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def about(model: nn.Module) -> list[Any]:
    held = [(name, id(t), t.requires_grad, t.grad, t.numpy(force=True).tobytes())
            for name, t in model.state_dict(keep_vars=True).items()]  # fmt: skip
    return [*held, *((path, module.training, module.extra_repr()) for path, module in model.named_modules())]


def refused(error: type[ActpruneError], words: tuple[str, ...], act: Callable[[], Any]) -> ActpruneError:
    """That `act` raises just this error, with all four parts and these words in the message."""
    with pytest.raises(ActpruneError) as caught:
        act()
    assert type(caught.value) is error
    text = str(caught.value)
    for part in (caught.value.expected, caught.value.got, caught.value.where, caught.value.hint):
        assert part, text
    for word in ("\n  expected: ", "\n  got: ", "\n  where: ", "\n  next: ", *words):
        assert word in text, text
    return caught.value


@pytest.mark.parametrize("kind", CASES)
def test_bad_input(kind: str, tmp_path: Path) -> None:
    error, act, words = CASES[kind]
    model, _ = build("residual")
    model.train()
    before = about(model)
    state = torch.get_rng_state()
    refused(error, words, lambda: act(model, tmp_path))
    if "weight" not in kind:  # there the weight was planted
        assert about(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert content(tmp_path) == {}


def test_the_cases_of_the_issue_are_all_here() -> None:
    for word in ("empty", "NaN", "infinity", "captured", "branch", "nothing", "more than all", "out of reach",
                 "unknown method", "matches nothing", "evaluate that gives NaN"):  # fmt: skip
        assert any(word in kind for kind in CASES), word


# ---- folders


def run(model: Any, folder: Path, **how: Any) -> Any:
    how = {"keep": "macs=50%", "method": "l2", "save_to": folder, **how}
    return ap.prune(model, list(images().split(8)), **how)


@pytest.mark.parametrize("kind", ["a folder", "a run folder", "a file"])
def test_an_output_that_exists(kind: str, tmp_path: Path) -> None:
    """Refused before any work, and left as it is."""
    target = tmp_path / "run"
    if kind == "a folder":
        target.mkdir()
        (target / "thesis.tex").write_text("years of work")
    elif kind == "a file":
        target.write_text("years of work")
    else:
        run(build("residual")[0], target)
    before = content(tmp_path)
    model, _ = build("residual")
    state = about(model)
    told: list[str] = []
    act = lambda: run(model, target, inplace=True, progress=lambda stage, *rest: told.append(stage))  # noqa: E731
    refused(ArtifactError, (str(target),), act)
    assert told == []
    assert content(tmp_path) == before and about(model) == state


def test_a_result_is_not_saved_over_another(tmp_path: Path) -> None:
    result = run(build("residual")[0], tmp_path / "run")
    before = content(tmp_path)
    refused(ArtifactError, (str(tmp_path / "run"),), lambda: result.save(tmp_path / "run"))
    assert content(tmp_path) == before
    result.save(tmp_path / "run", overwrite=True)


def test_an_output_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    model, _ = build("residual")
    before = about(model)
    refused(ArtifactError, (), lambda: run(model, tmp_path / "file" / "run", inplace=True))
    assert about(model) == before and list(content(tmp_path)) == ["file"]


def test_a_read_only_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: Any, **how: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    model, _ = build("residual")
    before = about(model)
    monkeypatch.setattr(Path, "mkdir", refuse)
    refused(ArtifactError, ("Permission denied", "writable"), lambda: run(model, tmp_path / "run", inplace=True))
    assert about(model) == before and content(tmp_path) == {}


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fills while the weights are written: only finished stages are left, and the model is as it was."""

    def fill(path: Path, *args: Any) -> None:
        path.write_bytes(b"half of the wei")
        raise OSError(errno.ENOSPC, "No space left on device")

    model, _ = build("residual")
    before = about(model)
    monkeypatch.setattr("actprune.artifacts.checkpoint.write_weights", fill)
    refused(ArtifactError, ("No space left", "make room"), lambda: run(model, tmp_path / "run", inplace=True))
    assert about(model) == before and all(name.startswith("run.unfinished") for name in content(tmp_path))


def truncate(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def tamper(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")


def replan(folder: Path) -> None:
    path = folder / "plan.json"
    data = json.loads(path.read_text())
    data["groups"]["conv1"]["kept"][0] = 0 if data["groups"]["conv1"]["kept"][0] else 1
    data["groups"]["conv1"]["kept"].sort()
    path.write_text(json.dumps(data))


def lose(folder: Path) -> None:
    (folder / "plan.json").unlink()


def garble(folder: Path) -> None:
    (folder / "plan.json").write_bytes(b"\x80\x04 no plan")


@pytest.mark.parametrize("damage", [truncate, tamper, replan, lose, garble])
def test_a_damaged_run_folder(damage: Callable[[Path], None], tmp_path: Path) -> None:
    run(build("residual")[0], tmp_path / "run")
    damage(tmp_path / "run")
    before = content(tmp_path)
    model, _ = build("residual")
    state = about(model)
    refused(ArtifactError, (str(tmp_path / "run"),), lambda: ap.load(tmp_path / "run", model))
    assert about(model) == state and content(tmp_path) == before


def test_a_run_folder_of_another_model(tmp_path: Path) -> None:
    run(build("residual")[0], tmp_path / "run")
    model = NETS["depthwise"].make()
    before = about(model)
    refused(ArtifactError, ("expected: a dense Residual", "got: Depthwise"), lambda: ap.load(tmp_path / "run", model))
    assert about(model) == before


@pytest.mark.parametrize("what", ["nothing", "an empty folder", "another project's"])
def test_no_run_folder(what: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    if what != "nothing":
        folder.mkdir()
    if what == "another project's":
        (folder / "plan.json").write_text('{"schema": "someone.else/1"}')
    refused(ArtifactError, (str(folder),), lambda: ap.load(folder, build("residual")[0]))


# ---- MNIST


@pytest.mark.parametrize("kind", ["no folder", "no files", "a damaged file", "other arrays"])
def test_mnist_that_is_missing_or_corrupt(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    if kind != "no folder":
        folder.mkdir()
    if kind == "a damaged file":
        (folder / "mnist.npz").write_bytes(b"PK\x03\x04 damaged")
    if kind == "other arrays":
        np.savez(folder / "mnist.npz", x_train=np.zeros(3), y_train=np.zeros(3), x_test=np.zeros(3), y_test=np.zeros(3))
    before = content(tmp_path)
    refused(DataError, (str(folder),), lambda: load_mnist(folder, None))
    assert content(tmp_path) == before
