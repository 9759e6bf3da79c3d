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

from torch import Tensor, nn

from actprune.allocation.cost import Cost, cost
from actprune.axes.capture import Graph, capture
from actprune.axes.picked import picking
from actprune.errors import CaptureError, EquivalenceError, PlanError
from actprune.graph.program import Batch
from actprune.graph.trace import call_arguments
from actprune.plan import Plan, check_plan
from actprune.proof.by_call import Sides, misshapen
from actprune.proof.compare import compare
from actprune.proof.difference import TOLERANCE
from actprune.proof.eager import EAGER_TOLERANCE, eager_against_graph, state_of
from actprune.proof.reference import cut_tensors, pruned_reference, redrawn
from actprune.repair.adapt import adapt
from actprune.rewrite import Rewrite
from actprune.surgery.modules import attributes, stated
from actprune.surgery.tensors import sliced

_EQUAL = f"relative error up to {TOLERANCE:g} in float64"
_SHAPES = "the shapes that the plan predicts, and modules that say the same"


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
        EquivalenceError: some check failed; the message says which, with its figures, and names the first node that
            differs.
        PlanError: the plan is for another model.
    """
    check_plan(plan, "verify")
    started = time.perf_counter()
    dense = graph if graph is not None else dense_graph(model, plan, inputs)
    if dense.program.architecture != plan.architecture:
        raise PlanError(
            "The plan does not fit this model.",
            expected=f"a plan for {dense.program.model_name} with its parameter names, shapes and dtypes",
            got=f"a plan for {plan.model} with other ones",
            where="verify",
            hint="pass the dense model that the plan was made for",
        )
    batch = dense.program.flatten(*call_arguments(model, inputs))
    base = rewrite.tensors if rewrite is not None else {}
    found = _Found()
    found.note(_wrong_structure(model, small, plan), _SHAPES)
    found.note(_wrong_bystander(dense, small, plan, base), "tensors that the plan slices, and no others changed")
    if found.failure is None:
        _compare_graphs(found, dense, small, plan, inputs, batch, base, seed)
    proof = Proof(
        passed=found.failure is None,
        max_rel_error=max(found.real_error, found.redrawn_error),
        real_error=found.real_error,
        redrawn_error=found.redrawn_error,
        eager_error=found.eager_error,
        params=found.params,
        macs=found.macs,
        failure=found.failure,
        seconds=time.perf_counter() - started,
    )
    if check and proof.failure is not None:
        raise EquivalenceError(
            f"The cut {plan.model} does not compute what the plan promises.",
            expected=found.expected,
            got=found.got,
            where=found.where,
            hint="protect the groups of that module and plan again; if no module of yours writes down a size "
            "that the cut changes, please report this",
        )
    return proof


def dense_graph(model: nn.Module, plan: Plan, inputs: Any) -> Graph:
    """A capture of the dense model with the groups that the plan's form has: what a class knows by one number is tied.

    Raises:
        CaptureError: the model can't be traced with these inputs.
    """
    whole = capture(model, inputs, norms=plan.norms)
    return whole if plan.note.get("form") == "graph" else adapt(whole)


@dataclass
class _Found:
    """The figures of a proof as they are found; the first failure stays, with what a message says of it."""

    real_error: float = float("inf")
    redrawn_error: float = float("inf")
    eager_error: float = float("inf")
    params: int = 0
    macs: int = 0
    failure: str | None = None
    expected: str = ""
    got: str = ""
    where: str = ""

    def note(self, failure: str | None, expected: str, error: float = float("inf")) -> None:
        """What a check found: a text that tells all of it, or one that tells the place of a finite `error`."""
        if self.failure is not None or failure is None:
            return
        self.failure, self.expected = failure, expected
        self.got, self.where = failure, "verify"
        if error < float("inf"):
            self.got, self.where = f"relative error {error:.3g} of the outputs", failure


def _compare_graphs(
    found: _Found,
    dense: Graph,
    small: nn.Module,
    plan: Plan,
    inputs: Any,
    batch: Batch,
    base: Mapping[str, Tensor],
    seed: int,
) -> None:
    """Capture the cut model and compare: costs, real weights, redrawn weights, training branches, eager."""
    try:
        after = capture(small, inputs, like=dense.program)
    except CaptureError as error:
        found.note(f"the cut model can't be captured: {error.got}", "a class that runs at its new sizes")
        return
    measured = cost(after)
    found.params, found.macs = measured.params, measured.macs
    found.note(_wrong_cost(dense, plan, measured), "the parameters and MACs that the plan predicts")
    real = Sides(dense, plan, pruned_reference(dense, plan, base), after.program, {}, batch, "real weights")
    found.real_error, failure = compare(real)
    found.note(failure, _EQUAL, found.real_error)
    found.note(misshapen(real) if failure is None else None, _SHAPES)
    drawn = redrawn(dense.program, base, seed)
    found.redrawn_error, failure = compare(
        replace(
            real,
            reference=pruned_reference(dense, plan, drawn),
            tensors=cut_tensors(plan, dense.program, after.program, drawn, base),
            what="redrawn weights",
        ),
        varied=True,
    )
    found.note(failure, _EQUAL, found.redrawn_error)
    if dense.training is not None and found.failure is None:
        found.note(_wrong_training(dense, after, plan, drawn, base, batch), _EQUAL)
    found.eager_error, failure = eager_against_graph(small, after.program, inputs, batch)
    found.note(failure, f"relative error up to {EAGER_TOLERANCE:g}, in the model's own precision", found.eager_error)


def _wrong_structure(model: nn.Module, small: nn.Module, plan: Plan) -> str | None:
    """Tensors whose shape isn't the predicted one, and torch.nn modules whose attributes contradict theirs."""
    state = {name: held for name, held in state_of(small).items() if isinstance(held, Tensor)}
    for name in plan.dims:
        for alias in plan.aliases.get(name, (name,)):
            if alias in state and tuple(state[alias].shape) != plan.shape(name):
                return f"{alias} has shape {tuple(state[alias].shape)}, the plan predicts {plan.shape(name)}"
    true = {path: stated(module) for path, module in model.named_modules()}
    for path, module in small.named_modules():
        for attribute, value in attributes(module).items():
            if attribute in true.get(path, ()) and getattr(module, attribute) != value:
                return f"{path}.{attribute} is {getattr(module, attribute)}, its tensors say {value}"
    return None


def _wrong_bystander(dense: Graph, small: nn.Module, plan: Plan, base: Mapping[str, Tensor]) -> str | None:
    """Tensors that no run reads (unused layers) are compared directly."""
    state = state_of(small)
    for name in dense.program.persistent - dense.used:
        own = base.get(name, dense.program.tensors[name])
        expected = sliced(own, plan.indices(name))
        if name not in state or not same_values(expected, state[name].detach().to(expected.device)):
            return f"{name}, which the forward pass never reads, was changed"
    return None


def same_values(a: Tensor, b: Tensor) -> bool:
    """Equal, NaN to NaN included (a layer that is never used may be uninitialised)."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _wrong_cost(dense: Graph, plan: Plan, measured: Cost) -> str | None:
    predicted = cost(dense, plan.widths)
    if predicted.params == measured.params and (predicted.macs == measured.macs or picking(dense)):
        return None  # how many rows the data picks depends on the weights, so the cut network's MACs are its own
    return (
        f"measured {measured.params:,} parameters and {measured.macs:,} MACs, "
        f"predicted {predicted.params:,} and {predicted.macs:,}"
    )


def _wrong_training(
    dense: Graph, after: Graph, plan: Plan, drawn: Mapping[str, Tensor], base: Mapping[str, Tensor], batch: Batch
) -> str | None:
    """The branches that only exist in training mode, on redrawn weights."""
    if dense.training is None or after.training is None:
        return "the training branches of the cut model can't be captured"
    sides = Sides(
        replace(dense, program=dense.training, node_axes={}),
        plan,
        pruned_reference(dense, plan, drawn),
        after.training,
        cut_tensors(plan, dense.training, after.training, drawn, base),
        dense.program.repeated(batch, dense.training.batch_size // dense.program.batch_size),
        "the branches of training mode",
    )
    error, failure = compare(sides)
    return None if failure is None else f"{failure}, relative error {error:.3g}"
