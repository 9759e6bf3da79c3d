"""One pass through the network, front to back, that refits consumer after consumer on two streams."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.axes.expr import kept_indices
from actprune.axes.site import Site
from actprune.compensation.aim import Aim
from actprune.compensation.batchnorm import running_statistics
from actprune.compensation.equations import Equations, Slot, numbers_of, part
from actprune.compensation.folds import Dealer
from actprune.compensation.own import exclusive, has_plain_bias, is_plain, placeholders_of
from actprune.compensation.rectified import rectified_fit
from actprune.compensation.recurrent import Scope, refit_recurrent
from actprune.compensation.ridge import Normal, Ridge, choose_ridge, merged_all, usual_ridge
from actprune.compensation.ridge_map import ridge_map
from actprune.compensation.rows import InputRows, columns_of, contracted, stride_of
from actprune.compensation.schedule import Path, Schedule
from actprune.compensation.stacked import Stacked
from actprune.compensation.streams import Streams
from actprune.mapped import alongside, any_mapped
from actprune.plan import Plan
from actprune.rewrite import kept_units
from actprune.stats.moments import Moments
from actprune.stats.patches import (
    LAYERS,
    ROWS,
    as_weight,
    columns_per_input,
    has_grouped_rows,
    has_rows,
    has_stacked_rows,
    most_rows,
    output_rows,
    weight_matrix,
)
from actprune.stats.stacked import stacked_form

SOLVED = 1 << 24
"""Weights that are solved for at once: a vocabulary has many outputs."""

OWN_ROUNDS = 2
"""Fits of a recurrent weight on the states of the cut layer's own run."""


@dataclass(frozen=True)
class Settings:
    """How to refit: see `compensate`.

    Attributes:
        collects: keep the equations of every consumer over all of its columns, up to so many numbers of all together,
            and refit every output, also what is cut.
    """

    method: str
    everything: bool
    rounds: int
    rows: int = ROWS
    collects: int = 0

    @property
    def alone(self) -> Settings:
        """For a candidate: only what loses columns is refitted."""
        return replace(self, everything=False, collects=0)


class Walk:
    """The pass; afterwards `overrides` holds the new tensors and `record` what was done where.

    Attributes:
        place: the next one of `nodes`.
        settled: weights that it leaves as they are by now.

    Args:
        order: the nodes in the order of refitting.
        streams: the two runs, with the zero columns of `plan` as overrides.
        start: how many nodes of `order` they have been through; no refit lies before.
        lost: names of the weights that lose columns; None: every override.
        ridges: (call, group of a convolution, magnitude of its columns) → λ; what it lacks is chosen and added.
    """

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        order: Schedule,
        streams: Streams,
        settings: Settings,
        start: int = 0,
        lost: Collection[str] | None = None,
        ridges: dict[tuple[str, int, int], float] | None = None,
    ) -> None:
        self.graph, self.settings, self.streams = graph, settings, streams
        self.ridges = {} if ridges is None else ridges
        self.kept = kept_units(graph, plan)
        self.nodes, self.paths = order.nodes, order.paths
        self.zeroed = set(streams.overrides if lost is None else lost)
        self.sites = {site.node: site for site in graph.sites if site.kind in LAYERS}
        self.readers = {site for group in graph.groups for site in group.consumers}
        self.several: dict[str, list[Site]] = {}
        for site in graph.sites if settings.method == "least_squares" else ():
            if site.kind in ("recurrent", "stacked"):
                self.several.setdefault(site.node, []).append(site)
        self.place, self.last = start, self._last_place(start)
        self.settled: set[str] = set()
        self.record: dict[str, dict[str, Any]] = {}
        self.equations: dict[str, Equations] = {}
        self.sparing = any_mapped(graph.program.tensors.values())
        self.dealer = Dealer()
        self.placeholders = placeholders_of(graph.program)

    @property
    def overrides(self) -> dict[str, Tensor]:
        return self.streams.overrides

    def run(self) -> None:
        """Up to the last consumer that may be refitted."""
        self.advance(self.last + 1)

    def advance(self, place: int) -> None:
        """Up to this place among `nodes`, not beyond the last consumer that may be refitted."""
        for i in range(self.place, min(place, self.last + 1)):
            self._pass(self.nodes[i], i == self.last)
            self.place = i + 1

    def branch(self) -> Walk:
        """A walk that goes on from here by itself."""
        other = copy(self)
        other.streams, other.settled, other.record = self.streams.fork(self.overrides), set(self.settled), {}
        other.dealer, other.ridges = copy(self.dealer), dict(self.ridges)
        return other

    def _pass(self, node: Node, last: bool) -> None:
        """Refit what a call reads, then make it in both streams."""
        if last and self.sparing and node.name in self.sites:
            self._last(self.sites[node.name], node)
            return
        site, several = self.sites.get(node.name), self.several.get(node.name)
        if site is None and several is None:
            self.streams.step(node)
            return
        self.streams.step_dense(node)
        if several is not None:
            refit = self._refit_stacked if several[0].kind == "stacked" else self._refit_steps
            refit(several, node)
        elif site is not None and self._wanted(site, node, self.paths[node]):
            self._refit(site, node, self.paths[node])
        self.streams.step_cut(node)
        self.streams.forget(node)

    def _last_place(self, start: int) -> int:
        asked = (
            i for i in range(start, len(self.nodes)) if any(map(self._may_be_asked, self._sites_of(self.nodes[i])))
        )
        return max(asked, default=-1)

    def _last(self, site: Site, node: Node) -> None:
        """Nothing reads what it gives (logits, the largest values there are): that is made batch by batch."""
        if self._wanted(site, node, self.paths[node]):
            self._refit(site, node, self.paths[node])
        self.streams.forget(node)

    def _sites_of(self, node: Node) -> list[Site]:
        site = self.sites.get(node.name)
        return self.several.get(node.name, []) if site is None else [site]

    def _may_be_asked(self, site: Site) -> bool:
        return self.settings.everything or site.weight in self.zeroed

    def _collects(self, site: Site) -> bool:
        """Whether the equations of a consumer over all of its columns are to be kept, and there is room for them."""
        if not self.settings.collects or site not in self.readers:
            return False
        weight = self.graph.program.tensors[site.weight]
        held = sum(known.held for known in self.equations.values())
        return has_rows(site, weight) and held + numbers_of(site, weight) <= self.settings.collects

    def _refit_steps(self, sites: Sequence[Site], node: Node) -> None:
        """The weights of a recurrent call."""
        differs = self.settings.everything and any(map(self.streams.differs, node.all_input_nodes))

        def wanted(site: Site) -> bool:
            alone = exclusive(self.placeholders.get(site.weight, ()), node)
            return alone and (differs or site.weight in self.zeroed)

        def free(name: str, reader: Node) -> bool:
            return exclusive(self.placeholders[name], reader)

        settings, quick = self.settings, self.settings.rows < ROWS
        rounds = min(settings.rounds, 1 if quick else OWN_ROUNDS)
        scope = Scope(self.graph, self.streams, self.kept, wanted, free, rounds, settings.rows, not quick)
        if any(map(wanted, sites)):
            self.record |= refit_recurrent(scope, node, sites)

    def _refit_stacked(self, sites: Sequence[Site], node: Node) -> None:
        """The matrices of a product with several."""
        (site,) = sites
        form, weight = stacked_form(site), self.graph.program.tensors[site.weight]
        source = next(value for value in node.all_input_nodes if value.name == form.source)
        differs = self.settings.everything and not form.ends and self.streams.differs(source)
        alone = exclusive(self.placeholders.get(site.weight, ()), node)
        if alone and (differs or site.weight in self.zeroed) and has_stacked_rows(site, weight):
            quick = self.settings.rows < ROWS
            product = Stacked(
                self.graph, self.streams, site, node, self.kept, self.placeholders, self.settings.rows, quick
            )
            self.record |= product.refit()

    def _wanted(self, site: Site, node: Node, path: Path) -> bool:
        alone = exclusive(self.placeholders.get(site.weight, ()), node)
        if not alone or site.weight in self.settled or not is_plain(node):
            return False
        if site.weight in self.zeroed or self._collects(site):
            return True
        if self.settings.method == "ridge_map":
            return False
        stream_differs = path.partner is not None and self.streams.differs(path.partner)
        return self.settings.everything and (self.streams.differs(contracted(node)) or stream_differs)

    def _refit(self, site: Site, node: Node, path: Path) -> None:
        weight = self.graph.program.tensors[site.weight].detach()
        if self.settings.method == "ridge_map":
            found, self.record[site.node] = ridge_map(self.graph, site, self.streams.dense(contracted(node)), self.kept)
            if found is not None:
                self.overrides[site.weight] = found
            return
        slot = self.slot(site, node)
        grouped = site.weight in self.zeroed and has_grouped_rows(site, weight)  # a depthwise one never loses columns
        if self.settings.method == "bias" or not (grouped or has_rows(site, weight)):
            self._restore_mean(site, node, path, slot)
            return
        for group in range(site.groups):
            self._fit(site, node, path, slot, group)

    def _fit(self, site: Site, node: Node, path: Path, slot: Slot | None, group: int) -> None:
        """Refit the outputs of one group of a convolution; all outputs of any other layer."""
        weight = self.graph.program.tensors[site.weight].detach()
        full = weight_matrix(site, self.overrides.get(site.weight, weight)).clone()
        units, outputs = self._units(site, weight), self._outputs(site, weight)
        each = columns_per_input(site, weight)
        columns = columns_of(units, each)
        outputs = outputs[outputs * site.groups // len(full) == group]
        if not len(outputs):
            return
        collects = self._collects(site)
        seen = torch.arange(site.inputs(weight), device=weight.device) if collects else units
        stride = self._stride(site, node, len(seen) * each)
        every = torch.equal(outputs, torch.arange(site.outputs(weight), device=outputs.device))
        aim = Aim(self.streams, site, node, path, self.sparing)
        made = aim.targets(None if slot is not None else self._bias(site), stride)
        targets = made if every else aim.of_batches(lambda i: made[i][..., outputs])
        rows = InputRows(self.streams, site, node, weight, seen, stride, group)
        folds = self.dealer(rows, targets, len(seen) * each)

        def start() -> Tensor:
            return full[outputs][:, columns].double()

        if collects:
            found = self.equations[site.weight] = Equations(site, folds, slot)
            if len(columns) == full.shape[1] and not self.streams.differs(contracted(node)):
                return  # the dense consumer on the dense inputs: there is nothing to refit yet
            size, equations = found.ridge(columns, start()), part(found.folds[0], columns)
        else:
            key = site.node, group, len(columns).bit_length()  # widths near each other
            size = self._ridge(key, folds, start, slot is not None)
            equations = merged_all(folds)
        ridge = Ridge(equations.inner, size, slot is not None)
        if path.rectified and self.settings.rounds and not collects:
            wanted = aim.rectified(targets, stride, outputs)
            fit = ridge.fit(equations.outer, start())
            fit = rectified_fit(rows, wanted, ridge, fit, start(), self.settings.rounds)
            full[outputs[:, None], columns], bias = fit.weight.to(full.dtype), fit.bias
        else:
            bias = self._solved(ridge, equations.outer, full, outputs, columns)
        self.overrides[site.weight] = alongside(as_weight(site, full, weight), weight)
        if slot is not None:
            slot.put(self.overrides, self.graph.program, bias, outputs)
        self.record[site.node] = {
            "module": site.module, "ridge": size, "rows": equations.inner.count, "columns": len(columns),
        }  # fmt: skip

    def _ridge(
        self, key: tuple[str, int, int], folds: Sequence[Normal], start: Callable[[], Tensor], intercept: bool
    ) -> float:
        if key not in self.ridges:
            self.ridges[key] = choose_ridge(folds, start(), intercept) if len(folds) > 1 else usual_ridge()
        return self.ridges[key]

    def _solved(self, ridge: Ridge, outer: Moments, full: Tensor, outputs: Tensor, columns: Tensor) -> Tensor:
        """Put the fit of these outputs into `full`, some outputs at a time, and give back their biases."""
        biases: list[Tensor] = []
        at_once = max(SOLVED // max(len(columns), 1), 1)
        for rows in torch.arange(len(outputs), device=outputs.device).split(at_once):
            own = outputs[rows]
            whole = len(rows) == len(outputs)
            some = outer if whole else replace(outer, mean=outer.mean[rows], scatter=outer.scatter[rows])
            fit = ridge.fit(some, full[own][:, columns].double())
            full[own[:, None], columns] = fit.weight.to(full.dtype)
            biases.append(fit.bias)
        return torch.cat(biases)

    # -- what a refit is made of -------------------------------------------------------------------

    def _units(self, site: Site, weight: Tensor) -> Tensor:
        """The input channels that stay."""
        kept = kept_indices(site.in_axis(self.graph.tensor_axes[site.weight]), self.kept)
        return torch.as_tensor(kept, device=weight.device)

    def _outputs(self, site: Site, weight: Tensor) -> Tensor:
        """The rows of the weight matrix that stay: what is cut itself needs no fit, unless it may come back."""
        if self.settings.collects:
            return torch.arange(site.outputs(weight), device=weight.device)
        kept = kept_indices(site.out_axis(self.graph.tensor_axes[site.weight]), self.kept)
        return torch.as_tensor(kept, device=weight.device)

    def _stride(self, site: Site, node: Node, columns: int) -> int:
        """Every how many-th position of a map is used."""
        return stride_of(site, self.streams.output(node, 0), self.streams.count, most_rows(columns, self.settings.rows))

    def _restore_mean(self, site: Site, node: Node, path: Path, slot: Slot | None) -> None:
        """Only the mean of each output, through the bias (FLAP's compensation, An et al. 2024, eq. 6)."""
        if slot is None:
            self.record[site.node] = {
                "module": site.module,
                "left": "has no bias of its own, nor a BatchNorm behind it",
            }
            return
        targets = Aim(self.streams, site, node, path, self.sparing).targets(None)
        total = torch.zeros(targets[0].shape[-1], dtype=torch.float64, device=targets[0].device)
        count = sum(t.shape[0] * t.shape[1] for t in targets)
        self.streams.step_cut(node)
        for y, t in zip(self.streams.cut(node), targets, strict=True):
            total += (t.double() - output_rows(site, y).double()).sum((0, 1))
        now = self._bias(site)
        slot.put(self.overrides, self.graph.program, total / count + (0.0 if now is None else now.double()))
        self.record[site.node] = {"module": site.module, "bias": True}

    def _bias(self, site: Site) -> Tensor | None:
        """(o,) the bias of a layer, as it is now."""
        if site.bias is None:
            return None
        return self.overrides.get(site.bias, self.graph.program.tensors[site.bias]).detach().reshape(-1)

    def slot(self, site: Site, node: Node) -> Slot | None:
        """Where the bias of a layer is; None where there is no place for one."""
        if site.bias is not None:
            suits = has_plain_bias(self.graph.program, site)
            return Slot(site.bias, 1.0) if suits and exclusive(self.placeholders[site.bias], node) else None
        norm = self.paths[node].norm
        names = running_statistics(self.graph.program, norm) if norm is not None else None
        return None if names is None or not exclusive(self.placeholders[names[0]], norm) else Slot(names[0], -1.0)
