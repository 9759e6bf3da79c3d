"""The question that guidance answers for one group: which units can its consumers best do without?

A consumer with weight W (outputs o × columns p) and input covariance C loses, when it keeps only the columns K and
is refitted, what the ridge objective says:

    J(K) = min over W̃ supported on K of  tr R (W − W̃)(C + λI)(W − W̃)ᵀ

with R weighing its output rows. W̃ shrinks to W_K, not to 0. Scores, supports and held-out errors all speak of J.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.axes.expr import positions
from actprune.axes.groups import Group
from actprune.axes.inference import Site, _by_name
from actprune.graph.program import op_name
from actprune.stats.collect import Stats
from actprune.stats.moments import Moments, merge_all
from actprune.stats.patches import has_rows, weight_matrix

RIDGE = 1e-3
"""λ as a fraction of the mean variance of the columns."""


@dataclass(frozen=True, eq=False)
class Problem:
    """One consumer as seen by one group.

    Attributes:
        weight: (o, p) float64.
        folds: moments of the input rows, one per fold.
        columns: (n, b) for each of the group's n units the columns of the weight that belong to it.
        rows: (o,) weights R of the outputs: (γ/σ)² of the norm that follows, or 1.
    """

    weight: Tensor
    folds: tuple[Moments, ...]
    columns: Tensor
    rows: Tensor

    @cached_property
    def total(self) -> Moments:
        """All folds together."""
        return merge_all(self.folds)

    @cached_property
    def ridge(self) -> float:
        """λ."""
        return max(RIDGE * float(self.total.covariance.diagonal().mean()), 1e-12)

    @cached_property
    def gram(self) -> Tensor:
        """(p, p) C + λI."""
        covariance = self.total.covariance
        return covariance + self.ridge * torch.eye(covariance.shape[0], dtype=covariance.dtype)

    @cached_property
    def variance(self) -> float:
        """tr R W C Wᵀ, the variance of the weighted outputs."""
        weight, covariance = self.weight, self.total.covariance
        return max(float((((weight @ covariance) * weight).sum(1) * self.rows).sum()), 1e-30)

    def kept(self, units: Sequence[int] | Tensor) -> Tensor:
        """(k,) columns that stay when these units do: theirs, and those of no unit of this group."""
        mask = torch.ones(self.weight.shape[1], dtype=torch.bool)
        mask[self.columns.reshape(-1)] = False
        mask[self.columns[torch.as_tensor(units, dtype=torch.long)].reshape(-1)] = True
        return mask.nonzero().reshape(-1)

    def with_rows(self, rows: Tensor) -> Problem:
        return Problem(self.weight, self.folds, self.columns, rows)


def problems(graph: Graph, stats: Stats, group: Group) -> tuple[Problem, ...]:
    """One Problem per consumer of `group` that has statistics."""
    found: list[Problem] = []
    nodes = {node.name: node for node in graph.program.nodes}
    for site in group.consumers:
        weight = graph.program.tensors[site.weight]
        if site.node not in stats.sites or not has_rows(site, weight):
            continue
        matrix = weight_matrix(site, weight.detach()).double().cpu()
        columns = unit_columns(graph, site, group, matrix.shape[1])
        folds = tuple(_on_cpu(fold) for fold in stats.sites[site.node] if fold.count)
        found.append(Problem(matrix, folds, columns, output_gain(graph, nodes[site.node]) ** 2))
    return tuple(found)


def unit_columns(graph: Graph, site: Site, group: Group, count: int) -> Tensor:
    """(n, b) the columns of the consumer's weight matrix that belong to each unit of the group."""
    axis = graph.tensor_axes[site.weight][site.in_dim]
    unit = torch.as_tensor(positions(axis, group.key))
    unit = unit.repeat_interleave(count // unit.numel())  # a convolution has kernel-size columns a channel
    order = torch.argsort(unit, stable=True)
    return order[unit[order] >= 0].reshape(group.width, -1)


def following_norm(node: Node) -> Node | None:
    """The batch norm that is the only reader of a call's result, if there is one."""
    users = list(node.users)
    if len(users) == 1 and op_name(users[0]).startswith("aten.batch_norm"):
        return users[0]
    return None


def output_gain(graph: Graph, node: Node) -> Tensor:
    """(o,) what the norm that follows multiplies each output with: γ/σ, or 1."""
    norm = following_norm(node)
    outputs = node.meta["val"].shape[1 if "conv" in op_name(node) else -1]
    gain = torch.ones(outputs, dtype=torch.float64)
    if norm is None:
        return gain
    settings = _by_name(norm)
    tensors = {
        key: graph.program.tensors[graph.program.bindings[settings[key].name]].detach().double().cpu()
        for key in ("weight", "running_var")
        if isinstance(settings[key], Node) and settings[key].name in graph.program.bindings
    }
    if "running_var" in tensors:
        gain = gain / (tensors["running_var"] + float(settings["eps"])).sqrt()
    return gain * tensors["weight"] if "weight" in tensors else gain


def refit(problem: Problem, moments: Moments, units: Sequence[int] | Tensor) -> Tensor:
    """(o, p) the ridge refit of the consumer on the columns that stay, zero elsewhere."""
    kept = problem.kept(units)
    covariance = moments.covariance
    inner = covariance[kept][:, kept] + problem.ridge * torch.eye(kept.numel(), dtype=covariance.dtype)
    target = problem.weight @ covariance[:, kept] + problem.ridge * problem.weight[:, kept]
    result = torch.zeros_like(problem.weight)
    result[:, kept] = torch.linalg.solve(inner, target.T).T
    return result


def held_out_error(group: Sequence[Problem], units: Sequence[int] | Tensor) -> float:
    """Error of the refitted consumers on folds they were not fitted on, as a share of the output variance.

    The mean is refitted too (it goes into the bias), so its shift between folds counts as error.
    """
    error = variance = 0.0
    for problem in group:
        folds = problem.folds
        for held, fold in enumerate(folds):
            rest = folds if len(folds) == 1 else folds[:held] + folds[held + 1 :]
            train = merge_all(rest)
            change = refit(problem, train, units) - problem.weight
            shift = change @ (fold.mean - train.mean)
            lost = ((change @ fold.covariance) * change).sum(1) + shift**2
            error += float((lost * problem.rows).sum())
            variance += problem.variance
    return error / max(variance, 1e-30)


def _on_cpu(moments: Moments) -> Moments:
    return Moments(moments.count, moments.mean.cpu(), moments.scatter.cpu())
