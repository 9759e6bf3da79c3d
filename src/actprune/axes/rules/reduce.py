"""Ops that mix the entries of an axis without a weight.

Where an entry of zero counts for nothing (a sum, a norm), units can be taken away by a mask in front of the call.
A mean or a maximum is one of the entries that stay, once some are removed: see `actprune.axes.normed`. Anywhere else
(a softmax, a median) removing an entry changes the result, so the axis freezes.
"""

from __future__ import annotations

from typing import Any

from actprune.axes.call import Call, rule
from actprune.axes.expr import ONE, size
from actprune.axes.rules.elementwise import broadcast_axes
from actprune.axes.site import Dims


@rule(
    "aten.sum.default", "aten.sum.dim_IntList", "aten.nansum", "aten.count_nonzero", "aten.any.default",
    "aten.any.dim", "aten.any.dims", "aten.linalg_vector_norm", "aten.norm", "aten.linalg_norm.default",
    "aten.linalg_matrix_norm.str_ord", "aten.frobenius_norm",
)  # fmt: skip
def total(call: Call) -> Dims:
    """A sum, or the norm of a vector, over `dim`, or over everything where none is given."""
    source = call.axes(call.values[0])
    dims = dims_of(call["dim"], len(source))
    for d in dims:
        if _counts_zeros(call, len(dims)):
            call.freeze(source[d], "reduced")
        else:
            call.mixes(call.values[0], d)
    return _reduced(source, dims, len(call.shape()) == len(source))


def _counts_zeros(call: Call, dims: int) -> bool:
    """Norms of negative order, and those of a matrix but Frobenius', change with an entry of zero."""
    order = call["p"] if call["ord"] is None else call["ord"]
    if "linalg_norm" in str(call.node.target) and order is not None and dims == 2:
        return True
    return order not in (None, "fro") and not float(order) >= 0


@rule(
    "aten.mean.default", "aten.nanmean", "aten.max.default", "aten.min.default", "aten.median.default",
    "aten.logsumexp", "aten.special_logsumexp",
    "aten.prod.default", "aten.prod.dim_int", "aten.argmax", "aten.argmin", "aten.all.default", "aten.all.dim",
    "aten.all.dims", "aten.quantile.scalar", "aten.nuclear_norm", "aten.linalg_matrix_norm.default",
    "aten.linalg_norm.ord_str",
)  # fmt: skip
def reduction(call: Call) -> Dims:
    """Over `dim`, or over everything where none is given."""
    source = call.axes(call.values[0])
    dims = dims_of(call["dim"], len(source))
    for d in dims:
        call.freeze(source[d], "reduced")
    return _reduced(source, dims, len(call.shape()) == len(source))


@rule(
    "aten.mean.dim", "aten.var.correction", "aten.std.correction", "aten.var.dim", "aten.std.dim", "aten.amax",
    "aten.amin",
)  # fmt: skip
def statistic(call: Call) -> Dims:
    """As `reduction`; a norm that is written out consists of these."""
    return _of_what_stays(call, len(call.shape()) == len(call.axes(call.values[0])))


@rule("aten.max.dim", "aten.min.dim")
def extreme(call: Call) -> list[Dims]:
    """As `statistic`, where nothing reads at which place it is."""
    placed = any(user.args[1] == 1 and user.users for user in call.node.users)
    return reduction_with_indices(call) if placed else [_of_what_stays(call, call["keepdim"])] * 2


def _of_what_stays(call: Call, keepdim: bool) -> Dims:
    source = call.axes(call.values[0])
    dims = dims_of(call["dim"], len(source))
    for d in dims:
        call.normalizes(call.values[0], d, "reduced")
    return _reduced(source, dims, keepdim)


@rule(
    "aten.median.dim", "aten.nanmedian.dim", "aten.mode", "aten.kthvalue",
    "aten.var_mean", "aten.std_mean", "aten.aminmax",
)  # fmt: skip
def reduction_with_indices(call: Call) -> list[Dims]:
    """Two results of one shape."""
    source = call.axes(call.values[0])
    dims = dims_of(call["dim"], len(source))
    for d in dims:
        call.freeze(source[d], "reduced")
    return [_reduced(source, dims, call["keepdim"])] * 2


def _reduced(source: Dims, dims: set[int], keepdim: bool) -> Dims:
    if keepdim:
        return tuple(ONE if d in dims else axis for d, axis in enumerate(source))
    return tuple(axis for d, axis in enumerate(source) if d not in dims)


@rule("aten.cumsum")
def cumsum(call: Call) -> Dims:
    """Each entry is a sum of those before it, so that one of zero counts for nothing."""
    call.mixes(call.values[0], int(call["dim"]))
    return call.axes(call.values[0])


@rule(
    "aten.softmax", "aten.log_softmax", "aten._softmax", "aten._log_softmax", "aten._safe_softmax",
    "aten.special_softmax", "aten.special_log_softmax", "aten.cumprod", "aten.logcumsumexp",
    "aten.flip", "aten.fliplr", "aten.flipud", "aten.roll", "aten.argsort", "aten.msort",
)  # fmt: skip
def along(call: Call) -> Dims:
    """Same shape, every entry along `dim` sees the others or changes places with them."""
    source = call.axes(call.values[0])
    for d in _along(call, len(source)):
        call.freeze(source[d], "mixed")
    return source


@rule("aten.cummax", "aten.cummin", "aten.sort")
def along_with_indices(call: Call) -> list[Dims]:
    return [along(call)] * 2


def _along(call: Call, rank: int) -> set[int]:
    fixed = {"aten.fliplr": 1, "aten.flipud": 0, "aten.msort": 0}
    dim = fixed.get(str(call.node.target).rpartition(".")[0], call["dim"])
    return dims_of(call["dims"] if dim is None else dim, rank)


@rule("aten.renorm")
def renorm(call: Call) -> Dims:
    """Every slice along `dim` is scaled by its norm, in which one of zero counts for nothing: a max-norm constraint."""
    source = call.axes(call["self"])
    for d in set(range(len(source))) - dims_of(call["dim"], len(source)):
        call.mixes(call["self"], d)
    return source


@rule("aten.cosine_similarity")
def cosine_similarity(call: Call) -> Dims:
    """A product over norms, all of them over `dim`, so what is zero in both counts for nothing."""
    pair = call.values[:2]
    rank = len(call.shape()) + 1
    source = broadcast_axes(call, [call.axes(value) for value in pair], rank)
    dim = int(call["dim"]) % rank
    for value in pair:
        own = dim - rank + len(call.axes(value))
        if own >= 0 and call.shape(value)[own] == size(source[dim]):
            call.mixes(value, own)
        else:
            call.freeze(source[dim], "reduced")
    return _reduced(source, {dim}, False)


@rule("aten.pairwise_distance")
def pairwise_distance(call: Call) -> Dims:
    """A norm over the last dimension of the difference plus `eps`, which a removed entry would still bring."""
    pair = [call.axes(value) for value in call.values[:2]]
    source = broadcast_axes(call, pair, max(map(len, pair)))
    call.freeze(source[-1], "reduced")
    return _reduced(source, {len(source) - 1}, call["keepdim"])


@rule("aten.diff")
def diff(call: Call) -> Dims:
    """Each entry along `dim` less the one before it."""
    source = call.axes(call["self"])
    dim = call.dim(len(source))
    for value in (call["self"], call["prepend"], call["append"]):
        for axis in call.axes(value)[dim : dim + 1]:
            call.freeze(axis, "mixed")
    for value in (call["prepend"], call["append"]):
        for d, (own, axis) in enumerate(zip(call.axes(value), source, strict=False)):
            if d != dim:
                call.unify(own, axis)
    return (*source[:dim], call.fixed(call.shape()[dim], "differences"), *source[dim + 1 :])


def dims_of(dim: Any, rank: int) -> set[int]:
    """The dimensions that a call names, one or several, from the front; all of them where it names none."""
    if dim is None or dim == []:
        return set(range(rank))
    dims: list[int] = [dim] if isinstance(dim, int) else [*dim]
    return {d % rank for d in dims}
