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
    """Population statistics of every BatchNorm as plain averages over up to `batches` training batches.

    A norm that none of them reaches, or that is in eval mode while the model trains, keeps the statistics that it has;
    so do all where an error is raised.
    """
    outputs, loader, device = how
    with training(model, dropout=False), torch.no_grad():
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and m.training]
        before = [(norm.momentum, [buffer.clone() for buffer in norm.buffers()]) for norm in norms]
        done = False
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the cumulative average
            for batch in islice(loader, batches) if norms else ():
                outputs(model, to(batch, device))
            done = True
        finally:
            for norm, (momentum, buffers) in zip(norms, before, strict=True):
                norm.momentum = momentum
                if not done or norm.num_batches_tracked == 0:
                    for buffer, value in zip(norm.buffers(), buffers, strict=True):
                        buffer.copy_(value)
