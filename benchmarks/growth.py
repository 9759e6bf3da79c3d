"""How seconds and memory grow with depth and width: `python benchmarks/growth.py` (about three minutes).

Networks of 2 to 64 blocks and of 64 to 2,048 units, and one of the shape of Llama 3 8B, all on the `meta` device: no
weight takes memory. Each is captured and planned by random scores in a process of its own. Writes
`benchmarks/results/growth.json`, a Markdown table and a drawing beside it. Seconds are those of one core.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from benchmarks.coverage.child import peak_gb
from benchmarks.coverage.suites.case import declare_torchvision_ops
from benchmarks.line_plot import Panel, svg
from torch import Tensor, nn

import actprune as ap
from actprune.axes import capture as axes
from actprune.report.measure import versions

RESULTS = Path(__file__).parent / "results"
DEPTHS, WIDTHS = (2, 4, 8, 16, 32, 64), (64, 128, 256, 512, 1024, 2048)
USUAL_DEPTH, USUAL_WIDTH = 8, 128

Row = dict[str, Any]


# -- the networks ----------------------------------------------------------------------------------


class TransformerBlock(nn.Module):
    """Norm, attention of eight heads, norm, two linear layers, both with a residual sum."""

    def __init__(self, width: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.proj(mixed)
        return x + self.mlp(self.norm2(x))


class ResidualBlock(nn.Module):
    """Two convolutions with their norms, and a residual sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(inner)))


def transformer(depth: int, width: int, device: str = "meta") -> tuple[nn.Module, Tensor]:
    """The network and its inputs (batch 2, tokens 16, features 32)."""
    with torch.device(device):
        blocks = [TransformerBlock(width) for _ in range(depth)]
        return nn.Sequential(nn.Linear(32, width), *blocks, nn.Linear(width, 10)), torch.zeros(2, 16, 32)


def residual(depth: int, width: int, device: str = "meta") -> tuple[nn.Module, Tensor]:
    """The network and its inputs (batch 2, channels 3, height 8, width 8)."""
    with torch.device(device):
        blocks = [ResidualBlock(width) for _ in range(depth)]
        head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
        return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), *blocks, *head), torch.zeros(2, 3, 8, 8)


def llama(depth: int, width: int) -> tuple[nn.Module, Any]:
    """The shape of Llama 3 8B, at 32 layers and a width of 4,096."""
    declare_torchvision_ops()  # transformers loads torchvision where it is installed
    from transformers.models.llama import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=width, intermediate_size=14336, num_hidden_layers=depth, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256, max_position_embeddings=8192,
    )  # fmt: skip
    with torch.device("meta"):
        return LlamaForCausalLM(config), {"input_ids": torch.zeros(1, 16, dtype=torch.long)}


NETWORKS: dict[str, Callable[[int, int], tuple[nn.Module, Any]]] = {
    "transformer": transformer,
    "residual": residual,
    "llama": llama,
}

Point = tuple[str, str, int, int]
"""Network, series, blocks, width."""

POINTS: list[Point] = [
    *((net, "depth", depth, USUAL_WIDTH) for net in ("transformer", "residual") for depth in DEPTHS),
    *((net, "width", USUAL_DEPTH, width) for net in ("transformer", "residual") for width in WIDTHS),
    ("llama", "Llama 3 8B", 32, 4096),
]


# -- one point -------------------------------------------------------------------------------------


def measure(point: Point) -> Row:
    """Capture and plan one network in this process."""
    net, series, depth, width = point
    model, inputs = NETWORKS[net](depth, width)
    before, tracing, trace = peak_gb(), 0.0, axes.trace

    def timed(*args: Any, **kwargs: Any) -> Any:
        nonlocal tracing
        started = time.process_time()
        try:
            return trace(*args, **kwargs)
        finally:
            tracing += time.process_time() - started

    clock, started = time.perf_counter(), time.process_time()
    with mock.patch.object(axes, "trace", timed):
        graph = ap.capture(model, inputs)
    found = time.process_time()
    plan = ap.allocate(graph, ap.guide(graph, None, method="random"), keep="units=70%")
    planned = time.process_time()
    return {
        "network": net,
        "series": series,
        "depth": depth,
        "width": width,
        "params": sum(p.numel() for p in model.parameters()),
        "params_left": round(ap.cost(graph, plan.widths).params / ap.cost(graph).params, 4),
        "nodes": len(graph.program.nodes),
        "groups": len(graph.groups),
        "trace_seconds": round(tracing, 3),
        "groups_seconds": round(found - started - tracing, 3),
        "plan_seconds": round(planned - found, 3),
        "wall_seconds": round(time.perf_counter() - clock, 3),
        "peak_gb": round(peak_gb(), 3),
        "peak_gb_before": round(before, 3),
    }


def measure_all(points: list[Point]) -> Iterator[Row]:
    """Each point in a fork of its own: its peak memory is nobody else's, and what is loaded once is loaded for all."""
    torch.set_num_threads(1)
    model, inputs = residual(1, 8)
    graph = ap.capture(model, inputs)
    ap.allocate(graph, ap.guide(graph, None, method="random"), keep="units=70%")
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        yield from pool.imap(measure, points, chunksize=1)


# -- what is written -------------------------------------------------------------------------------

COLUMNS: dict[str, Callable[[Row], str]] = {
    "network": lambda row: row["network"],
    "blocks": lambda row: str(row["depth"]),
    "width": lambda row: f"{row['width']:,}",
    "parameters": lambda row: f"{row['params']:,}",
    "nodes": lambda row: f"{row['nodes']:,}",
    "groups": lambda row: str(row["groups"]),
    "s: trace": lambda row: f"{row['trace_seconds']:.2f}",
    "s: groups": lambda row: f"{row['groups_seconds']:.2f}",
    "s: plan": lambda row: f"{row['plan_seconds']:.2f}",
    "ms per node": lambda row: f"{1000 * seconds(row) / row['nodes']:.2f}",
    "peak GB": lambda row: f"{row['peak_gb']:.2f}",
    "of it before the capture": lambda row: f"{row['peak_gb_before']:.2f}",
}


def seconds(row: Row) -> float:
    """All that a plan needs."""
    return row["trace_seconds"] + row["groups_seconds"] + row["plan_seconds"]


def table(rows: list[Row]) -> str:
    """One line per network, a heading per series."""
    parts: list[str] = []
    for series in dict.fromkeys(row["series"] for row in rows):
        lines = [list(COLUMNS), ["---"] * len(COLUMNS)]
        lines += [[cell(row) for cell in COLUMNS.values()] for row in rows if row["series"] == series]
        parts += [f"## {series[0].upper()}{series[1:]}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    return "\n\n".join(parts) + "\n"


def drawing(rows: list[Row]) -> str:
    """Seconds against nodes where the depth grows, and against the width where that does; the memory beside them."""

    def lines(series: str, x: str, y: str) -> dict[str, list[tuple[float, float]]]:
        found: dict[str, list[tuple[float, float]]] = {}
        for row in (row for row in rows if row["series"] == series):
            found.setdefault(row["network"], []).append((row[x], seconds(row) if y == "seconds" else row[y]))
        return found

    return svg(
        [
            Panel("Depth: seconds", "nodes", lines("depth", "nodes", "seconds")),
            Panel("Depth: peak GB", "nodes", lines("depth", "nodes", "peak_gb")),
            Panel("Width: seconds", "units", lines("width", "width", "seconds")),
            Panel("Width: peak GB", "units", lines("width", "width", "peak_gb")),
        ]
    )


INTRODUCTION = (
    "Everything on the `meta` device, each network in a process of its own, of which Python and torch take 0.3 GB. "
    "Seconds of one core: trace is what `torch.export` takes, groups all else of `capture`, plan random scores and "
    "70 % of every group."
)


def main() -> None:
    rows: list[Row] = []
    for row in measure_all(POINTS):
        rows.append(row)
        told = f"{row['network']}, {row['depth']} blocks, {row['width']} wide: {seconds(row):.1f} s"
        sys.stderr.write(f"{told}, {row['peak_gb']:.2f} GB\n")
    data = {"command": "python benchmarks/growth.py", "versions": versions(("torch", "transformers"))}
    said = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    text = f"# Growth\n\n`{data['command']}`, {said}. {INTRODUCTION}\n\n![growth](growth.svg)\n\n{table(rows)}"
    (RESULTS / "growth.json").write_text(json.dumps({**data, "rows": rows}, indent=1) + "\n")
    (RESULTS / "growth.md").write_text(text)
    (RESULTS / "growth.svg").write_text(drawing(rows))


if __name__ == "__main__":
    main()
