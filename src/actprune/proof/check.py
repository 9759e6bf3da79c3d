"""`verify`: proof that the cut model computes what the plan and the rewrite promise.

Both sides are captured graphs, run in float64: the dense one with zero columns for the cut units, and a fresh
capture of the cut model. They are compared twice, on the real weights and on redrawn ones, because a norm
with zero gain hides every slicing error behind it. Then the eager cut model is compared with its own graph.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from actprune.allocation.cost import cost
from actprune.axes.capture import Graph, capture
from actprune.axes.expr import Indices, kept_indices, size
from actprune.errors import CaptureError, EquivalenceError
from actprune.graph.lift import lift
from actprune.graph.program import Batch, Program, op_name, place, shape
from actprune.graph.run import run
from actprune.graph.trace import call_arguments, preserved
from actprune.plan import Plan
from actprune.proof.reference import cut_tensors, pruned_reference, redrawn
from actprune.rewrite import Rewrite, kept_units
from actprune.surgery.modules import attributes
from actprune.surgery.slicing import sliced

TOLERANCE = 1e-9
"""Largest relative error in float64: max|a − b| / max|a| over all outputs."""

EAGER_TOLERANCE = 1e-4
"""The same between the eager cut model and its own graph, in the model's precision."""


@dataclass(frozen=True)
class Proof:
    """What was compared, and how far apart the two sides were.

    Attributes:
        passed: whether every check held.
        max_rel_error: the larger of the float64 errors on real and on redrawn weights.
        real_error, redrawn_error: these two.
        eager_error: the cut model against its own graph in its own precision.
        params, macs: measured on the cut model, equal to the prediction where `passed`.
        failure: what failed first, or None.
        seconds: time taken.
    """

    passed: bool
    max_rel_error: float
    real_error: float
    redrawn_error: float
    eager_error: float
    params: int
    macs: int
    failure: str | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        state = "proved" if self.passed else f"FAILED ({self.failure})"
        return (
            f"{state}: float64 error {self.real_error:.1e} on the real weights, {self.redrawn_error:.1e} on redrawn "
            f"ones; eager against graph {self.eager_error:.1e}; {self.params:,} parameters, {self.macs:,} MACs"
        )


def verify(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    inputs: Any,
    *,
    rewrite: Rewrite | None = None,
    graph: Graph | None = None,
    check: bool = True,
    seed: int = 0,
) -> Proof:
    """Prove that `small` is `model` cut by `plan` with the weights of `rewrite`.

    Args:
        model: the dense model.
        small: the cut model, exactly as it will be returned.
        inputs: one batch of real inputs, as for `capture`.
        rewrite: the rewrite that `small` was cut with, if any.
        graph: the dense model's graph, if it was captured already (with inputs of these shapes).
        check: raise when the proof fails; otherwise return a Proof that says so.

    Raises:
        EquivalenceError: some check failed; the message names the first node that differs.
    """
    started = time.perf_counter()
    dense = graph if graph is not None else capture(model, inputs)
    batch = dense.program.flatten(*call_arguments(model, inputs))
    figures = {"real_error": float("inf"), "redrawn_error": float("inf"), "eager_error": float("inf")}
    params = macs = 0
    failure = _wrong_structure(small, plan)
    if failure is None:
        try:
            after = capture(small, inputs)
        except CaptureError as error:
            after, failure = None, f"the cut model can't be captured: {error.got}"
        if after is not None:
            measured = cost(after)
            params, macs = measured.params, measured.macs
            failure = _wrong_cost(dense, plan, params, macs)
            own = rewrite.tensors if rewrite is not None else {}
            reference = pruned_reference(dense, plan, own)
            figures["real_error"], found = _compare(dense, plan, reference, after.program, {}, batch, "real weights")
            failure = failure or found
            drawn = redrawn(dense.program, own, seed)
            figures["redrawn_error"], found = _compare(
                dense,
                plan,
                pruned_reference(dense, plan, drawn),
                after.program,
                cut_tensors(plan, dense.program, after.program, drawn),
                batch,
                "redrawn weights",
                varied=True,
            )
            failure = failure or found
            if dense.training is not None and failure is None:
                failure = _compare_training(dense, plan, after, drawn, batch)
            figures["eager_error"], found = _eager_against_graph(small, after.program, inputs, batch)
            failure = failure or found
    worst = max(figures["real_error"], figures["redrawn_error"])
    proof = Proof(
        failure is None, worst, **figures, params=params, macs=macs, failure=failure,
        seconds=time.perf_counter() - started,
    )  # fmt: skip
    if check and failure is not None:
        raise EquivalenceError(
            f"The cut {plan.model} does not compute what the plan promises.",
            expected=f"relative error below {TOLERANCE:g} in float64, predicted shapes, parameters and MACs",
            got=f"max relative error {worst:.3g}",
            where=failure,
            hint="protect the groups of that module and plan again; if no module of yours writes down a size "
            "that the cut changes, please report this",
        )
    return proof


def _wrong_structure(small: nn.Module, plan: Plan) -> str | None:
    """Tensors whose shape isn't the predicted one, and torch.nn modules whose attributes contradict theirs."""
    state = dict(small.named_parameters(remove_duplicate=False)) | dict(small.named_buffers(remove_duplicate=False))
    for name in plan.dims:
        if name in state and tuple(state[name].shape) != plan.shape(name):
            return f"{name} has shape {tuple(state[name].shape)}, the plan predicts {plan.shape(name)}"
    for path, module in small.named_modules():
        for attribute, value in attributes(module).items():
            if getattr(module, attribute) != value:
                return f"{path}.{attribute} is {getattr(module, attribute)}, its tensors say {value}"
    return None


def _wrong_cost(dense: Graph, plan: Plan, params: int, macs: int) -> str | None:
    predicted = cost(dense, plan.widths)
    if (predicted.params, predicted.macs) != (params, macs):
        return (
            f"measured {params:,} parameters and {macs:,} MACs, predicted {predicted.params:,} and {predicted.macs:,}"
        )
    return None


def _compare(
    dense: Graph,
    plan: Plan,
    reference: Mapping[str, Tensor],
    cut: Program,
    tensors: Mapping[str, Tensor],
    batch: Batch,
    what: str,
    varied: bool = False,
) -> tuple[float, str | None]:
    """Relative error of the outputs, and the first difference where it is too large."""
    try:
        expected = run(dense.program, batch, reference, lifted=True)
        found = run(cut, batch, tensors, lifted=True)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        return float("inf"), f"the graph of the cut model does not run: {error}"
    worst = relative_error(expected, found)
    if not all(bool(torch.isfinite(e).all()) for e in _floats(expected)):
        return float("inf"), f"an output is not finite on {what}"
    if varied and _floats(expected) and all(float(e.max() - e.min()) == 0 for e in _floats(expected)):
        return float("inf"), f"every output is constant on {what}: nothing would be proved"
    if worst <= TOLERANCE:
        return worst, None
    return worst, f"{_first_difference(dense, plan, reference, cut, tensors, batch)} (on {what})"


def _compare_training(
    dense: Graph, plan: Plan, after: Graph, drawn: Mapping[str, Tensor], batch: Batch
) -> str | None:
    """The branches that only exist in training mode, on redrawn weights (training updates statistics in place)."""
    if dense.training is None or after.training is None:
        return "the training branches of the cut model can't be captured"
    sides = replace(dense, program=dense.training, node_axes={}), replace(after, program=after.training)
    tensors = cut_tensors(plan, dense.training, after.training, drawn)
    found = _compare(sides[0], plan, pruned_reference(dense, plan, drawn), sides[1].program, tensors, batch, "training")
    return found[1]


def relative_error(expected: tuple[Any, ...], found: tuple[Any, ...]) -> float:
    """max|a − b| / max|a| over all outputs; infinite where shapes, or values that aren't floats, differ."""
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if not isinstance(a, Tensor):
            worst = worst if a == b or not isinstance(b, Tensor) else float("inf")
        elif a.shape != b.shape or (not a.is_floating_point() and not torch.equal(a, b)):
            worst = float("inf")
        elif a.is_floating_point() and a.numel():
            error = float((a - b).abs().max()) / max(float(a.abs().max()), 1e-300)
            worst = max(worst, error) if error == error else float("inf")
    return worst


def _first_difference(
    dense: Graph,
    plan: Plan,
    reference: Mapping[str, Tensor],
    cut: Program,
    tensors: Mapping[str, Tensor],
    batch: Batch,
) -> str:
    """The first node at which the dense values, sliced as the axes predict, are not the cut model's."""
    mine = [node for node in dense.program.nodes if node.op == "call_function"]
    theirs = [node for node in cut.nodes if node.op == "call_function"]
    if [op_name(node) for node in mine] != [op_name(node) for node in theirs]:
        return "the outputs (the two graphs have different nodes)"
    kept = kept_units(dense, plan)
    widths = {group.key: plan.widths[group.name] for group in dense.groups}
    twin = dict(zip(mine, theirs, strict=True))
    for node, other in twin.items():
        dims = dense.node_axes.get(node.name)
        if isinstance(dims, tuple) and tuple(size(axis, widths) for axis in dims) != shape(other):
            return f"{place(node)}: shape {shape(other)}, predicted {tuple(size(axis, widths) for axis in dims)}"
    values: dict[str, Tensor] = {}

    def remember(node: Node, args: tuple[Any, ...], value: Any) -> None:
        if isinstance(value, Tensor):
            values[node.name] = value.clone()

    run(dense.program, batch, reference, lifted=True, observe=remember)
    expected = dict(values)
    values.clear()
    run(cut, batch, tensors, lifted=True, observe=remember)
    for node, other in twin.items():
        dims = dense.node_axes.get(node.name)
        if node.name in expected and isinstance(dims, tuple) and other.name in values:
            index: list[Indices | None] = [kept_indices(axis, kept) for axis in dims]
            error = relative_error((sliced(expected[node.name], index),), (values[other.name],))
            if error > TOLERANCE:
                return f"{place(node)}: relative error {error:.3g}"
    return "the outputs"


def _eager_against_graph(small: nn.Module, program: Program, inputs: Any, batch: Batch) -> tuple[float, str | None]:
    args, kwargs = call_arguments(small, inputs)
    with preserved(small), torch.no_grad():
        small.eval()
        eager = tuple(pytree.tree_leaves(small(*args, **kwargs)))
    error = relative_error(lift(eager), lift(run(program, batch)))
    return error, None if error <= EAGER_TOLERANCE else "the eager cut model against its own graph"


def _floats(values: tuple[Any, ...]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor) and value.is_floating_point() and value.numel()]
