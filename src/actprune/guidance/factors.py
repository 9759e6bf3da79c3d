"""Inverses of covariances, and what their blocks cost: the linear algebra of a choice of units."""

from __future__ import annotations

import torch
from torch import Tensor

from actprune.errors import DataError

LARGE = 2048
"""Columns of a matrix that is inverted by products."""


def block_costs(blocks: Tensor, weights: Tensor) -> Tensor:
    """(n,) tr wᵀ B⁻¹ w for every unit's block B (n, b, b) and weights w (n, b, r)."""
    return traces(blocks, torch.bmm(weights, weights.transpose(1, 2)))


def traces(blocks: Tensor, products: Tensor) -> Tensor:
    """(n,) tr B⁻¹ G for every pair of blocks (n, b, b)."""
    return torch.linalg.solve(blocks, products).diagonal(dim1=1, dim2=2).sum(1)


def inverse_of(gram: Tensor) -> Tensor:
    """Of a positive definite matrix.

    Raises:
        DataError: squares of activations are beyond float32, in which they are summed.
    """
    if not bool(gram.diagonal().isfinite().all()):
        raise DataError(
            "Activations are too large.",
            expected="values whose squares are finite",
            got="an infinite variance",
            where="guide",
            hint="look for entries of 1e18 and more in the calibration data and in the weights; normalise the inputs",
        )
    factor = torch.linalg.cholesky(gram)
    if len(gram) <= LARGE:
        return torch.cholesky_inverse(factor)
    lower = torch.linalg.solve_triangular(factor, torch.eye(len(gram), dtype=gram.dtype), upper=False)
    return lower.T @ lower  # LAPACK's own way takes several times as long for large ones
