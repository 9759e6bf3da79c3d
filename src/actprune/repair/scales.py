"""Scales that a class computes from a size that is cut, such as 1/√(head size): they change with it.

The class that is left computes another scale, as torch's own attention does by default. Where such a number multiplies
or divides a tensor, the dense graph gets a factor in front of that call, which stands for the change; and the repair
no longer asks that the number stays, but that it follows the size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.axes.expr import Axis, leaves
from actprune.axes.masks import Scaling, with_scales
from actprune.graph.numbers import Expr, evaluate, variables
from actprune.graph.program import named_arguments, op_name
from actprune.graph.sizes import SizeUse

Follower = tuple[Any, ...]
"""The role ("follows", node, dim, call): the number follows the size of that dimension."""

_FACTORS = {"aten.mul.Tensor": ("other", 1), "aten.div.Tensor": ("other", -1)}
_ATTENTION = "aten.scaled_dot_product_attention.default"


def followers(graph: Graph) -> dict[int, Follower]:
    """The numbers that may follow a size: index of the use → its new role."""
    if graph.training is not None:  # it would lack the factors
        return {}
    nodes = {node.name: node for node in graph.program.nodes}
    found: dict[int, Follower] = {}
    for i, use in enumerate(graph.program.sizes.uses):
        place = _followed(graph, use) if _power(nodes, use) else None
        if place is not None and any(leaf.key in _keys(graph) for leaf in leaves(_axis(graph, *place))):
            found[i] = ("follows", *place, use.role[1])
    return found


def following(graph: Graph, found: Mapping[int, Follower]) -> Graph:
    """The graph in which these numbers follow their sizes."""
    uses = tuple(replace(use, role=found.get(i, use.role)) for i, use in enumerate(graph.program.sizes.uses))
    return replace(graph, program=replace(graph.program, sizes=replace(graph.program.sizes, uses=uses)))


def scaled(graph: Graph, found: Iterable[int]) -> Graph:
    """The graph with a factor for each of these numbers, which follow their sizes."""
    nodes = {node.name: node for node in graph.program.nodes}
    scalings: list[Scaling] = []
    for i in found:
        use = graph.program.sizes.uses[i]
        _, name, dim, call = use.role
        node = nodes[call]
        operand = named_arguments(node)["query" if op_name(node) == _ATTENTION else "self"]
        axis = _axis(graph, name, dim)
        scalings.append(Scaling(node, operand, axis, _gain(use.expr, _power(nodes, use))))
    program, masks = with_scales(graph.program, scalings)
    return replace(graph, program=program, masks={**graph.masks, **masks})


def _power(nodes: Mapping[str, Node], use: SizeUse) -> int:
    """1 where a number multiplies what it is given to, -1 where it divides it; else 0."""
    node = nodes.get(use.role[-1]) if use.role[0] in ("fixed", "follows") else None
    if node is None:
        return 0
    name, power = ("scale", 1) if op_name(node) == _ATTENTION else _FACTORS.get(op_name(node), ("", 0))
    return power if power and named_arguments(node).get(name) == use.value else 0


def _followed(graph: Graph, use: SizeUse) -> tuple[str, int] | None:
    """The dimension whose size is the only variable in a number; an attribute is the size that it is given as."""
    held = variables(use.expr)
    if len(held) != 1:
        return None
    (leaf,) = held
    if leaf[0] == "shape":
        return (leaf[1], leaf[2]) if leaf[1] is not None else None
    for other in graph.program.sizes.uses:
        same = other.expr == leaf and (isinstance(leaf[1], str) or other.place.module == use.place.module)
        if same and other.role[0] == "size":
            return other.role[1], other.role[2]
    return None


def _axis(graph: Graph, name: str, dim: int) -> Axis:
    dims = graph.tensor_axes[name[1:]] if name.startswith("@") else graph.node_axes[name]
    return dims[dim]  # type: ignore[return-value]  # a list only where a call has several results, which have no size


def _keys(graph: Graph) -> set[int]:
    return {group.key for group in graph.groups}


def _gain(expr: Expr, power: int) -> Callable[[int, int], float]:
    def gain(dense: int, kept: int) -> float:
        before, after = (evaluate(expr, lambda leaf, n=n: n) for n in (dense, kept))
        return (after / before) ** power

    return gain
