"""The rows that a consumer multiplies with its weight: a linear layer's inputs, a convolution's im2col patches."""

from __future__ import annotations

from math import prod
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from actprune.axes.site import Site
from actprune.graph.program import named_arguments, op_name
from actprune.mapped import is_mapped
from actprune.stats.stacked import as_stored, made_rows, matrices, name_of

MAX_COLUMNS = 8192
"""Widest consumer whose covariance is formed; wider ones are scored by magnitude and not refitted."""

MAX_ALONE = 32_768
"""The same for a model that lies in files: one layer is in memory at a time, and the limit is looked at before."""

ROWS, QUICK_ROWS = 400, 40
"""A convolution's patches overlap: a refit skips positions beyond so many rows per column; fewer are enough for
candidates that are only compared."""

LEAST_COLUMNS = 160
"""For narrower consumers the rows are those of so many columns."""

LAYERS = ("linear", "conv", "conv_transpose")
"""Kinds of sites that are one call of one weight on one input. Others (an LSTM has many weights) only make and read."""


def is_layer(site: Site) -> bool:
    """Whether a site is one product of one input: a layer, or an einsum with one matrix."""
    return site.kind in LAYERS or (site.form is not None and not site.form.stack and not site.form.ends)


def output_dim(node: Node) -> int:
    """The dimension of a layer's result that holds its outputs."""
    return 1 if "conv" in op_name(node) else node.meta["val"].dim() - 1


def source_of(node: Node) -> int:
    """Which argument of a layer's call is its input."""
    return 1 if op_name(node).startswith("aten.addmm") else 0


def most_rows(columns: int, per_column: int = ROWS) -> int:
    """The rows that a refit of so many columns uses at most."""
    return per_column * max(columns, LEAST_COLUMNS)


def as_called(site: Site, weight: Tensor) -> Tensor:
    """A stored weight as the call gets it: (outputs, inputs, kernel…) for a convolution, wherever it keeps them."""
    return weight.permute(site.order) if site.order and site.kind != "linear" else weight


def columns_per_input(site: Site, weight: Tensor) -> int:
    """Columns of the weight matrix that an index of the weight's input dimension has: the size of a kernel."""
    return site.columns(weight) // site.inputs(weight)


def has_rows(site: Site, weight: Tensor) -> bool:
    """Whether the consumer's output is one matrix product of rows with its whole weight."""
    most = MAX_ALONE if is_mapped(weight) else MAX_COLUMNS
    return site.columns(weight) <= most and site.kind in (*LAYERS, "recurrent") and site.groups == 1


def has_stacked_rows(site: Site, weight: Tensor) -> bool:
    """Whether that holds for each of the matrices of a weight with what belongs to it."""
    return site.kind == "stacked" and site.columns(weight) <= MAX_COLUMNS


def row_names(site: Site, weight: Tensor) -> list[str]:
    """What the statistics of a consumer's rows are known by: one name as a rule, one for each matrix where there are
    several, none where it has no rows or is too wide."""
    if has_stacked_rows(site, weight):
        return [name_of(site, number) for number in range(site.matrices(weight))]
    return [site.name] if has_rows(site, weight) else []


def matrices_by_name(site: Site, weight: Tensor) -> dict[str, Tensor]:
    """The same names → (outputs, columns) the matrix of each."""
    names = row_names(site, weight)
    held = matrices(site, weight) if site.kind == "stacked" else [weight_matrix(site, weight)] if names else []
    return dict(zip(names, held, strict=False))


def has_grouped_rows(site: Site, weight: Tensor) -> bool:
    """Whether that holds for each group of a convolution with its own channels and outputs."""
    return site.kind == "conv" and site.groups > 1 and site.columns(weight) <= MAX_COLUMNS


Places: TypeAlias = slice | Tensor
"""Which positions of a map: a slice of their numbers, or the numbers."""

EVERYWHERE = slice(None)


def drawn_places(positions: int, wanted: int) -> Places:
    """`wanted` of the positions of a map, the same ones whenever they are asked for; all where there are no more."""
    if wanted >= positions:
        return EVERYWHERE
    draw = torch.Generator().manual_seed(positions)
    return torch.randperm(positions, generator=draw)[:wanted].sort().values


def input_rows(
    site: Site, node: Node, x: Tensor, weight: Tensor, places: Places = EVERYWHERE, units: Tensor | None = None
) -> Tensor:
    """x as the call gets it → (samples, positions, columns); columns are those of `weight_matrix`.

    A transposed convolution is a plain one, with the kernel turned round, of its input with zeros between the positions
    (Dumoulin and Visin 2016, A Guide to Convolution Arithmetic for Deep Learning, §4).

    Args:
        x: (N, …, I) for a linear layer, (N, C, spatial…) for a convolution.
        places: which of the positions are wanted; no others are unfolded.
        units: which of the input's channels are wanted; the columns are theirs.
    """
    if site.kind == "linear":
        rows = _by_sample(x)[:, places]
        return rows if units is None else rows[..., units]
    if units is not None:
        x = x[:, units]
    settings = named_arguments(node)
    kernel = as_called(site, weight).shape[2:]
    count = len(kernel)
    stride, dilation = (_each(settings[name], count) for name in ("stride", "dilation"))
    pads = _pads(settings["padding"], kernel, dilation)
    if site.kind == "conv_transpose":
        x = _spread(x, stride)
        more = _each(settings["output_padding"], count)
        reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
        ends = [(r, r + m) for r, m in zip(reversed(reach), reversed(more), strict=True)]
        pads = [n - p for n, p in zip((n for both in ends for n in both), pads, strict=True)]
        stride = [1] * count
    x = F.pad(x, pads)
    for d in range(count):
        x = x.unfold(2 + d, (kernel[d] - 1) * dilation[d] + 1, stride[d])[..., :: dilation[d]]
    # (N, C, positions…, kernel…) → (N, positions, C · kernel)
    if isinstance(places, slice) and places == EVERYWHERE:
        x = x.permute([0, *range(2, 2 + count), 1, *range(2 + count, 2 + 2 * count)])
    else:
        sizes = x.shape[2 : 2 + count]
        numbers = torch.arange(sizes.numel())[places].to(x.device)
        x = x[:, :, *torch.unravel_index(numbers, sizes)].transpose(1, 2)
    columns = (weight.shape[site.in_dim] if units is None else len(units)) * kernel.numel()
    return x.reshape(x.shape[0], x.shape[1:].numel() // columns, columns)  # there may be no samples


def output_rows(site: Site, y: Tensor, places: Places = EVERYWHERE) -> Tensor:
    """y as the call gives it → (samples, positions, outputs); `places` as for `input_rows`. A product with several
    matrices has no such rows."""
    if site.kind == "stacked":
        return made_rows(site, None, y)[:, places]
    if site.kind == "linear":
        return _by_sample(y)[:, places]
    return y.flatten(2)[..., places].transpose(1, 2)


def _by_sample(x: Tensor) -> Tensor:
    """(N, …, I) or a single row (I,) → (N, positions, I)."""
    return x.reshape(x.shape[0] if x.dim() > 1 else 1, prod(x.shape[1:-1]), x.shape[-1])


def weight_matrix(site: Site, weight: Tensor) -> Tensor:
    """(outputs, columns): a convolution's columns are grouped by input channel."""
    if site.kind == "linear":
        return weight.permute(*site.out_dims, *site.in_dims).reshape(site.outputs(weight), -1)
    weight = as_called(site, weight)
    return _turned(weight).flatten(1) if site.kind == "conv_transpose" else weight.flatten(1)


def as_weight(site: Site, matrix: Tensor, like: Tensor) -> Tensor:
    """The inverse of `weight_matrix`."""
    if site.kind == "linear":
        return as_stored(matrix, (*site.out_dims, *site.in_dims), like)
    called = as_called(site, like)
    if site.kind == "conv_transpose":
        matrix = _turned(matrix.reshape(_turned(called).shape))
    return as_stored(matrix, site.order, like) if site.order else matrix.reshape(called.shape).to(like.dtype)


def _turned(weight: Tensor) -> Tensor:
    """(I, O, kernel…) → (O, I, kernel…) with the kernel from end to start; its own inverse."""
    return weight.transpose(0, 1).flip(*range(2, weight.dim()))


def _spread(x: Tensor, stride: list[int]) -> Tensor:
    """x (N, C, spatial…) with stride − 1 zeros between two positions."""
    sizes = [(n - 1) * step + 1 for n, step in zip(x.shape[2:], stride, strict=True)]
    wide = x.new_zeros(*x.shape[:2], *sizes)
    wide[(..., *(slice(None, None, step) for step in stride))] = x
    return wide


def _each(value: Any, count: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _pads(padding: Any, kernel: Any, dilation: list[int]) -> list[int]:
    """What `F.pad` takes: last dimension first, before and after."""
    if padding == "valid":
        return [0] * (2 * len(kernel))
    if padding == "same":
        totals = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
        return [n for total in reversed(totals) for n in (total // 2, total - total // 2)]
    return [n for p in reversed(_each(padding, len(kernel))) for n in (p, p)]
