"""Two programs that should compute the same, run in float64 and compared: how far apart, and where first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.axes.expr import Indices, kept_indices, size
from actprune.axes.masks import calls
from actprune.axes.picked import picked
from actprune.graph.keep import forked_random
from actprune.graph.program import Batch, Program, op_name, place, shape
from actprune.graph.run import run
from actprune.graph.values import as_real, is_float
from actprune.mapped import alongside
from actprune.plan import Plan
from actprune.rewrite import kept_units
from actprune.surgery.tensors import sliced

TOLERANCE = 1e-9
"""Largest relative error in float64: max|a − b| / max|a| over all outputs."""

CHAOTIC, SHARE = 1e-5, 10
"""Where the network itself makes more of rounding, as recurrent ones over many steps do, the error may be so many times
what it makes of weights that are rounded otherwise, up to this."""

_COPIES = ("aten.contiguous.default", "aten.clone.default")

_UNWRITTEN = "aten.empty", "aten.new_empty"
"""What the names of calls begin with whose results hold whatever was in memory."""


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


def compare(sides: Sides, varied: bool = False) -> tuple[float, str | None]:
    """Relative error of the outputs, and the first difference where it is too large.

    Args:
        varied: outputs that are all constant prove nothing, and fail.
    """
    try:
        expected = seeded(sides.dense.program, sides.batch, sides.reference)
    except Exception as error:  # whatever an op raises
        return float("inf"), f"the dense graph does not run in float64: {_first_line(error)}"
    try:
        found = seeded(sides.cut, sides.batch, sides.tensors)
    except Exception as error:
        return float("inf"), f"the graph of the cut model does not run: {_first_line(error)}"
    floats = _floats(expected)
    unbounded = any(not bool(e.isfinite().all()) for e in floats) and _has_unbounded_weights(sides.dense.program)
    if unbounded or any(bool(e.isnan().any()) or not bool(e.isfinite().any()) for e in floats):
        return float("inf"), f"an output is not finite on {sides.what}"
    several = [as_real(e) for e in floats or _tensors(expected) if e.numel() > 1]
    constant = varied and bool(several) and not any(map(_varies, several))
    worst = relative_error(expected, found)
    if not floats and worst == 0 and (inner := _behind_whole_numbers(sides)) is not None:
        worst, constant = inner, False
    silent = constant or (varied and bool(floats) and all(map(_same_for_all, floats)))
    if silent and worst <= TOLERANCE and (inner := _inside(sides)) is not None:
        worst, constant = max(worst, inner), False
    if constant:
        return float("inf"), f"every output is constant on {sides.what}: nothing would be proved"
    rounding = _rounding(sides, expected) if TOLERANCE < worst < inf else 0.0
    if worst <= max(TOLERANCE, min(CHAOTIC, SHARE * rounding)):
        return worst, None
    chaos = f"; weights that are rounded otherwise make {rounding:.2g}" if rounding > TOLERANCE else ""
    return worst, f"{_first_difference(sides)} (on {sides.what}{chaos})"


def _rounding(sides: Sides, expected: Sequence[Any]) -> float:
    """Relative error, in float64, of the dense graph against itself with every weight rounded otherwise; 0 if it
    has none."""
    generator, program = torch.Generator().manual_seed(0), sides.dense.program

    def shaken(own: Tensor) -> Tensor:
        wide = own.detach().to("cpu", torch.promote_types(own.dtype, torch.float64))
        noise = torch.randn(wide.shape, generator=generator, dtype=torch.float64)
        return alongside(wide * (1 + torch.finfo(torch.float64).eps * noise), own)

    held = {name: sides.reference.get(name, own) for name, own in program.tensors.items()}
    rounded = {name: shaken(own) for name, own in held.items() if is_float(own) and own.layout == torch.strided}
    found = relative_error(expected, seeded(program, sides.batch, {**sides.reference, **rounded}))
    return found if isfinite(found) else 0.0  # a class that is another one tells nothing of the numbers


def seeded(program: Program, batch: Batch, tensors: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """In float64, and with the same random numbers on both sides: some forward passes draw noise in training mode."""
    with forked_random():
        torch.manual_seed(0)
        return run(program, batch, tensors, lifted=True)


def relative_error(expected: Sequence[Any], found: Sequence[Any]) -> float:
    """max|a − b| / max|a| over all outputs; infinite where shapes, or values that aren't floats, differ, and for NaN
    on one side."""
    if len(expected) != len(found):
        return float("inf")
    return max((_error(a, b) for a, b in zip(expected, found, strict=True)), default=0.0)


def _error(a: Any, b: Any) -> float:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        alike = type(a) is type(b) and (a == b or type(a).__eq__ is object.__eq__)  # which says no more than "the same"
        return 0.0 if alike else float("inf")
    if a.shape != b.shape or is_float(a) != is_float(b):
        return float("inf")
    if not is_float(a):
        return 0.0 if torch.equal(a, b) else float("inf")
    wide = torch.promote_types(a.dtype, torch.float64)
    a, b = a.detach().to(wide), b.detach().to(wide)
    there = a.isfinite()  # moves that are masked out are infinite, and the same on both sides
    if not bool(there.all()):
        if not torch.equal(a[~there], b[~there]):
            return float("inf")
        a, b = a[there], b[there]
    if not a.numel():
        return 0.0
    error = float((a - b).abs().max()) / max(float(a.abs().max()), 1e-300)
    return error if error == error else float("inf")


def _first_difference(sides: Sides) -> str:
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
            yield node, _error(sliced(expected[node.name], index), found[other.name])


def _has_unbounded_weights(program: Program) -> bool:
    """Whether infinite outputs may come of weights, and hide what they should show."""
    return any(not bool(program.tensors[name].isfinite().all()) for name in program.parameters)


def _behind_whole_numbers(sides: Sides) -> float | None:
    """Relative error of the last floats in front of outputs that are none: a class is the same whatever the scores,
    but for their order. None where the two graphs have different nodes."""
    pairs = _pairs(sides)
    if pairs is None:
        return None
    last = [(a, b) for a, b in pairs if _decides(a)]
    return max((error for _, error in _errors(sides, last)), default=None)


def _inside(sides: Sides) -> float | None:
    """Largest relative error of any call, where decisions make the outputs the same for all samples: spikes that never
    come, in front of a last layer with a bias or without.

    None where nothing is decided, where the two graphs have different nodes, or where what a layer reads that loses
    columns is constant too: which columns are whose doesn't show then.
    """
    pairs, program = _pairs(sides), sides.dense.program
    if pairs is None or not any(_decides(node) for node, _ in pairs):
        return None
    values = _values(program, sides.batch, sides.reference)
    cut = {name for name, group in sides.plan.groups.items() if len(group.kept) < group.width}
    layers = {site.node for group in sides.dense.groups if group.name in cut for site in group.consumers}
    read = [
        [values[source.name] for source in node.all_input_nodes if source.name in values]
        for node in program.nodes
        if node.name in layers
    ]
    if not all(any(map(_varies, several)) for several in read if several):
        return None
    return max((error for _, error in _errors(sides, pairs)), default=None)


def _decides(node: Node) -> bool:
    """Whether it gives floats that become something else, such as a yes or no."""
    calls_of = (user for user in node.users if user.op == "call_function")
    return _gives_floats(node) and not all(map(_gives_floats, calls_of))


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


def _floats(values: tuple[Any, ...]) -> list[Tensor]:
    return [value for value in _tensors(values) if is_float(value)]


def _tensors(values: tuple[Any, ...]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor) and value.numel()]


def _varies(value: Tensor) -> bool:
    """Whether what is finite of it is not all the same."""
    finite = value[value.isfinite()]
    return finite.numel() > 0 and bool((finite != finite[0]).any())


def _same_for_all(value: Tensor) -> bool:
    """Whether there are several samples (entries along the first dimension), and all are the same."""
    return value.dim() > 0 and len(value) > 1 and torch.equal(value, value[:1].expand_as(value))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
