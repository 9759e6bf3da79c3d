"""ResNet-56 in milliseconds: dense and cut beside each other, in the four forms in which a network is deployed."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.method.rows import Row, Rows, pivot
from benchmarks.method.sources import cifar10, resnet56
from torch import Tensor, nn

import actprune as ap
from actprune.latency.timing import side_by_side

BATCHES = (1, 64)
SECONDS = 3.0
"""Spent on each side of a comparison."""

KEEP, MULTIPLE = 0.5, 8

Form = Callable[[nn.Module, Tensor], Callable[[], Any]]
"""A network and a batch → a call of that network in one form."""


def _eager(model: nn.Module, x: Tensor) -> Callable[[], Any]:
    return partial(model, x)


def _folded(model: nn.Module, x: Tensor, *, channels_last: bool = False) -> Callable[[], Any]:
    return partial(ap.fold(model, x, channels_last=channels_last), x)


def _channels_last(model: nn.Module, x: Tensor) -> Callable[[], Any]:
    return _folded(model, x.to(memory_format=torch.channels_last), channels_last=True)


def _onnxruntime(model: nn.Module, x: Tensor) -> Callable[[], Any]:
    """Exported with BatchNorm folded, on as many threads as torch uses."""
    import onnxruntime

    file = io.BytesIO()
    with redirect_stdout(sys.stderr):  # the exporter prints its progress
        program = torch.onnx.export(ap.fold(model, x, channels_last=False), (x,), dynamo=True)
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    program.save(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    return partial(session.run, None, {session.get_inputs()[0].name: x.numpy()})


FORMS: Mapping[str, Form] = {
    "eager": _eager,
    "folded": _folded,
    "folded, channels last": _channels_last,
    "onnxruntime": _onnxruntime,
}


def measure(rows: Rows, folder: Path) -> None:
    dense, images = resnet56(folder), cifar10(folder, "test").images
    small: ap.Result | None = None
    for batch in BATCHES:
        for form in FORMS:
            key = {"method": "l2", "setting": f"batch {batch}", "keep": f"macs={KEEP:.0%}", "stage": form, "seed": 0}
            if not rows.has(**key):
                small = small or _pruned(dense, images, keep=key["keep"], round_to=MULTIPLE)
                rows.measure(partial(_compared, form, dense, small, images[:batch]), **key)
    for batch in BATCHES:
        for multiple in (1, "auto"):
            key = {"method": "l2", "setting": f"batch {batch}", "keep": f"latency={KEEP:.0%}", "stage": "eager",
                   "allocation": f"round_to={multiple}", "seed": 0}  # fmt: skip
            work = partial(_on_time, dense, images, images[:batch], multiple, ap.Latency(batch=batch))
            rows.measure(work, **key)


def _on_time(dense: nn.Module, images: Tensor, x: Tensor, multiple: Any, latency: ap.Latency) -> Row:
    """A budget of latency, measured once more beside the dense network."""
    result = _pruned(dense, images, keep=f"latency={KEEP:.0%}", round_to=multiple, latency=latency)
    report = result.report
    return {
        **_compared("eager", dense, result, x),
        "told": round((report.pruned.latency_ms or 0.0) / (report.dense.latency_ms or 1.0), 4),
        "round_to": result.plan.note.get("round_to", multiple),
        "allocate_seconds": report.seconds["allocate"],
    }


def _pruned(dense: nn.Module, images: Tensor, **how: Any) -> ap.Result:
    """By L2 norm, uniformly: milliseconds depend on widths, not on which units stay."""
    return ap.prune(dense, [images[:64]], method="l2", **how)


@torch.no_grad()
def _compared(form: str, dense: nn.Module, result: ap.Result, x: Tensor) -> Row:
    share = {"macs_left": round(result.proof.macs / ap.cost(result.graph).macs, 4)}
    if form == "onnxruntime" and importlib.util.find_spec(form) is None:
        return {**share, "note": "onnxruntime is not installed"}
    before, after = side_by_side([FORMS[form](model, x) for model in (dense, result.model.eval())], SECONDS)
    threads = torch.get_num_threads()
    return {**share, "dense_ms": round(before, 3), "ms": round(after, 3), "latency": round(after / before, 4),
            "threads": threads}  # fmt: skip


def tables(rows: Rows) -> str:
    return "\n\n".join(
        [
            "# ResNet-56, CIFAR-10: latency of the cut network as a share of the dense one's in the same form",
            f"Widths are multiples of {MULTIPLE}; dense and cut are timed in turns, and ratios are medians.",
            *(_forms(rows.found, batch) for batch in BATCHES),
            "## Budgets of latency, eager",
            pivot(
                [row for row in rows.found if str(row["keep"]).startswith("latency")],
                ("keep", "allocation", "round_to"), lambda r: str(r["setting"]), lambda r: r["latency"], _percent,
            ),
        ]
    )  # fmt: skip


def _forms(found: list[Row], batch: int) -> str:
    mine = [r for r in found if r["setting"] == f"batch {batch}" and str(r["keep"]).startswith("macs")]
    lines = ["| form | dense ms | cut ms | latency | MACs | latency ÷ MACs |", "|---|---|---|---|---|---|"]
    for row in mine:
        figures = [row.get("note", ""), "", "", _percent(row["macs_left"]), ""]
        if "latency" in row:
            rate = row["latency"] / row["macs_left"]
            figures = [f"{row['dense_ms']:.2f}", f"{row['ms']:.2f}", _percent(row["latency"]),
                       _percent(row["macs_left"]), f"{rate:.2f}"]  # fmt: skip
        lines.append(f"| {row['stage']} | " + " | ".join(figures) + " |")
    return f"## Batch {batch}\n\n" + "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
