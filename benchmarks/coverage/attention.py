"""What a module says of its attention heads."""

from __future__ import annotations

from torch import nn

HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
"""Attributes under which attention modules, or their configuration, keep their number of heads."""


def heads(module: nn.Module) -> int:
    """The number of attention heads that a module states itself or in its configuration; 0 where it states none."""
    return stated(module, HEADS)


def stated(module: nn.Module, names: tuple[str, ...]) -> int:
    for owner in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(owner, name, None)
            if isinstance(value, int):
                return value
    return 0
