"""Steps relative to the size of what they change: one rate for networks of all kinds.

The size of a weight is taken from the rows and columns that it lies in, factored like the second moments of Adafactor
(Shazeer and Stern 2018, §4, §8): a filter whose outputs hardly vary has small weights, and a BatchNorm behind it with
fixed statistics magnifies every change of them. A step that suits the tensor as a whole would wreck that filter.

A matrix moves along its momentum with all singular values made about equal (Muon, Jordan et al. 2024; steepest descent
in the spectral norm, Bernstein and Newhouse 2024). Behind a ReLU, say, all inputs are positive, and the mean of the
gradient would drown what tells them apart. A vector moves as by Adam (Kingma and Ba 2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import log, prod

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
"""Of matrices, Nesterov's."""

BETAS = (0.9, 0.99)
"""Of vectors."""

QUINTIC, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
"""The odd polynomial of Jordan et al., and how often it is applied: singular values end between 0.7 and 1.2."""

LEAST = 1e-3
"""Of a tensor's root mean square: a row of zeros must be able to leave zero. The least size of that, too."""


class RelativeSteps:
    """Gradient steps in which one of rate r moves a weight by about r times its size."""

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
        for p, own, mean, square in zip(self.parameters, self.sizes, self.means, self.squares, strict=True):
            if p.grad is None:
                continue
            across = matrix_of(p)
            move = self._vector(p.grad, mean, square) if across is None else _matrix(p.grad * own, mean, across)
            p.sub_(rate * own * move)
            p.grad = None

    def _vector(self, gradient: Tensor, mean: Tensor, square: Tensor) -> Tensor:
        first, second = (1 - beta**self.steps for beta in BETAS)
        mean.lerp_(gradient, 1 - BETAS[0])
        square.lerp_(gradient.square(), 1 - BETAS[1])
        return (mean / first) / ((square / second).sqrt() + 1e-12)


def _matrix(gradient: Tensor, momentum: Tensor, across: tuple[int, int]) -> Tensor:
    """The move, with a root mean square of 1."""
    momentum.mul_(MOMENTUM).add_(gradient)
    move = orthogonal((gradient + MOMENTUM * momentum).float().reshape(across))
    return (move / (move.square().mean().sqrt() + 1e-12)).view_as(gradient).to(gradient.dtype)


def matrix_of(value: Tensor) -> tuple[int, int] | None:
    """The shape that is nearest to a square when the dimensions are parted in two, whatever they mean in its framework;
    None for a vector."""
    if value.dim() < 2:
        return None
    shapes = [(prod(value.shape[:i]), prod(value.shape[i:])) for i in range(1, value.dim())]
    nearest = min(shapes, key=lambda sides: abs(log(sides[0] / sides[1])) if min(sides) else 0.0)
    return nearest if min(nearest) > 1 else None


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with all its singular values near 1: Newton-Schulz iterations."""
    a, b, c = QUINTIC
    upright = matrix.shape[0] > matrix.shape[1]
    found = matrix.T if upright else matrix
    found = found / (found.norm() + 1e-12)
    for _ in range(ITERATIONS):
        gram = found @ found.T
        found = a * found + (b * gram + c * gram @ gram) @ found
    return found.T if upright else found


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
