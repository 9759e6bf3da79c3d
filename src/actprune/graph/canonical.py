"""A graph in the form that the later stages know best: biases and batch norms in one call, channels in dimension 1.

Keras on torch adds a bias in a call of its own, writes batch norm out in elementary calls, and permutes every map to
channels-first and back around each convolution. The same function, said otherwise:

    permute(relu(permute(conv(x)) + b))  =  relu(conv(x, b))        where the permutes are inverse

so that a refit finds the bias that it may change, and the norm and the ReLU behind a convolution are found behind it.
What becomes one call of a layer stands in `one_layer`, of a norm in `one_norm`. Nothing is merged that computes another
function: weights keep their names, shapes and places.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, Node

from actprune.graph.one_layer import bias_in_one_call, projection_as_matrix
from actprune.graph.one_norm import norm_in_one_call
from actprune.graph.program import named_arguments, shape
from actprune.graph.rewriting import inverse, is_call, permuted

_LAYOUT_ONLY = ("aten.contiguous.", "aten.to.dtype", "aten._to_copy.")


def make_canonical(graph: Graph, statistics: set[str], weights: set[str]) -> None:
    """Rewrite `graph` in place.

    Args:
        statistics: the placeholders of tensors that no training step changes, such as running means.
        weights: the placeholders of all tensors of the model.
    """
    _drop_copies(graph)
    for node in list(graph.nodes):
        norm_in_one_call(graph, node, statistics, weights)
        projection_as_matrix(graph, node, weights)
        bias_in_one_call(graph, node, weights)
    _sink_permutes(graph)
    graph.eliminate_dead_code()
    graph.lint()


# -- copies that change nothing --------------------------------------------------------------------


def _drop_copies(graph: Graph) -> None:
    """Leave out casts to the dtype that a value has, and `contiguous` where no view of the result needs it."""
    for node in list(graph.nodes):
        if not is_call(node, *_LAYOUT_ONLY):
            continue
        source: Any = node.args[0]
        before, after = source.meta["val"], node.meta["val"]
        viewed = any(is_call(user, "aten.view.", "aten.as_strided", "aten.view_as") for user in node.users)
        if before.dtype == after.dtype and before.device == after.device and not viewed:
            node.replace_all_uses_with(source)
            graph.erase_node(node)


# -- permutes --------------------------------------------------------------------------------------


def _sink_permutes(graph: Graph) -> None:
    """Element-wise calls go in front of the permutes of their operands, so that inverse permutes meet and cancel."""
    for node in list(graph.nodes):
        if is_call(node, "aten.permute.") and is_call(node.args[0], "aten.permute."):
            inner = cast("Node", node.args[0])
            order = [_order(inner)[d] for d in _order(node)]
            with graph.inserting_before(node):
                node.replace_all_uses_with(permuted(graph, cast("Node", inner.args[0]), order, node))
            graph.erase_node(node)
        elif (order := _common_order(node)) is not None:
            _exchange(graph, node, order)


def _order(node: Node) -> list[int]:
    return [d % len(shape(node)) for d in cast("list[int]", node.args[1])]


def _common_order(node: Node) -> list[int] | None:
    """The order in which all operands of an element-wise call, or of a concatenation, are permuted."""
    if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
        return None
    if torch.Tag.pointwise not in getattr(node.target, "tags", ()) and not is_call(node, "aten.cat."):
        return None
    operands = [n for n in node.all_input_nodes if len(shape(n)) > 0]
    if not operands or any(not is_call(n, "aten.permute.") or len(shape(n)) != len(shape(node)) for n in operands):
        return None
    orders = [_order(n) for n in operands]
    return orders[0] if all(order == orders[0] for order in orders) else None


def _exchange(graph: Graph, node: Node, order: list[int]) -> None:
    back = inverse(order)
    with graph.inserting_before(node):
        made = graph.node_copy(node, lambda n: cast("Node", n.args[0]) if len(shape(n)) > 0 else n)
        if is_call(made, "aten.cat."):
            dim = int(cast("int", named_arguments(node)["dim"])) % len(order)
            made.args, made.kwargs = (made.args[0], order[dim]), {}
        made.meta = {**node.meta, "val": node.meta["val"].permute(*back)}
        node.replace_all_uses_with(permuted(graph, made, order, node))
    graph.erase_node(node)
