"""Steps relative to the size of what they change: one rate for networks of all kinds.

The size of a weight is taken from the rows and columns that it lies in, factored like the second moments of Adafactor
(Shazeer and Stern 2018, §4, §8): a filter whose outputs hardly vary has small weights, and a BatchNorm behind it with
fixed statistics magnifies every change of them. A step that suits the tensor as a whole would wreck that filter.

A matrix moves along its momentum with all singular values made about equal (Muon, Jordan et al. 2024; steepest descent
in the spectral norm, Bernstein and Newhouse 2024). Behind a ReLU, say, all inputs are positive, and the mean of the
gradient would drown what tells them apart. All else moves as by Adam (Kingma and Ba 2015), which would move all weights
of a filter the same way there: gradients of long rows are centred for it (Yong et al. 2020, Gradient Centralization).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
"""Of matrices, Nesterov's."""

BETAS = (0.9, 0.99)
"""Of Adam."""

LONG = 32
"""Gradients of rows with fewer entries are taken as they are: there is little to cancel, and little would be left."""

QUINTIC, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
"""The odd polynomial of Jordan et al., and how often it is applied: singular values above 0.2 % of the norm end between
0.68 and 1.2."""

WIDE = 256
"""A matrix with a longer short side moves like a vector: its iterations would take longer than all the rest."""

LEAST = 1e-3
"""Of a tensor's root mean square: a row of zeros must be able to leave zero. The least size of that, too."""


class RelativeSteps:
    """Gradient steps in which one of rate r moves a weight by about r times its size.

    Args:
        outputs_last: whether the last dimension of a weight counts its outputs, as in Keras, and not the first one.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], outputs_last: bool = False) -> None:
        self.parameters = list(parameters)
        self.sizes = [size(_wide(p.detach())) for p in self.parameters]
        self.matrices = [matrix_of(p, outputs_last) for p in self.parameters]
        self.restart()

    def restart(self) -> None:
        """Forget all gradients so far; the parameters may have been changed."""
        self.steps = 0
        # the memory of the parameters itself, but for half precision
        self.values = [_wide(p.detach()) for p in self.parameters]
        self.means = [torch.zeros_like(value) for value in self.values]
        self.squares = [
            torch.zeros_like(value if matrix is None else value[:0])
            for value, matrix in zip(self.values, self.matrices, strict=True)
        ]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move along the gradients that the parameters hold; those without one stay."""
        self.steps += 1
        for i, (p, own, matrix) in enumerate(zip(self.parameters, self.sizes, self.matrices, strict=True)):
            if p.grad is None:
                continue
            gradient = _wide(p.grad)
            move = self._vector(i, gradient) if matrix is None else self._matrix(i, gradient * own, matrix)
            self.values[i].sub_(rate * own * move)
            if p.dtype != self.values[i].dtype:
                p.copy_(self.values[i])
            p.grad = None

    def _vector(self, i: int, gradient: Tensor) -> Tensor:
        first, second = (1 - beta**self.steps for beta in BETAS)
        gradient = centred(gradient)
        self.means[i].lerp_(gradient, 1 - BETAS[0])
        self.squares[i].lerp_(gradient.square(), 1 - BETAS[1])
        return (self.means[i] / first) / ((self.squares[i] / second).sqrt() + 1e-12)

    def _matrix(self, i: int, gradient: Tensor, matrix: tuple[int, int]) -> Tensor:
        """With a root mean square of 1, and of at most 1 in every row: of a table, only some may have a gradient."""
        self.means[i].mul_(MOMENTUM).add_(gradient)
        move = orthogonal((gradient + MOMENTUM * self.means[i]).reshape(matrix))
        move = move / (move.square().mean().sqrt() + 1e-12)
        rows = move.square().mean(1, keepdim=True).sqrt()
        return (move / rows.clamp_min(1)).reshape(gradient.shape)


def matrix_of(value: Tensor, outputs_last: bool = False) -> tuple[int, int] | None:
    """The shape of a weight as a matrix, one side of which counts its outputs; None where it moves like a vector."""
    if value.dim() < 2:
        return None
    outputs = value.shape[-1 if outputs_last else 0]
    inputs = value.numel() // max(outputs, 1)
    shape = (inputs, outputs) if outputs_last else (outputs, inputs)
    return shape if 1 < min(shape) <= WIDE else None


def _wide(value: Tensor) -> Tensor:
    """In single precision at least: half of it would round small steps away."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


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


def centred(gradient: Tensor) -> Tensor:
    """Without the mean of each row, where rows are long: rows are what the first index counts."""
    if gradient.dim() < 2 or gradient.shape[1:].numel() < LONG:
        return gradient
    return gradient - gradient.mean(tuple(range(1, gradient.dim())), keepdim=True)
