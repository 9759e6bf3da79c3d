"""The question that guidance answers for one group: which units can its consumers best do without?

A consumer with weight W (outputs o × columns p) and input covariance C loses, when it keeps only the columns K and
is refitted, what the ridge objective says:

    J(K) = min over W̃ supported on K of  tr R (W − W̃)(C + λI)(W − W̃)ᵀ

with R weighing its output rows. W̃ shrinks to W_K, not to 0. Scores, supports and held-out errors all speak of J.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.axes.expr import positions
from actprune.axes.groups import Group
from actprune.axes.site import Site
from actprune.graph.program import named_arguments, op_name
from actprune.guidance.factors import inverse_of
from actprune.guidance.inputs import Inputs, Own
from actprune.mapped import is_mapped, let_go
from actprune.stats.moments import Moments
from actprune.stats.patches import LAYERS, matrices_by_name, output_dim, row_names
from actprune.stats.spread import Spread
from actprune.stats.statistics import Stats


@dataclass(frozen=True, eq=False)
class Normal:
    """The normal equations of one consumer in the q columns of one group.

    Attributes:
        moments: of these columns, see `Own` where there are others.
        ridge: λ.
        factor: (r, q) see `Problem`.
        columns: (n, b) which of the q are whose.
    """

    moments: Moments
    ridge: float
    factor: Tensor
    columns: Tensor

    @property
    def gram(self) -> Tensor:
        """(q, q) C + λI; made anew, for those of all consumers are as large as all statistics."""
        found = self.moments.covariance  # a matrix of its own
        found.diagonal().add_(self.ridge)
        return found

    def refitted(self, units: Tensor) -> tuple[Tensor, Tensor]:
        """((k, k), (k, r)): M = (C + λI)⁻¹ over the columns of these units, and W̃ᵀ = F_Kᵀ + M (C + λI)_KD F_Dᵀ."""
        kept = self.kept(units)
        gone = torch.ones(self.columns.numel(), dtype=torch.bool)
        gone[kept] = False
        rows, weight = self.gram[kept], self.factor[:, kept].T.contiguous()
        inverse = inverse_of(rows[:, kept])
        return inverse, weight + inverse @ (rows[:, gone] @ self.factor[:, gone].T) if bool(gone.any()) else weight

    def kept(self, units: Sequence[int] | Tensor) -> Tensor:
        """Columns of these units, unit after unit."""
        return self.columns[torch.as_tensor(units, dtype=torch.long)].reshape(-1)


@dataclass(frozen=True, eq=False)
class Problem:
    """One consumer as seen by one group.

    Attributes:
        matrix: (o, p) the weight as it is stored.
        inputs: what is known of its input rows.
        columns: (n, b) for each of the group's n units the columns of the weight that belong to it.
        rows: (o,) weights R of the outputs: (γ/σ)² of the norm that follows, or 1; or their Fisher information.
        makes: group name → (o,) which unit of that group each output is, −1 for none.
        alone: what is known of the group's columns alone; None where all columns are the group's.
    """

    matrix: Tensor
    inputs: Inputs
    columns: Tensor
    rows: Tensor
    makes: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    alone: Own | None = None

    def __post_init__(self) -> None:
        if self.alone is None and self.columns.numel() < self.matrix.shape[1]:
            object.__setattr__(self, "alone", Own(self.inputs, self.columns))

    @property
    def weight(self) -> Tensor:
        """(o, p) float64."""
        return self.matrix.detach().double().cpu()

    @property
    def folds(self) -> tuple[Moments, ...]:
        return self.inputs.folds

    @property
    def total(self) -> Moments:
        """All folds together."""
        return self.inputs.total

    @property
    def ridge(self) -> float:
        """λ."""
        return self.inputs.ridge

    def forget(self) -> None:
        """What was computed for a problem whose weight lies in a file: of all layers it would not fit into memory."""
        if is_mapped(self.matrix):
            vars(self).pop("factor", None)
            vars(self.inputs).pop("total", None)
            if self.alone is not None:
                self.alone.forget()
            let_go((self.matrix, *(fold.held for fold in self.folds)))

    @property
    def moments(self) -> Moments:
        """Of the group's columns."""
        return self.total if self.alone is None else self.alone.moments

    @property
    def normal(self) -> Normal:
        """What a search among the units takes."""
        if self.alone is None:
            return Normal(self.total, self.ridge, self.factor, self.columns)
        own = self.columns.reshape(-1)
        units = torch.arange(own.numel()).view_as(self.columns)
        return Normal(self.moments, self.ridge, self.factor[:, own], units)

    @cached_property
    def variance(self) -> float:
        """tr R W C Wᵀ, the variance of the weighted outputs."""
        return max(self.total.spread_along(self.factor), 1e-30)

    @cached_property
    def factor(self) -> Tensor:
        """(r, p) F with FᵀF = WᵀRW and r ≤ p: all that the objective knows of the weight.

        Without the columns of constant inputs: whatever their weight, they only add to the bias, and λ must not
        make them dear.
        """
        told = self.rows > 0
        weighted = torch.where(self.inputs.varies, self.weight[told], 0.0) * self.rows[told].sqrt()[:, None]
        if weighted.shape[0] <= weighted.shape[1]:
            return weighted
        return torch.linalg.qr(weighted, mode="r").R  # a vocabulary has many more outputs than columns

    def kept(self, units: Sequence[int] | Tensor) -> Tensor:
        """(k,) columns that stay when these units do: theirs, and those of no unit of this group."""
        mask = torch.ones(self.matrix.shape[1], dtype=torch.bool)
        mask[self.columns.reshape(-1)] = False
        mask[self.columns[torch.as_tensor(units, dtype=torch.long)].reshape(-1)] = True
        return mask.nonzero().reshape(-1)

    def with_rows(self, rows: Tensor) -> Problem:
        return replace(self, rows=rows)

    def without(self, kept: Mapping[str, Sequence[int]]) -> Problem:
        """The same question where, of the groups in `kept`, only these units stay: cut outputs don't count."""
        rows = self.rows
        for name, unit in self.makes.items():
            if name in kept:
                stays = torch.isin(unit, torch.tensor([-1, *kept[name]]))
                rows = torch.where(stays, rows, 0.0)
        return self if torch.equal(rows, self.rows) else self.with_rows(rows)


def measured(graph: Graph, stats: Stats, group: Group) -> dict[Site, list[str]]:
    """The consumers of `group` → what the moments of their rows are known by: one name, or one for each matrix.

    Those that only training mode calls have none, nor has a matrix whose rows no sample had.
    """
    seen = {name for name, folds in stats.sites.items() if any(fold.count for fold in folds)}
    found = {
        site: [name for name in row_names(site, graph.program.tensors[site.weight]) if name in seen]
        for site in group.consumers
        if site in graph.sites
    }
    return {site: names for site, names in found.items() if names}


def problems(
    graph: Graph, stats: Stats, group: Group, weights: str | None = None, known: dict[str, Inputs] | None = None
) -> tuple[Problem, ...]:
    """One Problem per consumer of `group` that has statistics; for each matrix of one with several.

    Args:
        weights: the measure that weighs the outputs ("fisher", see `actprune.stats.gradients`) instead of the norms.
        known: the inputs of the consumers of other groups; those of this group's are added.
    """
    known = {} if known is None else known
    found: list[Problem] = []
    nodes = {node.name: node for node in graph.program.nodes}
    parts = [(site, name) for site, names in measured(graph, stats, group).items() for name in names]
    held = {site: matrices_by_name(site, graph.program.tensors[site.weight].detach()) for site, _ in parts}
    for site, name in parts:
        matrix = held[site][name]
        columns = unit_columns(graph, site, group, matrix.shape[1])
        if name not in known:
            known[name] = Inputs(tuple(_on_cpu(fold) for fold in stats.sites[name] if fold.count))
        gain = output_gain(graph, nodes[site.node]) if site.kind in LAYERS else None
        rows = torch.ones(len(matrix), dtype=torch.float64) if gain is None else gain**2
        found.append(Problem(matrix, known[name], columns, rows, _made(graph, site)))
    return tuple(found) if weights is None else _weighed(found, [stats.measures[weights].get(n) for _, n in parts])


def _weighed(group: Sequence[Problem], known: Sequence[Spread | None]) -> tuple[Problem, ...]:
    """The same with the outputs weighed by a measure, in units of its mean over all consumers; as before where one of
    them has none."""
    told = [spread.mean.cpu() for spread in known if spread is not None]
    mean = float(torch.cat(told).mean()) if told else 0.0
    if len(told) < len(known) or mean <= 0:
        return tuple(group)
    return tuple(problem.with_rows(rows / mean) for problem, rows in zip(group, told, strict=True))


def _made(graph: Graph, site: Site) -> dict[str, Tensor]:
    """The groups whose units are outputs of a consumer."""
    axis = site.out_axis(graph.tensor_axes[site.weight])
    makers = [group for group in graph.groups if site in group.producers]
    return {group.name: torch.as_tensor(positions(axis, group.key)) for group in makers}


def unit_columns(graph: Graph, site: Site, group: Group, count: int) -> Tensor:
    """(n, b) the columns of the consumer's weight matrix that belong to each unit of the group."""
    axis = site.in_axis(graph.tensor_axes[site.weight])
    unit = torch.as_tensor(positions(axis, group.key))
    unit = unit.repeat_interleave(count // unit.numel())  # a convolution has kernel-size columns a channel
    order = torch.argsort(unit, stable=True)
    return order[unit[order] >= 0].reshape(group.width, -1)


def following_norm(node: Node) -> Node | None:
    """The batch norm over the outputs of a call that is the only reader of its result, if there is one."""
    users = list(node.users)
    if len(users) != 1 or not op_name(users[0]).startswith("aten.batch_norm"):
        return None
    # dimension 1 is normalised: of (N, positions, outputs) those are the positions
    return users[0] if output_dim(node) == 1 else None


def output_gain(graph: Graph, node: Node) -> Tensor:
    """(o,) what the norm that follows multiplies each output with: γ/σ, or 1."""
    norm = following_norm(node)
    gain = torch.ones(node.meta["val"].shape[output_dim(node)], dtype=torch.float64)
    if norm is None:
        return gain
    settings = named_arguments(norm)
    tensors = {
        key: graph.program.tensors[graph.program.bindings[settings[key].name]].detach().double().cpu()
        for key in ("weight", "running_var")
        if isinstance(settings[key], Node) and settings[key].name in graph.program.bindings
    }
    if "running_var" in tensors:
        gain = gain / (tensors["running_var"] + float(settings["eps"])).sqrt()
    return gain * tensors["weight"] if "weight" in tensors else gain


def _on_cpu(moments: Moments) -> Moments:
    return moments.holding(moments.mean.cpu(), moments.held.cpu())


def widest(group: Sequence[Problem]) -> int:
    """Columns of the widest consumer."""
    return max((problem.matrix.shape[1] for problem in group), default=0)
