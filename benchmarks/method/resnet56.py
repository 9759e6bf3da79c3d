"""ResNet-56 on CIFAR-10: before any gradient step, after recovery without labels, after a fine-tune."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from benchmarks.method.papers import WHOLE, left_whole
from benchmarks.method.rival import torch_pruning
from benchmarks.method.rows import Row, Rows, pivot
from benchmarks.method.sources import Batches, agreement, cifar10, flipped_and_shifted, logits, resnet56
from torch import nn

import actprune as ap
from actprune.data.take import fit

KEEPS = (0.7, 0.5, 0.3)
CALIBRATION, UNLABELLED, BATCH = 1024, 5120, 128
METHODS: tuple[dict[str, Any], ...] = (
    {"method": "sgd-ap"},
    {"method": "l2"},
    {"method": "l2", "compensate": "least_squares"},
    {"method": "flap"},
    {"method": "random"},
)
RECOVERED = (0.5, 0.3)
STEPS = {0.5: 540, 0.3: 650}
"""About nine minutes of two cores each."""

TUNED = (0.5, 0.3)
SCHEDULE = {"lr": 0.01, "epochs": 2, "weight_decay": 5e-4}


class Bench:
    """The data, the dense network and the rows."""

    def __init__(self, folder: Path, rows: Rows) -> None:
        self.rows, self.test, self.train = rows, cifar10(folder, "test"), cifar10(folder, "train")
        self.dense = resnet56(folder)
        self.wanted = logits(self.dense, self.test.images)

    @cached_property
    def whole(self) -> list[str]:
        """The residual streams."""
        return left_whole(ap.capture(self.dense, self.test.images[:2]))

    def figures(self, model: nn.Module) -> Row:
        found = logits(model, self.test.images)
        same, divergence = agreement(found, self.wanted)
        return {
            "accuracy": float((found.argmax(1) == self.test.labels).float().mean()),
            "agreement": same,
            "kl": round(divergence, 5),
            "params": sum(p.numel() for p in model.parameters()),
        }

    def pruned(self, keep: float, method: dict[str, Any], seed: int, protect: Sequence[str] = ()) -> ap.Result:
        images = self.train.drawn(CALIBRATION, seed)
        return ap.prune(
            self.dense, images.split(BATCH), keep=f"macs={keep:.0%}", calibration_size=CALIBRATION, seed=seed,
            protect=protect, **method,
        )  # fmt: skip


def measure(rows: Rows, folder: Path, *, long: bool = False) -> None:
    bench = Bench(folder, rows)
    rows.measure(lambda: bench.figures(bench.dense), method="dense", stage="dense")
    for seed in range(3 if long else 1):
        for keep in KEEPS:
            for method in METHODS if seed == 0 else METHODS[:1]:
                _prune(bench, method, keep, seed)
            for method in METHODS[1:] if seed == 0 else ():
                _prune(bench, method, keep, seed, WHOLE)
            for importance in ("magnitude", "taylor") if seed == 0 else ():
                _rival(bench, importance, keep)
    if long:
        for keep in TUNED:
            _tune_all(bench, keep)


def _prune(bench: Bench, method: dict[str, Any], keep: float, seed: int, setting: dict[str, str] | None = None) -> None:
    """A row "pruned", and for ours "recovered" behind it."""
    ours = method["method"] == "sgd-ap" and "compensate" not in method
    key = {**method, **(setting or {}), "keep": keep, "seed": seed}
    wanted = ["pruned"] + (["recovered"] if ours and keep in RECOVERED else [])
    if all(bench.rows.has(**key, stage=stage) for stage in wanted):
        return
    result = bench.pruned(keep, method, seed, bench.whole if setting else ())
    shared = {"widths": dict(result.plan.widths), "macs_left": result.proof.macs / ap.cost(result.graph).macs}
    times = {"seconds": round(sum(result.report.seconds.values()), 1), "seconds_by_stage": dict(result.report.seconds)}
    bench.rows.measure(lambda: {**bench.figures(result.model), **shared, **times}, **key, stage="pruned")
    if "recovered" in wanted:
        bench.rows.measure(lambda: {**_recovered(bench, result, keep, seed), **shared}, **key, stage="recovered")


def _recovered(bench: Bench, result: ap.Result, keep: float, seed: int) -> Row:
    """With label-free recovery on more unlabelled images."""
    small = copy.deepcopy(result.model)
    data = fit(result.graph.program, bench.train.drawn(UNLABELLED, seed).split(BATCH), UNLABELLED)
    found = ap.Distill(steps=STEPS[keep], augment=flipped_and_shifted).run(
        small, bench.dense, result.graph.program, data, graph=result.graph, plan=result.plan, seed=seed
    )
    return {**bench.figures(small), "steps": found.steps, "best_step": found.best_step}


def _rival(bench: Bench, importance: str, keep: float) -> None:
    def work() -> Row:
        return bench.figures(_torch_pruning(bench, importance, keep))

    bench.rows.measure(work, method=f"Torch-Pruning, {importance}", keep=keep, stage="pruned", seed=0)


def _torch_pruning(bench: Bench, importance: str, keep: float) -> nn.Module:
    images, labels = bench.train.images[:512], bench.train.labels[:512]
    return torch_pruning(
        bench.dense, images[:2], "macs", keep, importance=importance,
        ignored=lambda model: [model.get_submodule("linear")],
        loss=lambda model: F.cross_entropy(model(images), labels),
    )  # fmt: skip


def _tune_all(bench: Bench, keep: float) -> None:
    """The same fine-tune of ours and of Torch-Pruning."""
    tune = ap.SGD(Batches(bench.train, BATCH, 0, flipped_and_shifted), loss=F.cross_entropy, distill=0.5, **SCHEDULE)
    for method in ("sgd-ap", "Torch-Pruning, magnitude", "Torch-Pruning, taylor"):

        def work(method: str = method) -> Row:
            ours = method == "sgd-ap"
            small = (
                bench.pruned(keep, {"method": method}, 0).model
                if ours
                else _torch_pruning(bench, method.rpartition(" ")[2], keep)
            )
            return {**bench.figures(tune.run(copy.deepcopy(small), bench.dense)), "schedule": SCHEDULE}

        bench.rows.measure(work, method=method, keep=keep, stage="finetuned", seed=0)


def tables(rows: Rows) -> str:
    found = rows.found
    stages = [f"{stage}\n\n{_accuracies(found, stage)}\n" for stage in ("pruned", "recovered", "finetuned")]
    return "# ResNet-56, CIFAR-10: test accuracy in %\n\n## " + "\n## ".join(stages)


def _accuracies(found: list[Row], stage: str) -> str:
    rows = [row for row in found if row["stage"] == stage]
    return pivot(
        rows, ("method", "compensate", "setting"), lambda r: _macs(r["keep"]), lambda r: r.get("accuracy"),
        order=[_macs(keep) for keep in KEEPS],
    )  # fmt: skip


def _macs(keep: float) -> str:
    return f"MACs {keep:.0%}"
