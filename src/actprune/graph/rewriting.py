"""The words in which a graph is rewritten: what a call is, what it combines, and calls that stand for others."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.fx import Graph, Node

from actprune.graph.program import named_arguments, op_name, shape
from actprune.graph.sizes import CALL

ATEN = torch.ops.aten

RESHAPES = ("aten.reshape.", "aten.view.", "aten._unsafe_view.")


def is_call(node: Any, *names: str) -> bool:
    """Whether `node` is a call of an op whose name begins so."""
    return isinstance(node, Node) and op_name(node).startswith(names)


def make_call(graph: Graph, target: Any, args: Sequence[Any], like: Node, value: Any) -> Node:
    """A new call that stands where `like` does, with a result of the shape and dtype of `value`."""
    made = graph.call_function(target, tuple(args))
    made.meta = {**like.meta, "val": value}
    return made


def permuted(graph: Graph, node: Node, order: Sequence[int], instead: Node | None = None) -> Node:
    """`node` with its dimensions in another order; itself where the order is the same.

    Args:
        instead: the call whose result this is: the sizes that were recorded of it are those of what is returned.
    """
    if list(order) == sorted(order):
        return node
    made = make_call(graph, ATEN.permute.default, (node, list(order)), node, node.meta["val"].permute(*order))
    call = None if instead is None else _call(instead)
    _set_call(made, call)
    if call is not None and _call(node) == call:
        _set_call(node, None)
    return made


def _call(node: Node) -> int | None:
    return (node.meta.get("custom") or {}).get(CALL)


def _set_call(node: Node, call: int | None) -> None:
    if "custom" in node.meta:
        others = {key: value for key, value in node.meta["custom"].items() if key != CALL}
        node.meta["custom"] = others if call is None else {**others, CALL: call}


def reshaped(graph: Graph, node: Node, sizes: tuple[int, ...], like: Node) -> Node:
    """`node` in another shape; itself where the shape is the same."""
    if shape(node) == sizes:
        return node
    return make_call(graph, ATEN.reshape.default, (node, list(sizes)), like, node.meta["val"].reshape(sizes))


def inverse(order: Sequence[int]) -> list[int]:
    """The order that takes one back."""
    return [list(order).index(d) for d in range(len(order))]


def vector_of(node: Any, holders: set[str]) -> tuple[Node, int] | None:
    """The placeholder of a vector of the model that `node` is, and which of its dimensions, from the end, the vector
    runs along; dimensions of size 1 may stand around it."""
    sizes = shape(node)
    source = node.args[0] if is_call(node, *RESHAPES) else node
    if not isinstance(source, Node) or source.name not in holders or len(shape(source)) != 1:
        return None
    wide = [d for d, n in enumerate(sizes) if n != 1]
    if len(wide) > 1 or prod(sizes) != shape(source)[0]:
        return None
    # a vector of one entry may stand for any dimension: it stands for the last
    return source, (wide[0] if wide else len(sizes) - 1) - len(sizes)


def operands(node: Node) -> list[Any]:
    """The two operands of an addition or a product, or none."""
    given = named_arguments(node)
    return [given["self"], given["other"]] if given.get("alpha", 1) == 1 else []


def with_other(node: Node, own: Node) -> Any:
    """What `own` is combined with in a call of two operands."""
    return next((value for value in operands(node) if value is not own), None)
