"""Pruned networks as ONNX and pt2: the same outputs as in torch, for any batch size, and what onnxruntime takes.

    python -m benchmarks.exports [NAME …]

Each network is cut to about half of its MACs by the norm of its filters, so that every kind of group takes part;
weights are random, since only equality and time are looked at. Writes benchmarks/results/exports.json and exports.md.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import actprune as ap
from actprune.artifacts.export import FORMATS, export
from actprune.report.measure import versions

RESULTS = Path(__file__).parent / "results"
BATCHES = (1, 3, 8)
TOLERANCE = 1e-4
Made = tuple[nn.Module, Any]
"""A network, and a batch of four."""


def lenet5() -> Made:
    from actprune.demo.lenet5 import LeNet5

    return LeNet5(), torch.randn(4, 1, 28, 28)


def resnet56() -> Made:
    from benchmarks.method.networks import ResNet56

    return ResNet56(), torch.randn(4, 3, 32, 32)


def mobilenet() -> Made:
    return _vision().mobilenet_v3_small(num_classes=10), torch.randn(4, 3, 96, 96)


def vit() -> Made:
    sizes = {"image_size": 64, "patch_size": 16, "num_layers": 4, "num_heads": 6, "hidden_dim": 192, "mlp_dim": 768}
    model = _vision().VisionTransformer(**sizes, num_classes=10)
    nn.init.normal_(model.heads.head.weight, std=0.1)  # torchvision begins with zeros, and all outputs would be equal
    return model, torch.randn(4, 3, 64, 64)


def bert() -> Made:
    transformers = _hub()
    config = transformers.BertConfig(
        vocab_size=500, hidden_size=192, intermediate_size=768, num_hidden_layers=4, num_attention_heads=6,
        max_position_embeddings=64,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config), {"input_ids": torch.randint(0, 500, (4, 32))}


def llama() -> Made:
    transformers = _hub()
    config = transformers.LlamaConfig(
        vocab_size=500, hidden_size=192, intermediate_size=512, num_hidden_layers=1, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=64, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config), {"input_ids": torch.randint(0, 500, (4, 32))}


NETWORKS: dict[str, Callable[[], Made]] = {
    "LeNet-5": lenet5, "ResNet-56": resnet56, "MobileNetV3": mobilenet, "ViT": vit, "BERT": bert, "Llama block": llama,
}  # fmt: skip


def _vision() -> Any:
    """`torchvision.models`; its compiled operators, which nothing here needs, may not load beside this torch."""
    try:
        import torchvision.models
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor d, Tensor s, float t) -> Tensor")
        import torchvision.models
    return torchvision.models


def _hub() -> Any:
    """`transformers`, after torchvision, which it imports."""
    _vision()
    import transformers

    return transformers


def pruned(model: nn.Module, inputs: Any, keep: str = "macs=50%", round_to: int = 8) -> nn.Module:
    """Cut and proved; the convolutions of onnxruntime are fast where widths are multiples of 8."""
    graph = ap.capture(model, inputs)
    plan = ap.allocate(graph, ap.guide(graph, None, method="l2"), keep=keep, allocation="uniform", round_to=round_to)
    small = ap.cut(model, plan)
    ap.verify(model, small, plan, inputs, graph=graph)
    return small


def resized(inputs: Any, size: int) -> Any:
    """The batch with another number of samples."""
    return pytree.tree_map_only(Tensor, lambda x: x[torch.arange(size) % len(x)].clone(), inputs)


def worst(path: Path, model: nn.Module, inputs: Any) -> float:
    """The largest relative error of a file's outputs over several batch sizes."""
    run, found = FORMATS[path.suffix][1], 0.0
    for size in BATCHES:
        given = resized(inputs, size)
        args, kwargs = ((), given) if isinstance(given, dict) else ((given,), {})
        expected = [leaf for leaf in pytree.tree_leaves(model(*args, **kwargs)) if isinstance(leaf, Tensor)]
        for one, other in zip(expected, run(path, args, kwargs), strict=True):
            found = max(found, float((one - other).abs().max() / one.abs().max().clamp_min(1e-12)))
    return found


def milliseconds(paths: list[Path], inputs: Any, seconds: float = 2.0) -> list[float]:
    """Median milliseconds of a forward pass in onnxruntime, one thread, the files in turns."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    each = [onnxruntime.InferenceSession(p.read_bytes(), options, providers=["CPUExecutionProvider"]) for p in paths]
    given = [leaf.numpy() for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    feeds = [dict(zip([one.name for one in session.get_inputs()], given, strict=True)) for session in each]
    taken: list[list[float]] = [[] for _ in each]
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends or len(taken[0]) < 5:
        for session, feed, times in zip(each, feeds, taken, strict=True):
            started = time.perf_counter()
            session.run(None, feed)
            times.append(1000 * (time.perf_counter() - started))
    return [statistics.median(times) for times in taken]


@torch.no_grad()
def measured(name: str, folder: Path) -> dict[str, Any]:
    """One row: errors of both files, and latency dense against pruned."""
    torch.manual_seed(0)
    model, inputs = NETWORKS[name]()
    small = pruned(model.eval(), inputs, round_to=1 if name == "LeNet-5" else 8).eval()
    errors, onnx = {}, export(model, inputs, folder / "dense.onnx")
    for ending in FORMATS:
        errors[ending[1:]] = worst(export(small, inputs, folder / f"small{ending}"), small, inputs)
    dense_ms, small_ms = milliseconds([onnx, folder / "small.onnx"], resized(inputs, 8))
    params = [sum(p.numel() for p in net.parameters()) for net in (model, small)]
    return {"network": name, "params": params, "errors": errors, "onnxruntime_ms": [dense_ms, small_ms]}


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Exports",
        "",
        "Networks cut to half of their MACs (widths multiples of 8, except LeNet-5), exported, and executed for "
        f"batches of {', '.join(map(str, BATCHES))}. "
        "Error: largest difference from torch's outputs over the largest output. "
        "Milliseconds: a batch of 8 in onnxruntime, one thread, dense against pruned, in turns.",
        "",
        "| network | parameters | ONNX error | pt2 error | onnxruntime ms | times as fast |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        (before, after), (dense, small) = row["params"], row["onnxruntime_ms"]
        errors = " | ".join(f"{row['errors'][kind]:.1e}" for kind in ("onnx", "pt2"))
        times = f"{dense:.2f} → {small:.2f} | {dense / small:.2f}"
        lines.append(f"| {row['network']} | {before:,} → {after:,} | {errors} | {times} |")
    return "\n".join([*lines, "", "Made by `python -m benchmarks.exports`.", ""])


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    for name in names or list(NETWORKS):
        with tempfile.TemporaryDirectory() as place:
            rows.append(measured(name, Path(place)))
        print(json.dumps(rows[-1]), flush=True)
    if not names:
        packages = ("torch", "onnx", "onnxscript", "onnxruntime", "torchvision", "transformers")
        data = {"rows": rows, "versions": versions(packages)}
        (RESULTS / "exports.json").write_text(json.dumps(data, indent=1) + "\n", "utf-8")
        (RESULTS / "exports.md").write_text(markdown(rows), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
