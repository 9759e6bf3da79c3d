"""Ops that only rearrange: views, transposes, copies along new axes."""

from __future__ import annotations

from math import prod
from typing import Any

from torch.fx import Node

from actprune.axes.call import Call, rule
from actprune.axes.expr import ONE, Axis, product, size
from actprune.axes.site import Dims
from actprune.axes.stacks import Stack, taken_apart


@rule(
    "aten.view.default", "aten.reshape", "aten.flatten", "aten.unflatten", "aten.view_as", "aten.reshape_as",
    "aten._unsafe_view", "aten.squeeze", "aten.unsqueeze", "aten.ravel", "aten.atleast_1d.default",
    "aten.atleast_2d.default", "aten.atleast_3d.default", "aten.view_copy.default", "aten.squeeze_copy",
    "aten.unsqueeze_copy",
)  # fmt: skip
def reshape(call: Call) -> Dims:
    """Blocks of input dimensions against blocks of output dimensions of the same product, outermost first."""
    source = [axis for axis in call.axes(call.values[0]) if size(axis) != 1]
    places = [d for d, n in enumerate(call.shape()) if n != 1]
    target = [call.shape()[d] for d in places]
    if 0 in target:
        return tuple(call.fixed(n) for n in call.shape())
    apart = next((k for k, d in enumerate(places) if taken_apart(call.node, d)), -1)
    slices: list[list[Axis]] = [[]]
    i = 0
    while i < len(target):
        first, ins, outs = i, [source.pop(0)], [target[i]]
        i += 1
        while size(product(ins)) != prod(outs):
            if size(product(ins)) < prod(outs):
                ins.append(source.pop(0))
            else:
                outs.append(target[i])
                i += 1
        merged = product(ins)
        if len(outs) == 1:
            found = [[merged]]
        elif first <= apart < i - 1 and not call.is_frozen(merged):
            found = _slices(call, merged, outs, apart - first)
        else:
            found = [call.algebra.split(merged, outs, call.where)]
        slices = [[*before, *own] for before in slices for own in found]  # one block at most gives more than one
    results = [tuple(ONE if n == 1 else factors.pop(0) for n in call.shape()) for factors in slices]
    if len(results) > 1:
        call.inference.stacks[call.node] = Stack(places[apart], results)
    return results[0]


def _slices(call: Call, axis: Axis, sizes: list[int], place: int) -> list[list[Axis]]:
    """The factors of an axis for every entry of the one at `place`, which is only taken apart: parts of one size."""
    *outer, rest = call.algebra.split(axis, [*sizes[:place], prod(sizes[place:])], call.where)
    count, *within = sizes[place:]
    parts = call.algebra.sections(rest, [prod(within)] * count, call.where)
    call.counts(parts)
    apart = call.fixed(count, "taken apart")
    return [[*outer, apart, *call.algebra.split(part, within, call.where)] for part in parts]


@rule("aten.mT", "aten.adjoint", "aten.mH", "aten.matrix_H")
def transposed(call: Call) -> Dims:
    """The last two dimensions change places."""
    *batch, rows, columns = call.axes(call.values[0])
    return (*batch, columns, rows)


@rule(
    "aten.transpose.int", "aten.swapaxes", "aten.swapdims", "aten.t", "aten.numpy_T", "aten.permute",
    "aten.transpose_copy", "aten.t_copy", "aten.permute_copy",
)  # fmt: skip
def permute(call: Call) -> Dims:
    source = list(call.axes(call.values[0]))
    dims: list[int] | None = call["dims"]
    if dims is not None:
        return tuple(source[d] for d in dims)
    pair = [value for value in call.values[1:] if isinstance(value, int)]
    if not pair:
        return tuple(source[::-1])
    a, b = (d % len(source) for d in pair)
    source[a], source[b] = source[b], source[a]
    return tuple(source)


@rule("aten.movedim", "aten.moveaxis")
def movedim(call: Call) -> Dims:
    """Dimensions `source` to the places `destination`; the others stay in order."""
    axes = call.axes(call["self"])
    start, end = ([d % len(axes) for d in _ints(call[name])] for name in ("source", "destination"))
    rest = [axis for d, axis in enumerate(axes) if d not in start]
    for place, d in sorted(zip(end, start, strict=True)):
        rest.insert(place, axes[d])
    return tuple(rest)


def _ints(value: Any) -> list[int]:
    return [value] if isinstance(value, int) else list(value)


@rule("aten.expand", "aten.expand_as", "aten.broadcast_to", "aten.expand_copy")
def expand(call: Call) -> Dims:
    """Axes of size 1 become as many as asked: as the other tensor where there is one, else whatever they meet."""
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
            dims.append(call.algebra.leaf(n))
    return tuple(dims)


def ones_before(axes: Dims, rank: int) -> Dims:
    return (ONE,) * (rank - len(axes)) + tuple(axes)


@rule("aten.repeat", "aten.tile")
def repeat(call: Call) -> Dims:
    """So many copies, one after the other: all alike, so that fewer of them may be made."""
    source = ones_before(call.axes(call.values[0]), len(call.shape()))
    dims: list[Axis] = []
    for axis, n in zip(source, call.shape(), strict=True):
        times = n // size(axis)
        dims.append(axis if times == 1 else product([call.algebra.leaf(times), axis]))
    return tuple(dims)


@rule("aten.repeat_interleave.self_int")
def repeat_interleave(call: Call) -> Dims:
    """Every entry along `dim` so many times in a row: the copies are a new axis, all alike, so that fewer of them may
    be made (heads that share one state, a number of a row for each of its entries). Without `dim`, along everything in
    a row: they are as many then."""
    source = call.axes(call["self"])
    if call["dim"] is None and len(source) > 1:
        return (product([*source, call.fixed(int(call["repeats"]), "repeated")]),)
    dim = 0 if call["dim"] is None else call.dim(len(source))
    times = call.algebra.leaf(int(call["repeats"]))
    return (*source[:dim], product([source[dim], times]), *source[dim + 1 :])


@rule("aten.diagonal", "aten.linalg_diagonal")
def diagonal(call: Call) -> Dims:
    """(…, n) entries of two dimensions, which go."""
    source = call.axes(call.values[0])
    pair = {int(call[name]) % len(source) for name in ("dim1", "dim2")}
    for d in pair:
        call.freeze(source[d], "taken on a diagonal")
    rest = [axis for d, axis in enumerate(source) if d not in pair]
    return (*rest, call.fixed(call.shape()[-1], "a diagonal"))


@rule("aten.tril", "aten.triu")
def triangle(call: Call) -> Dims:
    source = call.axes(call["self"])
    for axis in source[-2:]:
        call.freeze(axis, "masked by position")
    return source


@rule("aten.rot90")
def rot90(call: Call) -> Dims:
    source = list(call.axes(call["self"]))
    a, b = (int(d) % len(source) for d in call["dims"])
    for d in (a, b):
        call.freeze(source[d], "turned")
    if call["k"] % 2:
        source[a], source[b] = source[b], source[a]
    return tuple(source)


@rule("aten.meshgrid")
def meshgrid(call: Call) -> list[Dims]:
    """Vectors → one tensor each, all of them over the product of their axes."""
    own = [call.axes(vector) for vector in call["tensors"]]
    axes = [dims[0] if dims else ONE for dims in own]
    if call["indexing"] == "xy" and len(axes) > 1:
        axes[:2] = axes[1], axes[0]
    return [tuple(axes)] * len(own)
