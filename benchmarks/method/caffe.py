"""LeNet-5 as Caffe has it (20-50-800-500, 2.29 M multiply-adds) at 158K MACs, where BC-GHS (Louizos et al. 2017)
reports an error of 1.0 %: a cut, a recovery without labels, a fine-tune, each timed."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.method.networks import LeNetCaffe
from benchmarks.method.rows import Row, Rows, pivot
from benchmarks.method.sources import Batches, Images, shifted
from torch import nn

import actprune as ap
from actprune.demo.lenet5 import Split, accuracy, tensors
from actprune.demo.mnist import load_mnist

MACS = 158_000
CALIBRATION, BATCH = 4096, 64
TRAINED = {"lr": 0.02, "epochs": 8, "weight_decay": 5e-4}
TUNED = {"lr": 0.05, "epochs": 25}
SHIFT = 2
"""Pixels by which training images are moved at random."""


def measure(rows: Rows, data: Path | None) -> None:
    split = tensors(load_mnist(data, None))
    torch.manual_seed(0)
    started = time.perf_counter()
    dense = _train(LeNetCaffe(), None, split, TRAINED)

    def figures(model: nn.Module, **more: Any) -> Row:
        right = accuracy(model, split.test.images, split.test.labels)
        seconds = round(time.perf_counter() - started, 1)
        return {"accuracy": right, "error": 1 - right, "seconds_in_all": seconds, **more}

    rows.measure(lambda: figures(dense, macs=ap.cost(ap.capture(dense, split.train.images[:2])).macs), **_key("dense"))
    if rows.has(**_key("finetuned")):
        return
    images = split.train.images[:CALIBRATION].split(256)
    whole = ap.cost(ap.capture(dense, images[0])).macs
    result = ap.prune(
        dense, images, keep=f"macs={100 * MACS / whole:.4f}%", calibration_size=CALIBRATION,
        recover=ap.Distill(steps=400),
        finetune=lambda model: _train(model, dense, split, TUNED),
    )  # fmt: skip
    done = {"macs": result.proof.macs, "params": result.proof.params, "widths": dict(result.plan.widths)}
    assert result.before_finetune is not None
    rows.measure(lambda: figures(result.before_finetune, **done), **_key("recovered"))  # type: ignore[arg-type]
    rows.measure(lambda: figures(result.model, **done), **_key("finetuned"))


def _key(stage: str) -> dict[str, Any]:
    return {"method": "dense" if stage == "dense" else "sgd-ap", "stage": stage, "seed": 0}


def _train(model: nn.Module, teacher: nn.Module | None, split: Split, schedule: dict[str, Any]) -> nn.Module:
    loader = Batches(Images(split.train.images, split.train.labels), BATCH, 0, partial(shifted, most=SHIFT))
    return ap.SGD(loader, loss=F.cross_entropy, distill=0.5, **schedule).run(model, teacher).eval()


def tables(rows: Rows) -> str:
    found = pivot(rows.found, ("method",), lambda r: r["stage"], lambda r: r.get("error"))
    return f"# LeNet-5-Caffe at {MACS:,} MACs, MNIST: test error in %\n\n{found}\n"
