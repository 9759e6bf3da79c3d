"""The loss against a dense network's outputs (Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Network)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor

from actprune.errors import DataError


def distillation(outputs: Any, wanted: Any, temperature: float, classes: bool = True) -> Tensor:
    """T² · KL at temperature T for matrices of logits, mean squared error for anything else.

    Of outputs that are an object or a dict with `logits`, as those of transformers, these are compared.

    Args:
        classes: whether a matrix of outputs is one of logits; targets that are class numbers say so.
    """
    outputs, wanted = map(_logits, (outputs, wanted))
    if not isinstance(outputs, Tensor) or not isinstance(wanted, Tensor):
        raise DataError(
            "Distillation needs outputs that are one tensor.",
            expected="a tensor",
            got=type(outputs).__name__,
            where="SGD.distill",
            hint="pass distill=0, or forward=lambda model, batch: …, which gives that tensor to the loss as well",
        )
    if classes and outputs.dim() == 2 and outputs.shape[1] > 1:
        student = F.log_softmax(outputs / temperature, -1)
        dense = F.log_softmax(wanted / temperature, -1)
        return temperature**2 * F.kl_div(student, dense, log_target=True, reduction="batchmean")
    return F.mse_loss(outputs, wanted)


def _logits(outputs: Any) -> Any:
    if isinstance(outputs, Mapping):
        return cast("Mapping[str, Any]", outputs).get("logits", outputs)
    return getattr(outputs, "logits", outputs)
