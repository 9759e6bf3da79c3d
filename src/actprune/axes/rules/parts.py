"""Parts of an axis: concatenations, and their opposites."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from actprune.axes.call import Call, NotCovered, rule
from actprune.axes.expr import concat, size
from actprune.axes.rules.shape import ones_before
from actprune.axes.site import Dims
from actprune.graph.program import read_for_sizes


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


@rule("aten.hstack", "aten.vstack", "aten.column_stack")
def cat_by_name(call: Call) -> Dims:
    """Along the second dimension, or the first (`vstack`, and `hstack` of vectors)."""
    parts = [call.axes(part) for part in call["tensors"]]
    vectors = min(map(len, parts)) == 1
    if vectors and "hstack" not in str(call.node.target):
        raise NotCovered("vectors become matrices first")
    return _join(call, parts, 0 if vectors or "vstack" in str(call.node.target) else 1)


@rule("aten.block_diag")
def block_diag(call: Call) -> Dims:
    """Matrices along a diagonal, zeros beside them."""
    pairs = [ones_before(call.axes(part), 2) for part in call["tensors"]]
    return (concat(rows for rows, _ in pairs), concat(columns for _, columns in pairs))


@rule("aten.stack")
def stack(call: Call) -> Dims:
    parts = [call.axes(part) for part in call["tensors"]]
    dim = call.dim(len(parts[0]) + 1)
    for other in parts[1:]:
        for a, b in zip(parts[0], other, strict=True):
            call.unify(a, b)
    return (*parts[0][:dim], call.fixed(len(parts), "stacked"), *parts[0][dim:])


@rule("aten.pad_sequence")
def pad_sequence(call: Call) -> Dims:
    """Sequences (T, …) of several lengths → (B, T, …) or (T, B, …): what stands at each step goes on."""
    steps, *rest = zip(*(call.axes(part) for part in call["sequences"]), strict=True)
    for axes in rest:
        for other in axes[1:]:
            call.unify(axes[0], other)
    for axis in steps:
        call.freeze(axis, "padded")
    first, second = (call.fixed(n, "padded") for n in call.shape()[:2])
    return (first, second, *(axes[0] for axes in rest))


@rule(
    "aten.split.sizes", "aten.split_with_sizes", "aten.tensor_split.indices", "aten.hsplit.array", "aten.vsplit.array",
    "aten.dsplit.array", "aten.unsafe_split_with_sizes", "aten.split_copy",
    "aten.split_with_sizes_copy",
)  # fmt: skip
def split(call: Call) -> list[Dims]:
    """The parts of a Concat, of the sizes that the call gave."""
    return _sections(call)


@rule(
    "aten.chunk", "aten.tensor_split.sections", "aten.hsplit.int", "aten.vsplit.int", "aten.dsplit.int",
    "aten.unsafe_chunk",
)  # fmt: skip
def chunk(call: Call) -> list[Dims]:
    """So many equal parts, whatever the size: only parts that lose as many units are equal afterwards."""
    results = _sections(call)
    dim = _split_dim(call, len(results[0]))
    parts = [dims[dim] for dims in results]
    if len(set(map(size, parts))) > 1:
        call.freeze(call.axes(call.values[0])[dim], "divided unevenly")
    call.counts(parts)
    return results


@rule("aten.split.Tensor", "aten.unsafe_split")
def split_by_one_number(call: Call) -> list[Dims]:
    """Parts of one size, and perhaps a smaller one at the end: the equal ones lose as many units."""
    results = _sections(call)
    dim = _split_dim(call, len(results[0]))
    *parts, last = [dims[dim] for dims in results]
    if parts and size(last) != size(parts[0]):
        call.freeze(last, "what is left of a division into equal parts")
    else:
        parts.append(last)
    call.counts(parts)
    return results


def _sections(call: Call) -> list[Dims]:
    source = call.axes(call.values[0])
    dim = _split_dim(call, len(source))
    sizes = [int(value.shape[dim]) for value in call.node.meta["val"]]
    parts = call.algebra.sections(source[dim], sizes, call.where)
    return [(*source[:dim], part, *source[dim + 1 :]) for part in parts]


def _split_dim(call: Call, rank: int) -> int:
    named = {"aten.hsplit": min(1, rank - 1), "aten.vsplit": 0, "aten.dsplit": 2}
    dim = named.get(str(call.node.target).rpartition(".")[0])
    return call.dim(rank) if dim is None else dim


@rule("aten.slice.Tensor", "aten.narrow", "aten.narrow_copy", "aten.slice_copy")
def slice_(call: Call) -> Dims:
    """A run of an axis is a part of a Concat. Every s-th entry is one of s in a row: a factor of a Product."""
    source = call.axes(call.values[0])
    dim = call.dim(len(source))
    n, taken = size(source[dim]), call.shape()[dim]
    if taken == n and call["step"] in (None, 1):
        return source
    step = int(call["step"] or 1)
    if taken == 1 and (call["start"] or 0) in (0, -1) and read_for_sizes(call.node):
        part = call.fixed(1)  # the first or last unit that is left has the sizes of any other
    elif step != 1 and taken:  # where nothing is taken, the step says nothing
        whole = n % step == 0 and taken == n // step
        if whole and not call.is_frozen(source[dim]):
            part, inner = call.algebra.split(source[dim], [taken, step], call.where)
            call.freeze(inner, "taken with a step")
        else:
            call.freeze(source[dim], "taken with a step")
            part = call.fixed(taken, "taken with a step")
    else:
        start = max(0, min(_index(call["start"] or 0, n), n))
        sizes = [start, taken, n - start - taken]
        part = call.algebra.sections(source[dim], sizes, call.where)[1]
    return (*source[:dim], part, *source[dim + 1 :])


@rule("aten.slice_scatter")
def slice_scatter(call: Call) -> Dims:
    """self with `src` in a run of an axis."""
    source, own = call.axes(call["self"]), call.axes(call["src"])
    dim = call.dim(len(source))
    n, taken = size(source[dim]), size(own[dim])
    start = max(0, min(_index(call["start"] or 0, n), n))
    if call["step"] != 1:
        call.freeze(source[dim], "written to with a step")
        call.freeze(own[dim], "written to with a step")
    else:
        parts = call.algebra.sections(source[dim], [start, taken, n - start - taken], call.where)
        call.unify(parts[1], own[dim])
    for d, (axis, other) in enumerate(zip(source, own, strict=True)):
        if d != dim:
            call.unify(axis, other)
    return source


@rule("aten.select.int", "aten.select_copy")
def select(call: Call) -> Dims:
    dim = call.dim(len(call.shape(call.values[0])))
    if (slices := call.taken(call.values[0], dim)) is not None:
        return slices[_index(call["index"], len(slices))]
    source = call.axes(call.values[0])
    if int(call["index"]) not in (0, -1) or not read_for_sizes(call.node):
        call.freeze(source[dim], "selected from")
    return (*source[:dim], *source[dim + 1 :])


@rule("aten.unbind", "aten.unbind_copy")
def unbind(call: Call) -> list[Dims]:
    dim = call.dim(len(call.shape(call.values[0])))
    if (slices := call.taken(call.values[0], dim)) is not None:
        return [*slices]
    source = call.axes(call.values[0])
    call.freeze(source[dim], "unbound")
    return [(*source[:dim], *source[dim + 1 :])] * size(source[dim])


@rule("aten.pad", "aten.constant_pad_nd")
def pad(call: Call) -> Dims:
    """Padding of spatial axes; zero channels that join an axis are parts of a Concat, of which fewer may be made."""
    source, pads = list(call.axes(call.values[0])), list(call["pad"])
    constant = call["mode"] in (None, "constant")
    new = partial(call.fixed, why="padding of fixed size") if call["value"] else call.algebra.leaf
    for k in range(len(pads) // 2):
        before, after, d = pads[2 * k], pads[2 * k + 1], len(source) - 1 - k
        if before == after == 0:
            continue
        if before < 0 or after < 0 or not constant or call.is_frozen(source[d]):
            call.freeze(source[d], "padded")
            source[d] = call.fixed(size(source[d]) + before + after, "padded")
        else:
            ends = [new(n) for n in (before, after) if n]
            source[d] = concat([*ends[: bool(before)], source[d], *ends[bool(before) :]])
    return tuple(source)


def _index(start: Any, n: int) -> int:
    return start + n if start < 0 else start
