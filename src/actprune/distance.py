"""How far apart the outputs of two networks are; 0 for equal ones.

`"auto"`: Kullback-Leibler divergence at temperature 4 where the output is a matrix of logits or probabilities (Hinton
et al. 2015; at T = 1 easy calibration samples saturate and the distance says little), else the squared error of the
outputs as a share of the dense outputs' variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from actprune.errors import PlanError
from actprune.graph.program import Program, named_arguments, op_name
from actprune.methods import known

TEMPERATURE = 4.0

Outputs: TypeAlias = tuple[Any, ...]
"""The flat outputs of one batch."""

Distance: TypeAlias = Callable[[Sequence[Outputs], Sequence[Outputs]], float]
"""(outputs of the dense network per batch, of the candidate) → distance ≥ 0."""


def choose(program: Program, distance: str | Distance = "auto") -> Distance:
    """The distance for a program: "kl", "mse", "auto", or a callable, which is returned as it is.

    Raises:
        PlanError: an unknown name, or "kl" for outputs without two or more classes in their last dimension.
    """
    if callable(distance):
        return distance
    known(distance, ("auto", "kl", "mse"), "distance")
    kind = output_kind(program)
    if distance == "mse" or (distance == "auto" and kind == "values"):
        return normalised_error
    _check_classes(program)
    return lambda dense, cut: divergence(dense, cut, kind)


def output_kind(program: Program) -> str:
    """What the one output is, told by its last op: "probabilities", "log_probabilities", "logits" or "values"."""
    outputs = _tensor_outputs(program)
    if len(outputs) != 1 or outputs[0].meta["val"].dim() != 2 or outputs[0].meta["val"].shape[1] < 2:
        return "values"
    last, name = outputs[0], op_name(outputs[0])
    if "softmax" in name:
        if named_arguments(last).get("dim") not in (-1, 1):
            return "values"
        return "log_probabilities" if "log_softmax" in name else "probabilities"
    return "logits" if name.startswith(("aten.linear", "aten.addmm", "aten.flatten", "aten.view")) else "values"


def divergence(dense: Sequence[Outputs], cut: Sequence[Outputs], kind: str = "logits") -> float:
    """Mean KL(dense ‖ cut) in nats at temperature 4, from logits, or from probabilities through their logarithm."""
    total, count = 0.0, 0
    for a, b in zip(dense, cut, strict=True):
        p, q = (F.log_softmax(_logits(out, kind) / TEMPERATURE, -1) for out in (a, b))
        total += float((p.exp() * (p - q)).sum())
        count += p.shape[0]
    return max(total, 0.0) / max(count, 1)


def normalised_error(dense: Sequence[Outputs], cut: Sequence[Outputs]) -> float:
    """Σ (a − b)² / Σ (a − mean a)² over all float outputs of all batches, the outputs weighing alike.

    Of outputs that don't vary, such as those of a single sample, Σ a² is taken instead.
    """
    errors: list[float] = []
    for position, first in enumerate(dense[0]):
        if not isinstance(first, Tensor) or not first.is_floating_point():
            continue
        a, b = (torch.cat([_by_sample(out[position]) for out in outputs]) for outputs in (dense, cut))
        variation, size = float(((a - a.mean(0)) ** 2).sum()), float((a**2).sum())
        scale = variation if variation > 1e-12 * size else size
        errors.append(float(((a - b) ** 2).sum()) / max(scale, 1e-30))
    return sum(errors) / max(len(errors), 1)


def _tensor_outputs(program: Program) -> list[Node]:
    return [out for out in program.outputs if isinstance(out, Node) and isinstance(out.meta.get("val"), Tensor)]


def _check_classes(program: Program) -> None:
    """The divergence between distributions over one class would be 0 whatever the outputs."""
    first = next(iter(_tensor_outputs(program)), None)
    shape = tuple(first.meta["val"].shape) if first is not None else ()
    if len(shape) < 2 or shape[-1] < 2:
        raise PlanError(
            f"The outputs of {program.model_name} are no distributions.",
            expected="a first output of shape (N, …, classes), with two classes or more",
            got=f"shape {shape}",
            where='distance="kl"',
            hint='choose distance="mse", or pass a function of the dense and the other outputs',
        )


def _logits(outputs: Outputs, kind: str) -> Tensor:
    """(rows, classes) of the first tensor output."""
    values = next(out for out in outputs if isinstance(out, Tensor)).double().flatten(0, -2)
    return values.clamp_min(1e-12).log() if kind == "probabilities" else values


def _by_sample(value: Tensor) -> Tensor:
    """(samples, values)"""
    return value.double().reshape(value.shape[0] if value.dim() else 1, -1)
