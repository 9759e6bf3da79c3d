"""One model through the whole house: capture, plan, cut, proof, a training step, another batch size, one head less."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.coverage.attention import heads
from benchmarks.coverage.exercise import outputs_of, reloaded, train_step
from benchmarks.coverage.frozen import frozen_reasons
from benchmarks.coverage.suites.case import Case
from benchmarks.coverage.words import said
from torch import nn

import actprune as ap
from actprune.axes.capture import Graph
from actprune.keras3.network import KerasNetwork
from actprune.proof.trial import at_fault, cannot_follow

BATCH, OTHER_BATCH = 2, 3

KEEP = "units=70%"

ENOUGH = 0.9
"""A model counts only where the parameters fall below this share of the dense ones."""

Row = dict[str, Any]
Save = Callable[[Row], None]


def measure(case: Case, save: Save = lambda row: None) -> Row:
    """The row of one model. An error ends it, with the stage it came from; what was found until then stays.

    Args:
        save: called after each stage with the row so far, so that a process that is ended leaves what it found.
    """
    row: Row = {"ok": False, "failure": None, "stage": "capture", "notes": []}
    try:
        _measure(case, row, save)
    except Exception as error:  # whatever a model, torch or actprune raises is a result here
        row["failure"] = f"{row['stage']}: {said(error)}"
    row["ok"] = row["failure"] is None
    save(row)
    return row


def _measure(case: Case, row: Row, save: Save) -> None:
    model, inputs = case.model, case.inputs(BATCH)
    row["model_params"] = sum(p.numel() for p in model.parameters())
    row["has_heads"] = any(heads(module) > 1 for module in model.modules())
    with _stage(row, "capture", save):
        captured = ap.capture(model, inputs)
    row["capture"] = getattr(captured.program, "source", "export")
    row["nodes"] = len(captured.program.nodes)
    row["unknown_ops"] = list(captured.unknown_ops)
    row["heads_groups"] = len(_heads(captured))
    with _stage(row, "trial", save):
        graph = _frozen(captured, cannot_follow(model, captured, inputs), row)
    if row["heads_groups"]:
        with _stage(row, "heads", save):
            row["heads_ok"], row["heads_failure"] = _one_head_less(model, captured, graph, inputs)
    plan, small, proof = _cut_and_prove(model, graph, inputs, row, save)
    while not proof.passed:  # as `prune` does: the groups at fault are frozen, and the plan is made again
        row.setdefault("first_proof_failure", proof.failure)
        with _stage(row, "trial", save):
            culprits = at_fault(model, graph, plan, inputs, ap.cut)
            if not culprits:
                raise AssertionError(proof.failure)
            graph = _frozen(graph, culprits, row)
        plan, small, proof = _cut_and_prove(model, graph, inputs, row, save)
    with _stage(row, "use", save):
        _use(model, small, case, graph, row)
    if proof.params >= ENOUGH * row["params"]:
        raise AssertionError(f"{proof.params / max(row['params'], 1):.1%} of the parameters are left")
    if not row["accounted"]:
        raise AssertionError("prunable and frozen parameters do not add up to all")


def _frozen(graph: Graph, culprits: dict[str, str], row: Row) -> Graph:
    """`graph` without the groups that the class can't follow, as `prune` freezes them, and what its account says."""
    row.setdefault("frozen_by_trial", {}).update({name: reason[:300] for name, reason in culprits.items()})
    graph = graph.without(culprits)
    row |= {"groups": len(graph.groups), "kinds": _kinds(graph), **_counts(graph)}
    if not graph.groups:
        raise AssertionError("nothing can be pruned")
    return graph


def _cut_and_prove(
    model: nn.Module, graph: Graph, inputs: Any, row: Row, save: Save
) -> tuple[ap.Plan, nn.Module, ap.Proof]:
    with _stage(row, "plan", save):
        plan = ap.allocate(graph, ap.guide(graph, None, method="l2"), keep=KEEP)
    with _stage(row, "cut", save):
        small = ap.cut(model, plan)
    with _stage(row, "proof", save):
        proof = ap.verify(model, small, plan, inputs, graph=graph, check=False)
    dense = ap.cost(graph)
    row |= {
        "proof": proof.passed,
        "proof_failure": proof.failure,
        "real_error": proof.real_error,
        "redrawn_error": proof.redrawn_error,
        "eager_error": proof.eager_error,
        "params": dense.params,
        "macs": dense.macs,
        "params_cut": proof.params,
        "macs_cut": proof.macs,
        "params_left": round(proof.params / max(dense.params, 1), 4),
        "macs_left": round(proof.macs / max(dense.macs, 1), 4),
    }
    return plan, small, proof


def _counts(graph: Graph) -> Row:
    """What of the parameters can be pruned, and why the rest can't."""
    account = graph.account()
    sizes = {name: tensor.numel() for name, tensor in graph.program.tensors.items() if name in graph.program.parameters}
    reasons, _ = frozen_reasons(account, sizes)
    frozen = ap.cost(graph, {group.name: 0 for group in graph.groups}).params
    return {
        "prunable": round(account.prunable / max(account.parameters, 1), 4),
        "frozen_reasons": reasons,
        "accounted": account.prunable + frozen == account.parameters == sum(sizes.values()),
    }


def _use(model: nn.Module, small: nn.Module, case: Case, graph: Graph, row: Row) -> None:
    """The cut model in eval mode, in training and with another batch size. What the dense one can't either is noted."""
    fixed = next((name for name in ("batch_fixed", "fixed_batch") if _flag(graph, name)), None)
    checks: dict[str, Callable[[nn.Module], Any]] = {
        "forward": lambda m: outputs_of(m, case.inputs(BATCH)),
        "train_step": lambda m: train_step(m, case.inputs(BATCH)),
        "other_batch": lambda m: outputs_of(m, case.inputs(OTHER_BATCH)),
    }
    if isinstance(small, KerasNetwork):
        checks["reload"] = lambda m: reloaded(m, case.inputs(BATCH))
    failures: list[str] = []
    for name, check in checks.items():
        if name == "other_batch" and fixed:
            row["notes"].append("the capture fixes the batch size: another one was not tried")
            continue
        problem = _problem(check, small)
        row[name] = problem is None
        if problem is not None and (dense := _problem(check, model)) is not None:
            row["notes"].append(f"{name}: the dense model can't either: {dense}")
        elif problem is not None:
            failures.append(f"{name}: {problem}")
    if failures:
        raise AssertionError("; ".join(failures))


def _flag(graph: Graph, name: str) -> bool:
    return bool(getattr(graph, name, False) or getattr(graph.program, name, False))


def _problem(check: Callable[[nn.Module], Any], model: nn.Module) -> str | None:
    try:
        check(model)
    except Exception as error:
        return said(error)
    return None


# -- attention heads -------------------------------------------------------------------------------


def _heads(graph: Graph) -> list[str]:
    return [group.name for group in graph.groups if group.kind == "heads"]


def _one_head_less(model: nn.Module, captured: Graph, graph: Graph, inputs: Any) -> tuple[bool, str | None]:
    """One head of one layer removed, all else whole, proved; layers that stayed prunable after the trial come first."""
    tried = [*_heads(graph), *(name for name in _heads(captured) if name not in _heads(graph))][:3]
    failure: str | None = None
    for name in tried:
        plan = ap.make_plan(captured, {peer: range(1, captured[peer].width) for peer in captured.peers[name]})
        try:
            small = ap.cut(model, plan)
            failed = ap.verify(model, small, plan, inputs, graph=captured, check=False).failure
        except Exception as error:
            failed = said(error)
        if failed is None:
            return True, None
        failure = failure or f"{name}: {failed}"
    return False, failure


# -- small things ----------------------------------------------------------------------------------


def _kinds(graph: Graph) -> dict[str, int]:
    kinds = [group.kind for group in graph.groups]
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


@contextmanager
def _stage(row: Row, name: str, save: Save) -> Iterator[None]:
    """Names the stage in the row while it runs and adds its seconds."""
    row["stage"] = name
    save(row)
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds = row.setdefault("seconds", {})
        seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - started, 3)
