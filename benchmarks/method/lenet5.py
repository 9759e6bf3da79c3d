"""LeNet-5 of the seed on MNIST: every method and compensation at every budget, and what a short fine-tune adds."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.method.rival import torch_pruning
from benchmarks.method.rows import Row, Rows, pivot
from torch import nn

import actprune as ap
from actprune.data.take import fit
from actprune.demo.lenet5 import Split, accuracy, dense_checkpoint, minibatches, tensors
from actprune.demo.main_job import CALIBRATION
from actprune.demo.mnist import cache_folder, load_mnist

KEEPS = (
    *(f"macs={k}%" for k in (70, 50, 30, 20, 15, 10)),
    *(f"params={k}%" for k in (50, 30, 10, 5, 3)),
)
COMPENSATIONS = ("none", "bias", "least_squares")
TUNED = ("macs=50%", "macs=20%", "params=10%", "params=3%")
STRONG = ("macs=10%", "params=3%")
EPOCHS = (1, 3)
RATE = 0.05


HEADLINE = ("sgd-ap", "l2", "flap", "taylor")
"""With all calibration images, and fine-tuned; every criterion with every compensation has the images of the grid."""

GRID = 2048
RECOVERY = ap.Distill(steps=800)


class Bench:
    """The data, the dense network of a seed, and the rows."""

    def __init__(self, rows: Rows, data: Path | None, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self.split: Split = tensors(load_mnist(data, None))
        self.dense, _ = dense_checkpoint(
            self.split, seed=seed, epochs=5, cache=cache_folder(), device="cpu", progress=lambda *_: None
        )

    def figures(self, model: nn.Module) -> Row:
        test = self.split.test
        return {
            "accuracy": accuracy(model, test.images, test.labels),
            "params": sum(p.numel() for p in model.parameters()),
        }

    def validated(self, model: nn.Module) -> float:
        held = self.split.validation
        return accuracy(model, held.images, held.labels)

    def pruned(self, keep: str, setting: dict[str, Any], images: int) -> ap.Result:
        """Ours corrects on validation images; the rivals have nothing to correct. Taylor alone is given labels."""
        ours, labelled = setting == {"method": "sgd-ap"}, setting["method"] == "taylor"
        batches = [part[:images].split(256) for part in (self.split.train.images, self.split.train.labels)]
        return ap.prune(
            self.dense, list(zip(*batches, strict=True)) if labelled else batches[0], keep=keep,
            calibration_size=images, evaluate=self.validated if ours else None, seed=self.seed,
            loss=F.cross_entropy if labelled else None, **setting,
        )  # fmt: skip

    def recovered(self, result: ap.Result) -> nn.Module:
        """After gradient steps on the calibration images, without labels."""
        small = copy.deepcopy(result.model)
        data = fit(result.graph.program, self.split.train.images[:CALIBRATION].split(256), CALIBRATION)
        RECOVERY.run(
            small, self.dense, result.graph.program, data, graph=result.graph, plan=result.plan, seed=self.seed
        )
        return small

    def tuned(self, model: nn.Module, epochs: int) -> nn.Module:
        train = self.split.train
        loader = minibatches(train.images, train.labels, 64, torch.Generator().manual_seed(self.seed))
        tune = ap.SGD(loader, loss=F.cross_entropy, lr=RATE, epochs=epochs)
        return tune.run(copy.deepcopy(model), self.dense)


def grid() -> list[dict[str, Any]]:
    """Every criterion with every compensation, and the methods as they are."""
    names = [name for name in ap.METHODS if name != "filter"]
    own = [{"method": name} for name in names if name not in HEADLINE]
    own += [{"method": "taylor", "allocation": "uniform"}]
    return own + [{"method": name, "compensate": how} for how in COMPENSATIONS for name in names]


def measure(rows: Rows, data: Path | None, seeds: int = 5) -> None:
    """The headline of the first seed, the grid, then the headline of the other seeds."""
    first = Bench(rows, data, 0)
    _headline(first)
    for keep in KEEPS:
        for setting in grid():
            _ours(first, setting, keep, GRID)
    for seed in range(1, seeds):
        _headline(Bench(rows, data, seed))


def _headline(bench: Bench) -> None:
    bench.rows.measure(lambda: bench.figures(bench.dense), method="dense", stage="dense", seed=bench.seed)
    for keep in KEEPS:
        for name in HEADLINE:
            _ours(bench, {"method": name}, keep, CALIBRATION)
        for importance in ("magnitude", "taylor"):
            _rival(bench, importance, keep)
    for keep in STRONG if bench.seed == 0 else ():
        _in_rounds(bench, keep)


def _in_rounds(bench: Bench, keep: str) -> None:
    """As many steps of recovery as a single round takes, half of them after the first."""

    def work() -> Row:
        images = bench.split.train.images[:CALIBRATION].split(256)
        *_, result = ap.prune_in_rounds(
            bench.dense, images, keep=keep, rounds=2, calibration_size=CALIBRATION, evaluate=bench.validated,
            recover=replace(RECOVERY, steps=RECOVERY.steps // 2), seed=bench.seed,
        )  # fmt: skip
        return bench.figures(result.model)

    bench.rows.measure(work, method="sgd-ap, 2 rounds", keep=keep, seed=bench.seed, stage="recovered")


def _ours(bench: Bench, setting: dict[str, Any], keep: str, images: int) -> None:
    key = {**setting, "keep": keep, "seed": bench.seed}
    headline = setting.keys() == {"method"} and setting["method"] in HEADLINE
    tunes = EPOCHS if keep in TUNED and headline else ()
    recovers = setting == {"method": "sgd-ap"}
    stages = ["pruned", *(["recovered"] if recovers else []), *(f"finetuned, {epochs} epochs" for epochs in tunes)]
    if all(bench.rows.has(**key, stage=stage) for stage in stages):
        return
    result = bench.pruned(keep, setting, images)
    more = {"widths": dict(result.plan.widths), "calibration": images}
    _rows(bench, result.model, key, tunes, more, sum(result.report.seconds.values()))
    if recovers:
        bench.rows.measure(lambda: {**bench.figures(bench.recovered(result)), **more}, **key, stage="recovered")


def _rival(bench: Bench, importance: str, keep: str) -> None:
    cost, _, percent = keep.partition("=")
    key = {"method": f"Torch-Pruning, {importance}", "keep": keep, "seed": bench.seed}
    tunes = EPOCHS if keep in TUNED else ()
    if all(bench.rows.has(**key, stage=s) for s in ("pruned", *(f"finetuned, {e} epochs" for e in tunes))):
        return
    images, labels = bench.split.train.images[:512], bench.split.train.labels[:512]
    last = [name for name, module in bench.dense.named_modules() if isinstance(module, nn.Linear)][-1]
    try:
        small = torch_pruning(
            bench.dense, images[:2], cost, float(percent.rstrip("%")) / 100, importance=importance,
            ignored=lambda model: [model.get_submodule(last)],
            loss=lambda model: F.cross_entropy(model(images), labels),
        )  # fmt: skip
    except ValueError as error:
        missed = {"accuracy": None, "failure": str(error)}
        bench.rows.measure(lambda: missed, **key, stage="pruned")
        return
    _rows(bench, small, key, tunes, {}, None)


def _rows(bench: Bench, model: nn.Module, key: Row, tunes: tuple[int, ...], more: Row, seconds: float | None) -> None:
    times = {} if seconds is None else {"seconds": round(seconds, 1)}
    bench.rows.measure(lambda: {**bench.figures(model), **more, **times}, **key, stage="pruned")
    for epochs in tunes:
        stage = f"finetuned, {epochs} epochs"
        bench.rows.measure(lambda n=epochs: {**bench.figures(bench.tuned(model, n)), **more}, **key, stage=stage)


def tables(rows: Rows) -> str:
    found = rows.found
    stages = list(dict.fromkeys(row["stage"] for row in found))
    parts = [f"## {stage}\n\n{_accuracies([r for r in found if r['stage'] == stage])}\n" for stage in stages]
    return "# LeNet-5 of the seed, MNIST: test accuracy in %\n\n" + "\n".join(parts)


def _accuracies(rows: list[Row]) -> str:
    return pivot(
        rows,
        ("method", "allocation", "compensate"),
        lambda r: r.get("keep") or "dense",
        lambda r: r.get("accuracy"),
        order=KEEPS,
    )
