"""The candidate network before surgery: the dense graph with some tensors overridden.

Removing a group's units equals, on the dense-shaped graph, zero columns in every weight that sums over them.
All deciding happens on such rewrites; surgery afterwards only slices.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from actprune.axes.capture import Graph
from actprune.axes.expr import Axis, Indices, kept_indices, leaves
from actprune.axes.site import Site
from actprune.mapped import alongside, let_go
from actprune.plan import Plan


@dataclass(frozen=True, eq=False)
class Rewrite:
    """Dense-shaped overrides of a model's tensors.

    Attributes:
        tensors: tensor name → the tensor to use instead, of the dense shape, with zero columns where
            units are cut.
        record: what was decided for each consumer and for BatchNorm, for the report.
    """

    tensors: Mapping[str, Tensor] = field(repr=False)
    record: Mapping[str, Any] = field(default_factory=dict[str, Any])


def kept_units(graph: Graph, plan: Plan) -> dict[int, Indices]:
    """Leaf key of `graph` → kept units. Plan and graph meet by group names: keys are each capture's own."""
    by_name = {name: units for name, group in plan.groups.items() if (units := plan.kept.get(group.key)) is not None}
    return {group.key: by_name[group.name] for group in graph.groups if group.name in by_name}


def zero_columns(
    graph: Graph, plan: Plan, rewrite: Rewrite | None = None, *, lifted: bool = False
) -> dict[str, Tensor]:
    """The overrides that stand for `plan` on the dense graph: `rewrite`, and zeros where units are read or mixed.

    Args:
        lifted: for a run in float64; the gain of a mask is then not rounded.

    Returns:
        tensor name → tensor of the dense shape; only tensors that differ from the model's own.
    """
    overrides = dict(rewrite.tensors) if rewrite is not None else {}
    kept = kept_units(graph, plan)
    for site in _readers(graph, kept):
        weight = overrides.get(site.weight, graph.program.tensors[site.weight])
        overrides[site.weight] = alongside(weight.detach() * column_mask(graph, site, kept, weight), weight)
        let_go((weight, overrides[site.weight]))
    return {**overrides, **mask_values(graph, plan, lifted=lifted)}


def column_mask(graph: Graph, site: Site, kept: Mapping[int, Indices], weight: Tensor) -> Tensor:
    """1 for the inputs of a weight that stay, 0 for the others; its other dimensions have size 1."""
    mask = _stays(site.in_axis(graph.tensor_axes[site.weight]), kept, weight.new_zeros(site.inputs(weight)))
    return mask.view([n if d in site.in_dims else 1 for d, n in enumerate(weight.shape)])


def entry_mask(graph: Graph, name: str, kept: Mapping[int, Indices]) -> Tensor:
    """1 for the entries of a tensor of the model that stay in all of its dimensions, 0 for the others; of its shape."""
    mask = torch.ones_like(graph.program.tensors[name])
    for dim, axis in enumerate(graph.tensor_axes[name]):
        stays = _stays(axis, kept, mask.new_zeros(mask.shape[dim]))
        mask *= stays.view([-1 if d == dim else 1 for d in range(mask.dim())])
    return mask


def _stays(axis: Axis, kept: Mapping[int, Indices], mask: Tensor) -> Tensor:
    """`mask`, (n,) zeros for the indices of an axis, with 1 for those that stay."""
    mask[torch.as_tensor(kept_indices(axis, kept), device=mask.device)] = 1
    return mask


def readers(graph: Graph, keys: Collection[int]) -> set[str]:
    """Names of the tensors that `zero_columns` changes where the groups with these leaf keys are cut."""
    masks = {name for name, mask in graph.masks.items() if mask.touches(keys)}
    return masks | {site.weight for site in _readers(graph, keys)}


def _readers(graph: Graph, keys: Collection[int]) -> Iterator[Site]:
    """The sites whose weight sums over units of these groups."""
    for site in (*graph.sites, *graph.training_sites):
        if any(leaf.key in keys for leaf in leaves(site.in_axis(graph.tensor_axes[site.weight]))):
            yield site


def mask_values(graph: Graph, plan: Plan, *, lifted: bool = False) -> dict[str, Tensor]:
    """The values of the graph's masks that stand for `plan`; they are tensors of no model, so no rewrite holds them."""
    kept = kept_units(graph, plan)
    return {name: mask.values(kept, lifted) for name, mask in graph.masks.items() if mask.touches(kept)}


def thresholded(graph: Graph, threshold: float) -> dict[str, Tensor]:
    """The seed's filter pruning: the producers' weights with every |w| below `threshold` set to zero."""
    found: dict[str, Tensor] = {}
    for group in graph.groups:
        for site in group.producers:
            weight = graph.program.tensors[site.weight].detach()
            found[site.weight] = torch.where(weight.abs() < threshold, torch.zeros_like(weight), weight)
    return found
