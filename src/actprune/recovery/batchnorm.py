"""Running statistics of BatchNorm, estimated anew: those of the dense network are wrong for a cut one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from actprune.recovery.modes import training
from actprune.recovery.place import to


def reestimate_batchnorm(
    model: nn.Module, how: tuple[Callable[..., Any], Iterable[Any], torch.device], batches: int = 50
) -> None:
    """Population statistics of every BatchNorm as plain averages over up to `batches` training batches."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    outputs, loader, device = how
    momenta = [norm.momentum for norm in norms]
    with training(model, dropout=False), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the cumulative average
        try:
            for batch in islice(loader, batches) if norms else ():
                outputs(model, to(batch, device))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
