"""Rows that the data picks: the tokens that go to an expert, what a mask selects.

How many there are is told by no shape, and another network may pick others: then row i of the one and row i of the
other are of different tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

import torch
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.axes.expr import leaves
from actprune.axes.site import flat
from actprune.graph.program import op_name

_PICKING = (
    "aten.nonzero", "aten.where.default", "aten.masked_select", "aten.unique", "aten._unique", "aten.index.Tensor",
    "aten.repeat_interleave.Tensor",
)  # fmt: skip
"""Ops whose number of results may depend on values."""


_KNOWN: WeakKeyDictionary[Graph, Mapping[Node, frozenset[int]]] = WeakKeyDictionary()


def picking(graph: Graph) -> Mapping[Node, frozenset[int]]:
    """The calls that pick → keys of the axes that count what they picked; looked for when they are first asked for."""
    if graph not in _KNOWN:
        _KNOWN[graph] = _found(graph)
    return _KNOWN[graph]


def _found(graph: Graph) -> dict[Node, frozenset[int]]:
    found: dict[Node, frozenset[int]] = {}
    for node in graph.program.nodes:
        if node.op == "call_function" and op_name(node).startswith(_PICKING) and _by_values(node):
            known = frozenset[int]().union(*(keys_of(graph, source) for source in node.all_input_nodes))
            made = keys_of(graph, node) - known
            if made:
                found[node] = made
    return found


def _by_values(node: Node) -> bool:
    """Indices pick by values only where they are a mask."""
    if not op_name(node).startswith("aten.index.Tensor"):
        return True
    return any(n.meta["val"].dtype in (torch.bool, torch.uint8) for n in node.all_input_nodes[1:])


def keys_of(graph: Graph, node: Node) -> frozenset[int]:
    """The leaves of all axes of a call's results."""
    return frozenset(leaf.key for axis in flat(graph.node_axes.get(node.name, ())) for leaf in leaves(axis))


def picked(graph: Graph, node: Node) -> bool:
    """Whether the rows of a value are what some call picked."""
    calls = picking(graph)
    return bool(calls) and not keys_of(graph, node).isdisjoint(frozenset[int]().union(*calls.values()))
