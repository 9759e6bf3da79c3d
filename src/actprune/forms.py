"""The form of the smaller network: the user's class, or the captured graph as a module.

The class is repaired so that it fits its smaller tensors, and what it can't follow is frozen. The graph is no class
that writes down sizes, so nothing is frozen or tied on its account; it has neither dropout nor branches of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from actprune.allocation.cost import cost
from actprune.axes.account import over_norms
from actprune.axes.capture import Graph
from actprune.axes.capture import capture as captured
from actprune.axes.normed import asked
from actprune.errors import CaptureError, PlanError, UnsupportedModelError
from actprune.graph.digest import digest
from actprune.graph.output_kinds import tensor_outputs
from actprune.graph.rebuilt import Rebuilt, name_of
from actprune.graph.sizes import Sizes
from actprune.plan import Plan, make_plan
from actprune.proof.trial import cannot_follow, first_samples
from actprune.repair.adapt import adapt
from actprune.rewrite import Rewrite
from actprune.surgery.graph_form import as_graph
from actprune.surgery.graph_names import check_names, taken
from actprune.surgery.slicing import cut

FORMS = ("class", "graph", "auto")

PROOF_SAMPLES = 4
PROOF_WORK, SINGLE_WORK = 4e9, 1e12
"""A batch of so many multiply-adds is too much for float64: the proof then takes so many samples of it, and one where
these take as many as the second number."""

WORTHWHILE = 0.5
"""Share of the parameters that the graph could lose some of which "auto" wants the class to be able to lose."""


@dataclass(frozen=True, eq=False)
class Form:
    """A captured model, and the form in which it is cut.

    Attributes:
        name: "class" or "graph".
        graph: with the groups that this form can carry a cut of.
        norms: as it was captured.
        other: for "auto", the graph to go over to when the class can follow too little.
    """

    name: str
    graph: Graph
    norms: bool | str
    other: Graph | None = None

    def cut(self, model: nn.Module, plan: Plan, rewrite: Rewrite | None = None) -> nn.Module:
        """`model` cut by `plan`, in this form."""
        return cut(model, plan, rewrite) if self.name == "class" else as_graph(model, self.graph, plan, rewrite)

    def few(self, model: nn.Module, inputs: Any) -> tuple[Graph, Any]:
        """The graph and the inputs that the proof takes: those of the capture, or of a few samples of a large batch."""
        batch, macs = self.graph.program.batch_size, cost(self.graph).macs
        samples = 1 if PROOF_SAMPLES * macs > SINGLE_WORK else PROOF_SAMPLES
        if batch <= samples or macs * batch <= PROOF_WORK:
            return self.graph, inputs
        short = first_samples(inputs, batch, samples)
        try:
            whole = captured(model, short, norms=self.norms)
        except CaptureError:  # a class that takes no batch but its own
            return self.graph, inputs
        graph = adapt(whole) if self.name == "class" else alone(whole)
        known = {group.name: group.width for group in graph.groups}
        same = all(known.get(group.name) == group.width for group in self.graph.groups)
        return (graph, short) if same else (self.graph, inputs)

    def without(self, reasons: Mapping[str, str]) -> Form:
        """With some groups frozen (name → reason); with "auto" the graph, where too little is left of the class."""
        rest = self.graph.without(reasons)
        if self.other is not None and rest.account().prunable < WORTHWHILE * self.other.account().prunable:
            return Form("graph", self.other, self.norms)
        return replace(self, graph=rest)

    @property
    def note(self) -> dict[str, Any]:
        """What a plan says of its form: for a graph also what it takes to see that another capture gives the same."""
        if self.name == "class":
            return {"form": self.name, **({} if self.norms == "auto" else {"norms": self.norms})}
        program = self.graph.program
        shapes = [list(value.shape) for value in program.example if isinstance(value, Tensor)]
        return {"form": self.name, "norms": self.norms, "program": digest(program), "inputs": shapes}


def capture_form(model: nn.Module, inputs: Any, form: str, *, norms: bool | str = "auto", seed: int = 0) -> Form:
    """Capture `model` for one of the `FORMS`.

    Raises:
        CaptureError: the model can't be traced with these inputs, or `norms` is none of `NORMS`.
        UnsupportedModelError: nothing in it can be cut in this form, or a graph can't have its names.
    """
    norms = asked(norms)
    whole = captured(model, inputs, norms=norms)
    names = sorted(whole.program.held)
    if form == "graph":
        check_names(names, whole.program.model_name)
        found = Form("graph", alone(whole), norms)
    else:
        other = alone(whole) if form == "auto" and not any(map(taken, names)) else None
        found = Form("class", adapt(whole), norms, other)
        found = found.without(cannot_follow(model, found.graph, inputs, seed=seed))
    if not found.graph.groups:
        raise UnsupportedModelError(
            f"Nothing in {name_of(model)} can be cut.",
            expected="at least one layer whose units only linear layers and convolutions consume",
            got="no prunable group",
            where="capture",
            hint=nothing_left(model, found, whole, form),
        )
    return found


def nothing_left(model: nn.Module, found: Form, whole: Graph, form: str) -> str:
    """What to do about a model of which no group is left.

    Args:
        whole: the graph before anything in it was frozen.
        form: the one that was asked for.
    """
    helps = _what_helps(whole, "its own" if isinstance(model, Rebuilt) else form, found.norms)
    return f"{helps}the account says why:\n{found.graph.account().briefly()}"


def _what_helps(graph: Graph, form: str, norms: bool | str) -> str:
    """With what something could be cut."""
    normed = any(map(over_norms, graph.frozen.values()))
    ways = ['form="graph" for the captured graph in place of the class'] if form == "class" and graph.groups else []
    ways += ["norms=True to cut what norms and means run over"] if normed and norms is not True else []
    if len(tensor_outputs(graph.program)) > 1 and any("model output" in whys for whys in graph.frozen.values()):
        ways += ["a wrapper whose forward returns less, for all that this one returns stays whole (states, features)"]
    return f"try {' or '.join(ways)}; " if ways else ""


def alone(graph: Graph) -> Graph:
    """The graph without its class: no sizes that the class writes down, no branches that only exist in training."""
    program = replace(graph.program, sizes=Sizes())
    masks = {name: mask for name, mask in graph.masks.items() if name in program.tensors}
    return replace(graph, program=program, training=None, training_sites=(), masks=masks)


def replayed_graph(model: nn.Module, plan: Plan, inputs: Any) -> nn.Module:
    """The graph form that `plan` was made for, from a fresh capture of the dense `model`.

    Args:
        inputs: a batch of any size.

    Raises:
        CaptureError: the model can't be traced with these inputs.
        PlanError: the capture is not the one that the plan was made for.
    """
    inputs = _resized(inputs, plan.note.get("inputs"))
    graph = alone(captured(model, inputs, norms=plan.norms))
    found = digest(graph.program)
    if found != plan.note.get("program"):
        raise _another("calls", str(plan.note.get("program"))[:16], found[:16])
    groups = {group.name: group.width for group in graph.groups}
    if cut := [name for name, group in plan.groups.items() if groups.get(name) != group.width]:
        width = plan.groups[cut[0]].width
        raise _another(f"group {cut[0]!r}", f"{width} units", f"{groups.get(cut[0], 'none')}")
    again = make_plan(graph, {name: group.kept for name, group in plan.groups.items()})
    if wrong := [name for name in {**again.dims, **plan.dims} if not _same_units(again, plan, name)]:
        raise _another(f"cut of {wrong[0]}", "the units of the plan", "others")
    return as_graph(model, graph, again)


def _resized(inputs: Any, shapes: Any) -> Any:
    """A batch in the size that a plan was made with: its first samples, or all of them several times over; as it is
    where that does not lead to the shapes of its plan."""
    tensors = [value for value in pytree.tree_leaves(inputs) if isinstance(value, Tensor)]
    if not shapes or len(shapes) != len(tensors):
        return inputs
    differ = [(value, shape) for value, shape in zip(tensors, shapes, strict=True) if list(value.shape) != shape]
    sizes = {(len(value), shape[0]) for value, shape in differ if value.dim() and shape}
    if len(sizes) != 1 or any(list(value.shape[1:]) != shape[1:] or not value.dim() for value, shape in differ):
        return inputs
    ((own, wanted),) = sizes
    chosen, batched = torch.arange(wanted) % own, {id(value) for value, _ in differ}
    return pytree.tree_map_only(
        Tensor, lambda value: value[chosen.to(value.device)] if id(value) in batched else value, inputs
    )


def _same_units(a: Plan, b: Plan, tensor: str) -> bool:
    pairs = zip(a.indices(tensor), b.indices(tensor), strict=False)
    return (tensor in a.dims) == (tensor in b.dims) and all(
        p is q if p is None or q is None else np.array_equal(p, q) for p, q in pairs
    )


def _another(what: str, expected: str, got: str) -> PlanError:
    return PlanError(
        "The captured graph is not the one that the plan was made for.",
        expected=f"{what}: {expected}",
        got=got,
        where="capture",
        hint="build the dense model as before pruning (with its weights, where branches depend on them), with the same "
        "versions of torch and of its code, and take inputs of the shapes that it was pruned with",
    )
