"""One random network put through everything: capture, a random plan, cut, proof, and checks that share none of it."""

from __future__ import annotations

import copy
import random
import time
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from actprune.axes.capture import Graph, capture
from actprune.axes.expr import positions
from actprune.errors import CaptureError
from actprune.graph.run import run
from actprune.graph.weight_norm import weights_of
from actprune.plan import Plan, make_plan
from actprune.proof.check import verify
from actprune.proof.trial import at_fault, cannot_follow
from actprune.repair.adapt import beyond_repair
from actprune.rewrite import Rewrite, zero_columns
from actprune.surgery.slicing import cut
from random_nets import Net, Random, inputs, leaves

EXACT, ROUNDED = 1e-9, 1e-6
"""Largest relative error in float64; and where lengths of a weight norm are written in float32."""


@dataclass(frozen=True)
class Outcome:
    """What became of a network.

    Attributes:
        state: "proved", "refused" (nothing could be captured or cut) or "wrong".
        reason: why it was refused, or what is wrong with it.
        groups: number of groups that the axes allow.
        lost: group name → why the class could not follow a cut there.
        mixed: whether masks were needed, since an activation meets another one.
        seconds: time taken.
    """

    state: str
    reason: str = ""
    groups: int = 0
    lost: Mapping[str, str] | None = None
    mixed: bool = False
    seconds: float = 0.0


class _WrongError(Exception):
    """Something that must hold does not."""


def attempt(net: Net) -> Outcome:
    """Build, capture, cut and check one network. Whatever goes wrong is in the outcome."""
    started = time.perf_counter()
    model = Random(net).eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch on itself: of flat weights, of groups that are not contiguous …
            found = _attempted(net, model)
    except Exception as error:  # whatever the engine raises is a finding
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = str(error) if isinstance(error, _WrongError) else f"{type(error).__name__}: {error} ({place.name})"
        found = Outcome("wrong", said)
    return Outcome(found.state, found.reason, found.groups, found.lost, found.mixed, time.perf_counter() - started)


def _attempted(net: Net, model: nn.Module) -> Outcome:
    batch = inputs(net, net.batch)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        graph = capture(model, batch)
    except CaptureError as error:
        return Outcome("refused", f"capture: {error.got}")
    _check_account(model, graph)
    every = len(graph.groups)
    lost = beyond_repair(graph)
    graph = graph.without(lost)
    lost |= cannot_follow(model, graph, batch)
    graph = graph.without(lost)
    if not graph.groups:
        return Outcome("refused", _why(every), every, lost)
    plan, small, failure = _cut(net, model, graph, batch)
    while failure is not None:
        culprits = at_fault(model, graph, plan, batch, cut)
        if not culprits:
            raise _WrongError(f"the proof fails, yet no group is at fault: {failure}")
        lost, graph = lost | culprits, graph.without(culprits)
        if not graph.groups:
            return Outcome("refused", _why(every), every, lost)
        plan, small, failure = _cut(net, model, graph, batch)
    _check_plan(model, small, plan)
    _check_values(net, model, graph, plan)
    _check_training(net, model, small)
    _check_untouched(model, before)
    return Outcome("proved", "", every, lost, bool(graph.masks))


def _why(groups: int) -> str:
    return "the class can't follow any cut" if groups else "nothing can be cut"


def _cut(net: Net, model: nn.Module, graph: Graph, batch: Any) -> tuple[Plan, nn.Module, str | None]:
    """A random plan over all groups, the cut network, and what its proof says."""
    draw = random.Random(repr(net))
    kept = {g.name: draw.sample(range(g.width), draw.randint(1, g.width)) for g in graph.groups}
    first = graph.groups[0]
    kept[first.name] = kept[first.name][: first.width - 1]
    for name, peers in graph.peers.items():
        count = len(kept[peers[0]])
        kept[name] = kept[name] if len(kept[name]) == count else draw.sample(range(graph[name].width), count)
    plan = make_plan(graph, kept)
    small = cut(model, plan)
    return plan, small, verify(model, small, plan, batch, graph=graph, check=False).failure


# -- checks ------------------------------------------------------------------------------------------------


def _check_account(model: nn.Module, graph: Graph) -> None:
    """Prunable and frozen are all there is: every dimension of every tensor has groups, or a reason."""
    account = graph.account()
    entries = {(entry.tensor, entry.dim): entry for entry in account}
    keys = [group.key for group in graph.groups]
    total = prunable = 0
    for name, tensor in model.named_parameters():
        free = torch.ones(tensor.shape, dtype=torch.bool)
        for d in range(tensor.dim()):
            entry = entries.get((name, d))
            if entry is None or not (entry.groups or (entry.frozen and all(entry.frozen))):
                raise _WrongError(f"the account leaves out dimension {d} of {name}, or gives no reason")
            for key in keys:
                held = torch.as_tensor(positions(graph.tensor_axes[name][d], key) >= 0)
                free &= ~held.view(-1, *[1] * (tensor.dim() - d - 1))
        total += tensor.numel()
        prunable += int((~free).sum())
    if (total, prunable) != (account.parameters, account.prunable):
        raise _WrongError(f"the account says {account.prunable} of {account.parameters}, counted {prunable} of {total}")


def _check_plan(model: nn.Module, small: nn.Module, plan: Plan) -> None:
    """The plan survives JSON, and something is smaller."""
    if Plan.from_json(plan.to_json()) != plan:
        raise _WrongError("the plan read back from JSON is another one")
    sizes = [sum(p.numel() for p in network.parameters()) for network in (model, small)]
    if not sizes[1] < sizes[0] or type(small) is not type(model):
        raise _WrongError(f"{sizes[1]} parameters of {sizes[0]} are left in a {type(small).__name__}")


def _check_values(net: Net, model: nn.Module, graph: Graph, plan: Plan) -> None:
    """Redrawn dense weights are cut anew; the eager result in float64 against the dense program with zero columns."""
    dense = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in (*dense.named_parameters(), *dense.named_buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)
                if "running_var" in name:
                    tensor.abs_().add_(0.1)
    held = dict(dense.named_parameters(remove_duplicate=False)) | dict(dense.named_buffers(remove_duplicate=False))
    tensors = {name: held[name].detach() for name in graph.program.persistent}
    tensors |= weights_of(graph.program.normed, tensors)  # which the program reads in place of directions and lengths
    overrides = tensors | zero_columns(graph, plan, Rewrite(tensors), lifted=True)
    batch = inputs(net, net.batch, seed=1)
    args, kwargs = _arguments(batch)
    expected = run(graph.program, graph.program.flatten(args, kwargs), overrides, lifted=True)
    small = cut(dense, plan).double().eval()
    with torch.no_grad():
        found = leaves(call(small, pytree.tree_map_only(Tensor, _wide, batch)))
    for a, b in zip([out for out in expected if isinstance(out, Tensor)], found, strict=True):
        error = float((a - b).abs().max() / a.abs().max().clamp_min(1e-300)) if a.shape == b.shape else float("inf")
        if not error <= (ROUNDED if graph.program.normed else EXACT):
            raise _WrongError(f"eager in float64 against the dense program with zero columns: {error:.3g}")


def _check_training(net: Net, model: nn.Module, small: nn.Module) -> None:
    """A backward step in training mode with another batch size, wherever the dense network takes one."""
    found: list[Any] = []
    for network in (copy.deepcopy(model), copy.deepcopy(small)):
        network.train()
        torch.manual_seed(0)
        try:
            outputs = [out for out in leaves(call(network, inputs(net, net.batch + 2, seed=2))) if out.requires_grad]
            torch.stack([out.square().sum() for out in outputs]).sum().backward()
        except Exception as error:  # whatever a user's forward raises
            found.append(f"{type(error).__name__}: {error}")
            continue
        names = [name for name, p in network.named_parameters() if p.grad is not None]
        found.append((names, [tuple(out.shape) for out in outputs]))
    if not isinstance(found[0], str) and found[0] != found[1]:
        raise _WrongError(f"another batch size in training: {found[1]} instead of {found[0]}")


def _check_untouched(model: nn.Module, before: Mapping[str, Tensor]) -> None:
    after = model.state_dict()
    same = after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    if not same or any(module.training for module in model.modules()):
        raise _WrongError("the dense model is not as it was")


def _wide(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def call(network: nn.Module, batch: Any) -> Any:
    """On a copy: a forward may change its inputs in place."""
    args, kwargs = _arguments(pytree.tree_map_only(Tensor, Tensor.clone, batch))
    return network(*args, **kwargs)


def _arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(batch, dict):
        return (), batch
    return (batch if isinstance(batch, tuple) else (batch,)), {}
