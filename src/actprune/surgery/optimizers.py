"""Optimizers of torch that a class keeps, as agents of reinforcement learning do, step the weights of their model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, TypeAlias

import torch
from torch import Tensor

Pair: TypeAlias = "tuple[Tensor, Callable[[Tensor], Tensor]]"
"""A weight that took the place of another one, and how a tensor of that one's shape is cut as it was."""


def hand_over(made: torch.optim.Optimizer, was: torch.optim.Optimizer, pairs: Mapping[int, Pair]) -> None:
    """Let `made` step the new weights, with the moments that `was` has of the old ones, cut alike.

    Args:
        made: may be `was` itself, which steps all other weights as before.
        pairs: id of an old weight that is still alive → what has taken its place.
    """
    before = {weight: dict(state) for weight, state in was.state.items()}
    made.state.clear()
    for group in made.param_groups:
        group["params"] = [pairs[id(one)][0] if id(one) in pairs else one for one in group["params"]]
    if isinstance(made, torch.optim.LBFGS):  # no copy has these; its history, of all weights in one, begins anew
        made._params, made._numel_cache = made.param_groups[0]["params"], None
        return
    for weight, state in before.items():
        if id(weight) not in pairs:
            if made is was:
                made.state[weight] = state
            continue
        new, cut = pairs[id(weight)]
        if _follows(new, weight, state):
            made.state[new] = {
                name: cut(held).clone() if _is_moment(held, weight) else deepcopy(held) for name, held in state.items()
            }


def _follows(new: Tensor, weight: Tensor, state: dict[str, Any]) -> bool:
    """Whether the state of a weight can be that of the new one: means over a dimension of what was cut (Adafactor) are
    those of other weights too."""
    return new.shape == weight.shape or not any(
        isinstance(held, Tensor) and held.dim() > 0 and held.shape != weight.shape for held in state.values()
    )


def _is_moment(value: Any, weight: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == weight.shape and value.dim() > 0
