"""Random weights that hide nothing: no zero gain, no zero bias, no layer scale of 1e-6.

A network as it is initialised has BatchNorms of zero gain behind its residual branches, and whatever is wrong in such
a branch multiplies with zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SMALL = 0.1
"""Standard deviation of the noise on tensors that are constant at the start (gains, biases, layer scales)."""


@torch.no_grad()
def redraw(model: nn.Module, seed: int = 0) -> None:
    """Draw every parameter and every statistic of a BatchNorm anew, in place.

    A weight keeps the mean and the deviation that its initialisation chose, so that deep networks stay finite.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.copy_(_like(parameter, generator))
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "moving_mean")):
            buffer.copy_(SMALL * _noise(buffer, generator))
        elif name.endswith(("running_var", "moving_variance")):
            buffer.copy_(torch.exp(SMALL * _noise(buffer, generator)))


def _like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    wide = tensor.float()
    mean, spread = wide.mean(), wide.std() if wide.numel() > 1 else torch.tensor(0.0)
    if not bool(torch.isfinite(mean)) or not bool(torch.isfinite(spread)):  # `torch.empty`, never initialised
        mean, spread = torch.tensor(0.0), torch.tensor(SMALL)
    return mean + (spread if float(spread) > 1e-6 else SMALL) * _noise(tensor, generator)


def _noise(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(tensor.shape, generator=generator)
