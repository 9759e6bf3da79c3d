"""Torch-Pruning 1.6.1 at a budget: its pruning ratio is searched until the share of MACs or parameters is met."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

TRIES = 12


def torch_pruning(
    model: nn.Module,
    example: Any,
    cost: str,
    share: float,
    *,
    importance: str = "magnitude",
    ignored: Callable[[nn.Module], list[nn.Module]] = lambda m: [],
    loss: Callable[[nn.Module], Tensor] | None = None,
    **more: Any,
) -> nn.Module:
    """The pruned copy that comes nearest below `share` of the dense cost.

    Args:
        cost: "macs" or "params", as Torch-Pruning counts them.
        importance: "magnitude" (L2 norm of whole groups) or "taylor", which needs `loss`.
        ignored: the layers that stay, of the copy.
    """
    import torch_pruning as tp

    which = 0 if cost == "macs" else 1
    dense = tp.utils.count_ops_and_params(model, example)[which]
    low, high, best = 0.0, 0.98, None
    for _ in range(TRIES):
        ratio = (low + high) / 2
        small = copy.deepcopy(model)
        if importance == "taylor":
            if loss is None:
                raise ValueError("Taylor importance needs a loss")
            score = tp.importance.GroupTaylorImportance()
        else:
            score = tp.importance.GroupMagnitudeImportance(p=2)
        pruner = tp.pruner.BasePruner(
            small, example, importance=score, pruning_ratio=ratio, global_pruning=True,
            ignored_layers=ignored(small), max_pruning_ratio=0.95, **more,
        )  # fmt: skip
        if importance == "taylor" and loss is not None:
            with torch.enable_grad():
                loss(small).backward()
        pruner.step()
        small.zero_grad(set_to_none=True)
        found = tp.utils.count_ops_and_params(small, example)[which] / dense
        if found <= share:
            high, best = ratio, small
        else:
            low = ratio
    if best is None:
        raise ValueError(f"Torch-Pruning did not reach {share:.0%} of {cost}")
    return best.eval()
