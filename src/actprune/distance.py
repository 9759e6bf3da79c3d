"""How far apart the outputs of two networks are; 0 for equal ones.

`"auto"`: Kullback-Leibler divergence at temperature 4 where the output is a matrix of logits or probabilities (Hinton et al.
2015; at T = 1 easy calibration samples saturate and the distance says little), else the squared error of the
outputs as a share of the dense outputs' variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from actprune.axes.inference import _by_name
from actprune.graph.program import Program, op_name
from actprune.methods import known

TEMPERATURE = 4.0

Outputs: TypeAlias = tuple[Any, ...]
"""The flat outputs of one batch."""

Distance: TypeAlias = Callable[[Sequence[Outputs], Sequence[Outputs]], float]
"""(outputs of the dense network per batch, of the candidate) → distance ≥ 0."""


def choose(program: Program, distance: str | Distance = "auto") -> Distance:
    """The distance for a program: "kl", "mse", "auto", or a callable, which is returned as it is."""
    if callable(distance):
        return distance
    known(distance, ("auto", "kl", "mse"), "distance")
    kind = output_kind(program)
    if distance == "mse" or (distance == "auto" and kind == "values"):
        return normalised_error
    return lambda dense, cut: divergence(dense, cut, kind)


def output_kind(program: Program) -> str:
    """What the one output is, told by its last op: "probabilities", "log_probabilities", "logits" or "values"."""
    outputs = [out for out in program.outputs if isinstance(out, Node) and isinstance(out.meta.get("val"), Tensor)]
    if len(outputs) != 1 or outputs[0].meta["val"].dim() != 2 or outputs[0].meta["val"].shape[1] < 2:
        return "values"
    last, name = outputs[0], op_name(outputs[0])
    if "log_softmax" in name:
        return "log_probabilities"
    if "softmax" in name:
        return "probabilities" if _by_name(last).get("dim") in (-1, 1) else "values"
    return "logits" if name.startswith(("aten.linear", "aten.addmm", "aten.flatten", "aten.view")) else "values"


def divergence(dense: Sequence[Outputs], cut: Sequence[Outputs], kind: str = "logits") -> float:
    """Mean KL(dense ‖ cut) in nats at temperature 4, from logits, or from probabilities through their logarithm."""
    total, count = 0.0, 0
    for a, b in zip(dense, cut, strict=True):
        p, q = (_logits(out, kind) / TEMPERATURE for out in (a, b))
        p, q = F.log_softmax(p, -1), F.log_softmax(q, -1)
        total += float((p.exp() * (p - q)).sum())
        count += p.shape[0]
    return total / max(count, 1)


def normalised_error(dense: Sequence[Outputs], cut: Sequence[Outputs]) -> float:
    """Σ (a − b)² / Σ (a − mean a)² over all float outputs of all batches, the outputs weighing alike."""
    errors: list[float] = []
    for position in range(len(dense[0])):
        a, b = ([out[position] for out in outputs] for outputs in (dense, cut))
        if not isinstance(a[0], Tensor) or not a[0].is_floating_point():
            continue
        x, y = (torch.cat([v.double().flatten(1) if v.dim() > 1 else v.double()[None] for v in s]) for s in (a, b))
        spread = float(((x - x.mean(0)) ** 2).sum())
        errors.append(float(((x - y) ** 2).sum()) / max(spread, 1e-30))
    return sum(errors) / max(len(errors), 1)


def _logits(outputs: Outputs, kind: str) -> Tensor:
    values = next(out for out in outputs if isinstance(out, Tensor)).double().flatten(0, -2)
    return values.clamp_min(1e-12).log() if kind == "probabilities" else values
