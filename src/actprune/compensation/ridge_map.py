"""A ridge map between channels: every removed channel is a mixture of those that stay (Tang et al. 2026, GRAIL:
Post-hoc Compensation by Linear Reconstruction for Compressed Networks).

With G = E[x xᵀ] the second moments of a consumer's input channels, not centred, and K those kept:

    B = G_:K (G_KK + λI)⁻¹,   λ = 1e-3 · mean diag G_KK,   W̃ = W B

Layers follow one another: G is taken behind those that are cut and mapped already, whose cut units still say what they
would have said. One coefficient per pair of channels: the kernel positions of a convolution, and the places of a map
that was flattened in front of a linear layer, share it. The columns of heads and their dimensions are channels of their
own, for the dimensions of two heads have nothing to do with each other. Nothing else changes: no bias, and no consumer
whose columns all stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from actprune.axes.capture import Graph
from actprune.axes.expr import Concat, Indices, Leaf, Product, kept_indices, leaves, size
from actprune.axes.site import Site
from actprune.stats.moments import TINY, Moments, merge, moments
from actprune.stats.patches import MAX_COLUMNS, as_weight, columns_per_input, weight_matrix

RIDGE = 1e-3


def ridge_map(
    graph: Graph, site: Site, inputs: Iterable[Tensor], kept: Mapping[int, Indices]
) -> tuple[Tensor | None, dict[str, Any]]:
    """A consumer's weight with the map, and what to record of it; None where it can't be given one.

    Args:
        inputs: what the consumer gets where all layers before it are done with, batch by batch.
        kept: leaf key → kept units.
    """
    weight = graph.program.tensors[site.weight].detach()
    stays = torch.as_tensor(kept_indices(site.in_axis(graph.tensor_axes[site.weight]), kept), device=weight.device)
    each = columns_per_input(site, weight)
    columns = channel_columns(graph, site, each).to(weight.device)
    reason = why_not(site, len(columns))
    if reason is not None:
        return None, {"module": site.module, "left": reason}
    channels = torch.isin(columns[:, 0] // each, stays).nonzero().reshape(-1)
    found = channel_moments(site, inputs, columns)
    matrix, ridge = mapped(weight_matrix(site, weight).double(), found.second, columns, channels)
    record = {"module": site.module, "ridge": ridge, "rows": found.count, "columns": len(channels)}
    return as_weight(site, matrix, weight), record


def channel_columns(graph: Graph, site: Site, each: int) -> Tensor:
    """(C, p) the columns of a consumer's weight matrix that belong to each of its input channels.

    Args:
        each: columns per index of the weight's input dimension: the size of a kernel.
    """
    axis = site.in_axis(graph.tensor_axes[site.weight])
    index = torch.arange(size(axis))
    kinds = {group.key: group.kind for group in graph.groups}
    if isinstance(axis, Product) and site.kind == "linear":  # the channels of a convolution are an axis of their own
        held = [i for i, part in enumerate(axis.parts) if any(leaf.key in kinds for leaf in leaves(part))]
        whole = all(kinds.get(leaf.key) in ("channels", "neurons") for i in held for leaf in leaves(axis.parts[i]))
        if len(held) == 1 and whole and isinstance(axis.parts[held[0]], Leaf | Concat):
            index = index.reshape([size(part) for part in axis.parts]).movedim(held[0], 0)
    index = index.reshape(index.shape[0], -1)
    return (index[:, :, None] * each + torch.arange(each)).flatten(1)


def why_not(site: Site, channels: int) -> str | None:
    """Why a consumer can't be given a map; None where it can."""
    if site.kind not in ("linear", "conv") or site.groups != 1:
        return "does not sum over all of its input channels"
    if channels > MAX_COLUMNS:
        return f"reads {channels} channels, more than {MAX_COLUMNS}"
    return None


def channel_moments(site: Site, inputs: Iterable[Tensor], columns: Tensor) -> Moments:
    """Of the channels of a consumer's inputs, over samples and places."""
    total: Moments | None = None
    for x in inputs:
        if site.kind == "linear":
            rows = x.reshape(-1, x.shape[-1])[:, columns.T.to(x.device)].flatten(0, 1)
        else:
            rows = x.transpose(0, 1).flatten(1).T
        total = merge(total, moments(rows))
    if total is None:
        raise ValueError("no inputs to map")
    return total


def mapped(matrix: Tensor, second: Tensor, columns: Tensor, kept: Tensor) -> tuple[Tensor, float]:
    """(W̃, λ): a weight matrix (o, columns) with what the kept channels take over, zero for the others.

    Args:
        second: (C, C) G.
        columns: (C, p), see `channel_columns`.
        kept: (K,) channels.
    """
    inner = second[kept][:, kept]
    ridge = max(RIDGE * float(inner.diagonal().mean()), TINY)
    unit = torch.eye(len(kept), dtype=inner.dtype, device=inner.device)
    coefficients = torch.linalg.solve(inner + ridge * unit, second[kept])  # (K, C) Bᵀ
    found = torch.zeros_like(matrix)
    found[:, columns[kept]] = torch.einsum("ocp,kc->okp", matrix[:, columns], coefficients)
    return found, ridge
