"""Ops that look entries up by number, or write to them: the dimension looked up is frozen, the others pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from actprune.axes.call import Call, NotCovered, rule
from actprune.axes.expr import product, size
from actprune.axes.rules.elementwise import broadcast_axes, broadcast_with
from actprune.axes.site import Dims
from actprune.graph.program import op_name, shape

LOOKED_UP = "looked up by index"
WRITTEN = "written to by index"
PICKED = "picked by value"


@rule("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(call: Call) -> Dims:
    """self[i, None, j, …]: the indices' own axes stand where they are, or first where a None lies between them."""
    made = [d for d, own in enumerate(call["indices"]) if own is not None]
    if _masked(call["indices"]):
        return _under_mask(call, made)
    _makes(call, call["self"], made)
    return _at(call, made, LOOKED_UP)


def _under_mask(call: Call, dims: list[int]) -> Dims:
    """self[…, mask, …]: one new axis, of the entries that the mask takes, in place of those that it runs over."""
    if len(dims) > 1:
        raise NotCovered("a mask among other indices")
    source, mask = call.axes(call["self"]), call.axes(call["indices"][dims[0]])
    first, behind = dims[0], dims[0] + len(mask)
    for axis in (*mask, *source[first:behind]):
        call.freeze(axis, PICKED)
    _makes(call, call["self"], range(first, behind))
    return (*source[:first], call.fixed(call.shape()[first], PICKED), *source[behind:])


def _at(call: Call, dims: list[int], why: str) -> Dims:
    """The axes of self[indices], of which those in `dims` are frozen."""
    source = call.axes(call["self"])
    own = [call.axes(call["indices"][d]) for d in dims]
    looked_up = broadcast_axes(call, own, max(map(len, own)))
    for d in dims:
        call.freeze(source[d], why)
    front = dims[0] if dims == [*range(dims[0], dims[-1] + 1)] else 0
    rest = [axis for d, axis in enumerate(source) if d not in dims]
    return (*rest[:front], *looked_up, *rest[front:])


def _masked(indices: Sequence[Any]) -> bool:
    return any(own is not None and own.meta["val"].dtype in (torch.bool, torch.uint8) for own in indices)


def _makes(call: Call, table: Any, looked_up: Sequence[int]) -> None:
    """A parameter makes the units along its other dimensions, like an embedding."""
    for d, n in enumerate(call.shape(table)):
        if d not in looked_up and n > 1:
            call.makes("embedding", table, d)


@rule("aten.index_put", "aten._unsafe_index_put")
def index_put(call: Call) -> Dims:
    """self with self[indices] = values; one value under a mask is a choice per entry.

    Every index stays: where one is missing, what was there before is left, and that may be anything (`empty_like`).
    """
    source, values = call.axes(call["self"]), call["values"]
    dims = [d for d, own in enumerate(call["indices"]) if own is not None]
    if not _masked(call["indices"]):
        broadcast_with(call, _at(call, dims, WRITTEN), values)
        for axis in (axis for d in dims for axis in call.axes(call["indices"][d])):
            call.freeze(axis, WRITTEN)
        return source
    if len(dims) > 1 or dims[0] > 0:
        raise NotCovered("a mask among other indices")
    mask = call.axes(call["indices"][0])
    single = all(n == 1 for n in call.shape(values))
    for own, axis in zip(mask, source, strict=False):
        call.unify(own, axis)
        if not single:
            call.freeze(axis, WRITTEN)
    if not single:
        broadcast_with(call, source[len(mask) :], values)
    return source


@rule("aten.gather")
def gather(call: Call) -> Dims:
    """self and index of one rank: index (…) numbers entries along `dim`, at its own place in the other dimensions."""
    dim = call.dim(len(call.shape()))
    _makes(call, call["self"], [dim])
    return _beside(call, call.axes(call["self"]), call.axes(call["index"]), dim, LOOKED_UP)


def _beside(call: Call, source: Dims, own: Dims, dim: int, why: str) -> Dims:
    """`own`, whose other dimensions are those of `source`; a shorter one takes its first entries."""
    for d, (axis, mine) in enumerate(zip(source, own, strict=True)):
        if d == dim:
            call.freeze(axis, why)
        elif size(axis) == size(mine):
            call.unify(axis, mine)
        else:
            call.freeze(axis, why)
            call.freeze(mine, why)
    return own


@rule("aten.take_along_dim")
def take_along_dim(call: Call) -> Dims:
    """As `gather`, with broadcasting; without `dim` over everything in a row."""
    source, own = call.axes(call["self"]), call.axes(call["indices"])
    if call["dim"] is None:
        for axis in source:
            call.freeze(axis, LOOKED_UP)
        return own
    dim = call.dim(len(source))
    call.freeze(source[dim], LOOKED_UP)
    others = [(*dims[:dim], *dims[dim + 1 :]) for dims in (source, own)]
    rest = broadcast_axes(call, others, len(source) - 1)
    return (*rest[:dim], own[dim], *rest[dim:])


@rule("aten.index_select")
def index_select(call: Call) -> Dims:
    source = call.axes(call["self"])
    dim = call.dim(len(source))
    call.freeze(source[dim], LOOKED_UP)
    _makes(call, call["self"], [dim])
    numbers = call.axes(call["index"]) or (call.fixed(1),)
    return (*source[:dim], numbers[0], *source[dim + 1 :])


@rule("aten.take")
def take(call: Call) -> Dims:
    """Numbers count through the whole tensor."""
    for axis in call.axes(call["self"]):
        call.freeze(axis, LOOKED_UP)
    return call.axes(call["index"])


@rule("aten.scatter", "aten.scatter_add", "aten.scatter_reduce")
def scatter(call: Call) -> Dims:
    """self with the entries of `src` (or one value) where `index` says, along `dim`."""
    source, own = call.axes(call["self"]), call.axes(call["index"])
    dim = call.dim(len(source))
    call.freeze(source[dim], WRITTEN)
    call.freeze(own[dim], WRITTEN)
    _beside(call, source, own, dim, WRITTEN)
    if isinstance(call["src"], Node):
        _beside(call, call.axes(call["src"]), own, dim, WRITTEN)
    return source


@rule("aten.index_add", "aten.index_copy", "aten.index_fill")
def index_add(call: Call) -> Dims:
    """self with slices of `source` (or one value) at the numbers in `index`, along `dim`."""
    target = call.axes(call["self"])
    dim = call.dim(len(target))
    call.freeze(target[dim], WRITTEN)
    if isinstance(call["source"], Node):
        for d, (axis, own) in enumerate(zip(target, call.axes(call["source"]), strict=True)):
            call.unify(axis if d != dim else call.axes(call["index"])[0], own)
            if d == dim:
                call.freeze(own, WRITTEN)
    return target


@rule("aten.select_scatter")
def select_scatter(call: Call) -> Dims:
    """self with `src` at one place along `dim`."""
    source = call.axes(call["self"])
    dim = call.dim(len(source))
    call.freeze(source[dim], WRITTEN)
    for axis, own in zip((*source[:dim], *source[dim + 1 :]), call.axes(call["src"]), strict=True):
        call.unify(axis, own)
    return source


@rule("aten.masked_scatter")
def masked_scatter(call: Call) -> Dims:
    """self with the entries of `source`, in their order, under a mask.

    Where the mask is one value for all of the last dimensions, whole rows are written, whose entries keep their place.
    """
    target, source = call.axes(call["self"]), call.axes(call["source"])
    whole = _constant_tail(call["mask"], len(target))
    if [size(axis) for axis in target[len(target) - whole :]] != [size(axis) for axis in source[len(source) - whole :]]:
        whole = 0
    broadcast_axes(call, [target, call.axes(call["mask"])], len(target))
    for axis in (*target[: len(target) - whole], *source[: len(source) - whole]):
        call.freeze(axis, WRITTEN)
    for axis, own in zip(target[len(target) - whole :], source[len(source) - whole :], strict=True):
        call.unify(axis, own)
    return target


def _constant_tail(mask: Node, rank: int) -> int:
    """Along how many of its last dimensions a mask was expanded from a single value."""
    while op_name(mask).startswith(_PASSES) and isinstance(mask.args[0], Node):
        mask = mask.args[0]
    sizes = [*[1] * (rank - len(shape(mask))), *shape(mask)]
    return next((i for i, n in enumerate(reversed(sizes)) if n != 1), rank)


_PASSES = ("aten.expand", "aten.broadcast_to", "aten.to.", "aten._to_copy", "aten.contiguous", "aten.clone")


@rule("aten.repeat_interleave.self_Tensor")
def repeat_by_number(call: Call) -> Dims:
    """Every entry along `dim` as often as the number at its place says; or, of a list, as often as one number says: the
    copies then are a new axis, as of what a call makes constant (a number of a row for each of its entries)."""
    source = call.axes(call["self"])
    if call["dim"] is None and len(source) == 1 and math.prod(map(size, call.axes(call["repeats"]))) == 1:
        return (product([*source, call.algebra.leaf(call.shape()[0] // size(source[0]))]),)
    dim = call.dim(len(source))
    for axis in (source[dim], *call.axes(call["repeats"])):
        call.freeze(axis, "repeated by number")
    return (*source[:dim], call.fixed(call.shape()[dim], "repeated by number"), *source[dim + 1 :])


@rule("aten.topk")
def topk(call: Call) -> list[Dims]:
    """The `k` largest along `dim`, and where they stood."""
    source = call.axes(call["self"])
    dim = call.dim(len(source))
    call.freeze(source[dim], PICKED)
    taken = call.fixed(int(call["k"]), PICKED)
    return [(*source[:dim], taken, *source[dim + 1 :])] * 2


@rule("aten.one_hot")
def one_hot(call: Call) -> Dims:
    return (*call.axes(call["self"]), call.fixed(call.shape()[-1], "numbered"))


@rule("aten.isin", "aten.bucketize", "aten.searchsorted")
def among(call: Call) -> Dims:
    """Every entry of the one against all of the other, or against the row at its own place."""
    table, own = (call.values[1], call.values[0]) if "searchsorted" not in str(call.node.target) else call.values[:2]
    dims = call.axes(own)
    for axis in call.axes(table):
        call.freeze(axis, "compared with")
    if "searchsorted" in str(call.node.target) and len(call.axes(table)) > 1:
        for axis in dims:
            call.freeze(axis, "compared with")
    return dims


@rule("aten.embedding_bag")
def embedding_bag(call: Call) -> list[Dims]:
    """weight (V, D), indices → (bags, D), and three results that number and count what was looked up."""
    weight = call.axes(call["weight"])
    call.freeze(weight[0], LOOKED_UP)
    call.makes("embedding", call["weight"], 1)
    first, *others = call.node.meta["val"]
    bags = (call.fixed(int(first.shape[0]), "bags"), weight[1])
    # with mode="max" the last one says for every unit which row it came from
    return [bags, *(bags if other.shape == first.shape else _numbers(call, other) for other in others)]


def _numbers(call: Call, value: Any) -> Dims:
    return tuple(call.fixed(int(n), "bags") for n in value.shape)
