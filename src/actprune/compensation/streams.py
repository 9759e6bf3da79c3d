"""Two streams of one calibration set: the dense network and its cut twin, node by node over all batches.

Only values that some later node needs are held, and where the two streams agree they are the same tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from actprune.graph.program import Batch, Program
from actprune.graph.run import arguments, bound_values, call

Values = list[Any]
"""One value per batch."""


class Streams:
    """The state of a lockstep run.

    Attributes:
        overrides: tensor name → what the cut stream uses instead; changes are seen from the next node on.
    """

    def __init__(self, program: Program, batches: Sequence[Batch], order: Sequence[Node]) -> None:
        self.program = program
        self.count = len(batches)
        self.overrides: dict[str, Tensor] = {}
        self._dense: dict[Node, Values] = {}
        self._cut: dict[Node, Values] = {}
        for batch in batches:
            for node, value in bound_values(program, batch, {}):
                self._dense.setdefault(node, []).append(value)
        returned = {out for out in program.outputs if isinstance(out, Node)}
        last = {source: node for node in order for source in node.all_input_nodes}
        self._dying: dict[Node, list[Node]] = {}
        for source, node in last.items():
            if source not in returned and source.op == "call_function":
                self._dying.setdefault(node, []).append(source)
        self._held: dict[Node, int] = {}

    def dense(self, node: Node) -> Values:
        return self._dense[node]

    def cut(self, node: Node) -> Values:
        """The cut stream's values; the dense ones where the streams agree."""
        return self._cut.get(node, self._dense[node])

    def differs(self, node: Node) -> bool:
        return node in self._cut

    def hold(self, node: Node) -> None:
        """Keep a value beyond its last reader, until `release`."""
        self._held[node] = self._held.get(node, 0) + 1

    def release(self, node: Node) -> None:
        self._held[node] -= 1

    def step(self, node: Node) -> None:
        """Run one call in both streams, and forget what nothing reads any more."""
        self._dense[node] = [self._call(node, self._dense, i) for i in range(self.count)]
        self.step_cut(node)
        for dead in self._dying.get(node, ()):
            if not self._held.get(dead):
                self._dense.pop(dead, None)
                self._cut.pop(dead, None)

    def step_dense(self, node: Node) -> None:
        """Run one call in the dense stream only; `step_cut` must follow."""
        self._dense[node] = [self._call(node, self._dense, i) for i in range(self.count)]

    def step_cut(self, node: Node) -> None:
        """Run one call in the cut stream, where it can differ."""
        sources = node.all_input_nodes
        overridden = {s for s in sources if self.program.bindings.get(s.name) in self.overrides}
        if not overridden and not any(source in self._cut for source in sources):
            self._cut.pop(node, None)
            return
        values: list[Any] = []
        for i in range(self.count):
            own: dict[Node, Any] = {}
            for source in sources:
                name = self.program.bindings.get(source.name)
                own[source] = self.overrides[name] if name in self.overrides else self.cut(source)[i]
            args, kwargs = arguments(node, own)
            with torch.no_grad():
                values.append(call(node, args, kwargs))
        self._cut[node] = values

    def forget(self, node: Node) -> None:
        """Drop what `node` was the last reader of."""
        for dead in self._dying.get(node, ()):
            if not self._held.get(dead):
                self._dense.pop(dead, None)
                self._cut.pop(dead, None)

    def peek(self, node: Node, i: int) -> Any:
        """The dense value of a call on batch i, not kept."""
        return self._call(node, self._dense, i)

    def _call(self, node: Node, values: Mapping[Node, Values], i: int) -> Any:
        own = {source: values[source][i] for source in node.all_input_nodes}
        args, kwargs = arguments(node, own)
        with torch.no_grad():
            return call(node, args, kwargs)
