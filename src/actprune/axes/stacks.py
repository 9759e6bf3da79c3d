"""Stacks: tensors whose slices along one dimension have units of their own, such as [q | k | v] as (3, heads, dims).

A slice that is taken out has its own axes. A call that only rearranges a stack, or views it without touching the
dimension of the slices, gives another one; what reads it as a whole makes the slices one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.site import Dims
from actprune.graph.program import named_arguments, op_name, shape

_REARRANGING = tuple(
    f"aten.{name}."
    for name in "permute transpose swapaxes swapdims movedim moveaxis squeeze unsqueeze clone contiguous detach".split()
)

_SELECT = "aten.select.int"

_VIEWS = tuple(f"aten.{name}." for name in "view reshape _unsafe_view flatten unflatten".split())

_MARK = 2
"""Sizes from here on tell one dimension from another; small ones: the product of ten has to fit 64 bits."""


@dataclass(frozen=True)
class Stack:
    """A tensor whose slices have units of their own.

    Attributes:
        dim: the dimension of the slices.
        slices: the axes of the tensor as each slice has them; all of one size.
    """

    dim: int
    slices: Sequence[Dims]


def rearranges(node: Node, dim: int) -> bool:
    """Whether a call only rearranges the dimensions of its first argument, or selects from others than `dim`."""
    selects = op_name(node) == _SELECT and not _takes(node, dim)
    views = op_name(node).startswith(_VIEWS) and _viewed(node, dim) is not None
    alone = len(node.all_input_nodes) == 1  # else a place is computed
    return alone and (op_name(node).startswith(_REARRANGING) or _takes_all(node) or selects or views)


def _takes(node: Node, dim: int) -> bool:
    """Whether a call takes slices along a dimension of its first argument."""
    if op_name(node) not in (_SELECT, "aten.unbind.int") or len(node.all_input_nodes) > 1:
        return False
    return int(named_arguments(node)["dim"]) % len(shape(node.args[0])) == dim


def _takes_all(node: Node) -> bool:
    return op_name(node) == "aten.slice.Tensor" and shape(node) == shape(node.args[0])


def _viewed(node: Node, dim: int) -> int | None:
    """Where a view leaves a dimension as it is, with as much in front of it as before; None where it does not."""
    before, after = shape(node.args[0]), shape(node)
    same = (d for d, n in enumerate(after) if n == before[dim] and prod(after[:d]) == prod(before[:dim]))
    return next(same, None)


def moved(node: Node, dim: int) -> int:
    """Where a dimension is after a call that rearranges: it is known by its size."""
    if _takes_all(node):
        return dim
    if op_name(node).startswith(_VIEWS) and (place := _viewed(node, dim)) is not None:
        return place
    if op_name(node) == _SELECT:
        return dim - (int(named_arguments(node)["dim"]) % len(shape(node.args[0])) < dim)
    sizes = [n if n == 1 else _MARK + d for d, n in enumerate(shape(node.args[0]))]
    call: Any = node.target
    result: Tensor = call(torch.empty(sizes, device="meta"), *node.args[1:], **node.kwargs)
    return [*result.shape].index(_MARK + dim)


def taken_apart(node: Node, dim: int) -> bool:
    """Whether all that is done with a value is to take slices of it along `dim`, rearranged or as it is."""
    return bool(node.users) and all(
        _takes(user, dim) or (rearranges(user, dim) and taken_apart(user, moved(user, dim))) for user in node.users
    )
