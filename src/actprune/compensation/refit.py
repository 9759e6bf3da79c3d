"""`compensate`: refit every consumer in closed form so that it delivers what the dense network delivers.

With dense inputs X, inputs X̃ in the network that is already cut and compensated up to here, and target T:

    W̃ = (Cov(T, X̃_K) + λ W_K)(Cov(X̃_K) + λI)⁻¹,   b̃ = E[T] − W̃ E[X̃_K]

front to back, so that each layer absorbs the error of those before it; λ shrinks to W_K, not to 0, and is
chosen on held-out samples. The target of a consumer that joins a sum is that sum: T = W X + (s_dense − s_cut) / a,
with s the other operand and a the gain between (`schedule`). In front of a ReLU only what the ReLU lets
through counts (`rectified`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from actprune.axes.capture import Graph
from actprune.axes.picked import picking
from actprune.compensation.batchnorm import reestimate, running_statistics
from actprune.compensation.logits import nearer_logits
from actprune.compensation.reconstruct import reconstruct
from actprune.compensation.schedule import schedule
from actprune.compensation.shared import refit_shared, shared_equations
from actprune.compensation.state import Settings
from actprune.compensation.streams import Streams
from actprune.compensation.walk import Walk
from actprune.data.samples import Calibration
from actprune.data.take import fit
from actprune.distance import Distance, judge, resolve
from actprune.graph.output_kinds import output_kind
from actprune.memory import limit_bytes
from actprune.methods import COMPENSATIONS, known, quickly
from actprune.plan import Plan
from actprune.rewrite import Rewrite, kept_units, zero_columns
from actprune.stats.padding import Padding
from actprune.stats.patches import ROWS

ROUNDS = 8
"""Rounds of a rectified fit."""


def compensate(
    graph: Graph,
    plan: Plan,
    calibration: Iterable[Any] | Calibration,
    *,
    method: str | None = "least_squares",
    target: str = "sum",
    rounds: int = ROUNDS,
    rows: int = ROWS,
    batchnorm: bool | str = "auto",
    distance: str | Distance = "auto",
    scope: str = "all",
    base: Mapping[str, Tensor] | None = None,
    memory_limit: int | str | None = None,
    judged: bool = False,
) -> Rewrite:
    """The dense-shaped weights and biases with which the cut network comes closest to the dense one.

    Args:
        calibration: any iterable of batches, see `actprune.prune`.
        method: "least_squares"; "reconstruct", which then fits the layers in front of each consumer too, where they
            make the units of a cut group for it alone (`reconstruct`), and the last layer of a classifier to the dense
            network's probabilities (`logits`); "ridge_map" lets the kept channels stand in for the others
            (`ridge_map`); "bias" puts the means of the dense network's inputs in place of those that go; None or "none"
            does nothing beyond the zero columns.
        target: "sum" aims at the sum that an output joins, "own" at the output itself.
        rounds: of the rectified fit in front of a ReLU; 0 for plain least squares.
        rows: per column of a consumer that are used at most; the rest of a map's positions is skipped.
        batchnorm: re-estimate the running statistics of the BatchNorms behind a cut: True, False, or "auto" where
            held-out samples say it helps.
        distance: what "auto" is judged by, see `actprune.distance`.
        scope: "all" refits every consumer whose input changed, "cut" only those that lose columns.
        base: overrides that hold before compensation (used by the method "filter").
        memory_limit: of which "reconstruct" takes a quarter, as do weights of several calls; see `actprune.prune`.
        judged: `distance` was found by a look at samples: that it is "kl" does not vouch for logits.

    Raises:
        DataError: no calibration data, or of another shape.
        PlanError: an unknown method, target or scope.
    """
    name = known(method or "none", COMPENSATIONS, "compensation")
    known(target, ("sum", "own"), "target")
    known(scope, ("all", "cut"), "scope")
    check_batchnorm(batchnorm)
    overrides = zero_columns(graph, plan, Rewrite(base or {}))
    norms = batchnorm is not False and any(running_statistics(graph.program, node) for node in graph.program.nodes)
    if name == "none" and not norms:
        return _without_masks(graph, overrides, {"method": "none"})
    data, room = fit(graph.program, calibration), limit_bytes(memory_limit) // 4
    record: dict[str, Any] = {"method": name, "target": target, "samples": data.samples}
    whole = name == "reconstruct"
    how = resolve(graph.program, distance, data) if norms or whole else distance
    if name != "none":
        order = schedule(graph, target == "sum")
        settings = Settings(quickly(name), scope == "all", rounds, rows, unrolls=room if whole else 0)
        together: dict[str, dict[str, Any]] = {}
        if settings.method == "least_squares":
            numbers = room // 8  # of float64
            shared = shared_equations(graph, data.batches, order.nodes, rows, numbers, overrides)
            overrides |= refit_shared(graph, shared, kept_units(graph, plan), base or {}, together)
        streams = Streams(graph.program, data.batches, order.nodes, overrides, picking(graph))
        overrides.clear()  # they are the streams' alone: what a refit replaces is let go of
        walk = Walk(graph, plan, order, streams, settings)
        if whole:
            logits = how == "kl" and "probabilities" not in output_kind(graph.program)
            record["blocks"] = reconstruct(walk, room, logits)
        walk.run()
        overrides, record["consumers"] = walk.overrides, together | walk.record
    if norms:
        overrides = _with_batchnorm(graph, data, overrides, record, judge(graph.program, how), batchnorm is True)
    if whole and how == "kl":
        told = distance == "kl" and not judged
        found, record["logits"] = nearer_logits(graph, plan, data, overrides, room, told=told)
        overrides = {**overrides, **found}
    return _without_masks(graph, overrides, record)


def _without_masks(graph: Graph, overrides: Mapping[str, Tensor], record: Mapping[str, Any]) -> Rewrite:
    return Rewrite({name: tensor for name, tensor in overrides.items() if name not in graph.masks}, record)


def check_batchnorm(batchnorm: Any) -> None:
    """That it is a bool, or "auto"."""
    if not isinstance(batchnorm, bool):
        known(batchnorm, ("auto",), "choice for batchnorm besides True and False")


def _with_batchnorm(
    graph: Graph,
    data: Calibration,
    overrides: dict[str, Tensor],
    record: dict[str, Any],
    distance: Distance,
    always: bool,
) -> dict[str, Tensor]:
    """The overrides with re-estimated running statistics, where that brings held-out outputs nearer."""
    fitted, held = data.holdout()
    found = reestimate(graph.program, fitted.batches, overrides)
    if not found:
        return overrides
    padding = Padding(graph)
    dense = padding.outputs(held.batches)
    before = distance(dense, padding.outputs(held.batches, overrides))
    after = distance(dense, padding.outputs(held.batches, {**overrides, **found}))
    record["batchnorm"] = {"distance_before": before, "distance_after": after, "kept": always or after < before}
    return {**overrides, **found} if always or after < before else overrides
