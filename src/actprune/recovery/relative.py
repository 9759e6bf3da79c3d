"""Adam with steps relative to the size of what they change: one rate for networks of all kinds.

The size of a weight is taken from the rows and columns that it lies in, factored like the second moments of Adafactor
(Shazeer and Stern 2018, §4, §8): a filter whose outputs hardly vary has small weights, and a BatchNorm behind it with
fixed statistics magnifies every change of them. A step that suits the tensor as a whole would wreck that filter.

Gradients of long rows are centred (Yong et al. 2020, Gradient Centralization): behind a ReLU all inputs are positive,
so that Adam would move all weights of a filter the same way, which shifts its mean far more than it changes what it
tells. Statistics that are fixed do not take that back, and biases are there for the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.99)

LEAST = 1e-3
"""Of a tensor's root mean square: a row of zeros must be able to leave zero. The least size of that, too."""

LONG = 32
"""Gradients of rows with fewer entries are taken as they are: there is little to cancel, and little would be left."""


class RelativeAdam:
    """Adam (Kingma and Ba 2015) in which a step of rate r moves a weight by about r times its size."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.sizes = [size(p.detach()) for p in parameters]
        self.restart()

    def restart(self) -> None:
        """Forget all gradients so far."""
        self.steps = 0
        self.means, self.squares = ([torch.zeros_like(p) for p in self.parameters] for _ in range(2))

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move along the gradients that the parameters hold; those without one stay."""
        self.steps += 1
        first, second = (1 - beta**self.steps for beta in BETAS)
        for p, own, mean, square in zip(self.parameters, self.sizes, self.means, self.squares, strict=True):
            if p.grad is None:
                continue
            gradient = centred(p.grad)
            mean.lerp_(gradient, 1 - BETAS[0])
            square.lerp_(gradient.square(), 1 - BETAS[1])
            move = (mean / first) / ((square / second).sqrt() + 1e-12)
            p.sub_(rate * own * move)
            p.grad = None


def size(value: Tensor) -> Tensor:
    """The magnitude that an entry of a tensor is expected to have: of the same shape for two dimensions and more, else
    the root mean square, one number.

    Π_d m_d / mʳ⁻¹ with m the mean square, m_d that of each index of dimension d, and r dimensions.
    """
    squares = value.detach().float().square()
    mean = squares.mean().clamp_min(LEAST**2)
    if value.dim() < 2:
        return mean.sqrt().to(value.dtype)
    dims = [tuple(other for other in range(value.dim()) if other != d) for d in range(value.dim())]
    shares = [squares.mean(dim, keepdim=True) / mean for dim in dims]
    return (mean * reduce(torch.mul, shares)).sqrt().clamp_min(LEAST * mean.sqrt()).to(value.dtype)


def centred(gradient: Tensor) -> Tensor:
    """Without the mean of each row, where rows are long: rows are what the first index counts."""
    if gradient.dim() < 2 or gradient[0].numel() < LONG:
        return gradient
    return gradient - gradient.mean(tuple(range(1, gradient.dim())), keepdim=True)
