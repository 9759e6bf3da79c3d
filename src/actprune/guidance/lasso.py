"""The LASSO pruning guide, from the statistics alone.

Channel selection of He, Zhang and Sun (2017, Channel Pruning for Accelerating Very Deep Neural Networks, eq. 2), in
Gram form: with one factor β_g per unit,

    A = Σ_c blocksum[C ∘ (WᵀRW)],  q = A·1,   min over β ≥ 0 of ½ βᵀAβ − qᵀβ + α Σ_g β_g √A_gg

is the penalised regression of the consumers' outputs on what each unit contributes to them. The whole path
over α comes from least angle regression (Efron et al. 2004), without storing a sample.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actprune.guidance.problem import Problem
from actprune.stats.moments import Few

MAX_UNITS = 1024
"""Groups wider than this go without the path, which grows with the cube of the width."""

TOGETHER = 10_000_000
"""Contributions of units to outputs that are held at a time."""


@dataclass(frozen=True)
class Path:
    """The LASSO path of one group.

    Attributes:
        alphas: (m,) penalties, falling.
        betas: (n, m) factor of every unit at each penalty.
    """

    alphas: NDArray[np.float64]
    betas: NDArray[np.float64]

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """(m,) units at each penalty."""
        return (self.betas > 0).sum(0)

    def support(self, k: int) -> list[int] | None:
        """The units of the first point of the path with exactly k of them, or None."""
        hits = np.flatnonzero(self.counts == k)
        return None if hits.size == 0 else [int(u) for u in np.flatnonzero(self.betas[:, hits[0]] > 0)]

    def order(self) -> list[int]:
        """Units by when they enter the path, earliest first; ties by their final factor."""
        active = self.betas > 0
        first = np.where(active.any(1), active.argmax(1), self.betas.shape[1])
        return [int(u) for u in np.lexsort((-self.betas[:, -1], first))]

    def guide(self, k: int) -> NDArray[np.float64]:
        """(n,) the factors β at the first point of the path with at least k units: the pruning guide."""
        hits = np.flatnonzero(self.counts >= k)
        return self.betas[:, hits[0] if hits.size else -1]


def contribution_gram(group: Sequence[Problem]) -> NDArray[np.float64]:
    """(n, n) A: covariance, over samples and weighted outputs, between the units' contributions."""
    n = group[0].columns.shape[0]
    total = torch.zeros(n, n, dtype=torch.float64)
    for problem in group:
        few, b = problem.total, problem.columns.shape[1]
        total += _of_rows(problem, few.root) if isinstance(few, Few) and few.count < b**2 else _of_covariance(problem)
    return ((total + total.T) / 2).numpy()


def _of_covariance(problem: Problem) -> Tensor:
    flat, (n, b) = problem.columns.reshape(-1), problem.columns.shape
    weight = problem.weight[:, flat]
    product = problem.total.part(flat).covariance * (weight.T @ (weight * problem.rows[:, None]))
    return product.reshape(n, b, n, b).sum((1, 3))


def _of_rows(problem: Problem, rows: Tensor) -> Tensor:
    """From the contributions themselves, which is less work where the rows are fewer than a unit's columns squared."""
    units, outputs = problem.columns, len(problem.matrix)
    weight = (problem.weight * problem.rows.sqrt()[:, None])[:, units]  # (outputs, n, b)
    total = torch.zeros(len(units), len(units), dtype=torch.float64)
    for some in rows.split(max(TOGETHER // (len(units) * outputs), 1)):
        contributions = torch.einsum("xub,rub->uxr", some[:, units], weight).flatten(1)
        total += contributions @ contributions.T
    return total


def lasso_path(gram: NDArray[np.float64]) -> Path:
    """The path for A; units that contribute nothing never enter."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import lars_path_gram

    n = gram.shape[0]
    scale = np.sqrt(np.clip(np.diag(gram), 0, None))
    alive = np.flatnonzero(scale > 1e-12 * max(scale.max(), 1e-300))
    if alive.size == 0:
        return Path(np.zeros(1), np.zeros((n, 1)))
    s = scale[alive]
    inner = gram[np.ix_(alive, alive)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it ends early where units are duplicates
        alphas, _, coefs = lars_path_gram(
            Xy=inner.sum(1) / s,
            Gram=inner / np.outer(s, s),
            n_samples=1,
            method="lasso",
            positive=True,
            max_iter=10 * n,
        )
    betas = np.zeros((n, len(alphas)))
    betas[alive] = np.asarray(coefs) / s[:, None]
    return Path(np.asarray(alphas), betas)
