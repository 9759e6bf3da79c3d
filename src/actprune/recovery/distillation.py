"""The loss against a dense network's outputs (Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Network)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from actprune.errors import DataError


def distillation(outputs: Any, wanted: Any, temperature: float, classes: bool = True) -> Tensor:
    """T² · KL at temperature T for matrices of logits, mean squared error for anything else.

    Of outputs that are an object or a dict with `logits`, as those of transformers, these are compared; of others that
    are several tensors (a tuple of heads, a dict of maps) each, and the mean counts.

    Args:
        classes: whether a matrix of outputs is one of logits; targets that are class numbers say so.

    Raises:
        DataError: there is no tensor of numbers, or the dense network's have other shapes.
    """
    student, dense = (_tensors(_logits(given)) for given in (outputs, wanted))
    if not student or [one.shape for one in student] != [one.shape for one in dense]:
        raise DataError(
            "Distillation compares outputs that are tensors, of the same shapes as the dense network's.",
            expected=_forms(dense) if dense else "at least one tensor of numbers",
            got=_forms(student),
            where="SGD.distill",
            hint="pass distill=0, or forward=lambda model, batch: …, which gives one tensor to the loss as well",
        )
    parts = [_distance(*pair, temperature, classes) for pair in zip(student, dense, strict=True)]
    return torch.stack(parts).mean() if len(parts) > 1 else parts[0]


def _distance(outputs: Tensor, wanted: Tensor, temperature: float, classes: bool) -> Tensor:
    if classes and outputs.dim() == 2 and outputs.shape[1] > 1:
        student = F.log_softmax(outputs / temperature, -1)
        dense = F.log_softmax(wanted / temperature, -1)
        return temperature**2 * F.kl_div(student, dense, log_target=True, reduction="batchmean")
    return F.mse_loss(outputs, wanted)


def _tensors(outputs: Any) -> list[Tensor]:
    """Those of numbers with a point."""
    leaves = pytree.tree_leaves(dict(outputs) if isinstance(outputs, Mapping) else outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _forms(tensors: list[Tensor]) -> str:
    return ", ".join(str(tuple(one.shape)) for one in tensors) or "no tensor of numbers"


def _logits(outputs: Any) -> Any:
    if isinstance(outputs, Mapping):
        return cast("Mapping[str, Any]", outputs).get("logits", outputs)
    return getattr(outputs, "logits", outputs)
