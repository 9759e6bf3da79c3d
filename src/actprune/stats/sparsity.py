"""Sparsity as the seed defines it: k / L, the fraction of the parameters that is effective.

Elsewhere the word means the opposite, the fraction of zeros: 1 − k / L.
"""

from __future__ import annotations

from torch import nn

from actprune.errors import UnsupportedModelError


def sparsity(model: nn.Module, dense: nn.Module | None = None) -> float:
    """k / L: parameters of `model` that are not zero, over all there are; tied ones count once, buffers don't.

    Args:
        dense: the network that `model` was cut from. Then L is its number of parameters, so that one removed counts
            like one set to zero; without it, L is the number that `model` holds.

    Raises:
        UnsupportedModelError: L is zero.
    """
    whole = model if dense is None else dense
    total = sum(parameter.numel() for parameter in whole.parameters())
    if total == 0:
        raise UnsupportedModelError(
            "A network without parameters has no sparsity.",
            expected="at least one parameter",
            got=f"{type(whole).__name__} with none",
            where="sparsity",
            hint="pass the network itself, not one of its parts without weights",
        )
    return sum(int(parameter.count_nonzero()) for parameter in model.parameters()) / total
