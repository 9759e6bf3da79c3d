"""Ops that only rearrange: views, transposes, concatenations and their opposites."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch.fx import Node

from actprune.axes.expr import ONE, Axis, concat, product, size
from actprune.axes.inference import Call, Dims, rule


@rule(
    "aten.view.default", "aten.reshape", "aten.flatten", "aten.unflatten", "aten.view_as", "aten.reshape_as",
    "aten._unsafe_view", "aten.squeeze", "aten.unsqueeze", "aten.squeeze.dims",
)  # fmt: skip
def reshape(call: Call) -> Dims:
    """Blocks of input dimensions against blocks of output dimensions of the same product, outermost first."""
    source = [axis for axis in call.axes(call.values[0]) if size(axis) != 1]
    target = [n for n in call.shape() if n != 1]
    if 0 in target:
        return tuple(call.fixed(n) for n in call.shape())
    factors: list[Axis] = []
    i = 0
    while i < len(target):
        ins, outs = [source.pop(0)], [target[i]]
        i += 1
        while size(product(ins)) != prod(outs):
            if size(product(ins)) < prod(outs):
                ins.append(source.pop(0))
            else:
                outs.append(target[i])
                i += 1
        merged = product(ins)
        factors += [merged] if len(outs) == 1 else call.algebra.split(merged, outs, call.where)
    return tuple(ONE if n == 1 else factors.pop(0) for n in call.shape())


@rule("aten.mT")
def transposed(call: Call) -> Dims:
    """The last two dimensions change places."""
    *batch, rows, columns = call.axes(call.values[0])
    return (*batch, columns, rows)


@rule("aten.transpose.int", "aten.swapaxes", "aten.t", "aten.numpy_T", "aten.permute", "aten.movedim.int")
def permute(call: Call) -> Dims:
    source = list(call.axes(call.values[0]))
    dims: list[int] | None = call["dims"]
    if dims is not None:
        return tuple(source[d] for d in dims)
    pair = [value for value in call.values[1:] if isinstance(value, int)]
    if not pair:
        return tuple(source[::-1])
    a, b = (d % len(source) for d in pair)
    if "movedim" in str(call.node.target):
        source.insert(b, source.pop(a))
    else:
        source[a], source[b] = source[b], source[a]
    return tuple(source)


@rule("aten.expand", "aten.expand_as", "aten.broadcast_to")
def expand(call: Call) -> Dims:
    """Axes of size 1 become as many as asked: as the other tensor where there is one, else a fixed number."""
    source, result = call.axes(call.values[0]), call.shape()
    other = call.axes(call["other"]) if isinstance(call["other"], Node) else ()
    padded = ones_before(source, len(result))
    dims: list[Axis] = []
    for d, (axis, n) in enumerate(zip(padded, result, strict=True)):
        if size(axis) == n and not (other and n > 1):
            dims.append(axis)
        elif other:
            if size(axis) == n:
                call.unify(axis, other[d])
            dims.append(other[d])
        else:
            dims.append(call.fixed(n, "repeated a fixed number of times"))
    return tuple(dims)


def ones_before(axes: Dims, rank: int) -> Dims:
    return (ONE,) * (rank - len(axes)) + tuple(axes)


@rule("aten.cat", "aten.concat", "aten.concatenate")
def cat(call: Call) -> Dims:
    parts = [call.axes(part) for part in call.values[0]]
    parts = [dims for dims in parts if not (len(dims) == 1 and size(dims[0]) == 0)]  # legacy empty tensors
    return _join(call, parts, call.dim(len(parts[0])))


def _join(call: Call, parts: Sequence[Dims], dim: int) -> Dims:
    first = parts[0]
    for other in parts[1:]:
        for d, (a, b) in enumerate(zip(first, other, strict=True)):
            if d != dim:
                call.unify(a, b)
    joined = concat(dims[dim] for dims in parts)
    return (*first[:dim], joined, *first[dim + 1 :])


@rule("aten.stack")
def stack(call: Call) -> Dims:
    parts = [call.axes(part) for part in call["tensors"]]
    dim = call.dim(len(parts[0]) + 1)
    for other in parts[1:]:
        for a, b in zip(parts[0], other, strict=True):
            call.unify(a, b)
    return (*parts[0][:dim], call.fixed(len(parts), "stacked"), *parts[0][dim:])


@rule("aten.split", "aten.split_with_sizes", "aten.tensor_split.indices")
def split(call: Call) -> list[Dims]:
    """The parts of a Concat, of the sizes that the call gave."""
    return _sections(call)


@rule("aten.chunk", "aten.tensor_split.sections")
def chunk(call: Call) -> list[Dims]:
    """So many equal parts, whatever the size: only parts that lose the same units are equal afterwards."""
    results = _sections(call)
    dim = call.dim(len(results[0]))
    first = results[0][dim]
    for dims in results[1:]:
        if size(dims[dim]) == size(first):
            call.unify(first, dims[dim])
        else:
            call.freeze(call.axes(call.values[0])[dim], "divided unevenly")
    return results


def _sections(call: Call) -> list[Dims]:
    source = call.axes(call.values[0])
    dim = call.dim(len(source))
    sizes = [int(value.shape[dim]) for value in call.node.meta["val"]]
    parts = call.algebra.sections(source[dim], sizes, call.where)
    return [(*source[:dim], part, *source[dim + 1 :]) for part in parts]


@rule("aten.slice.Tensor", "aten.narrow")
def slice_(call: Call) -> Dims:
    """A run of an axis is a part of a Concat; with a step, or of a fixed axis, it is a new fixed axis."""
    source = call.axes(call.values[0])
    dim = call.dim(len(source))
    n, taken = size(source[dim]), call.shape()[dim]
    if taken == n and call["step"] in (None, 1):
        return source
    if call["step"] not in (None, 1):
        call.freeze(source[dim], "taken with a step")
        part = call.fixed(taken, "taken with a step")
    else:
        start = max(0, min(_index(call["start"] or 0, n), n))
        sizes = [start, taken, n - start - taken]
        part = call.algebra.sections(source[dim], sizes, call.where)[1]
    return (*source[:dim], part, *source[dim + 1 :])


@rule("aten.select.int")
def select(call: Call) -> Dims:
    source = call.axes(call.values[0])
    dim = call.dim(len(source))
    call.freeze(source[dim], "selected from")
    return (*source[:dim], *source[dim + 1 :])


@rule("aten.unbind")
def unbind(call: Call) -> list[Dims]:
    source = call.axes(call.values[0])
    dim = call.dim(len(source))
    call.freeze(source[dim], "unbound")
    return [(*source[:dim], *source[dim + 1 :])] * size(source[dim])


@rule("aten.pad", "aten.constant_pad_nd")
def pad(call: Call) -> Dims:
    """Padding of spatial axes; zero channels appended to an axis are a fixed part of a Concat."""
    source, pads = list(call.axes(call.values[0])), list(call["pad"])
    constant = call["mode"] in (None, "constant")
    for k in range(len(pads) // 2):
        before, after, d = pads[2 * k], pads[2 * k + 1], len(source) - 1 - k
        if before == after == 0:
            continue
        if before < 0 or after < 0 or not constant or call.is_frozen(source[d]):
            call.freeze(source[d], "padded")
            source[d] = call.fixed(size(source[d]) + before + after, "padded")
        else:
            ends = [call.fixed(n, "padding of fixed size") for n in (before, after) if n]
            source[d] = concat([*ends[: bool(before)], source[d], *ends[bool(before) :]])
    return tuple(source)


@rule("aten.repeat", "aten.tile")
def repeat(call: Call) -> Dims:
    source = ones_before(call.axes(call.values[0]), len(call.shape()))
    dims: list[Axis] = []
    for axis, n in zip(source, call.shape(), strict=True):
        times = n // size(axis)
        dims.append(axis if times == 1 else product([call.fixed(times, "repeated"), axis]))
    return tuple(dims)


@rule(
    "aten.arange", "aten.zeros", "aten.ones", "aten.full", "aten.new_zeros", "aten.new_ones", "aten.new_full",
    "aten.scalar_tensor", "aten.linspace", "aten.empty", "aten.new_empty", "aten.eye",
)  # fmt: skip
def creation(call: Call) -> Dims:
    return tuple(call.fixed(n, "made with a fixed size") for n in call.shape())


def _index(start: Any, n: int) -> int:
    return start + n if start < 0 else start
