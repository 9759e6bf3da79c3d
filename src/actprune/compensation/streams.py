"""Two streams of one calibration set: the dense network and its cut twin, node by node over all batches.

Only values that some later node needs are held, and where the two streams agree they are the same tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from actprune.graph.program import Batch, Program
from actprune.graph.purify import root, writes, written_memory
from actprune.graph.run import arguments, bound_values, call, last_uses
from actprune.mapped import let_go

Values = list[Any]
"""One value per batch."""


class Streams:
    """The state of a lockstep run.

    Attributes:
        overrides: tensor name → what the cut stream uses instead; changes are seen from the next node on.
        batches: the flat inputs.
        strayed: of the calls that pick rows by the data, the axes that count the rows of those which picked others in
            the cut stream.

    Args:
        picking: these calls and axes, see `actprune.axes.picked`.
    """

    def __init__(
        self,
        program: Program,
        batches: Sequence[Batch],
        order: Sequence[Node],
        overrides: Mapping[str, Tensor] | None = None,
        picking: Mapping[Node, frozenset[int]] | None = None,
    ) -> None:
        self.program, self.batches = program, list(batches)
        self.strayed, self._picking = frozenset[int](), picking or {}
        self.count = len(batches)
        self.overrides: dict[str, Tensor] = dict(overrides or {})
        self._dense: dict[Node, Values] = {}
        self._cut: dict[Node, Values] = {}
        # a write into a view would change, through the shared tensors, the other stream too
        self._apart = any(map(writes, order))
        for batch in batches:
            for node, value in bound_values(program, batch, {}):
                self._dense.setdefault(node, []).append(value)
        self._of_tensors = _of_tensors(program, order)
        self._made: dict[Node, list[Tensor | None]] = {}
        returned = {out for out in program.outputs if isinstance(out, Node)}
        self._dying = {
            node: [source for source in sources if source not in returned and source.op == "call_function"]
            for node, sources in last_uses(order).items()
        }

    @property
    def shareable(self) -> bool:
        """Whether runs may start from the same values: not where calls write into what they are given."""
        return not self._apart

    def fork(self, overrides: Mapping[str, Tensor]) -> Streams:
        """A run that goes on from here by itself, with these overrides; it shares every tensor there is so far."""
        other = copy(self)
        other.overrides = dict(overrides)
        other._dense = dict(self._dense)
        other._cut, other._made = dict(self._cut), dict(self._made)
        return other

    def part(self, numbers: Sequence[int], overrides: Mapping[str, Tensor]) -> Streams:
        """The same on some of the batches."""
        other = self.fork(overrides)
        other.count, other._made = len(numbers), {}
        other.batches = [self.batches[i] for i in numbers]
        other._dense = {node: [values[i] for i in numbers] for node, values in self._dense.items()}
        other._cut = {node: [values[i] for i in numbers] for node, values in self._cut.items()}
        return other

    def dense(self, node: Node) -> Values:
        return self._dense[node]

    def cut(self, node: Node) -> Values:
        """The cut stream's values; the dense ones where the streams agree."""
        return self._cut[node] if node in self._cut else self._dense[node]

    def differs(self, node: Node) -> bool:
        return node in self._cut

    def step(self, node: Node) -> None:
        """Run one call in both streams, and forget what nothing reads any more."""
        self.step_dense(node)
        self.step_cut(node)
        if node in self._picking and self._picks_others(node):
            self.strayed |= self._picking[node]
        self.forget(node)

    def step_one(self, node: Node) -> None:
        """Run one call once: in the cut stream where it can differ, else in the dense one."""
        if self._may_differ(node):
            self.step_cut(node)
        else:
            self.step_dense(node)
        self.forget(node)

    def step_dense(self, node: Node) -> None:
        """Run one call in the dense stream only; `step_cut` and `forget` must follow."""
        self._dense[node] = [self.peek(node, i) for i in range(self.count)]

    def step_cut(self, node: Node) -> None:
        """Run one call in the cut stream, where it can differ."""
        sources = node.all_input_nodes
        for source in sources:
            self._renew(source)
        if self._may_differ(node):
            self._cut[node] = [self._call(node, {s: self.now(s, i) for s in sources}) for i in range(self.count)]
        else:
            self._cut.pop(node, None)

    def forget(self, node: Node) -> None:
        """Drop what `node` was the last reader of."""
        for dead in self._dying.get(node, ()):
            self._dense.pop(dead, None)
            self._cut.pop(dead, None)
        for source in node.all_input_nodes:  # weights that lie in files
            name = self.program.bindings.get(source.name)
            if name is not None:
                let_go((self.program.tensors[name], self.overrides.get(name)))

    def peek(self, node: Node, i: int) -> Any:
        """The dense value of a call on batch i, not kept."""
        return self._call(node, {source: self._dense[source][i] for source in node.all_input_nodes})

    def on_dense(self, node: Node, i: int) -> Any:
        """What a call makes of the dense values of batch i with the cut stream's tensors."""
        known: dict[Node, Any] = {}

        def given(source: Node) -> Any:
            of_weights = source in self._of_tensors or source.name in self.program.bindings
            return self._of_weights(source, known) if of_weights else self._dense[source][i]

        return self._call(node, {source: given(source) for source in node.all_input_nodes})

    def output(self, node: Node, i: int) -> Any:
        """The dense value of a call on batch i, whether it is kept or not."""
        return self._dense[node][i] if node in self._dense else self.peek(node, i)

    def given(self, node: Node, i: int, cut: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call on batch i, in the cut stream or in the dense one."""
        for source in node.all_input_nodes if cut else ():
            self._renew(source)
        return arguments(node, {s: self.now(s, i) if cut else self._dense[s][i] for s in node.all_input_nodes})

    def misshapen(self, node: Node) -> bool:
        """Whether the two values of a node are of other shapes on some batch."""
        return self.differs(node) and any(
            a.shape != b.shape for a, b in zip(self._dense[node], self._cut[node], strict=True)
        )

    def _picks_others(self, node: Node) -> bool:
        """Whether the two results of a call are other ones on some batch."""
        if not self.differs(node):
            return False
        pairs = zip(*(pytree.tree_leaves(values[node]) for values in (self._dense, self._cut)), strict=True)
        return not all(a.shape == b.shape and bool((a == b).all()) for a, b in pairs)

    def _renew(self, node: Node) -> None:
        """Compute again what is made of weights alone, such as a transposed one, where a refit has changed them."""
        names = self._of_tensors.get(node, frozenset())
        if names.isdisjoint(self.overrides):
            return
        given = [self.overrides.get(name) for name in sorted(names)]
        known = self._made.get(node)
        if known is None or node not in self._cut or any(a is not b for a, b in zip(known, given, strict=True)):
            self._made[node], self._cut[node] = given, [self._of_weights(node, {})] * self.count

    def _of_weights(self, node: Node, values: dict[Node, Any]) -> Any:
        """The cut stream's value of a tensor of the model, or of a call on such tensors alone; `values` are known."""
        if node not in values:
            if node in self._of_tensors:
                sources = {source: self._of_weights(source, values) for source in node.all_input_nodes}
                values[node] = self._call(node, sources)
            else:
                values[node] = self.now(node, 0)
        return values[node]

    def _may_differ(self, node: Node) -> bool:
        return self._apart or any(source in self._cut or self._overridden(source) for source in node.all_input_nodes)

    def _overridden(self, node: Node) -> bool:
        return self.program.bindings.get(node.name) in self.overrides

    def now(self, node: Node, i: int) -> Any:
        """What the cut stream reads from `node` on batch i."""
        return self.overrides[self.program.bindings[node.name]] if self._overridden(node) else self.cut(node)[i]

    def tensor(self, name: str) -> Tensor:
        """What the cut stream has for a tensor of the model."""
        return self.overrides.get(name, self.program.tensors[name]).detach()

    def _call(self, node: Node, values: Mapping[Node, Any]) -> Any:
        args, kwargs = arguments(node, values)
        with torch.no_grad():
            return call(node, args, kwargs)


def _of_tensors(program: Program, order: Sequence[Node]) -> dict[Node, frozenset[str]]:
    """The calls that depend on the model's tensors alone, and on which; not those that see memory which a call writes
    into (a tensor of zeros that a loop fills): they depend on what is written."""
    found: dict[Node, frozenset[str]] = {}
    filled = written_memory(order)
    for node in order:
        sources = node.all_input_nodes
        drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if drawn or writes(node) or root(node) in filled:
            continue
        if all(source.name in program.bindings or source in found for source in sources):
            found[node] = frozenset[str]().union(*(found.get(s, {program.bindings.get(s.name, "")}) for s in sources))
    return found
