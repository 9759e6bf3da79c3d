"""One ATen call as its rule sees it, and the table of rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
from torch.fx import Node

from actprune.axes.expr import Axis, leaves
from actprune.axes.site import Dims, Form, Mixing, Site, Term
from actprune.axes.stacks import Stack
from actprune.axes.twins import TWINS
from actprune.graph.program import module_path, named_arguments, op_name, place, shape

if TYPE_CHECKING:
    from actprune.axes.inference import Inference

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
        if not isinstance(value, Node):
            return ()
        self.inference.merge_slices(value, self.where)
        found = self.inference.axes.get(value, ())
        return tuple(self.algebra.resolve(axis) for axis in found) if isinstance(found, tuple) else ()

    def stack(self, value: Any) -> Stack | None:
        """The stack that an argument is; None of what is none."""
        return self.inference.stacks.get(value) if isinstance(value, Node) else None

    def taken(self, value: Any, dim: int) -> Sequence[Dims] | None:
        """The axes of every slice of a stack along `dim`, without that dimension; None of what is no such stack."""
        stack = self.stack(value)
        if stack is None or stack.dim != dim:
            return None
        return [tuple(map(self.algebra.resolve, (*dims[:dim], *dims[dim + 1 :]))) for dims in stack.slices]

    def dim(self, rank: int) -> int:
        """The argument `dim` as an index from the front."""
        return int(self["dim"]) % rank

    def inside(self, name: str) -> bool:
        """Whether code of the class of that full name makes the call, not what a class made from it has instead."""
        stack: dict[str, tuple[str, Any]] = self.node.meta.get("nn_module_stack") or {}
        file = f"/{name.rpartition('.')[0].replace('.', '/')}.py"
        return any(name == str(cls) for _, cls in stack.values()) and file in self.node.meta.get("stack_trace", file)

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
        of two parameters) might not stay zero, so there the input is masked; so it is where training alone contracts
        a dimension of a weight (the power iteration of a spectral norm), which inference would do without.

        Args:
            source: the input and the dimension of it that is contracted; needed for a weight that may be computed.
        """
        found, merged, parted = self.inference.stored.find(weight), (), ()
        if found is None and (joined := self.inference.stored.joined(weight)) is not None:
            name, runs = joined
            found, merged, parted = (name, [run[0] for run in runs]), runs[in_dim][1:], runs[out_dim][1:]
        kind, reads = (kind, True) if found is not None else ("computed", False)
        if found is not None and source is not None and self.inference.leaves_columns(found[0], (found[1][in_dim],)):
            self.mixes(*source)
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
        held = self.inference.stored.find(bias) or self.inference.stored.flattened(bias)
        self._note(
            kind, name, order[in_dim], order[out_dim],
            bias=None if held is None else held[0], groups=groups, reads=reads,
            order=tuple(order) if order != sorted(order) else (), merged=merged, parted=parted,
        )  # fmt: skip

    def _note(self, kind: str, weight: str, in_dim: int, out_dim: int, bias: str | None = None, **more: Any) -> None:
        """Note a site of this call; `more` as for `Site`."""
        where = self.node.name, module_path(self.node)
        self.inference.sites.append(Site(*where, kind, weight, bias, in_dim, out_dim, **more))

    def stacked(self, weight: Any, ins: Sequence[int], outs: Sequence[int], stack: Sequence[int], form: Form) -> None:
        """Note that this call is a product for each matrix of a parameter, see `Form`; all are dimensions of `weight`
        as it reaches this call."""
        found = self.inference.stored.find(weight)
        if found is None:
            raise NotCovered("the weight is computed")
        name, order = found
        (first, *merged), (out, *parted) = sorted(order[d] for d in ins), sorted(order[d] for d in outs)
        form = replace(form, stack=tuple(order[d] for d in stack))
        self._note("stacked", name, first, out, merged=tuple(merged), parted=tuple(parted), form=form)

    def made_of(self, weight: Any, out_dim: int) -> tuple[str, list[int]] | None:
        """The tensor of the state dict that a weight is computed from, if its outputs are one of that tensor's dims."""
        found = self.inference.stored.made_of(weight)
        if found is None:
            return None
        own = self.algebra.resolve(self.inference.tensors[found[0]][found[1][out_dim]])
        return found if own == self.axes(weight)[out_dim] else None

    def makes(self, kind: str, weight: Any, out_dim: int) -> None:
        """Note that units are made of the rows of a parameter that is not contracted, such as an embedding, or of a
        table that is computed from it entry by entry."""
        found = self.inference.stored.find(weight)
        if found is None and self.inference.stored.made_alone(weight):
            kind, found = "computed", self.made_of(weight, out_dim)
        if found is not None:
            name, order = found
            self._note(kind, name, order[out_dim], order[out_dim], reads=False)

    def mixes(self, value: Any, dim: int, gain: Callable[[int, int], float] | None = None) -> None:
        """Note that this call sums over dimension `dim` of an activation, against another activation.

        Of two operands that meet in a product it is enough to name one: what is zero in it counts for nothing.
        """
        self.inference.mixings.append(Mixing(self.node, value, dim % len(self.shape(value)), gain))

    def normalizes(self, value: Any, dim: int, why: str = "normalised over") -> None:
        """Note that this call takes a mean or an extreme over dimension `dim`: see `actprune.axes.normed`."""
        axis, twin, known = self.axes(value)[dim], TWINS.get(op_name(self.node)), self.inference
        if not known.norms or twin is None or self.node in known.whole:
            self.freeze(axis, why)
        else:
            known.mixings.append(Mixing(self.node, value, dim % len(self.shape(value)), twin=twin))

    def aligns(self, axis: Axis, units: int) -> None:
        """Note that the size of an axis has to stay a multiple of `units`: what a kernel demands of its strides."""
        self.inference.multiples.append((axis, units))

    def counts(self, axes: Sequence[Axis]) -> None:
        """Note axes of which equally many units stay, because one number of the class counts each of them."""
        self.inference.counted.append(axes)

    def attends(self, axes: Iterable[Axis]) -> None:
        """Note the axes that run beside each other through a product of two activations, such as heads."""
        self.inference.parallel += axes

    def macs(self, axes: Iterable[Axis], factor: float = 1.0) -> None:
        """This call costs `factor` × the product of the sizes of `axes` multiply-adds."""
        self.inference.terms.append(Term(tuple(axes), factor))
