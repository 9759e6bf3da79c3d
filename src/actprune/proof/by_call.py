"""The dense program and that of the cut model call by call: where they first differ, and what outputs don't show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.axes.expr import Indices, kept_indices, size
from actprune.axes.masks import calls
from actprune.axes.picked import picked
from actprune.graph.program import Batch, Program, op_name, place, shape
from actprune.graph.run import run
from actprune.graph.values import is_float
from actprune.plan import Plan
from actprune.proof.difference import TOLERANCE, difference, varies
from actprune.rewrite import kept_units
from actprune.surgery.tensors import sliced

_COPIES = ("aten.contiguous.default", "aten.clone.default")

_RECTIFIERS = "aten.relu", "aten.threshold", "aten.clamp", "aten.hardtanh", "aten.hardsigmoid"
"""What the names of calls begin with that may give one number whatever they read."""

_UNWRITTEN = "aten.empty", "aten.new_empty"
"""The same of calls whose results hold whatever was in memory."""


@dataclass(frozen=True, eq=False)
class Sides:
    """What is compared.

    Attributes:
        dense: the dense graph; its axes say how each value of it is cut.
        reference: overrides of the dense program, with zero columns where units are cut.
        cut: the program of the cut model.
        tensors: overrides of the cut program.
        batch: inputs of both.
        what: which weights these are, for messages.
    """

    dense: Graph
    plan: Plan
    reference: Mapping[str, Tensor] = field(repr=False)
    cut: Program
    tensors: Mapping[str, Tensor] = field(repr=False)
    batch: Batch = field(repr=False)
    what: str


def first_difference(sides: Sides) -> str:
    """The first node at which the dense values, sliced as the axes predict, are not the cut model's."""
    pairs = _pairs(sides)
    if pairs is None:
        return "the outputs (the two graphs have different nodes)"
    return _first_shape(sides, pairs) or _first_value(sides, pairs) or "the outputs"


def misshapen(sides: Sides) -> str | None:
    """The first node whose shape isn't the predicted one, though the outputs agree.

    A view that writes down the number of heads runs on after a head was cut, with heads of another size. Where they
    weigh little (all tokens alike, an attention that is nearly even) the outputs may differ by less than any tolerance.
    """
    pairs = _pairs(sides)
    return None if pairs is None else _first_shape(sides, pairs)


def _pairs(sides: Sides) -> list[tuple[Node, Node]] | None:
    """Every call of the dense program with that of the cut one; None if they are not the same.

    Copies are left out: export drops one where a cut leaves nothing to be moved.
    """
    mine, theirs = (
        [node for node in calls(program) if op_name(node) not in _COPIES]
        for program in (sides.dense.program, sides.cut)
    )
    if [op_name(node) for node in mine] != [op_name(node) for node in theirs]:
        return None
    return list(zip(mine, theirs, strict=True))


def _first_shape(sides: Sides, pairs: list[tuple[Node, Node]]) -> str | None:
    kept = kept_units(sides.dense, sides.plan)  # a fresh capture may have groups that were frozen in the plan's
    widths = {group.key: len(kept.get(group.key, range(group.width))) for group in sides.dense.groups}
    for node, other in pairs:
        dims = sides.dense.node_axes.get(node.name)
        if picked(sides.dense, node) or (0 in shape(node) and 0 in shape(other)):
            continue  # the cut network, with its own weights, may pick more rows or fewer; and nothing has any shape
        if isinstance(dims, tuple) and (predicted := tuple(size(axis, widths) for axis in dims)) != shape(other):
            return f"{place(node)}: shape {shape(other)}, predicted {predicted}"
    return None


def _first_value(sides: Sides, pairs: list[tuple[Node, Node]]) -> str | None:
    found = ((node, error) for node, error in _errors(sides, pairs) if error > TOLERANCE)
    return next((f"{place(node)}: relative error {error:.3g}" for node, error in found), None)


def _errors(sides: Sides, pairs: list[tuple[Node, Node]]) -> Iterator[tuple[Node, float]]:
    """Every call whose axes are known, with the relative error of the cut model's value."""
    kept = kept_units(sides.dense, sides.plan)
    expected = _values(sides.dense.program, sides.batch, sides.reference)
    found = _values(sides.cut, sides.batch, sides.tensors)
    for node, other in pairs:
        dims = sides.dense.node_axes.get(node.name)
        if op_name(node).startswith(_UNWRITTEN):
            continue
        if node.name in expected and other.name in found and isinstance(dims, tuple):
            index: list[Indices | None] = [kept_indices(axis, kept) for axis in dims]
            yield node, difference(sliced(expected[node.name], index), found[other.name])


def behind_whole_numbers(sides: Sides) -> float | None:
    """Relative error of the last floats in front of outputs that are none: a class is the same whatever the scores,
    but for their order. None where the two graphs have different nodes."""
    pairs = _pairs(sides)
    if pairs is None:
        return None
    last = [(a, b) for a, b in pairs if _decides(a)]
    return max((error for _, error in _errors(sides, last)), default=None)


def inside(sides: Sides) -> float | None:
    """Largest relative error of any call, where decisions make the outputs the same for all samples: spikes that never
    come, in front of a last layer with a bias or without, or a ReLU behind it that lets nothing through.

    None where nothing is decided, where the two graphs have different nodes, or where what a layer reads that loses
    columns is constant too: which columns are whose doesn't show then.
    """
    pairs, program = _pairs(sides), sides.dense.program
    if pairs is None:
        return None
    values = _values(program, sides.batch, sides.reference)
    if not any(_decides(node) or _is_silent(node, values) for node, _ in pairs):
        return None
    cut = {name for name, group in sides.plan.groups.items() if len(group.kept) < group.width}
    layers = {site.node for group in sides.dense.groups if group.name in cut for site in group.consumers}
    read = [
        [values[source.name] for source in node.all_input_nodes if source.name in values]
        for node in program.nodes
        if node.name in layers
    ]
    if not all(any(map(varies, several)) for several in read if several):
        return None
    return max((error for _, error in _errors(sides, pairs)), default=None)


def _decides(node: Node) -> bool:
    """Whether it gives floats that become something else, such as a yes or no."""
    calls_of = (user for user in node.users if user.op == "call_function")
    return _gives_floats(node) and not all(map(_gives_floats, calls_of))


def _is_silent(node: Node, values: Mapping[str, Tensor]) -> bool:
    """Whether it is a rectifier that gives one number whatever it reads: depths, counts that are all below zero."""
    if not op_name(node).startswith(_RECTIFIERS) or node.name not in values or varies(values[node.name]):
        return False
    return any(varies(values[source.name]) for source in node.all_input_nodes if source.name in values)


def _gives_floats(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and is_float(value)


def _values(program: Program, batch: Batch, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Node name → its value in float64."""
    values: dict[str, Tensor] = {}

    def remember(node: Node, args: tuple[Any, ...], value: Any) -> None:
        if isinstance(value, Tensor):
            values[node.name] = value.clone()

    run(program, batch, tensors, lifted=True, observe=remember)
    return values
