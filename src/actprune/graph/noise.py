"""Calls of a captured graph that say nothing of what it computes: they are left out before anything looks at it."""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from actprune.graph.program import op_name, shape

_NOISE = {
    "aten.alias.default",
    "aten.detach.default",
    "aten.detach_.default",
    "aten.lift_fresh_copy.default",
    "aten.dropout.default",
    "aten.dropout_.default",
    "aten.feature_dropout.default",
    "aten.feature_dropout_.default",
    "aten.alpha_dropout.default",
    "aten.alpha_dropout_.default",
    "aten.feature_alpha_dropout.default",
    "aten.feature_alpha_dropout_.default",
}
"""Calls that return their first argument; dropout is taken as off in every capture."""

_MADE = tuple(f"aten.{name}." for name in "zeros ones full empty new_zeros new_ones new_full new_empty arange".split())
"""Calls that make a constant from sizes."""

_SUMMARIES = tuple(f"aten.{name}." for name in "mean sum amax amin argmax softmax log_softmax std var".split())
"""Calls that say something of many entries at once."""

_LAID_OUT = tuple(f"aten.{name}." for name in "view reshape unsqueeze expand transpose".split())
"""Calls that only lay out what they are given, such as a constant."""


def drop_noise(graph: Graph) -> None:
    """Leave out what only hides a value, constants and summaries that nothing reads, generators of random numbers, and
    every dropout, also that within attention and recurrent layers; dimensions that are taken off and put back, too."""
    for node in reversed(list(graph.nodes)):
        _settle(node)
        name = op_name(node)
        unread = not node.users and (_is_made(node) or _is_summary(node))  # of any size: no cut has to follow it
        if unread or name == "aten._assert_tensor_metadata.default":
            graph.erase_node(node)
        elif name in _NOISE and isinstance(node.args[0], Node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif (taken := _undone(node)) is not None:
            node.replace_all_uses_with(taken.args[0])
            graph.erase_node(node)
            if not taken.users:
                graph.erase_node(taken)


def _undone(node: Node) -> Node | None:
    """The call that a call undoes: Mamba hands the weight of its convolution on without the dimension of one channel,
    and puts it back for the convolution, which has a weight of its own then, not one that is computed.

    The first dimension is let be: it may be that of one sample.
    """
    taken = node.args[0] if op_name(node) == "aten.unsqueeze.default" else None
    if not isinstance(taken, Node) or op_name(taken) != "aten.squeeze.dim" or 0 in (node.args[1], taken.args[1]):
        return None
    return taken if shape(taken.args[0]) == shape(node) else None


def _is_made(node: Node) -> bool:
    """Whether a call makes a constant from sizes, or lays out one."""
    while op_name(node).startswith(_LAID_OUT) and isinstance(node.args[0], Node):
        node = node.args[0]
    return op_name(node).startswith(_MADE)


def _is_summary(node: Node) -> bool:
    """Whether a call only computes with another value: `attn(x, x, x)[0]` leaves the mean over the heads unread.

    One that reads a tensor of the model stays, and one of two values: these are cut with what the class does to them,
    read or not.
    """
    known = op_name(node).startswith(_SUMMARIES) or torch.Tag.pointwise in getattr(node.target, "tags", ())
    writes = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
    return known and not writes and [source.op != "placeholder" for source in node.all_input_nodes] == [True]


_SETTLED = {"dropout": 0.0, "dropout_p": 0.0, "generator": None}
"""Arguments that two runs would never agree by: a generator of the model's own goes on from where it is, and a capture
holds none."""


def _settle(node: Node) -> None:
    """Give such arguments the value by which they agree."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    for i, argument in enumerate(node.target._schema.arguments):
        if argument.name in _SETTLED:
            if i < len(node.args):
                node.update_arg(i, _SETTLED[argument.name])
            elif argument.name in node.kwargs:
                node.update_kwarg(argument.name, _SETTLED[argument.name])
