"""Scales that a class computes from a size that is cut, such as 1/√(head size): they change with it.

The class that is left computes another scale, as torch's own attention does by default. Where such a number multiplies
or divides a tensor, the dense graph gets a factor in front of that call, which stands for the change; and the repair
no longer asks that the number stays, but that it follows the size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.axes.expr import Axis, leaves
from actprune.axes.masks import Scaling, with_scales
from actprune.graph.numbers import Expr, evaluate, parts, variables, with_value
from actprune.graph.program import Program, named_arguments, op_name
from actprune.graph.sizes import TRAINING, SizeUse, in_training

Follower = tuple[Any, ...]
"""The role ("follows", node, dim, size, call): the number follows the size of that dimension, which stands in it."""

Calls: TypeAlias = Mapping[Any, tuple[Program, Node]]
"""Name of a call, as the roles of uses have it → the program that it is in, and its node."""

_FACTORS = {
    "aten.mul.Tensor": ("other", 1, "self"),
    "aten.multiply.Tensor": ("other", 1, "self"),
    "aten.div.Tensor": ("other", -1, "self"),
    "aten.divide.Tensor": ("other", -1, "self"),
    "aten.baddbmm.default": ("alpha", 1, "batch1"),
    "aten.scaled_dot_product_attention.default": ("scale", 1, "query"),
}
"""Op → the argument that a tensor is multiplied with (1) or divided by (-1), and that tensor."""


def followers(graph: Graph) -> dict[int, Follower]:
    """The numbers that may follow a size: index of the use → its new role."""
    calls = _calls(graph)
    roles = ((i, _follower(graph, calls, use)) for i, use in enumerate(graph.program.sizes.uses))
    return {i: role for i, role in roles if role is not None}


def _follower(graph: Graph, calls: Calls, use: SizeUse) -> Follower | None:
    called = calls.get(use.role[-1]) if use.role[0] == "fixed" else None
    place = _followed(graph, use) if called is not None and _power(*called, use) else None
    if place is None or not any(leaf.key in _keys(graph) for leaf in leaves(_axis(graph, *place[:2]))):
        return None
    return ("follows", *place, use.role[1])


def _calls(graph: Graph) -> Calls:
    """Those of the forward pass, and those of training mode, which has factors of its own."""
    calls = {node.name: (graph.program, node) for node in graph.program.nodes}
    if graph.training is not None:
        calls |= {f"{TRAINING}{node.name}": (graph.training, node) for node in graph.training.nodes}
    return calls


def following(graph: Graph, found: Mapping[int, Follower]) -> Graph:
    """The graph in which these numbers follow their sizes."""
    uses = tuple(replace(use, role=found.get(i, use.role)) for i, use in enumerate(graph.program.sizes.uses))
    return replace(graph, program=replace(graph.program, sizes=replace(graph.program.sizes, uses=uses)))


def scaled(graph: Graph, found: Iterable[int]) -> Graph:
    """The graph with a factor for each of these numbers, which follow their sizes."""
    uses = [graph.program.sizes.uses[i] for i in found]
    calls = _calls(graph)
    uses += _again_in_training(graph, calls, uses)
    scalings: dict[str, list[Scaling]] = {"": [], TRAINING: []}
    for use in uses:
        _, name, dim, size, call = use.role
        program, node = calls[call]
        operand = named_arguments(node)[_FACTORS[op_name(node)][2]]
        gain = _gain(use.expr, size, _power(program, node, use), _rounding(program, node))
        prefix = TRAINING if call.startswith(TRAINING) else ""
        scalings[prefix].append(Scaling(node, operand, _axis(graph, name, dim), gain))
    program, masks = with_scales(graph.program, scalings[""])
    training = graph.training
    if training is not None:
        training, more = with_scales(training, scalings[TRAINING], TRAINING)
        masks |= more
    return replace(graph, program=program, training=training, masks={**graph.masks, **masks})


def _again_in_training(graph: Graph, calls: Calls, uses: Iterable[SizeUse]) -> list[SizeUse]:
    """The same numbers, given to calls in training mode: of one place in the source the record has one use."""
    known = {use.role[-1] for use in uses}
    places = {(use.place, use.place.code, use.slot) for use in uses}
    again: list[SizeUse] = []
    for use in () if graph.training is None else map(in_training, graph.training.sizes.uses):
        if use.role[-1] not in known and (use.place, use.place.code, use.slot) in places:
            role = _follower(graph, calls, use)
            again += [] if role is None else [replace(use, role=role)]
    return again


def _power(program: Program, node: Node, use: SizeUse) -> int:
    """1 where a number multiplies what it is given to, -1 where it divides it; else 0."""
    name, power, _ = _FACTORS.get(op_name(node), ("", 0, ""))
    given = named_arguments(node).get(name)
    constant = _constant(program, given)
    if constant is not None:
        return power if constant.item() == _rounded(use.value, constant.dtype) else 0
    return power if given == use.value else 0


def _constant(program: Program, given: Any) -> torch.Tensor | None:
    """The one number that the class made a tensor of, as `MultiHeadAttention` of Keras does where it has dropout."""
    name = program.bindings.get(given.name) if isinstance(given, Node) else None
    tensor = None if name is None or name in program.held else program.tensors[name]
    return tensor if tensor is not None and not tensor.dim() and tensor.is_floating_point() else None


def _rounding(program: Program, node: Node) -> torch.dtype | None:
    """The dtype that the number which a call is given is rounded to, if it is a tensor."""
    constant = _constant(program, named_arguments(node).get(_FACTORS[op_name(node)][0]))
    return None if constant is None else constant.dtype


def _rounded(value: float, dtype: torch.dtype | None) -> float:
    return value if dtype is None else torch.tensor(value, dtype=dtype).item()


def _followed(graph: Graph, use: SizeUse) -> tuple[str, int, Expr] | None:
    """The dimension whose size is all that varies in a number, and how that size is written there.

    It is the shape that is read, or the size that some call is given which is computed alike: `dim // heads` in
    1/√(dim // heads) is that of the view with the same arithmetic.
    """
    for part in parts(use.expr):
        if part[0] == "shape":
            place = (part[1], part[2]) if part[1] is not None else None
        else:
            place = _given_as(graph, use, part)
        if place is not None and not variables(with_value(use.expr, part, 1)):
            return place[0], place[1], part
    return None


def _given_as(graph: Graph, use: SizeUse, part: tuple[Any, ...]) -> tuple[str, int] | None:
    own = any(leaf[0] == "shape" or not isinstance(leaf[1], str) for leaf in variables(part))
    for other in graph.program.sizes.uses:
        if other.role[0] == "size" and other.expr == part and (not own or other.place.module == use.place.module):
            return other.role[1], other.role[2]
    return None


def _axis(graph: Graph, name: str, dim: int) -> Axis:
    dims = graph.tensor_axes[name[1:]] if name.startswith("@") else graph.sizes(name)
    return dims[dim]  # type: ignore[return-value]  # a list only where a call has several results, which have no size


def _keys(graph: Graph) -> set[int]:
    return {group.key for group in graph.groups}


def _gain(expr: Expr, size: Expr, power: int, dtype: torch.dtype | None) -> Callable[[int, int], float]:
    """(dense size, kept size) → the factor; of rounded numbers where the class rounds them, so that it is exact."""

    def gain(dense: int, kept: int) -> float:
        before, after = (_rounded(evaluate(with_value(expr, size, n), lambda leaf: None), dtype) for n in (dense, kept))
        return (after / before) ** power

    return gain
