"""ThiNet: remove, one after the other, the units whose joint contribution to the next layer is least.

Luo, Wu and Lin (2017, ThiNet: A Filter Level Pruning Method, §3.2): with x̂_j what unit j adds to an output of the next
layer, without its bias, find greedily the set T of removed units with the least Σ (Σ_{j∈T} x̂_j)² over samples and
outputs. The paper draws some outputs and positions; from second moments the sum over all of them is exact:

    G = Σ_c blocksum[E[x xᵀ] ∘ (WᵀW)],   cost(T) = Σ_{j,k∈T} G_jk

Not centred, for the paper's bias stays what it is. Its step after, one least-squares factor per kept unit (§3.3), is a
special case of `compensate="least_squares"`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from actprune.guidance.problem import Problem


def removals(group: Sequence[Problem]) -> tuple[list[int], list[float]]:
    """Backward by the greedy choice of the paper.

    Returns:
        (order, curve): units from the last to the first removed; curve[k] is the least that keeping the first k of
            them costs, or more of them: contributions may cancel, which is no reason to remove more.
    """
    gram = second_gram(group)
    n = gram.shape[0]
    alive = torch.ones(n, dtype=torch.bool)
    joint = torch.zeros(n, dtype=gram.dtype)  # Σ_{k∈T} G_jk
    removed: list[int] = []
    curve = [0.0]
    cost = 0.0
    for _ in range(n):
        rise = gram.diagonal() + 2 * joint
        unit = int(torch.where(alive, rise, torch.inf).argmin())
        cost += float(rise[unit])
        alive[unit] = False
        joint += gram[unit]
        removed.append(unit)
        curve.append(max(cost, curve[-1]))
    return removed[::-1], curve[::-1]


def second_gram(group: Sequence[Problem]) -> Tensor:
    """(n, n) G."""
    n = group[0].columns.shape[0]
    total = torch.zeros(n, n, dtype=torch.float64)
    for problem in group:
        flat, b = problem.columns.reshape(-1), problem.columns.shape[1]
        weight = problem.weight[:, flat]
        product = problem.total.part(flat).second * (weight.T @ weight)
        total += product.reshape(n, b, n, b).sum((1, 3))
    return (total + total.T) / 2
