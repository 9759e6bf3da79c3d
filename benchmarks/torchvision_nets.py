"""Seven torchvision networks with random weights, 70 % of every group kept by L2 norm.

Run `python benchmarks/torchvision_nets.py` where torchvision is installed. Writes
`benchmarks/results/torchvision_nets.json` and a Markdown table: seconds of capture and plan, share of the parameters
left, the proof's errors; each network also takes a backward step in train mode with another batch size.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import actprune as ap

NAMES = ("resnet18", "vgg11_bn", "densenet121", "mobilenet_v2", "mobilenet_v3_small", "squeezenet1_0", "googlenet")
RESULTS = Path(__file__).parent / "results"


def build(name: str) -> torch.nn.Module:
    """The network with random weights; torchvision's two detection ops are only declared, on a CPU build of torch."""
    for op in ("nms", "qnms"):
        try:
            torch.library.define(f"torchvision::{op}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        except RuntimeError:  # torchvision brought its own, or this ran before
            continue
    from torchvision import models

    extra: dict[str, Any] = {"init_weights": True} if name == "googlenet" else {}
    torch.manual_seed(0)
    return getattr(models, name)(weights=None, **extra)


def measure(name: str) -> dict[str, Any]:
    """One row."""
    model, x = build(name), torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    started = time.perf_counter()
    graph = ap.capture(model, x)
    captured = time.perf_counter()
    plan = ap.allocate(graph, ap.guide(graph, None, method="l2"), keep="units=70%")
    planned = time.perf_counter()
    small = ap.cut(model, plan)
    proof = ap.verify(model, small, plan, x, graph=graph, check=False)
    small.train()
    outputs = small(torch.randn(3, 3, 224, 224))
    sum(out.sum() for out in ([outputs] if isinstance(outputs, torch.Tensor) else outputs)).backward()
    dense = ap.cost(graph)
    return {
        "model": name,
        "groups": len(graph.groups),
        "capture_seconds": round(captured - started, 2),
        "plan_seconds": round(planned - captured, 2),
        "proof_seconds": round(proof.seconds, 2),
        "passed": proof.passed,
        "max_rel_error": proof.max_rel_error,
        "params_left": round(proof.params / dense.params, 4),
        "macs_left": round(proof.macs / dense.macs, 4),
        "prunable": round(graph.account().prunable / dense.params, 4),
        "train_step_and_other_batch_size": True,
    }


def main() -> None:
    rows: list[dict[str, Any]] = []
    for name in NAMES:
        rows.append(measure(name))
        sys.stderr.write(f"{rows[-1]}\n")
    versions = {"actprune": ap.__version__, **{name: metadata.version(name) for name in ("torch", "torchvision")}}
    data = {"command": " ".join(["python", *sys.argv]), "versions": versions, "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "torchvision_nets.json").write_text(json.dumps(data, indent=1) + "\n")
    lines = ["| network | capture s | plan s | parameters left | MACs left | proof: relative error |", "|---" * 6 + "|"]
    lines += [
        f"| {r['model']} | {r['capture_seconds']} | {r['plan_seconds']} | {100 * r['params_left']:.1f} % "
        f"| {100 * r['macs_left']:.1f} % | {r['max_rel_error']:.1e}{'' if r['passed'] else ' FAILED'} |"
        for r in rows
    ]
    (RESULTS / "torchvision_nets.md").write_text("\n".join(lines) + "\n")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
