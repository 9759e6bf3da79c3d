"""LeNet-300-100 on Fashion-MNIST, without fine-tune: the setting of Kim et al. 2020 (Neuron Merging), who report 88.69,
86.92, 82.75 and 80.02 % with 50 to 80 % of the neurons removed from a network of 89.80 %."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.method.networks import LeNet300
from benchmarks.method.rows import Rows, pivot
from benchmarks.method.sources import Batches, Images, accuracy, fashion_mnist
from torch import nn

import actprune as ap

REMOVED = (0.5, 0.6, 0.7, 0.8)
CALIBRATION = 8192
EPOCHS, RATE = 20, 0.05
METHODS: tuple[dict[str, Any], ...] = (
    {"method": "sgd-ap", "allocation": "uniform"},
    {"method": "l1"},
    {"method": "l2"},
    {"method": "l2", "compensate": "least_squares"},
    {"method": "flap", "allocation": "uniform"},
)


def train(data: Images, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = LeNet300()
    ap.SGD(Batches(data, 128, seed), loss=F.cross_entropy, lr=RATE, epochs=EPOCHS, weight_decay=5e-4).run(model)
    return model.eval()


def measure(rows: Rows, folder: Path) -> None:
    data, test = fashion_mnist(folder, "train"), fashion_mnist(folder, "t10k")
    dense = train(data, 0)
    rows.measure(lambda: {"accuracy": accuracy(dense, test)}, method="dense", stage="dense", seed=0)
    calibration = data.drawn(CALIBRATION, 0).split(256)
    for removed in REMOVED:
        widths = {"0": round(300 * (1 - removed)), "2": round(100 * (1 - removed))}
        for setting in METHODS:

            def work(setting: dict[str, Any] = setting, widths: dict[str, int] = widths) -> dict[str, Any]:
                result = ap.prune(dense, calibration, keep=widths, calibration_size=CALIBRATION, **setting)
                return {"accuracy": accuracy(result.model, test), "widths": dict(result.plan.widths)}

            rows.measure(work, **setting, keep=f"{removed:.0%} of the neurons removed", stage="pruned", seed=0)


def tables(rows: Rows) -> str:
    found = pivot(rows.found, ("method", "compensate"), lambda r: r.get("keep") or "dense", lambda r: r["accuracy"])
    return f"# LeNet-300-100, Fashion-MNIST, no fine-tune: test accuracy in %\n\n{found}\n"
