"""A small language model: perplexity after blocks are cut, without any gradient step.

`stories260k` (Llama type, 5 blocks) on TinyStories, windows of 256 tokens: 16,384 calibration and 65,536 test tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from benchmarks.coverage.suites.case import declare_torchvision_ops
from benchmarks.method.papers import WHOLE, left_whole
from benchmarks.method.rows import Row, Rows, pivot
from safetensors.torch import load_file
from torch import Tensor, nn

import actprune as ap

WINDOW = 256
CALIBRATION, TEST = slice(0, 16384), slice(256000, 321536)
KEEPS = (0.8, 0.7, 0.5)
METHODS: tuple[dict[str, Any], ...] = (
    {"method": "sgd-ap"},
    {"method": "l2"},
    {"method": "wanda"},
    {"method": "flap"},
    {"method": "grail"},
)


def load(folder: Path) -> nn.Module:
    declare_torchvision_ops()  # transformers imports torchvision where there is one
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**json.loads((folder / "stories260k_config.json").read_text())))
    model.load_state_dict(load_file(folder / "stories260k.safetensors"), strict=False)
    model.tie_weights()
    return model.eval()


def tokens(folder: Path, part: slice) -> Tensor:
    """(windows, 256)"""
    with np.load(folder / "tinystories_tokens.npz") as data:
        return torch.from_numpy(data["tokens"][part].astype("int64")).view(-1, WINDOW)


@torch.no_grad()
def perplexity(model: nn.Module, windows: Tensor, batch: int = 16) -> float:
    """exp of the mean negative log-likelihood of the next token within each window."""
    total, count = 0.0, 0
    for ids in windows.split(batch):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        total += float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"))
        count += ids[:, 1:].numel()
    return math.exp(total / count)


def blocks(model: nn.Module) -> int:
    """Parameters of the blocks: all but embeddings, head and the last norm."""
    return sum(p.numel() for name, p in model.named_parameters() if ".layers." in name)


def measure(rows: Rows, folder: Path) -> None:
    dense, given, test = load(folder), tokens(folder, CALIBRATION), tokens(folder, TEST)
    rows.measure(lambda: {"perplexity": perplexity(dense, test), "block_params": blocks(dense)}, method="dense")
    calibration = [{"input_ids": ids} for ids in given.split(8)]
    graph = ap.capture(dense, calibration[0])
    whole = left_whole(graph)
    for keep in KEEPS:
        budget = _budget(dense, keep)
        for setting in METHODS:
            _prune(rows, dense, calibration, test, setting, budget, f"blocks={keep:.0%}")
        for setting in METHODS[1:]:
            _prune(rows, dense, calibration, test, setting, budget, f"blocks={keep:.0%}", whole)
    _shorten(rows, dense, calibration, test)
    half = {group.name: 86 for group in graph.groups if group.width == 172}
    for setting in METHODS:
        _prune(rows, dense, calibration, test, setting, half, "86 of 172 neurons")


def _shorten(rows: Rows, dense: nn.Module, calibration: list[Any], test: Tensor) -> None:
    """One of the five blocks left out: 80 % of their parameters, as cut from the widths."""

    def work() -> Row:
        result = ap.shorten(dense, calibration, keep=4, distance="kl")
        found = {"perplexity": perplexity(result.model, test), "block_params": blocks(result.model)}
        return {**found, "removed": [step.block for step in result.removals]}

    rows.measure(work, method="shorten", keep="blocks=80%", stage="pruned", seed=0)


def _budget(model: nn.Module, keep: float) -> str:
    """The share of all parameters at which `keep` of those of the blocks is left."""
    total = sum(p.numel() for p in model.parameters())
    return f"params={100 * (1 - (1 - keep) * blocks(model) / total):.3f}%"


def _prune(
    rows: Rows, dense: nn.Module, calibration: list[Any], test: Tensor, setting: Row, keep: Any, name: str,
    whole: Sequence[str] = (),
) -> None:  # fmt: skip
    recovers = setting == {"method": "sgd-ap"}
    stages = ("pruned", "recovered") if recovers else ("pruned",)
    key = {**setting, **(WHOLE if whole else {}), "keep": name, "seed": 0}
    if all(rows.has(**key, stage=stage) for stage in stages):
        return
    recover = ap.Distill(steps=400) if recovers else None
    result = ap.prune(dense, calibration, keep=keep, distance="kl", recover=recover, protect=whole, **setting)
    networks = {"pruned": result.before_finetune or result.model, "recovered": result.model}
    for stage in stages:

        def work(model: nn.Module = networks[stage]) -> Row:
            found = {"perplexity": perplexity(model, test), "block_params": blocks(model)}
            return {**found, "widths": dict(result.plan.widths)}

        rows.measure(work, **key, stage=stage)


def tables(rows: Rows) -> str:
    found = pivot(
        rows.found, ("method", "setting", "stage"), lambda r: r.get("keep") or "dense", lambda r: r.get("perplexity"),
        lambda value: f"{value:.2f}",
    )  # fmt: skip
    return f"# stories260k, TinyStories: perplexity on 65,536 test tokens\n\n{found}\n"
