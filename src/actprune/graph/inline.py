"""Regions of a graph that only switch a mode which never matters here are written into it, node by node.

`torch.no_grad`, `torch.enable_grad` and autocast (see `ambience`) inside a forward become higher-order calls that hold
a subgraph (RoPE in many decoders). Nothing here needs gradients, so the axes should see through them. The branches of
`torch.cond` stay calls: the axis rules freeze what these touch.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import nn
from torch.fx import Graph, Node

from actprune.graph.program import op_name


def inline(graph: Graph, module: nn.Module) -> None:
    """Inline what can be inlined in `graph`; `module` is what the names of its subgraphs refer to.

    A reference to a subgraph that stays carries that subgraph in `meta["subgraph"]`.
    """
    for node in list(graph.nodes):
        if node.op == "get_attr":
            held = operator.attrgetter(str(node.target))(module)
            node.meta["subgraph"] = held
            if isinstance(getattr(held, "graph", None), Graph):
                inline(held.graph, held)
        elif node.op == "call_function" and (found := _region(node)) is not None:
            _expand(graph, node, *found)


def _region(node: Node) -> tuple[Node, tuple[Any, ...]] | None:
    """The subgraph's node and its operands, where the call only sets a mode that doesn't matter."""
    name, args = op_name(node), node.args
    if name == "wrap_with_set_grad_enabled":
        _, subgraph, *operands = args
    elif name == "wrap_with_autocast":
        _, _, _, _, subgraph, *operands = args
    else:
        return None
    return (subgraph, tuple(operands)) if isinstance(subgraph, Node) else None


def _expand(graph: Graph, node: Node, subgraph: Node, operands: tuple[Any, ...]) -> None:
    inner: Graph = subgraph.meta["subgraph"].graph
    values: dict[Node, Any] = dict(zip((n for n in inner.nodes if n.op == "placeholder"), operands, strict=True))
    with graph.inserting_before(node):
        results: Any = graph.graph_copy(inner, values)
    for user in list(node.users):  # a region returns a tuple, whose users are all getitem
        user.replace_all_uses_with(results[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(node)
    if not subgraph.users:
        graph.erase_node(subgraph)
