"""One walk over a program that gives every dimension of every tensor its axis expression.

The walk knows no op. For each ATen call it looks up a rule (`axes/rules/`), which says how the dimensions of
the result relate to those of the arguments. An op without a rule freezes every axis that it touches.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence, Set
from typing import Any, cast

from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from actprune.axes.algebra import Algebra
from actprune.axes.call import NOT_COVERED, Call, NotCovered, Rule, rule_of
from actprune.axes.expr import ONE, Axis, leaves, size
from actprune.axes.site import Dims, Mixing, Site, Term, flat
from actprune.axes.stacks import Stack, moved, rearranges
from actprune.axes.stored import StoredTensors
from actprune.graph.kept_copies import counterpart
from actprune.graph.program import Program, op_name, place, shape

_FAR = 200
"""A weight is computed from tensors that are fewer calls away than this; beyond lies the rest of the network."""


class Inference:
    """The axes of one or more programs over the same model (its eval and its training branches).

    Attributes:
        algebra: what is equal to what.
        axes: node → axes of its result (a list of them for an op with several results).
        tensors: tensor name → axes of its dimensions.
        sites: every contraction with a parameter, in order.
        terms: every cost.
        mixings: every sum over an axis of an activation without a parameter.
        parallel: axes that run beside each other through such sums (heads).
        norms: whether axes that a norm runs over may be cut.
        whole: the norms whose axes may not.
        streams: axes of the others to which several layers add.
        multiples: axes whose size has to stay a multiple of a number.
        counted: axes that one number of the class counts: as many units stay of each, but not the same ones.
        stacks: node → the stack that it gives, where its slices have units of their own.
        unknown: op names without a rule.
        stored: which tensors of the model its calls read.
    """

    def __init__(self, norms: bool = False, whole: Set[Node] = frozenset()) -> None:
        self.norms, self.whole = norms, whole
        self.streams: list[Axis] = []
        self.algebra = Algebra()
        self.axes: dict[Node, Dims | list[Dims]] = {}
        self.tensors: dict[str, Dims] = {}
        self.sites: list[Site] = []
        self.terms: list[Term] = []
        self.mixings: list[Mixing] = []
        self.parallel: list[Axis] = []
        self.multiples: list[tuple[Axis, int]] = []
        self.counted: list[Sequence[Axis]] = []
        self.stacks: dict[Node, Stack] = {}
        self.unknown: set[str] = set()
        self.stored = StoredTensors()
        self._program: Program | None = None
        self._used: frozenset[str] = frozenset()  # by the programs before it

    def walk(self, program: Program) -> None:
        """Infer the axes of every node of `program`."""
        self._used |= self._program.used if self._program is not None else frozenset()
        self._program = program
        readers = {program.bindings.get(node.name): next(iter(node.users), None) for node in program.nodes}
        own = {name: self._tensor(program, name, tensor, readers) for name, tensor in program.tensors.items()}
        for lengths, normed in program.normed.items():
            self.algebra.unify(own[lengths][normed.dim], own[normed.weight][normed.dim], "the weight norm")
        for node in program.nodes:
            if node.op == "placeholder":
                name = program.bindings.get(node.name)
                if name is None:
                    self.axes[node] = tuple(self.algebra.leaf(n, "model input") for n in shape(node))
                    continue
                self.axes[node] = own[name]
                if name in program.persistent:
                    self.stored.names[node] = name
            elif node.op == "call_function":
                self.axes[node] = self._apply(node)
            elif node.op == "output":
                for out in node.all_input_nodes:
                    self._freeze_node(out, "model output")

    def _tensor(self, program: Program, name: str, tensor: Tensor, readers: Mapping[str | None, Node | None]) -> Dims:
        """The axes of a tensor of the model; a constant has its own in every program, since only its name recurs."""
        if name in program.held:
            of = counterpart(program.copies, name)
            if name not in self.tensors and of in program.held:
                self.tensors[name] = self._tensor(program, of, program.tensors[of], readers)
            elif name not in self.tensors:
                self.tensors[name] = tuple(self.algebra.leaf(int(n)) for n in tensor.shape)
            return self.tensors[name]
        reader = readers.get(name)
        reason = "a constant of the forward pass" + (f", read by {place(reader)}" if reader is not None else "")
        dims = tuple(self.algebra.leaf(int(n), reason) for n in tensor.shape)
        self.tensors.setdefault(name, dims)
        return dims

    def may_be_set(self, switch: Node) -> bool:
        """Whether a switch, a tensor of the model, has another value than zero; so it may if it is computed."""
        name = self._program.bindings.get(switch.name) if self._program is not None else None
        return self._program is None or name is None or bool(self._program.tensors[name].any())

    def leaves_columns(self, weight: str, dims: Sequence[int]) -> bool:
        """Whether the program before it uses this weight, and sets no columns to zero in some of these dimensions."""
        zeroed = {d for site in self.sites if site.weight == weight and site.reads for d in site.in_dims}
        return weight in self._used and not zeroed.issuperset(dims)

    def operand_axis(self, mixing: Mixing) -> Axis:
        """What a mixing sums over."""
        found = self.axes[mixing.operand]
        return self.algebra.resolve(found[mixing.dim]) if isinstance(found, tuple) else ONE

    def maker(self, value: Node, units: Axis) -> tuple[str, int] | None:
        """The nearest tensor that a computed weight is made of and that has some of `units`, and its dimension of them;
        a gain for each of them only where no tensor has more dimensions.

        Sliced, reshaped, mixed from several: what it is made of need not have its shape.
        """
        wanted = {leaf.key for leaf in leaves(self.algebra.resolve(units))} - {ONE.key}
        waiting, seen = [value], {value}
        gain: tuple[str, int] | None = None
        while waiting and len(seen) < _FAR:
            node = waiting.pop(0)
            name = self.stored.names.get(node, "")
            dims = self.tensors.get(name, ())
            for d, axis in enumerate(dims):
                if not wanted.isdisjoint(leaf.key for leaf in leaves(self.algebra.resolve(axis))):
                    if len(dims) > 1:
                        return name, d
                    gain = gain or (name, d)
            waiting += [source for source in node.all_input_nodes if source not in seen]
            seen.update(node.all_input_nodes)
        return gain

    def _apply(self, node: Node) -> Dims | list[Dims]:
        if node.target is operator.getitem:
            source: Any = node.args[0]
            index: Any = node.args[1]
            several = self.axes[source]
            return several[int(index)] if isinstance(several, list) else several
        name = op_name(node)
        found = rule_of(name, node.target)
        if found is None:
            if self._touches_axes(node):
                self.unknown.add(name)
            return self._freeze_call(node, f"frozen by {place(node)}, an op without a rule")
        result, why = None, ""
        try:
            result = self._ruled(found, node)
        except NOT_COVERED as error:
            why = f": {error}" if isinstance(error, NotCovered) else ""
        if result is None or not _fits(result, node.meta.get("val")):
            return self._freeze_call(node, f"frozen by {place(node)}, whose rule doesn't cover this use{why}")
        return result

    def _ruled(self, found: Rule, node: Node) -> Dims | list[Dims] | None:
        """What a rule says of a call; of a stack that it only rearranges, for each slice."""
        source = node.args[0] if node.args else None
        if not isinstance(source, Node) or source not in self.stacks or not rearranges(node, self.stacks[source].dim):
            return found(Call(self, node))
        stack, results = self.stacks.pop(source), list[Dims]()
        try:
            for dims in stack.slices:
                self.axes[source] = dims
                results.append(cast("Dims", found(Call(self, node))))
                self.merge_slices(node, place(node))  # a slice is not taken apart any further
        finally:
            self.axes[source], self.stacks[source] = stack.slices[0], stack
        self.stacks[node] = Stack(moved(node, stack.dim), results)
        return results[0]

    def merge_slices(self, node: Node, where: str) -> None:
        """Make the slices of a stack one."""
        if (stack := self.stacks.pop(node, None)) is not None:
            for axes in zip(*stack.slices, strict=True):
                self.merge(axes, where)

    def merge(self, axes: Sequence[Axis], where: str) -> None:
        """Make them one."""
        for axis in axes[1:]:
            self.algebra.unify(axes[0], axis, where)

    def is_mixed(self, node: Node) -> bool:
        """Whether a node is a stack of slices with different units."""
        slices = self.stacks[node].slices if node in self.stacks else ()
        return len({tuple(map(self.algebra.resolve, dims)) for dims in slices}) > 1

    def _touches_axes(self, node: Node) -> bool:
        """Whether a call has a dimension to freeze: one that reads a single number, as `item()` does, has none."""
        val: Any = node.meta.get("val")
        values = [val, *(source.meta.get("val") for source in node.all_input_nodes)]
        return any(leaf.dim() > 0 for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor))

    def _freeze_call(self, node: Node, reason: str) -> Dims | list[Dims]:
        for source in node.all_input_nodes:
            self._freeze_node(source, reason)
        value: Any = node.meta.get("val")
        if isinstance(value, tuple | list):
            return [self._fresh(item, reason) for item in cast("list[Any]", value)]
        return self._fresh(value, reason)

    def _fresh(self, value: Any, reason: str) -> Dims:
        return tuple(self.algebra.leaf(int(n), reason) for n in value.shape) if isinstance(value, Tensor) else ()

    def _freeze_node(self, node: Node, reason: str) -> None:
        slices = self.stacks[node].slices if node in self.stacks else ()
        for axis in (*flat(self.axes.get(node, ())), *flat([*slices])):
            self.algebra.freeze(axis, reason)


def _fits(dims: Dims | list[Dims], value: Any) -> bool:
    """Whether a rule gave as many results, with as many dimensions of the right sizes, as the call has."""
    if isinstance(dims, list):
        several = cast("list[Any]", value) if isinstance(value, tuple | list) else []
        return len(dims) == len(several) and all(map(_fits, dims, several))
    if value is None:  # a result that the call was not asked for
        return dims == ()
    return isinstance(value, Tensor) and tuple(size(axis) for axis in dims) == tuple(value.shape)
