"""The record of a forward pass in the words of its graph: nodes in the place of the numbers of calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from torch.fx import Graph, Node

from actprune.graph.program import read_for_sizes, shape
from actprune.graph.size_arguments import repeats
from actprune.graph.sizes import CALL, SizeUse, renamed

Key: TypeAlias = tuple[int, int]
"""A tensor of the recording: the number of the call that gave it, and which of its results it is."""


class Named:
    """Which node a recorded tensor is.

    Args:
        graph: the captured one, whose nodes note the calls that they were.
        came_from: a call → the first tensor among its arguments.
        seen: (tensor, dimension) → a size that was read off it.
    """

    def __init__(self, graph: Graph, came_from: Mapping[int, Key], seen: Mapping[tuple[Key | str, int], int]) -> None:
        self._came_from, self._seen = came_from, seen
        self._nodes = _by_call(graph)
        self._calls = {call for call, _ in self._nodes}
        self._shapes = {node.name: shape(node) for node in self._nodes.values()}

    def use(self, use: SizeUse, slicing: int | None = None) -> SizeUse | None:
        """The use of a size with names in it; None where a cut has nothing to do with it.

        Args:
            slicing: the call, where the size bounds a slice.
        """
        sliced = self._nodes.get((slicing, 0)) if slicing is not None else None
        if sliced is not None and use.value in (1, -1) and read_for_sizes(sliced):
            return None  # `torch.ones_like(x[:, :1])`: any unit will do
        parts = enumerate(use.role)
        role = tuple(self._of(part) if isinstance(part, tuple) or i == 1 else part for i, part in parts)
        known = role[0] in ("fixed", "equal") or None not in role
        if (
            role[0] == "size"
            and (seen := self._shapes.get(role[1])) is not None
            and seen[role[2] :][:1] != (use.value,)
        ):
            return None  # of a view that nothing reads and the tracer left out: its source is what was found
        if role[0] == "times" and not repeats(self._shapes.get(role[1]), self._shapes.get(role[2]), role[3], use.value):
            return None  # under `vmap` the node has a dimension more than the tensor that the class sees
        return replace(use, expr=renamed(use.expr, self._read_off), role=role if known else ("unknown",))

    def _of(self, key: Any) -> Any:
        """Of a call that left no node (dropout), the argument that it returned."""
        while isinstance(key, tuple) and key[0] not in self._calls and key[0] in self._came_from:
            key = self._came_from[key[0]]
        return key if isinstance(key, str) else self._nodes[key].name if key in self._nodes else None

    def _read_off(self, key: Any, dim: int) -> Any:
        """None where the node is that of another form: of `transpose(x)` behind which the graph has `x` alone."""
        found = self._of(key)
        seen = self._shapes.get(found, ())[dim : dim + 1] if (key, dim) in self._seen else ()
        return None if seen and seen != (self._seen[key, dim],) else found


def _by_call(graph: Graph) -> dict[Key, Node]:
    nodes: dict[Key, Node] = {}
    for node in graph.nodes:
        call = (node.meta.get("custom") or {}).get(CALL)
        if call is None or node.op != "call_function":
            continue
        picks = getattr(node.target, "__name__", "") == "getitem"
        nodes[call, int(node.args[1]) if picks else 0] = node
    return nodes
