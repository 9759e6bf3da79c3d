"""What is left of a pretrained model's quality at the sizes that Torch-Pruning reaches, for both.

Torch-Pruning removes 20 and 40 % of the channels. `actprune.prune` is given the share of the parameters that were left
then as its budget, the same calibration batches, and no fine-tune.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.coverage.suites import evaluated
from benchmarks.coverage.words import said
from torch import nn

import actprune as ap

Row = dict[str, Any]

RATIOS = {0.2: 0.75, 0.4: 0.57}
"""Pruning ratio → share of the parameters for ours, where Torch-Pruning fails or removes nothing."""

NOTHING = 0.99


def quality(name: str, folder: Path, save: Callable[[Row], None] = lambda row: None) -> Row:
    """The metric of the dense model and, for each ratio, of both pruned ones; an error stands in its place."""
    own = evaluated.module(name, folder)
    model = own.load()
    row: Row = {"ok": True, "failure": None, "stage": "quality", "metric": own.METRIC, "budgets": []}
    row["dense"] = round(own.evaluate(model), 4)
    for ratio, share in RATIOS.items():
        rival = _rival(own, model, ratio)
        left = rival.get("params_left", 1.0)
        ours = _ours(own, model, left if left < NOTHING else share)
        row["budgets"].append({"ratio": ratio, "ours": ours, "rival": rival})
        save(row)
    row["ok"] = all("metric" in budget["ours"] for budget in row["budgets"])
    return row


def _ours(own: Any, model: nn.Module, share: float) -> Row:
    budget = f"params={100 * share:.1f}%"
    try:
        result = ap.prune(model, own.calibration(), keep=budget, forward=lambda m, batch: m(*batch))
    except Exception as error:
        return {"budget": budget, "error": said(error)}
    left = sum(p.numel() for p in result.model.parameters()) / sum(p.numel() for p in model.parameters())
    return {
        "budget": budget,
        "metric": round(own.evaluate(result.model), 4),
        "params_left": round(left, 4),
        "proof": result.proof.passed,
        "max_rel_error": result.proof.max_rel_error,
    }


def _rival(own: Any, model: nn.Module, ratio: float) -> Row:
    """Helped by leaving alone the layers on which it fails or removes the wrong columns, as the folder knows them."""
    help_it = getattr(own, "tp_help", None)
    found: Row = {}
    for helped in (False, True) if help_it else (False,):
        small = copy.deepcopy(model)
        ignored = own.ignored(small) + (help_it(small) if helped and help_it else [])
        try:
            own.common.tp_prune(small, own.example(2), ratio, ignored)
            metric = own.evaluate(small)
        except Exception as error:
            found = {"error": said(error)}
            continue
        left = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
        found = {"helped": helped, "metric": round(metric, 4), "params_left": round(left, 4)}
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in small.modules()):
            with torch.no_grad():
                own.common.reestimate_bn(small, own.calibration())
            found["metric_with_batchnorm_reestimated"] = round(own.evaluate(small), 4)
        if not getattr(own, "TP_WRONG", False):
            break
    return found
