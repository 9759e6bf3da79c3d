"""What carries the gain: LeNet-5 at a third of its MACs and ResNet-56 at half, one factor changed at a time.

And how far our choice of LeNet's convolution channels is from the best of all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.method.lenet5 import Bench as LeNet
from benchmarks.method.resnet56 import BATCH, CALIBRATION
from benchmarks.method.resnet56 import Bench as ResNet
from benchmarks.method.rows import Row, Rows, pivot
from torch import nn

import actprune as ap
from actprune.compensation.refit import compensate
from actprune.plan import Plan, make_plan

WHOLE = "sgd-ap"
SETTINGS: dict[str, dict[str, Any]] = {
    WHOLE: {},
    "criterion: greedy alone": {"method": "greedy"},
    "criterion: LASSO alone": {"method": "lasso"},
    "criterion: FLAP": {"method": "flap", "allocation": "sensitivity", "compensate": "least_squares"},
    "criterion: L2": {"method": "l2", "allocation": "sensitivity", "compensate": "least_squares"},
    "criterion: Fisher weights": {"method": "sgd-ap-fisher"},
    "compensation: readers alone": {"compensate": "least_squares"},
    "compensation: none": {"compensate": "none"},
    "compensation: bias": {"compensate": "bias"},
    "compensation: ridge map": {"compensate": "ridge_map"},
    "allocation: uniform": {"allocation": "uniform"},
    "allocation: global": {"allocation": "global"},
    "BatchNorm: as it was": {"batchnorm": False},
    "BatchNorm: always re-estimated": {"batchnorm": True},
}
"""What is changed → how `prune` is asked for it."""

REFITS: dict[str, dict[str, Any]] = {
    "target: the consumer's own output": {"target": "own"},
    "refit: not before ReLU": {"rounds": 0},
    "refit: only what loses columns": {"scope": "cut"},
}
"""Changes of the refit of readers, at the widths and units of sgd-ap: beside "compensation: readers alone"."""


def measure(rows: Rows, folder: Path) -> None:
    lenet = LeNet(rows, folder / "mnist.npz", 0)
    images = lenet.split.train.images[:4096]
    _measure(rows, "LeNet-5", lenet.dense, list(images.split(256)), "macs=33%", lenet.figures)
    _exhaustive(rows, lenet)
    resnet = ResNet(folder, rows)
    images = resnet.train.drawn(CALIBRATION, 0)
    _measure(rows, "ResNet-56", resnet.dense, list(images.split(BATCH)), "macs=50%", resnet.figures)


def _measure(
    rows: Rows, name: str, dense: nn.Module, batches: list[Any], keep: str, figures: Callable[[nn.Module], Row]
) -> None:
    known: list[ap.Result] = []

    def whole() -> ap.Result:
        known[:] = known or [ap.prune(dense, batches, keep=keep, calibration_size=4096)]
        return known[0]

    for setting, arguments in SETTINGS.items():

        def work(arguments: dict[str, Any] = arguments) -> Row:
            result = ap.prune(dense, batches, keep=keep, calibration_size=4096, **arguments) if arguments else whole()
            return {**figures(result.model), "widths": dict(result.plan.widths)}

        rows.measure(work, model=name, setting=setting, keep=keep, stage="pruned", seed=0)
    for setting, arguments in REFITS.items():

        def refit(arguments: dict[str, Any] = arguments) -> Row:
            result = whole()
            rewrite = compensate(result.graph, result.plan, batches, **arguments)
            return figures(ap.cut(dense, result.plan, rewrite))

        rows.measure(refit, model=name, setting=setting, keep=keep, stage="pruned", seed=0)


def _exhaustive(rows: Rows, lenet: LeNet) -> None:
    """Every choice of 3 of the 6 channels of the first convolution, and ours among them: error on validation images."""
    images = lenet.split.train.images[:2048]
    graph = ap.capture(lenet.dense, images[:256])
    group = graph.groups[0]

    def accuracy(kept: tuple[int, ...]) -> float:
        plan: Plan = make_plan(graph, {group.name: kept})
        rewrite = compensate(graph, plan, list(images.split(256)), batchnorm=False)
        return lenet.validated(ap.cut(lenet.dense, plan, rewrite))

    def work() -> Row:
        stats = ap.collect(graph, list(images.split(256)))
        ours = tuple(ap.guide(graph, stats).kept(group.name, 3))
        found = {kept: accuracy(kept) for kept in itertools.combinations(range(group.width), 3)}
        order = sorted(found.values(), reverse=True)
        return {
            "ours": found[ours], "best": order[0], "median": float(torch.tensor(order).median()), "worst": order[-1],
            "rank": order.index(found[ours]) + 1, "choices": len(order),
        }  # fmt: skip

    rows.measure(work, model="LeNet-5", setting="3 of 6 channels, exhaustively", stage="pruned", seed=0)


def tables(rows: Rows) -> str:
    found = [row for row in rows.found if "accuracy" in row and row.get("model")]
    table = pivot(found, ("setting",), lambda r: f"{r['model']}, {r['keep']}", lambda r: r.get("accuracy"))
    gaps = [row for row in rows.found if "rank" in row]
    told = "".join(
        f"\n{row['model']}, {row['setting']}: ours is number {row['rank']} of {row['choices']} by validation accuracy "
        f"({100 * row['ours']:.2f} %; best {100 * row['best']:.2f}, median {100 * row['median']:.2f}, "
        f"worst {100 * row['worst']:.2f}).\n"
        for row in gaps
    )
    return f"# One factor at a time, no fine-tune: test accuracy in %\n\n{table}\n{told}"
