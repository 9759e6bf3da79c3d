"""`compensate`: refit every consumer in closed form so that it delivers what the dense network delivers.

With dense inputs X, inputs X̃ in the network that is already cut and compensated up to here, and target T:

    W̃ = (Cov(T, X̃_K) + λ W_K)(Cov(X̃_K) + λI)⁻¹,   b̃ = E[T] − W̃ E[X̃_K]

front to back, so that each layer absorbs the error of those before it; λ shrinks to W_K, not to 0, and is chosen on held-out
samples. The target of a consumer that joins a sum is that sum: T = W X + (s_dense − s_cut) / a, with s the other
operand and a the gain between (see `schedule`). It is the largest single gain that we measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.axes.expr import kept_indices
from actprune.axes.inference import Site, _by_name
from actprune.compensation.batchnorm import reestimate
from actprune.compensation.schedule import Join, schedule
from actprune.compensation.streams import Streams
from actprune.data import Calibration, fit
from actprune.distance import Distance, choose
from actprune.graph.run import run_all
from actprune.guidance.problem import following_norm
from actprune.methods import COMPENSATIONS, known
from actprune.plan import Plan
from actprune.rewrite import Rewrite, kept_units, zero_columns
from actprune.stats.moments import Moments, cross, merge, moments
from actprune.stats.patches import as_weight, has_rows, input_rows, output_rows, weight_matrix

RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)
"""λ candidates, as fractions of the mean variance of the kept columns."""

SMALL_GAIN = 1e-3
"""Outputs whose gain is below this share of the largest keep their own output as target."""

FOLDS = 3


def compensate(
    graph: Graph,
    plan: Plan,
    calibration: Iterable[Any] | Calibration,
    *,
    method: str | None = "least_squares",
    target: str = "sum",
    batchnorm: bool | str = "auto",
    distance: str | Distance = "auto",
    scope: str = "all",
    base: Mapping[str, Tensor] | None = None,
) -> Rewrite:
    """The dense-shaped weights and biases with which the cut network comes closest to the dense one.

    Args:
        calibration: any iterable of batches, see `actprune.prune`.
        method: "least_squares"; "bias" restores only the mean of each output; None or "none" does nothing
            beyond the zero columns.
        target: "sum" aims at the sum that an output joins, "own" at the output itself.
        batchnorm: re-estimate the running statistics: True, False, or "auto" where held-out samples say it helps.
        distance: what "auto" is judged by, see `actprune.distance`.
        scope: "all" refits every consumer whose input changed, "cut" only those that lose columns.
        base: overrides that hold before compensation (used by the method "filter").

    Raises:
        DataError: no calibration data, or of another shape.
    """
    name = known(method or "none", COMPENSATIONS, "compensation")
    known(target, ("sum", "own"), "target")
    overrides = zero_columns(graph, plan, Rewrite(base or {}))
    if name == "none" and batchnorm is not True:
        return Rewrite(overrides, {"method": "none"})
    data = fit(graph.program, calibration)
    record: dict[str, Any] = {"method": name, "target": target, "samples": data.samples}
    if name != "none":
        walk = _Walk(graph, plan, data, overrides, name, target, scope)
        walk.run()
        overrides, record["consumers"] = walk.streams.overrides, walk.record
    if batchnorm is True or (batchnorm == "auto" and name == "least_squares" and scope == "all"):
        overrides = _with_batchnorm(graph, data, overrides, record, choose(graph.program, distance), batchnorm is True)
    return Rewrite(overrides, record)


@dataclass(frozen=True, eq=False)
class _Fit:
    """What one consumer's refit needs: input moments, cross moments with the target, per fold."""

    inner: list[Moments]
    outer: list[Moments]


class _Walk:
    """One pass front to back that refits consumer after consumer."""

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        data: Calibration,
        zeros: dict[str, Tensor],
        method: str,
        target: str,
        scope: str,
    ) -> None:
        self.graph, self.method, self.scope = graph, method, scope
        self.kept = kept_units(graph, plan)
        order = schedule(graph)
        self.order = order.nodes
        self.joins = order.joins if target == "sum" else {}
        self.streams = Streams(graph.program, data.batches, order.nodes)
        self.streams.overrides = dict(zeros)
        self.zeroed = set(zeros)
        self.sites = {site.node: site for site in graph.sites}
        self.record: dict[str, dict[str, Any]] = {}
        self.placeholders = {
            name: node for node in graph.program.nodes if (name := graph.program.bindings.get(node.name)) is not None
        }
        for join in self.joins.values():
            self.streams.hold(join.partner)

    def run(self) -> None:
        for node in self.order:
            site = self.sites.get(node.name)
            join = self.joins.get(node)
            if site is None:
                self.streams.step(node)
                continue
            self.streams.step_dense(node)
            if self._wanted(site, node, join):
                self._refit(site, node, join)
            self.streams.step_cut(node)
            if join is not None:
                self.streams.release(join.partner)
            self.streams.forget(node)

    def _wanted(self, site: Site, node: Node, join: Join | None) -> bool:
        if not _exclusive(self.placeholders.get(site.weight), node):
            return False
        if site.weight in self.zeroed:
            return True
        partner_differs = join is not None and self.streams.differs(join.partner)
        return self.scope == "all" and (self.streams.differs(_input(node)) or partner_differs)

    def _refit(self, site: Site, node: Node, join: Join | None) -> None:
        weight = self.graph.program.tensors[site.weight].detach()
        targets = self._targets(site, node, join)
        slot = self._slot(site, node)
        if self.method == "bias" or not has_rows(site, weight):
            self._restore_mean(site, node, targets, slot)
            return
        found = self._gather(site, node, weight, targets)
        kept = torch.as_tensor(kept_indices(self.graph.tensor_axes[site.weight][site.in_dim], self.kept))
        matrix = weight_matrix(site, weight).double()
        per_channel = matrix.shape[1] // weight.shape[site.in_dim]
        columns = (kept[:, None] * per_channel + torch.arange(per_channel)).reshape(-1).to(matrix.device)
        start = weight_matrix(site, self.streams.overrides.get(site.weight, weight)).double()[:, columns]
        ridge, error = _choose_ridge(found, start, columns, centred=slot is not None)
        inner, outer = _merged(found.inner), _merged(found.outer)
        new = _solve(inner, outer, start, columns, ridge, centred=slot is not None)
        full = torch.zeros_like(matrix)
        full[:, columns] = new
        self.streams.overrides[site.weight] = as_weight(site, full, weight)
        if slot is not None:
            wanted = outer.mean - new @ inner.mean[columns]
            self._put(slot, wanted)
        self.record[site.node] = {"module": site.module, "ridge": ridge, "held_out_error": error}

    def _targets(self, site: Site, node: Node, join: Join | None) -> list[Tensor]:
        """Per batch (n, positions, o): the dense output, plus the stream's error where the output joins it."""
        dense = [output_rows(site, y) for y in self.streams.dense(node)]
        if join is None or not self.streams.differs(join.partner):
            return dense
        gain = join.gain.to(dense[0].device, dense[0].dtype)
        small = gain.abs() < SMALL_GAIN * gain.abs().max()
        factor = torch.where(small, 0, 1 / torch.where(small, 1, gain))
        error = (
            output_rows(site, a - b)
            for a, b in zip(self.streams.dense(join.partner), self.streams.cut(join.partner), strict=True)
        )
        return [y + e * factor for y, e in zip(dense, error, strict=True)]

    def _gather(self, site: Site, node: Node, weight: Tensor, targets: list[Tensor]) -> _Fit:
        inner: list[Moments | None] = [None] * FOLDS
        outer: list[Moments | None] = [None] * FOLDS
        seen = 0
        for x, t in zip(self.streams.cut(_input(node)), targets, strict=True):
            rows = input_rows(site, node, x, weight)
            for f in range(FOLDS):
                own = slice((f - seen) % FOLDS, None, FOLDS)
                if rows[own].shape[0]:
                    a, b = rows[own].flatten(0, 1), t[own].flatten(0, 1)
                    inner[f] = merge(inner[f], moments(a))
                    outer[f] = merge(outer[f], cross(b, a))
            seen += rows.shape[0]
        return _Fit([m for m in inner if m is not None], [m for m in outer if m is not None])

    def _restore_mean(self, site: Site, node: Node, targets: list[Tensor], slot: tuple[str, float] | None) -> None:
        """Only the mean of each output, through the bias (FLAP's compensation, An et al. 2024, eq. 6)."""
        if slot is None:
            return
        count, total = 0, torch.zeros(targets[0].shape[-1], dtype=torch.float64, device=targets[0].device)
        self.streams.step_cut(node)
        for y, t in zip(self.streams.cut(node), targets, strict=True):
            total += (t.double() - output_rows(site, y).double()).sum((0, 1))
            count += t.shape[0] * t.shape[1]
        now = 0.0
        if site.bias is not None:
            now = self.streams.overrides.get(site.bias, self.graph.program.tensors[site.bias]).detach().double()
        self._put(slot, now + total / count)
        self.record[site.node] = {"module": site.module, "bias": True}

    def _slot(self, site: Site, node: Node) -> tuple[str, float] | None:
        """Where a new bias goes: the consumer's own, or with opposite sign the following norm's running mean."""
        if site.bias is not None:
            return (site.bias, 1.0) if _exclusive(self.placeholders.get(site.bias), node) else None
        norm = following_norm(node)
        mean = _by_name(norm)["running_mean"] if norm is not None else None
        if norm is None or not isinstance(mean, Node) or not _exclusive(mean, norm):
            return None
        return self.graph.program.bindings[mean.name], -1.0

    def _put(self, slot: tuple[str, float], bias: Tensor) -> None:
        name, sign = slot
        own = self.graph.program.tensors[name].detach()
        old = self.streams.overrides.get(name, own)
        self.streams.overrides[name] = (bias if sign > 0 else old.double() - bias).to(own.dtype)


def _input(node: Node) -> Node:
    """The activation that a contraction gets."""
    settings = _by_name(node)
    return next(settings[key] for key in ("input", "mat1", "self") if isinstance(settings.get(key), Node))


def _exclusive(placeholder: Node | None, reader: Node) -> bool:
    """Whether a tensor is read by this call alone (through a transpose perhaps), so that it may change."""
    node = placeholder
    while node is not None and len(node.users) == 1:
        (node,) = node.users
        if node is reader:
            return True
        if not any(word in str(node.target) for word in ("aten.t.", "aten.transpose", "aten.permute", "numpy_T")):
            return False
    return False


def _merged(parts: list[Moments]) -> Moments:
    total = parts[0]
    for part in parts[1:]:
        total = merge(total, part)
    return total


def _solve(inner: Moments, outer: Moments, start: Tensor, columns: Tensor, ridge: float, centred: bool) -> Tensor:
    """(o, k) the ridge solution on the kept columns, shrunk to `start`."""
    gram = (inner.covariance if centred else inner.second)[columns][:, columns]
    right = (outer.covariance if centred else outer.second)[:, columns]
    size = max(ridge * float(gram.diagonal().mean()), 1e-12)
    gram = gram + size * torch.eye(columns.numel(), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram, (right + size * start).T).T


def _choose_ridge(found: _Fit, start: Tensor, columns: Tensor, centred: bool) -> tuple[float, float]:
    """The λ with the smallest error on folds that it was not fitted on, and that error (up to a constant)."""
    if len(found.inner) == 1:
        return RIDGES[2], float("nan")
    errors = dict.fromkeys(RIDGES, 0.0)
    for held in range(len(found.inner)):
        rest = [i for i in range(len(found.inner)) if i != held]
        inner, outer = _merged([found.inner[i] for i in rest]), _merged([found.outer[i] for i in rest])
        gram, right = found.inner[held].second[columns][:, columns], found.outer[held].second[:, columns]
        for ridge in RIDGES:
            new = _solve(inner, outer, start, columns, ridge, centred)
            bias = outer.mean - new @ inner.mean[columns] if centred else torch.zeros_like(outer.mean)
            # E|T − W̃x − b|² without E|T|², which all candidates share
            x, t = found.inner[held].mean[columns], found.outer[held].mean
            fit_error = float(((new @ gram) * new).sum()) - 2 * float((new * right).sum())
            errors[ridge] += fit_error + float(bias @ bias) + 2 * float(bias @ (new @ x - t))
    best = min(errors, key=errors.__getitem__)
    return best, errors[best]


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
    dense = run_all(graph.program, held.batches)
    before = distance(dense, run_all(graph.program, held.batches, overrides))
    after = distance(dense, run_all(graph.program, held.batches, {**overrides, **found}))
    record["batchnorm"] = {"distance_before": before, "distance_after": after, "kept": always or after < before}
    return {**overrides, **found} if always or after < before else overrides
