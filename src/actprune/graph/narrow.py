"""Products of half-precision numbers, on processors that have no instructions for them.

There bfloat16 takes several times as long as float32. The operands of one call are then widened, and its result is
rounded once, which is what such instructions do: they sum in float32 as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_aggregate

_ATEN = torch.ops.aten

PRODUCTS = {
    _ATEN.linear.default,
    _ATEN.addmm.default,
    _ATEN.mm.default,
    _ATEN.bmm.default,
    _ATEN.matmul.default,
    _ATEN.baddbmm.default,
    _ATEN.scaled_dot_product_attention.default,
}

_HALVES = (torch.bfloat16, torch.float16)


def slow_product(node: Node, args: tuple[Any, ...]) -> torch.dtype | None:
    """The dtype of a product that is quicker in float32; None where this one is not."""
    if node.target not in PRODUCTS or not args or not isinstance(args[0], Tensor):
        return None
    first = args[0]
    slow = first.dtype in _HALVES and first.device.type == "cpu" and not _has_instructions(first.dtype)
    return first.dtype if slow else None


def in_float32(node: Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """The call with its operands widened, in the dtype that it gives otherwise."""
    return node.target(*widened(args), **widened(dict(kwargs))).to(dtype)  # type: ignore[operator]


def widened(value: Any) -> Any:
    return map_aggregate(value, lambda v: v.float() if isinstance(v, Tensor) and v.dtype in _HALVES else v)


@cache
def _has_instructions(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies numbers of this dtype; True where that can't be told."""
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if known.get("architecture") != "x86_64":
        return True
    names = ("avx512_bf16", "amx_bf16") if dtype == torch.bfloat16 else ("avx512_fp16", "amx_fp16")
    return any(known.get(name) for name in names)
