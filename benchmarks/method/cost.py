"""What a cut by `sgd-ap` costs: how seconds and memory grow with depth, width and calibration samples.

Residual networks and transformers with drawn weights on drawn inputs, each in a process of its own, on one thread;
seconds are those of the processor. The floor beside them is what nobody can go below who refits every layer: one
forward pass over the calibration samples, and the Gram matrix of every layer's input. Then the trained ResNet-56, in a
process that holds no images of CIFAR-10 but those that it is given: on one thread, and in seconds of the clock on two.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.coverage.child import peak_gb
from benchmarks.growth import residual, transformer
from benchmarks.line_plot import Panel, svg
from benchmarks.method.resnet56 import BATCH as TRAINED_BATCH
from benchmarks.method.resnet56 import CALIBRATION
from benchmarks.method.rows import Row, Rows
from benchmarks.method.sources import cifar10, resnet56
from torch import Tensor, nn

import actprune as ap

USUAL = {"depth": 2, "width": 32, "samples": 512}
SERIES = {"depth": (1, 2, 4, 8), "width": (16, 32, 64, 128), "samples": (256, 512, 1024, 2048)}
BATCH = 64
TRAINED, KEEPS, THREADS = "resnet56", (0.5, 0.3), 2

NETWORKS = {"transformer": transformer, "residual": residual}


def points() -> list[dict[str, Any]]:
    """Network, depth, width and samples of every row; the usual point is in all three series."""
    sizes = [{**USUAL, name: value} for name, values in SERIES.items() for value in values]
    distinct = [size for i, size in enumerate(sizes) if size not in sizes[:i]]
    return [{"model": name, **size} for name in NETWORKS for size in distinct]


def measure(rows: Rows, folder: Path) -> None:
    for point in points():
        key = {"model": point["model"], "setting": ", ".join(f"{name} {point[name]}" for name in USUAL)}
        rows.measure(
            lambda point=point: _apart(_drawn, point), **key, method="sgd-ap", keep=0.5, stage="pruned", seed=0
        )
    for keep in KEEPS:
        key = {"model": TRAINED, "method": "sgd-ap", "keep": keep, "stage": "pruned", "seed": 0}
        rows.measure(lambda keep=keep: _apart(_trained, folder, keep), **key)
        several = {**key, "setting": f"{THREADS} threads"}
        rows.measure(lambda keep=keep: _apart(_trained, folder, keep, THREADS), **several)
    (rows.results / "cost.svg").write_text(_drawing(rows.found))


def _apart(work: Callable[..., Row], *given: Any) -> Row:
    """Measured in a process of its own, whose peak memory is nobody else's. It begins anew: a fork can't use threads
    that its parent has used."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, given)


def _drawn(point: dict[str, Any]) -> Row:
    torch.manual_seed(0)
    model, inputs = NETWORKS[point["model"]](point["depth"], point["width"], "cpu")
    data = torch.randn(point["samples"], *inputs.shape[1:]).split(BATCH)
    return {**point, **_measured(model, data, 0.5)}


def _trained(folder: Path, keep: float, threads: int = 1) -> Row:
    data = cifar10(folder, "train").drawn(CALIBRATION, seed=0).split(TRAINED_BATCH)
    return _measured(resnet56(folder), data, keep, threads)


def _measured(model: nn.Module, data: Sequence[Tensor], keep: float, threads: int = 1) -> Row:
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    before, started = peak_gb(), clock()
    samples = sum(map(len, data))
    result = ap.prune(model, data, keep=f"macs={keep:.0%}", calibration_size=samples, seed=0)
    seconds = clock() - started
    return {
        "threads": threads,
        "samples": samples,
        "seconds": round(seconds, 1),
        "seconds_by_stage": dict(result.report.seconds),
        "floor_seconds": round(floor(model.eval(), data, clock), 2),
        "params": sum(p.numel() for p in model.parameters()),
        "peak_gb": round(peak_gb(), 2),
        "peak_gb_before": round(before, 2),
    }


def floor(model: nn.Module, data: Sequence[Tensor], clock: Callable[[], float] = time.process_time) -> float:
    """Seconds of one forward pass over `data` and of the Gram matrix (columns, columns) of every layer's input."""
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    grams = [torch.zeros(layer.weight[0].numel(), layer.weight[0].numel()) for layer in layers]

    handles = [layer.register_forward_pre_hook(partial(_add, gram)) for layer, gram in zip(layers, grams, strict=True)]
    started = clock()
    with torch.no_grad():
        for batch in data:
            model(batch)
    seconds = clock() - started
    for handle in handles:
        handle.remove()
    return seconds


def _add(gram: Tensor, layer: nn.Module, given: tuple[Tensor, ...]) -> None:
    columns = _columns(layer, given[0])
    gram.addmm_(columns.T, columns)


def _columns(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer multiplies with its weights, as rows (samples · places, columns)."""
    if isinstance(layer, nn.Conv2d):
        unfolded = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # pyright: ignore[reportArgumentType]
        return unfolded.transpose(1, 2).flatten(0, 1)
    return x.flatten(0, -2)


def tables(rows: Rows) -> str:
    parts = ["# What a cut costs: `sgd-ap`, MACs 50 %, no recovery, seconds of one core\n\n![cost](cost.svg)"]
    parts += [_table(name.capitalize(), name, name, _series(rows.found, name)) for name in SERIES]
    if trained := [row for row in rows.found if row["model"] == TRAINED]:
        one, two = ([row for row in trained if row.get("threads", 1) == threads] for threads in (1, THREADS))
        parts.append(_table(f"ResNet-56, {CALIBRATION:,} images", "MACs", "keep", one))
        title = f"ResNet-56, {CALIBRATION:,} images, {THREADS} threads, seconds of the clock"
        parts.append(_table(title, "MACs", "keep", two))
    return "\n\n".join(parts)


def _table(title: str, column: str, name: str, rows: list[Row]) -> str:
    head = f"| network | {column} | parameters | s | floor s | times the floor | the three longest stages | peak GB |"
    return "\n".join([f"## {title}\n", head, "|---" * 8 + "|", *(_line(row, name) for row in rows)])


def _line(row: Row, name: str) -> str:
    longest = sorted(row["seconds_by_stage"].items(), key=lambda stage: -stage[1])[:3]
    clock = sum(row["seconds_by_stage"].values())
    cells = (
        row["model"], f"{row[name]:,}", f"{row['params']:,}", row["seconds"], row["floor_seconds"],
        f"{row['seconds'] / row['floor_seconds']:.0f}", ", ".join(f"{stage} {s / clock:.0%}" for stage, s in longest),
        row["peak_gb"],
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def _series(rows: list[Row], name: str) -> list[Row]:
    """The rows in which nothing but `name` differs from the usual."""
    others = [other for other in USUAL if other != name]
    found = [r for r in rows if r["model"] in NETWORKS and all(r[other] == USUAL[other] for other in others)]
    return sorted(found, key=lambda row: (row["model"], row[name]))


def _drawing(rows: list[Row]) -> str:
    def panel(name: str, unit: str, field: str) -> Panel:
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in _series(rows, name):
            lines.setdefault(row["model"], []).append((row[name], row[field]))
        return Panel(f"{name.capitalize()}: {unit}", name, lines)

    return svg([panel(name, *what) for name in SERIES for what in (("seconds", "seconds"), ("peak GB", "peak_gb"))])
