"""One step of Gauss and Newton for weights behind which a network is not linear any more.

The residual r(θ) is taken to be linear around here, and θ + d minimises

    Σ_batches |r + J d|² + λ Σ_tensors mean(diag JᵀJ) |d|²

J is never made: conjugate gradients (Hestenes and Stiefel 1952) ask for products with it and with its transpose, which
automatic differentiation gives (Pearlmutter 1994; Martens 2010, Deep learning via Hessian-free optimization). They are
preconditioned with the diagonal of JᵀJ, estimated as the mean square of Jᵀu over random signs u (Hutchinson 1990).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Residual = Callable[[Sequence[Tensor]], Tensor]
"""Changes of the weights → the residual of one batch, of any shape."""

DAMPING = 1e-3
"""λ."""

LEAST = 1e-2
"""No tensor is damped as if its mean were a smaller share of the largest one: what nothing depends on, as the bias of
keys in front of a softmax, would go wherever rounding sends it."""

TOLERANCE = 1e-3
"""Conjugate gradients end where the square of the gradient, preconditioned, has come down to this share."""

PROBES = 2
"""Random signs for each batch."""

SIZES = (1.0, 0.5, 0.25)
"""Of the step, of which the best one is taken."""

WORTH = 0.97
"""A step that leaves more of the error than this is the last one."""


class _Linear:
    """The residual of one batch around zero changes."""

    def __init__(self, residual: Residual, like: Sequence[Tensor]) -> None:
        self._at = [torch.zeros_like(t, requires_grad=True) for t in like]
        self._outputs = residual(self._at)
        self._weights = torch.zeros_like(self._outputs, requires_grad=True)
        self._pulled = self._gradients(self._outputs, self._weights, create=True)
        self.now = self._outputs.detach()

    def push(self, changes: Sequence[Tensor]) -> Tensor:
        """J d."""
        (found,) = torch.autograd.grad(self._pulled, self._weights, list(changes), retain_graph=True)
        return found

    def pull(self, outputs: Tensor) -> list[Tensor]:
        """Jᵀu."""
        return [t.detach() for t in self._gradients(self._outputs, outputs)]

    def _gradients(self, outputs: Tensor, weights: Tensor, create: bool = False) -> Sequence[Tensor]:
        return torch.autograd.grad(
            outputs, self._at, weights, retain_graph=True, create_graph=create, materialize_grads=True
        )


def gauss_newton(residuals: Sequence[Residual], like: Sequence[Tensor], steps: int) -> list[Tensor]:
    """The changes d.

    Args:
        residuals: one for each batch.
        like: tensors of the shapes of the weights.
        steps: of conjugate gradients.
    """
    batches = [_Linear(residual, like) for residual in residuals]
    right = _sum([[-t for t in batch.pull(batch.now)] for batch in batches])
    diagonal = _diagonal(batches)
    means = [float(d.mean()) for d in diagonal]
    damping = [DAMPING * max(mean, LEAST * max(means)) + torch.finfo(torch.float32).tiny for mean in means]
    scale = [1 / (d + size) for d, size in zip(diagonal, damping, strict=True)]

    def curved(direction: list[Tensor]) -> list[Tensor]:
        found = _sum([batch.pull(batch.push(direction)) for batch in batches])
        return [t + size * d for t, size, d in zip(found, damping, direction, strict=True)]

    changes = [torch.zeros_like(t) for t in right]
    left, towards = right, [t * s for t, s in zip(right, scale, strict=True)]
    direction, length = towards, _product(left, towards)
    enough = TOLERANCE * length
    for _ in range(steps):
        if not length > enough:
            break
        bent = curved(direction)
        curvature = _product(direction, bent)
        if not curvature > 0:
            break
        size = length / curvature
        changes = _plus(changes, size, direction)
        left = _plus(left, -size, bent)
        towards = [t * s for t, s in zip(left, scale, strict=True)]
        before, length = length, _product(left, towards)
        direction = _plus(towards, length / before, direction)
    return changes


@contextmanager
def twice_differentiable(recurrent: bool = False) -> Iterator[None]:
    """Fast kernels have one derivative only: those of attention, and of cuDNN's and oneDNN's recurrent layers.

    Args:
        recurrent: whether there are such layers.
    """
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), ExitStack() as stack:
        for backend in (torch.backends.cudnn, torch.backends.mkldnn) if recurrent else ():
            stack.enter_context(_without(backend))
        yield


@contextmanager
def _without(backend: Any) -> Iterator[None]:
    """torch's own `flags` set TF32, too: oneDNN's warn of that, cuDNN's fail where convolutions and recurrent layers
    have other precisions."""
    before = backend.enabled
    backend.enabled = False
    try:
        yield
    finally:
        backend.enabled = before


def descend(step: Callable[[float], float], loss: float, rounds: int) -> tuple[float, str | None]:
    """The loss behind so many steps at most, and what went wrong, if anything did.

    Args:
        step: takes one from where it is, and gives the loss behind it; before → after.
        loss: where the first one starts.
    """
    for _ in range(rounds):
        before = loss
        try:
            loss = step(before)
        except RuntimeError as error:  # a call without a second derivative, or no memory for it
            return loss, str(error).partition("\n")[0]
        if not loss < WORTH * before:
            break
    return loss, None


def best_size(
    loss: Callable[[Sequence[Tensor]], float], changes: Sequence[Tensor], lowest: float
) -> tuple[list[Tensor] | None, float]:
    """The changes times the one of `SIZES` with the smallest loss, and that; None where none is below `lowest`."""
    best: list[Tensor] | None = None
    for size in SIZES:
        tried = [size * t for t in changes]
        found = loss(tried)
        if found < lowest:
            lowest, best = found, tried
    return best, lowest


def _diagonal(batches: Sequence[_Linear]) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    found: list[list[Tensor]] = []
    for batch in batches:
        for _ in range(PROBES):
            signs = torch.randint(0, 2, batch.now.shape, generator=draw).to(batch.now) * 2 - 1
            found.append([t * t / PROBES for t in batch.pull(signs)])
    return _sum(found)


def _sum(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.stack(list(ts)).sum(0) for ts in zip(*parts, strict=True)]


def _plus(a: Sequence[Tensor], factor: float, b: Sequence[Tensor]) -> list[Tensor]:
    return [x + factor * y for x, y in zip(a, b, strict=True)]


def _product(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))
