"""Windows and shuffles: ops that move entries between the channels and space."""

from __future__ import annotations

from math import prod

from actprune.axes.call import Call, rule
from actprune.axes.expr import product, size
from actprune.axes.site import Dims


@rule("aten.im2col")
def im2col(call: Call) -> Dims:
    """(…, C, H, W) → (…, C · k², windows): every channel brings the entries of its window."""
    *batch, channels, height, width = call.axes(call["self"])
    for axis in (height, width):
        call.freeze(axis, "slid over")
    kernel = call.fixed(prod(call["kernel_size"]), "a kernel size")
    return (*batch, product([channels, kernel]), call.fixed(call.shape()[-1], "a number of windows"))


@rule("aten.col2im")
def col2im(call: Call) -> Dims:
    """(…, C · k², windows) → (…, C, H, W): the windows are added up."""
    *batch, columns, windows = call.axes(call["self"])
    kernel = prod(call["kernel_size"])
    channels, own = call.algebra.split(columns, [size(columns) // kernel, kernel], call.where)
    call.freeze(own, "a kernel size")
    call.freeze(windows, "slid over")
    return (*batch, channels, *(call.fixed(n, "a spatial size") for n in call.shape()[-2:]))


@rule("aten.unfold", "aten.unfold_copy")
def unfold(call: Call) -> Dims:
    """(…, D, …) → (…, windows, …, size): windows of one dimension, their entries in a new last one."""
    source = call.axes(call["self"])
    dim = int(call["dimension"]) % max(len(source), 1)
    call.freeze(source[dim], "slid over")
    windows, entries = (call.fixed(call.shape()[d], "a number of windows") for d in (dim, -1))
    return (*source[:dim], windows, *source[dim + 1 :], entries)


@rule("aten.pixel_shuffle")
def pixel_shuffle(call: Call) -> Dims:
    """(…, C · r², H, W) → (…, C, H · r, W · r)."""
    *batch, channels, height, width = call.axes(call["self"])
    r = int(call["upscale_factor"])
    own, below, beside = call.algebra.split(channels, [size(channels) // r**2, r, r], call.where)
    for axis in (below, beside, height, width):
        call.freeze(axis, "shuffled into space")
    return (*batch, own, product([height, below]), product([width, beside]))


@rule("aten.pixel_unshuffle")
def pixel_unshuffle(call: Call) -> Dims:
    """(…, C, H · r, W · r) → (…, C · r², H, W)."""
    *batch, channels, height, width = call.axes(call["self"])
    r = int(call["downscale_factor"])
    rows, below = call.algebra.split(height, [size(height) // r, r], call.where)
    columns, beside = call.algebra.split(width, [size(width) // r, r], call.where)
    for axis in (rows, below, columns, beside):
        call.freeze(axis, "shuffled into channels")
    return (*batch, product([channels, below, beside]), rows, columns)


@rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def channel_shuffle(call: Call) -> Dims:
    """(N, groups · C, …) → (N, C · groups, …); how many groups there are stands in the call."""
    source, groups = call.axes(call["self"]), int(call["groups"])
    group, within = call.algebra.split(source[1], [groups, size(source[1]) // groups], call.where)
    call.freeze(group, "shuffled in a fixed number of groups")
    return (source[0], product([within, group]), *source[2:])


@rule("aten.grid_sampler", "aten.grid_sampler_2d", "aten.grid_sampler_3d")
def grid_sampler(call: Call) -> Dims:
    """input (N, C, space…), grid (N, new space…, dimensions) → (N, C, new space…).

    A parameter as the input is a table that is looked up between its entries, such as the planes of a radiance field:
    it makes its channels as an embedding does.
    """
    source, grid = call.axes(call["input"]), call.axes(call["grid"])
    call.unify(source[0], grid[0])
    for axis in (*source[2:], grid[-1]):
        call.freeze(axis, "sampled")
    call.makes("embedding", call["input"], 1)
    return (*source[:2], *grid[1:-1])


@rule("aten.affine_grid_generator")
def affine_grid(call: Call) -> Dims:
    """theta (N, 2, 3) → (N, H, W, 2), or the same with one dimension more."""
    batch, *matrix = call.axes(call["theta"])
    for axis in matrix:
        call.freeze(axis, "a matrix of coordinates")
    return (batch, *(call.fixed(n, "a spatial size") for n in call.shape()[1:]))
