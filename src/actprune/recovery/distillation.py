"""The loss against a dense network's outputs (Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Network)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from actprune.errors import DataError


def distillation(outputs: Any, wanted: Any, temperature: float, classes: bool = True) -> Tensor:
    """T² · KL at temperature T for matrices of logits, mean squared error for anything else.

    Of outputs that are an object with `logits`, as those of transformers, these are compared.

    Args:
        classes: whether a matrix of outputs is one of logits; targets that are class numbers say so.
    """
    outputs, wanted = (getattr(out, "logits", out) for out in (outputs, wanted))
    if not isinstance(outputs, Tensor) or not isinstance(wanted, Tensor):
        raise DataError(
            "Distillation needs outputs that are one tensor.",
            expected="a tensor",
            got=type(outputs).__name__,
            where="SGD.distill",
            hint="pass distill=0, or forward= that returns the logits",
        )
    if classes and outputs.dim() == 2 and outputs.shape[1] > 1:
        student = F.log_softmax(outputs / temperature, -1)
        dense = F.log_softmax(wanted / temperature, -1)
        return temperature**2 * F.kl_div(student, dense, log_target=True, reduction="batchmean")
    return F.mse_loss(outputs, wanted)
