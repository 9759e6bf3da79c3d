"""In-place calls become pure ones, so that the later stages never ask which version of a value a node saw.

What has to stay in place (a write into a view) then writes into a copy where it would have changed one of the
model's tensors or an input: running a program leaves both as they were.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from actprune.graph.program import named_arguments, op_name

_MAY_ALIAS = {"type_as", "clamp", "pad", "dropout"}
"""Ops that may return their argument itself although their schema doesn't say so."""


def make_pure(graph: Graph) -> None:
    """Replace `relu_(x)` and its like by `relu(x)`, and every later use of `x` by the result.

    Done only where nothing else that shares its memory is read afterwards, and where the pure call gives the same
    dtype. Any other write stays as it is, and the axis rules freeze what it touches if they do not know it.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        target = node.args[0] if node.args else None
        pure = _pure_twin(node)
        if pure is None or not isinstance(target, Node) or _read_elsewhere(node, target, order):
            continue
        node.target = pure
        target.replace_all_uses_with(node, delete_user_cb=lambda user, now=order[node]: order.get(user, 0) > now)
    _drop_moves_to_itself(graph)
    _copy_what_is_written(graph)
    graph.lint()


def _drop_moves_to_itself(graph: Graph) -> None:
    """A layer that `forward` moves to where it is (`expert.to(x.device)`) has its weights written over themselves."""
    for node in list(graph.nodes):
        moved = node.args[0] if node.args else None
        if op_name(node) == "aten.copy.default" and isinstance(moved, Node) and moved is node.args[1]:
            node.replace_all_uses_with(moved.args[0] if _is_moved_nowhere(moved) else moved)
            graph.erase_node(node)
            if not moved.users and moved.op == "call_function":
                graph.erase_node(moved)


def _is_moved_nowhere(node: Node) -> bool:
    """Whether a call gives its first argument as it is."""
    if not op_name(node).startswith("aten.to.") or not isinstance(node.args[0], Node):
        return False
    a, b = node.args[0].meta.get("val"), node.meta.get("val")
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and a.device == b.device


def _read_elsewhere(node: Node, target: Node, order: Mapping[Node, int]) -> bool:
    """Whether something behind `node`, which writes into `target`, reads the same memory by another name."""
    names = {root(target)}
    todo = [*names]
    while todo:
        name = todo.pop()
        if name is not target and any(order[user] > order[node] for user in name.users):
            return True
        views = {user for user in name.users if user is not node and _is_view(user) and user.args[0] is name} - names
        views = {view for view in views if order[view] < order[node]}  # later ones are views of the result
        names |= views
        todo += views
    return False


def _copy_what_is_written(graph: Graph) -> None:
    """Put a clone behind every placeholder that some call still writes into, itself or through a view of it."""
    written = writers(graph)
    first = next((node for node in graph.nodes if node.op != "placeholder"), None)
    for placeholder in (node for node in list(graph.nodes) if node in written and first is not None):
        with graph.inserting_before(first):
            copy = graph.call_function(torch.ops.aten.clone.default, (placeholder,))
        its = {
            key: value for key, value in written[placeholder].meta.items() if key in ("stack_trace", "nn_module_stack")
        }
        copy.meta = {**placeholder.meta, **its}  # the line that writes is what a message names
        placeholder.replace_all_uses_with(copy, delete_user_cb=lambda user, copy=copy: user is not copy)


def writers(graph: Graph) -> dict[Node, Node]:
    """Every placeholder that a call writes into, itself or through a view of it → the first such call."""
    found: dict[Node, Node] = {}
    for node in graph.nodes:
        for target in _written(node):
            if (own := root(target)).op == "placeholder":
                found.setdefault(own, node)
    return found


def writes(node: Node) -> bool:
    """Whether a call changes one of its arguments."""
    return next(_written(node), None) is not None


def written_memory(nodes: Iterable[Node]) -> set[Node]:
    """What some call writes into, itself or through a view of it: the nodes that have made the memory."""
    return {root(target) for node in nodes for target in _written(node)}


def _written(node: Node) -> Iterator[Node]:
    """The arguments that a call changes."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return
    if op_name(node).startswith(("aten.batch_norm", "aten.instance_norm")):
        # the schema doesn't say so, but in training mode the running statistics are updated
        yield from (a for a in node.args[3:5] if node.args[5] is True and isinstance(a, Node))
    given = named_arguments(node)
    for argument in node.target._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = given[argument.name]
            yield from (a for a in (value if isinstance(value, list | tuple) else [value]) if isinstance(a, Node))


def root(node: Node) -> Node:
    """What `node` is a view of, in the end."""
    while _is_view(node) and node.args and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _is_view(node: Node) -> bool:
    """Whether the result may share memory with the first argument."""
    if node.op != "call_function":
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target is operator.getitem
    if op_name(node).split(".")[1] in _MAY_ALIAS:
        return True
    return any(result.alias_info is not None for result in node.target._schema.returns)


def _pure_twin(node: Node) -> Any:
    """`aten.relu.default` for `aten.relu_.default`, where the pure op takes the same arguments and gives its dtype."""
    name = op_name(node)
    if not name.startswith("aten.") or not isinstance(node.target, torch._ops.OpOverload):
        return None
    base = name.split(".")[1]
    packet = getattr(torch.ops.aten, base[:-1], None)
    if not base.endswith("_") or base.endswith("__") or packet is None or not _keeps_dtype(node):
        return None
    # by its arguments: `pow_.Scalar` has a Tensor and a number, `pow.Scalar` the other way round
    twins = (getattr(packet, overload) for overload in packet.overloads())
    return next((twin for twin in twins if _arguments(twin) == _arguments(node.target)), None)


def _arguments(target: torch._ops.OpOverload) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.type)) for argument in target._schema.arguments]


def _keeps_dtype(node: Node) -> bool:
    """Whether no other argument would promote the pure call's result: `half.add_(float)` stays half."""
    values = [a.meta.get("val") for a in node.all_input_nodes]
    own, others = values[0], [value for value in values[1:] if isinstance(value, Tensor)]
    return isinstance(own, Tensor) and all(
        other.dtype in (own.dtype, torch.bool) or (own.is_floating_point() and _is_whole(other)) for other in others
    )


def _is_whole(value: Tensor) -> bool:
    return not value.is_floating_point() and not value.is_complex()
