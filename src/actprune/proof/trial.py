"""A trial before the work: can the eager class follow every cut that the axes allow?

A forward pass may write down a size (`view(b, 12, 64)`, `x[:, :32]`, an attribute) that a cut makes wrong. Where it
then raises, a cheap trial finds out before statistics are gathered; where it runs and computes something else, the
proof does. Either way the groups at fault are found by bisection and frozen, with the reason, and the plan is made
without them. The proof of a plan may fail where no trial did: then its own units are tried, a part of its groups at a
time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils import _pytree as pytree

from actprune.axes.capture import Graph
from actprune.axes.picked import keys_of
from actprune.errors import EquivalenceError, PlanError
from actprune.graph.frames import raised_in
from actprune.graph.in_training import has_branches
from actprune.graph.keep import apart, copied, in_eval
from actprune.graph.program import holds_samples, op_name, place
from actprune.graph.refusal import first_line
from actprune.graph.trace import call_arguments
from actprune.mapped import any_mapped
from actprune.plan import Plan, make_plan
from actprune.proof.check import verify
from actprune.repair.adapt import blamed, trial_units
from actprune.rewrite import Rewrite
from actprune.surgery.modules import submodule
from actprune.surgery.slicing import cut

Test = Callable[[Sequence[str]], str | None]
"""Names of groups to cut → what goes wrong, or None."""

Cut = Callable[[nn.Module, Plan, Rewrite | None], nn.Module]
"""(model, plan, rewrite) → the cut model."""


def cannot_follow(model: nn.Module, graph: Graph, inputs: Any, *, seed: int = 0) -> dict[str, str]:
    """The groups that `model`'s class can't follow, of those that its recorded sizes allow: name → reason.

    Args:
        graph: as `actprune.capture` gives it, without what the sizes forbid.
        inputs: as for `capture`.
    """

    model, inputs = _shapes_alone(model, inputs)

    def test(names: Sequence[str]) -> str | None:
        plan = make_plan(graph, trial_units(graph, names, seed))
        try:
            small = cut(model, plan)
        except PlanError as error:
            return _refused(error)
        return _runs(model, small, inputs, graph.program.batch_size)

    culprits = _culprits(test, [group.name for group in graph.groups], _alike(model, graph), graph.together)
    return {name: blamed(reason) for name, reason in culprits.items()}


def at_fault(
    model: nn.Module,
    graph: Graph,
    plan: Plan,
    inputs: Any,
    make: Cut,
    *,
    rewrite: Rewrite | None = None,
    seed: int = 0,
) -> dict[str, str]:
    """The groups because of which a plan can't be cut or proved: name → reason.

    Args:
        make: (model, plan, rewrite) → the cut model.

    Returns:
        Nothing where the plan is proved after all, or where not even a copy with every unit is: no group is to blame.
    """

    def test(names: Sequence[str]) -> str | None:
        part = make_plan(graph, {name: plan.groups[name].kept for name in graph.together(names)})
        try:
            small = make(model, part, rewrite)
        except PlanError as error:
            return _refused(error)
        return verify(model, small, part, inputs, rewrite=rewrite, graph=graph, check=False, seed=seed).failure

    if test(()) is not None:
        return {}
    names = [name for name, group in plan.groups.items() if len(group.kept) < group.width]
    culprits = _culprits(test, names, _alike(model, graph), graph.together, lambda failure: _at(graph, failure))
    return {name: f"a cut here can't be proved: {reason}" for name, reason in culprits.items()}


def unprovable(
    model: nn.Module, graph: Graph, inputs: Any, make: Cut, *, rewrite: Rewrite | None = None, seed: int = 0
) -> EquivalenceError | None:
    """The error for a model of which not even a copy with every unit is proved; None where one is.

    What a recorded run has read from tensors is the same number ever after, whatever the weights are.
    """
    plan = make_plan(graph, {})
    failure = verify(
        model, make(model, plan, rewrite), plan, inputs, rewrite=rewrite, graph=graph, check=False, seed=seed
    ).failure
    if failure is None:
        return None
    quantized = [node for node in graph.program.nodes if op_name(node).startswith("quantized.")]
    return EquivalenceError(
        f"{plan.model} can't be proved, whether it is cut or not.",
        expected="calls that are the same whatever the weights are",
        got=f"{place(quantized[0])}: its weights are quantized" if quantized else failure,
        where="verify",
        hint="prune the model as it was before it was quantized, and quantize what is left"
        if quantized
        else "a number that forward reads from a tensor (int(x.argmax()), x.item(), x.tolist()) changes what it "
        "computes: keep it a tensor (torch.gather, torch.where), or prune the parts of the model around that one",
    )


def _refused(error: PlanError) -> str:
    """Of a size in the source that can't be rewritten."""
    return f"{error.where}: {error.got}"


def _culprits(
    test: Test,
    names: Sequence[str],
    alike: Mapping[str, tuple[str, ...]],
    together: Callable[[Sequence[str]], list[str]],
    suspected: Callable[[str], set[str]] = lambda failure: set(),
) -> dict[str, str]:
    """Groups without which the others pass: name → how it failed with them.

    Args:
        alike: name → what groups share that the same code makes.
        together: groups → all that have to be cut with them.
        suspected: a failure → the groups of the call that it names, which are tried first.
    """
    culprits: dict[str, str] = {}
    failures: Counter[tuple[str, ...]] = Counter()
    while names and (failure := test(names)) is not None:
        first = suspected(failure)
        names = sorted(names, key=lambda name: name not in first)
        name, reason = _first_culprit(test, names, failure, sum(name in first for name in names))
        failures[alike[name]] += 1
        # where the same code failed twice, its other instances are not tried one by one
        every = together([n for n in names if alike[n] == alike[name]] if failures[alike[name]] > 1 else [name])
        culprits |= dict.fromkeys(every, reason)
        names = [n for n in names if n not in every]
    return culprits


def _first_culprit(test: Test, names: Sequence[str], failure: str, likely: int = 0) -> tuple[str, str]:
    """The first group with which those before it fail, and how: also one that fails only beside another.

    Args:
        likely: so many at the front are tried by themselves first.
    """
    passes, fails = 0, len(names)
    while fails - passes > 1:
        middle = likely if passes < likely < fails == len(names) else (passes + fails) // 2
        found = test(names[:middle])
        if found is None:
            passes = middle
        else:
            fails, failure = middle, found
    return names[fails - 1], failure


def _at(graph: Graph, failure: str) -> set[str]:
    """The groups of the call that the message of a failure names."""
    calls = [node for node in graph.program.nodes if node.op == "call_function"]
    named = [node for node in calls if re.search(re.escape(place(node)) + r"(?![\w.])", failure)]
    keys = frozenset[int]().union(*(keys_of(graph, value) for node in named for value in (node, *node.all_input_nodes)))
    return {group.name for group in graph.groups if group.key in keys}


def _alike(model: nn.Module, graph: Graph) -> dict[str, tuple[str, ...]]:
    """Group name → what two groups share that the same code makes."""
    found: dict[str, tuple[str, ...]] = {}
    for group in graph.groups:
        module = group.producers[0].module
        parent = submodule(model, module.rpartition(".")[0])
        found[group.name] = (
            group.kind,
            type(parent).__qualname__,
            module.rpartition(".")[2],
            group.name.partition("#")[2],
        )
    return found


def _runs(model: nn.Module, small: nn.Module, inputs: Any, batch: int) -> str | None:
    """Why `small` does not run, or gives outputs of another shape than `model`, on two samples where `model` can."""
    given = next(
        (x for x in (first_samples(inputs, batch, 2), inputs) if not isinstance(_shapes(model, x), str)), inputs
    )
    expected, found = _shapes(model, given), _shapes(small, given)
    if isinstance(found, str):
        return found
    if expected != found:
        return f"the outputs would have shapes {found} instead of {expected}"
    failure = _shapes(small, given, training=True) if has_branches(model) else None
    fails = isinstance(failure, str) and not isinstance(_shapes(model, given, training=True), str)
    return f"in training mode {failure}" if fails else None


def _shapes_alone(model: nn.Module, inputs: Any) -> tuple[nn.Module, Any]:
    """A twin without values of a model that lies in files, for a trial looks at nothing else; the model itself where it
    is no such model, or does not run so."""
    if not any_mapped(model.parameters()):
        return model, inputs
    twin = copied(model, sharing=True).to("meta")
    moved = pytree.tree_map_only(Tensor, lambda value: value.to("meta"), inputs)
    return (model, inputs) if isinstance(_shapes(twin, moved), str) else (twin, moved)


def _shapes(network: nn.Module, inputs: Any, *, training: bool = False) -> list[tuple[int, ...]] | str:
    """The shapes of the outputs, or what was raised."""
    args, kwargs = call_arguments(network, inputs)
    with in_eval(network), apart(0):
        try:
            if training:
                network.train()
            outputs = pytree.tree_leaves(_called(network, args, kwargs))
        except Exception as error:  # whatever a user's forward raises on sizes it did not expect
            return f"{first_line(error)}{raised_in(error)}"
    return [tuple(out.shape) for out in outputs if isinstance(out, Tensor)]


def _called(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The outputs; of a network on the meta device their shapes, as if it were on a CPU: code that asks for the device
    or for values then takes the way that it takes in an export."""
    if not any(parameter.is_meta for parameter in network.parameters()):
        return network(*args, **kwargs)
    held = dict(network.named_parameters()) | dict(network.named_buffers())
    with FakeTensorMode():

        def fake(value: Tensor) -> Tensor:
            return torch.empty(value.shape, dtype=value.dtype)

        args, kwargs = pytree.tree_map_only(Tensor, fake, (args, kwargs))
        return functional_call(network, {name: fake(value) for name, value in held.items()}, args, kwargs)


def first_samples(inputs: Any, batch: int, count: int) -> Any:
    """The first samples of an example batch of `batch` samples."""

    def short(value: Any) -> Any:
        return value[:count] if holds_samples(value, batch) else value

    return pytree.tree_map(short, inputs)
