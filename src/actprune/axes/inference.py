"""One walk over a program that gives every dimension of every tensor its axis expression.

The walk knows no op. For each ATen call it looks up a rule (`axes/rules/`), which says how the dimensions of
the result relate to those of the arguments. An op without a rule freezes every axis that it touches.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, TypeVar, cast

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.algebra import Algebra
from actprune.axes.expr import ONE, Axis, leaves, size
from actprune.axes.site import Dims, Mixing, Site, Term
from actprune.axes.stored import StoredTensors
from actprune.axes.twins import TWINS
from actprune.graph.program import Program, module_path, named_arguments, op_name, place, shape

Rule: TypeAlias = "Callable[[Call], Dims | list[Dims]]"
"""A rule may raise one of `NOT_COVERED` on a use that it doesn't know: what the call touches is then frozen.

`NotCovered` says why; the others are what Python raises of arguments that a rule has not reckoned with."""

AnyRule = TypeVar("AnyRule", bound=Rule)


class NotCovered(ValueError):
    """A use of an op that its rule knows that it doesn't follow."""


NOT_COVERED = (IndexError, ValueError, TypeError, ZeroDivisionError)

RULES: dict[str, Rule] = {}
"""Op name, e.g. `aten.conv2d.default` or, for every overload, `aten.conv2d` → its rule."""


def rule(*names: str) -> Callable[[AnyRule], AnyRule]:
    """Register one function as the rule of these ops."""

    def register(function: AnyRule) -> AnyRule:
        for name in names:
            RULES[name] = function
        return function

    return register


def rule_of(name: str, target: Any = None) -> Rule | None:
    """The rule of an op: of this overload, of all its overloads, or of the pure op that it does in place.

    An op without one that torch itself tags as element-wise, such as most special functions, has that of `add`.
    """
    packet = name.rpartition(".")[0]
    pure = packet[:-1] if packet.endswith("_") and not packet.endswith("__") else packet
    found = next((RULES[key] for key in (name, packet, pure) if key in RULES), None)
    if found is None and torch.Tag.pointwise in getattr(target, "tags", ()):
        return RULES["aten.add"]
    return found


class Call:
    """One ATen call as a rule sees it: its arguments by their schema names, and the algebra."""

    def __init__(self, inference: Inference, node: Node) -> None:
        self.inference = inference
        self.node = node
        self.algebra = inference.algebra
        self.where = place(node)
        self._arguments = named_arguments(node)

    def __getitem__(self, name: str) -> Any:
        return self._arguments.get(name)

    @property
    def values(self) -> list[Any]:
        return list(self._arguments.values())

    def shape(self, value: Any = None) -> tuple[int, ...]:
        """Shape of an argument, or of the result."""
        return shape(self.node if value is None else value)

    def axes(self, value: Any) -> Dims:
        """The axes of an argument; none for a number or an absent one."""
        found = self.inference.axes.get(value, ()) if isinstance(value, Node) else ()
        return tuple(self.algebra.resolve(axis) for axis in found) if isinstance(found, tuple) else ()

    def dim(self, rank: int) -> int:
        """The argument `dim` as an index from the front."""
        return int(self["dim"]) % rank

    def inside(self, name: str) -> bool:
        """Whether the call stands in a module of the class of that full name."""
        stack: dict[str, tuple[str, Any]] = self.node.meta.get("nn_module_stack") or {}
        return any(name == str(cls) for _, cls in stack.values())

    def unify(self, a: Axis, b: Axis) -> None:
        self.algebra.unify(a, b, self.where)

    def freeze(self, axis: Axis, why: str | None = None) -> None:
        self.algebra.freeze(axis, f"{why} by {self.where}" if why else f"frozen by {self.where}")

    def is_frozen(self, axis: Axis) -> bool:
        return all(self.algebra.frozen(leaf) for leaf in leaves(self.algebra.resolve(axis)))

    def fixed(self, units: int, why: str = "its size is fixed") -> Axis:
        """A new axis that can't be cut, such as a spatial one."""
        return self.algebra.leaf(units, f"{why} by {self.where}")

    def site(
        self, kind: str, weight: Any, bias: Any, in_dim: int, out_dim: int, groups: int = 1, source: Any = None
    ) -> None:
        """Note that this call contracts over a parameter.

        `in_dim` and `out_dim` are dimensions of `weight` as it reaches this call; transposes between the
        parameter and the call are undone. Zero columns in a weight that is computed first (weight norm, a product
        of two parameters) might not stay zero, so there the input is masked.

        Args:
            source: the input and the dimension of it that is contracted; needed for a weight that may be computed.
        """
        found, merged = self.inference.stored.find(weight), ()
        if found is None and (joined := self.inference.stored.joined(weight, in_dim)) is not None:
            found, merged = joined[:2], joined[2]
        kind, reads = (kind, True) if found is not None else ("computed", False)
        found = found or self.made_of(weight, out_dim)
        if found is None and (maker := self.inference.maker(weight, self.axes(weight)[out_dim])) is not None:
            name, out_dim = maker
            found, in_dim = (name, list(range(out_dim + 1))), out_dim
        if not reads:
            if source is None:
                self.freeze(self.axes(weight)[in_dim], "contracted with a computed weight")
            else:
                self.mixes(*source)
        if found is None:
            return
        name, order = found
        held = self.inference.stored.find(bias)
        self.inference.sites.append(
            Site(
                self.node.name,
                module_path(self.node),
                kind,
                name,
                None if held is None else held[0],
                order[in_dim],
                order[out_dim],
                groups,
                reads,
                tuple(order) if order != sorted(order) else (),
                merged,
            )
        )

    def made_of(self, weight: Any, out_dim: int) -> tuple[str, list[int]] | None:
        """The tensor of the state dict that a weight is computed from, if its outputs are one of that tensor's dims."""
        found = self.inference.stored.made_of(weight)
        if found is None:
            return None
        own = self.algebra.resolve(self.inference.tensors[found[0]][found[1][out_dim]])
        return found if own == self.axes(weight)[out_dim] else None

    def makes(self, kind: str, weight: Any, out_dim: int) -> None:
        """Note that units are made of the rows of a parameter that is not contracted, such as an embedding."""
        stored = self.inference.stored.find(weight)
        if stored is not None:
            name, order = stored
            out = order[out_dim]
            self.inference.sites.append(
                Site(self.node.name, module_path(self.node), kind, name, None, out, out, reads=False)
            )

    def mixes(self, value: Any, dim: int, gain: Callable[[int, int], float] | None = None) -> None:
        """Note that this call sums over dimension `dim` of an activation, against another activation.

        Of two operands that meet in a product it is enough to name one: what is zero in it counts for nothing.
        """
        self.inference.mixings.append(Mixing(self.node, value, dim % len(self.shape(value)), gain))

    def normalizes(self, value: Any, dim: int, why: str = "normalised over") -> None:
        """Note that this call takes a mean over dimension `dim` of an activation: cut only where that is asked for."""
        axis, twin = self.axes(value)[dim], TWINS.get(op_name(self.node))
        if not self.inference.norms or twin is None:
            self.freeze(axis, why)
        else:
            self.inference.mixings.append(Mixing(self.node, value, dim % len(self.shape(value)), twin=twin))
            self.inference.normalized.append(axis)

    def aligns(self, axis: Axis, units: int) -> None:
        """Note that the size of an axis has to stay a multiple of `units`: what a kernel demands of its strides."""
        self.inference.multiples.append((axis, units))

    def attends(self, axes: Iterable[Axis]) -> None:
        """Note the axes that run beside each other through a product of two activations, such as heads."""
        self.inference.parallel += axes

    def macs(self, axes: Iterable[Axis], factor: float = 1.0) -> None:
        """This call costs `factor` × the product of the sizes of `axes` multiply-adds."""
        self.inference.terms.append(Term(tuple(axes), factor))


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
        normalized: those axes, if so.
        multiples: axes whose size has to stay a multiple of a number.
        unknown: op names without a rule.
        stored: which tensors of the model its calls read.
    """

    def __init__(self, norms: bool = False) -> None:
        self.norms = norms
        self.normalized: list[Axis] = []
        self.algebra = Algebra()
        self.axes: dict[Node, Dims | list[Dims]] = {}
        self.tensors: dict[str, Dims] = {}
        self.sites: list[Site] = []
        self.terms: list[Term] = []
        self.mixings: list[Mixing] = []
        self.parallel: list[Axis] = []
        self.multiples: list[tuple[Axis, int]] = []
        self.unknown: set[str] = set()
        self.stored = StoredTensors()

    def walk(self, program: Program) -> None:
        """Infer the axes of every node of `program`."""
        own = {name: self._tensor(program, name, tensor) for name, tensor in program.tensors.items()}
        for node in program.nodes:
            if node.op == "placeholder":
                name = program.bindings.get(node.name)
                if name is None:
                    self.axes[node] = tuple(self.algebra.leaf(n, "model input") for n in shape(node))
                    continue
                self.axes[node] = own[name]
                if name in program.held:
                    self.stored.names[node] = name
            elif node.op == "call_function":
                self.axes[node] = self._apply(node)
            elif node.op == "output":
                for out in node.all_input_nodes:
                    self._freeze_node(out, "model output")

    def _tensor(self, program: Program, name: str, tensor: Tensor) -> Dims:
        """The axes of a tensor of the model; a constant has its own in every program, since only its name recurs."""
        if name in program.held:
            if name not in self.tensors:
                self.tensors[name] = tuple(self.algebra.leaf(int(n)) for n in tensor.shape)
            return self.tensors[name]
        dims = tuple(self.algebra.leaf(int(n), "a constant of the forward pass") for n in tensor.shape)
        self.tensors.setdefault(name, dims)
        return dims

    def operand_axis(self, mixing: Mixing) -> Axis:
        """What a mixing sums over."""
        found = self.axes[mixing.operand]
        return self.algebra.resolve(found[mixing.dim]) if isinstance(found, tuple) else ONE

    def maker(self, value: Node, units: Axis) -> tuple[str, int] | None:
        """The nearest tensor that a computed weight is made of and that has some of `units`, and its dimension of them.

        Sliced, reshaped, mixed from several: what it is made of need not have its shape.
        """
        wanted = {leaf.key for leaf in leaves(self.algebra.resolve(units))} - {ONE.key}
        waiting, seen = [value], {value}
        while waiting and len(seen) < _FAR:
            node = waiting.pop(0)
            name = self.stored.names.get(node, "")
            for d, axis in enumerate(self.tensors.get(name, ())):
                if not wanted.isdisjoint(leaf.key for leaf in leaves(self.algebra.resolve(axis))):
                    return name, d
            waiting += [source for source in node.all_input_nodes if source not in seen]
            seen.update(node.all_input_nodes)
        return None

    def _apply(self, node: Node) -> Dims | list[Dims]:
        if node.target is operator.getitem:
            source: Any = node.args[0]
            index: Any = node.args[1]
            several = self.axes[source]
            return several[int(index)] if isinstance(several, list) else several
        name = op_name(node)
        found = rule_of(name, node.target)
        if found is None:
            self.unknown.add(name)
            return self._freeze_call(node, f"frozen by {place(node)}, an op without a rule")
        result, why = None, ""
        try:
            result = found(Call(self, node))
        except NOT_COVERED as error:
            why = f": {error}" if isinstance(error, NotCovered) else ""
        if result is None or not _fits(result, node.meta.get("val")):
            return self._freeze_call(node, f"frozen by {place(node)}, whose rule doesn't cover this use{why}")
        return result

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
        found = self.axes.get(node, ())
        for dims in found if isinstance(found, list) else [found]:
            for axis in dims:
                self.algebra.freeze(axis, reason)


def _fits(dims: Dims | list[Dims], value: Any) -> bool:
    """Whether a rule gave as many results, with as many dimensions of the right sizes, as the call has."""
    if isinstance(dims, list):
        several = cast("list[Any]", value) if isinstance(value, tuple | list) else []
        return len(dims) == len(several) and all(map(_fits, dims, several))
    return isinstance(value, Tensor) and tuple(size(axis) for axis in dims) == tuple(value.shape)
