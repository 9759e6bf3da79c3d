"""The record of the sizes that a forward pass writes down, and where: data, made by `size_recorder`.

Every call that takes sizes (`reshape`, `split`, `x[:, :n]`, `zeros`, …) is noted with the expression of each size and
what the axes have to say about it: the size of a result's dimension, or a bound within a dimension. From these,
`actprune.repair` finds what must change in the user's class once tensors have become smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from types import CodeType
from typing import Any

from actprune.graph.numbers import Expr, variables
from actprune.graph.size_arguments import NUMBER


@dataclass(frozen=True)
class Place:
    """Where in the user's source a call stands.

    Attributes:
        module: path of the module whose method runs; None where no module's does.
        code: the function that makes the call.
        callers: the functions between that module's method and `code`, outermost first; empty if they are the same.
        span: first line, first column, last line, last column of the call.
        holder: the attribute of that module that holds the first of these functions, or the plain object whose method
            it is; None where it is a method of the module.
    """

    module: str | None
    code: CodeType = field(repr=False, compare=False)
    callers: tuple[CodeType, ...] = field(repr=False, compare=False)
    span: tuple[int, int, int, int]
    holder: str | None = None


CALL = "actprune_call"
"""Under this name a node's annotations hold the number of the call that made it."""

INSISTS = -2
"""The slot of a size that no argument gives: a function insists that its tensors have it."""


@dataclass(frozen=True)
class SizeUse:
    """One size that a call was given.

    Attributes:
        value: the size in the dense model; a float where it is a number computed from sizes, such as a scale.
        expr: what it was computed from; its "shape" leaves name nodes, or "@" and a tensor of the model.
        role: what the axes say about it; dimensions are those of a call's result or of the tensor it is given.
            ("size", node, dim): the size of that dimension;
            ("bound", node, dim): a place in that dimension, which is sliced;
            ("part", node, dim, start, stop): how many of its entries lie between these two places;
            ("times", node, source, dim): how often that dimension of the source is repeated;
            ("groups", node, dim): into how many groups that dimension is divided;
            ("fixed", node): a number that no cut may change; the call that it is given to, or None;
        ("equal", None): the difference of two numbers that the class compared; one that a cut would change is no fault
            as long as the class runs, but tells which attributes belong to a size;
            ("follows", node, dim, size, call): a number that changes with the size of that dimension, which is the part
            `size` of its expression, and how is provided for in the graph (`actprune.repair.scales`); ("unknown",).
        op: the name of the function that was called.
        slot: which argument of the call it is, counted over all of its sizes; `count` of them there are.
        place: the call.
    """

    value: Any
    expr: Expr
    role: tuple[Any, ...]
    op: str
    slot: int
    count: int
    place: Place

    @property
    def is_in_formula(self) -> bool:
        """Whether it is part of the class's own arithmetic, where no number in the source can take its place.

        `torch.tensor(q.size(-1))` is none: the dense model's number may be written there.
        """
        return self.role[0] in ("fixed", "equal", "follows") and not (self.role[0] == "fixed" and self.op in NUMBER)


@dataclass(frozen=True, eq=False)
class Sizes:
    """The record of one capture.

    Attributes:
        uses: every size, in order.
        attributes: ("attr", holder, path) → its value in the dense model. A holder is a module's path, or the number
            of an object that modules share, such as a configuration.
        owners: number of a shared object → (module path, attribute) of every module that holds it.
        rebuilt: whether the model is built anew, so that its own code sets attributes that nothing reads.
        optional: keys of `attributes` that need not be right: where one can't, its sizes are seen to by other means.
    """

    uses: tuple[SizeUse, ...] = field(default=(), repr=False)
    attributes: Mapping[tuple[Any, ...], int] = field(default_factory=dict[tuple[Any, ...], int], repr=False)
    owners: Mapping[int, tuple[tuple[str, str], ...]] = field(
        default_factory=dict[int, tuple[tuple[str, str], ...]], repr=False
    )
    rebuilt: bool = False
    optional: frozenset[tuple[Any, ...]] = frozenset()

    def with_training(self, other: Sizes) -> Sizes:
        """These, and those of `other`, the record of training mode, that stand at other places in the source."""
        known = {(use.place, use.place.code, use.slot) for use in self.uses}
        more = [in_training(use) for use in other.uses if (use.place, use.place.code, use.slot) not in known]
        attributes, owners = {**other.attributes, **self.attributes}, {**other.owners, **self.owners}
        return replace(self, uses=(*self.uses, *more), attributes=attributes, owners=owners)

    def without(self, leaves: Container[Any]) -> Sizes:
        """Without the uses that are computed from one of these attributes."""
        left = tuple(use for use in self.uses if not any(leaf in leaves for leaf in variables(use.expr)))
        return replace(self, uses=left)


TRAINING = "training/"
"""Precedes the names of nodes in the program of training mode: names recur in two programs."""


def in_training(use: SizeUse) -> SizeUse:
    """A size of the record of training mode, under the names that its program's nodes have beside the other's."""

    def named(name: Any, dim: int | None = None) -> Any:
        return TRAINING + name if isinstance(name, str) and not name.startswith("@") else name

    kind, *role = use.role
    return replace(use, expr=renamed(use.expr, named), role=(kind, *map(named, role)))


def renamed(expr: Expr, named: Callable[[Any, int], Any]) -> Expr:
    """The expression with what its sizes are read from (and in which dimension) under other names."""
    if isinstance(expr, int | float):
        return expr
    if expr[0] == "shape":
        return ("shape", named(expr[1], expr[2]), expr[2])
    return expr if expr[0] == "attr" else (expr[0], renamed(expr[1], named), renamed(expr[2], named))
