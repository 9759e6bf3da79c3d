"""Several cuts, one after the other, as one cut of the first network: one plan, one proof, one run folder.

Every plan says which indices of each tensor stay, in the numbers of the network that it was made for. The indices of
those indices are what stays of the first network; the units follow from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from actprune.artifacts.checkpoint import proved, save
from actprune.axes.capture import Graph, capture
from actprune.axes.expr import Indices, positions, size
from actprune.axes.normed import most
from actprune.errors import PlanError
from actprune.forms import Form, alone
from actprune.plan import Plan, make_plan
from actprune.repair.adapt import adapt
from actprune.report.record import GroupRow, Report

OF_ONE_ROUND = ("budget", "rho", "distance", "sensitivity", "predicted", "weights_sha256", "norms")
"""What a plan's note says of the network that it was made for; what was asked under norms, the rounds say together."""


def composed(graph: Graph, plans: Sequence[Plan]) -> Plan:
    """The one plan for the network of `graph` that leaves of it what `plans` leave, of which each is for the network
    that the one before has left.

    Raises:
        PlanError: no plan leaves just that.
    """
    left = {
        name: [_left(plans, name, dim, size(axis)) for dim, axis in enumerate(axes)]
        for name, axes in graph.tensor_axes.items()
    }
    kept: dict[str, list[int]] = {}
    for group in graph.groups:
        for name, axes in graph.tensor_axes.items():
            for dim, axis in enumerate(axes):
                unit = positions(axis, group.key)
                if group.name not in kept and (unit >= 0).any():
                    kept[group.name] = sorted(set(unit[left[name][dim]].tolist()) - {-1})
    told = {key: value for key, value in plans[-1].note.items() if key not in OF_ONE_ROUND}
    found = make_plan(graph, kept, **told)
    for name, dims in left.items():
        planned = found.indices(name) or [None] * len(dims)
        for dim, (ours, theirs) in enumerate(zip(planned, dims, strict=True)):
            if not np.array_equal(np.arange(size(graph.tensor_axes[name][dim])) if ours is None else ours, theirs):
                raise _not_one(name, dim)
    return found


def _left(plans: Sequence[Plan], name: str, dim: int, width: int) -> Indices:
    """The indices of the first network's tensor that are left in the end."""
    left = np.arange(width)
    for plan in plans:
        stays = (plan.indices(name) or [None] * (dim + 1))[dim]
        left = left if stays is None else left[stays]
    return left


def save_composed(
    folder: Path,
    model: nn.Module,
    small: nn.Module,
    plans: Sequence[Plan],
    reports: Sequence[Report],
    inputs: Any,
    budget: str,
    overwrite: bool,
) -> Path:
    """Write the run folder of the last network as a cut of the first one, once that is proved.

    Args:
        model, small: the first network and the last.
        inputs: one batch, as for `capture`.
        budget: that was asked for.
        overwrite: for `save`.

    Raises:
        EquivalenceError: the proof fails.
        PlanError, ArtifactError: see `composed` and `save`.
    """
    norms = most(plan.norms for plan in plans)
    whole = capture(model, inputs, norms=norms)
    of_graph = any(plan.note.get("form") == "graph" for plan in plans)
    form = Form("graph", alone(whole), norms) if of_graph else Form("class", adapt(whole), norms)
    plan = composed(form.graph, plans).with_note(budget=budget, **form.note)
    graph, few = form.few(model, inputs)
    proof = proved(plan, graph, model, small, few)
    report = replace(_as_one(plan, reports), budget=budget, proof=asdict(proof))
    return save(folder, small, plan, report.to_data(), overwrite=overwrite)


def _as_one(plan: Plan, reports: Sequence[Report]) -> Report:
    """The report of the last round, from the first network on. What is known of single units stays with the rounds."""
    first, last = reports[0], reports[-1]
    latest = {row.name: row for report in reports for row in report.groups if row.after < row.before}
    seconds: dict[str, float] = {}
    for report in reports:
        for stage, time in report.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + time
    note = f"Cut in {len(reports)} rounds. What each has to say of its own stands in its own report."
    rows = [
        GroupRow(
            row.name, row.kind, row.before, plan.widths[row.name], guide=None, natural=None,
            criterion=last_cut.criterion, error=last_cut.error,
        )
        for row in first.groups if row.name in plan.widths
        for last_cut in (latest.get(row.name, row),)
    ]  # fmt: skip
    return replace(last, dense=first.dense, groups=tuple(rows), seconds=seconds, notes=(note,), rounds=(), request=None)


def _not_one(name: str, dim: int) -> PlanError:
    return PlanError(
        "These cuts are no single cut of the first network.",
        expected=f"kept units that say what is left of dimension {dim} of {name}",
        got="other indices",
        where=name,
        hint="load the rounds' folders in turn, each with the network that the one before gave",
    )
