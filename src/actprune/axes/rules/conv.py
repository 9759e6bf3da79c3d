"""Convolutions and pooling, in one to three dimensions."""

from __future__ import annotations

from math import prod
from typing import Any, cast

from actprune.axes.call import Call, rule
from actprune.axes.expr import Axis, product, size
from actprune.axes.site import Dims


@rule("aten.conv1d", "aten.conv2d", "aten.conv3d")
def convolution(call: Call) -> Dims:
    """input (N, Cin, …), weight (Cout, Cin / groups, kernel…) → (N, Cout, …)."""
    weight, groups = call.axes(call["weight"]), call["groups"]
    batch, channels, spatial = _split_input(call, len(weight) - 2)
    _freeze_kernel(call, weight[2:])
    out = weight[0]
    if groups == 1:
        call.unify(channels, weight[1])
    else:
        # the group axis is shared by input and output; the weight holds the channels within one group
        group, within = call.algebra.split(channels, [groups, size(channels) // groups], call.where)
        group_out, _ = call.algebra.split(out, [groups, size(out) // groups], call.where)
        call.unify(group, group_out)
        call.unify(within, weight[1])
    _bias(call, weight[0])
    call.site(
        "conv", call["weight"], call["bias"], in_dim=1, out_dim=0, groups=groups, source=(call["input"], len(batch))
    )
    result = (*batch, out, *spatial)
    kernel = prod(size(axis) for axis in weight[2:])
    call.macs([*batch, weight[0], *spatial, weight[1]], kernel)
    return result


@rule("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")
def transposed_convolution(call: Call) -> Dims:
    """input (N, Cin, …), weight (Cin, Cout / groups, kernel…) → (N, Cout, …)."""
    weight, groups = call.axes(call["weight"]), call["groups"]
    batch, channels, spatial = _split_input(call, len(weight) - 2)
    _freeze_kernel(call, weight[2:])
    call.unify(channels, weight[0])
    out = weight[1]
    if groups > 1:
        group, _ = call.algebra.split(channels, [groups, size(channels) // groups], call.where)
        out = product([group, weight[1]])
    _bias(call, out)
    call.site(
        "conv_transpose",
        call["weight"],
        call["bias"],
        in_dim=0,
        out_dim=1,
        groups=groups,
        source=(call["input"], len(batch)),
    )
    kernel = prod(size(axis) for axis in weight[2:])
    inputs = call.axes(call["input"])
    call.macs([*inputs, weight[1]], kernel)
    return (*batch, out, *spatial)


@rule("aten.convolution", "aten._convolution")
def any_convolution(call: Call) -> Dims:
    return transposed_convolution(call) if call["transposed"] else convolution(call)


@rule("aten.conv_tbc")
def convolution_over_time(call: Call) -> Dims:
    """self (T, N, Cin), weight (kernel, Cin, Cout), bias (Cout,) → (T, N, Cout)."""
    (time, batch, channels), weight = call.axes(call["self"]), call.axes(call["weight"])
    _freeze_kernel(call, weight[:1])
    call.unify(channels, weight[1])
    _bias(call, weight[2])
    call.site("product", call["weight"], None, in_dim=1, out_dim=2, source=(call["self"], 2))
    steps = _spatial(call, (time,), (size(time),), call.shape()[:1])
    call.macs([*steps, batch, *weight])
    return (*steps, batch, weight[2])


@rule(
    "aten.max_pool1d", "aten.max_pool2d", "aten.max_pool3d",
    "aten.avg_pool1d", "aten.avg_pool2d", "aten.avg_pool3d",
    "aten.adaptive_avg_pool1d", "aten.adaptive_avg_pool2d", "aten.adaptive_avg_pool3d",
    "aten.upsample_nearest1d", "aten.upsample_nearest2d", "aten.upsample_nearest3d",
    "aten.upsample_linear1d", "aten.upsample_bilinear2d", "aten.upsample_bicubic2d", "aten.upsample_trilinear3d",
    "aten._upsample_bicubic2d_aa", "aten._upsample_bilinear2d_aa", "aten._upsample_nearest_exact1d",
    "aten._upsample_nearest_exact2d", "aten._upsample_nearest_exact3d", "aten._adaptive_avg_pool2d",
    "aten._adaptive_avg_pool3d", "aten.reflection_pad1d", "aten.reflection_pad2d", "aten.reflection_pad3d",
    "aten.replication_pad1d", "aten.replication_pad2d", "aten.replication_pad3d",
)  # fmt: skip
def pooling(call: Call) -> Dims:
    """(…, C, spatial…) → (…, C, other spatial…): channels pass, spatial sizes are new."""
    source = call.axes(call.values[0])
    old, new = call.shape(call.values[0]), call.shape()
    kept = len(new) - _spatial_count(call)
    return (*source[:kept], *_spatial(call, source[kept:], old[kept:], new[kept:]))


@rule(
    "aten.max_pool1d_with_indices", "aten.max_pool2d_with_indices", "aten.max_pool3d_with_indices",
    "aten.adaptive_max_pool1d", "aten.adaptive_max_pool2d", "aten.adaptive_max_pool3d",
    "aten.fractional_max_pool2d", "aten.fractional_max_pool3d",
)  # fmt: skip
def pooling_with_indices(call: Call) -> list[Dims]:
    """As `pooling`, and where in its map each value stood; windows may be given at random, (N, C, dimensions)."""
    source = call.axes(call.values[0])
    for axis, drawn in zip(source, call.axes(call["random_samples"])[:2], strict=False):
        call.unify(axis, drawn)
    new = tuple(call.node.meta["val"][0].shape)
    kept = len(new) - _spatial_count(call)
    for axis in source[kept:]:
        call.freeze(axis, "slid over")
    dims = (*source[:kept], *(call.fixed(n, "a spatial size") for n in new[kept:]))
    return [dims, dims]


@rule("aten.max_unpool2d", "aten.max_unpool3d")
def unpooling(call: Call) -> Dims:
    """self and indices (…, C, spatial…) → (…, C, other spatial…)."""
    for axis, own in zip(call.axes(call["self"]), call.axes(call["indices"]), strict=True):
        call.unify(axis, own)
    return pooling(call)


def _spatial_count(call: Call) -> int:
    """Two for `aten.max_pool2d.default`."""
    return next(n for n in (1, 2, 3) if f"{n}d" in str(call.node.target))


def _split_input(call: Call, spatial: int) -> tuple[Dims, Axis, Dims]:
    """The input's batch axes, channel axis, and the result's spatial axes."""
    source = call.axes(call["input"])
    kept = len(source) - spatial
    old, new = call.shape(call["input"])[kept:], call.shape()[kept:]
    found = [
        (axis,) if still else _spatial(call, (axis,), (m,), (n,))
        for axis, m, n, still in zip(source[kept:], old, new, _still(call, spatial), strict=True)
    ]
    return source[: kept - 1], source[kept - 1], tuple(axis for dims in found for axis in dims)


def _still(call: Call, spatial: int) -> list[bool]:
    """Along which dimensions every place is read by itself, as by a linear layer: the last one of (batch, tokens,
    features) under `nn.Conv1d(tokens, other, 1)`."""
    kernel = call.shape(call["weight"])[2:]

    def each(given: Any) -> list[Any]:
        values: list[Any] = list(cast("Any", given)) if isinstance(given, list | tuple) else [given]
        return values * spatial if len(values) == 1 else values

    stride, padding, more = each(call["stride"]), each(call["padding"]), each(call["output_padding"] or 0)
    padding = [0 if pad in ("same", "valid") else pad for pad in padding]  # neither pads a kernel of one
    return [window == (1, 1, 0, 0) for window in zip(kernel, stride, padding, more, strict=True)]


def _spatial(call: Call, axes: Dims, old: tuple[int, ...], new: tuple[int, ...]) -> Dims:
    for axis in axes:
        call.freeze(axis, "slid over")
    return tuple(a if m == n else call.fixed(n, "a spatial size") for a, m, n in zip(axes, old, new, strict=True))


def _freeze_kernel(call: Call, axes: Dims) -> None:
    for axis in axes:
        call.freeze(axis, "a kernel size")


def _bias(call: Call, out: Axis) -> None:
    bias = call.axes(call["bias"])
    if bias:
        call.unify(bias[0], out)
