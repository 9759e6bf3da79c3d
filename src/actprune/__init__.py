"""actprune: structured pruning of PyTorch and Keras models, with a proof for every cut.

    result = actprune.prune(model, calibration, keep="macs=50%")

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actprune.allocation.allocate import allocate
    from actprune.allocation.budget import Amount, Budget
    from actprune.allocation.cost import cost
    from actprune.artifacts.opened import open_pretrained
    from actprune.axes.capture import Graph
    from actprune.compensation.refit import compensate
    from actprune.depth.plan import DepthPlan
    from actprune.depth.shorten import Shorter, shorten
    from actprune.errors import (
        ActpruneError,
        ArtifactError,
        BudgetError,
        CaptureError,
        DataError,
        DistributedError,
        EquivalenceError,
        PlanError,
        UnsupportedModelError,
    )
    from actprune.guidance.confidence import Confidence, confidence
    from actprune.guidance.guide import Guide
    from actprune.guidance.ranking import guide
    from actprune.hints import hint
    from actprune.iterating import prune_in_rounds
    from actprune.keras3.bridge import fold, load
    from actprune.latency.bench import Latency
    from actprune.latency.table import LatencyTable, measure_latency
    from actprune.methods import METHODS
    from actprune.pipeline import predict, prune
    from actprune.plan import Plan, make_plan
    from actprune.proof.check import Proof, verify
    from actprune.recovery.distill import Distill
    from actprune.recovery.sgd import SGD
    from actprune.repair.adapt import capture
    from actprune.report.inspection import inspect
    from actprune.result import Result
    from actprune.rewrite import Rewrite
    from actprune.shards import open_weights
    from actprune.stats.collect import collect
    from actprune.stats.statistics import Stats
    from actprune.surgery.graph_form import as_graph
    from actprune.surgery.slicing import cut
    from actprune.sweeping import sweep

__version__ = "0.1.0"

_HOMES = {
    "ActpruneError": "errors",
    "ArtifactError": "errors",
    "Amount": "allocation.budget",
    "Budget": "allocation.budget",
    "BudgetError": "errors",
    "CaptureError": "errors",
    "Confidence": "guidance.confidence",
    "DataError": "errors",
    "DepthPlan": "depth.plan",
    "Distill": "recovery.distill",
    "DistributedError": "errors",
    "EquivalenceError": "errors",
    "Graph": "axes.capture",
    "Guide": "guidance.guide",
    "Latency": "latency.bench",
    "LatencyTable": "latency.table",
    "METHODS": "methods",
    "Plan": "plan",
    "PlanError": "errors",
    "Proof": "proof.check",
    "Result": "result",
    "Rewrite": "rewrite",
    "SGD": "recovery.sgd",
    "Shorter": "depth.shorten",
    "Stats": "stats.statistics",
    "UnsupportedModelError": "errors",
    "allocate": "allocation.allocate",
    "as_graph": "surgery.graph_form",
    "capture": "repair.adapt",
    "collect": "stats.collect",
    "compensate": "compensation.refit",
    "confidence": "guidance.confidence",
    "cost": "allocation.cost",
    "cut": "surgery.slicing",
    "fold": "keras3.bridge",
    "guide": "guidance.ranking",
    "hint": "hints",
    "inspect": "report.inspection",
    "load": "keras3.bridge",
    "make_plan": "plan",
    "measure_latency": "latency.table",
    "open_pretrained": "artifacts.opened",
    "open_weights": "shards",
    "predict": "pipeline",
    "prune": "pipeline",
    "prune_in_rounds": "iterating",
    "shorten": "depth.shorten",
    "sweep": "sweeping",
    "verify": "proof.check",
}

__all__ = [
    "METHODS",
    "SGD",
    "ActpruneError",
    "Amount",
    "ArtifactError",
    "Budget",
    "BudgetError",
    "CaptureError",
    "Confidence",
    "DataError",
    "DepthPlan",
    "Distill",
    "DistributedError",
    "EquivalenceError",
    "Graph",
    "Guide",
    "Latency",
    "LatencyTable",
    "Plan",
    "PlanError",
    "Proof",
    "Result",
    "Rewrite",
    "Shorter",
    "Stats",
    "UnsupportedModelError",
    "allocate",
    "as_graph",
    "capture",
    "collect",
    "compensate",
    "confidence",
    "cost",
    "cut",
    "fold",
    "guide",
    "hint",
    "inspect",
    "load",
    "make_plan",
    "measure_latency",
    "open_pretrained",
    "open_weights",
    "predict",
    "prune",
    "prune_in_rounds",
    "shorten",
    "sweep",
    "verify",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'actprune' has no attribute {name!r}")
    value = getattr(import_module(f"actprune.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
