"""Ops that mix the entries of an axis without a weight: removing an entry changes the result, so the axis freezes."""

from __future__ import annotations

from typing import Any

from actprune.axes.expr import ONE
from actprune.axes.inference import Call, Dims, rule


@rule(
    "aten.mean.dim", "aten.sum.dim_IntList", "aten.amax", "aten.amin", "aten.var", "aten.std",
    "aten.linalg_vector_norm", "aten.norm.ScalarOpt_dim", "aten.logsumexp", "aten.prod.dim_int", "aten.argmax",
    "aten.argmin", "aten.any.dim", "aten.all.dim", "aten.mean.default", "aten.sum.default",
)  # fmt: skip
def reduction(call: Call) -> Dims:
    """Over `dim`, or over everything where none is given."""
    source = call.axes(call.values[0])
    dims = _dims(call["dim"], len(source))
    for d in dims:
        call.freeze(source[d], "reduced")
    if len(call.shape()) == len(source):
        return tuple(ONE if d in dims else axis for d, axis in enumerate(source))
    return tuple(axis for d, axis in enumerate(source) if d not in dims)


@rule("aten.max.dim", "aten.min.dim", "aten.median.dim", "aten.var_mean")
def reduction_with_indices(call: Call) -> list[Dims]:
    source = call.axes(call.values[0])
    dims = _dims(call["dim"], len(source))
    for d in dims:
        call.freeze(source[d], "reduced")
    if call["keepdim"]:
        result = tuple(ONE if d in dims else axis for d, axis in enumerate(source))
    else:
        result = tuple(axis for d, axis in enumerate(source) if d not in dims)
    return [result, result]


@rule("aten.softmax", "aten.log_softmax", "aten._softmax", "aten._log_softmax", "aten.cumsum", "aten.flip", "aten.roll")
def along(call: Call) -> Dims:
    """Same shape, every entry along `dim` sees the others."""
    source = call.axes(call.values[0])
    dims = call["dim"] if call["dim"] is not None else call["dims"]
    for d in _dims(dims, len(source)):
        call.freeze(source[d], "mixed")
    return source


def _dims(dim: Any, rank: int) -> set[int]:
    if dim is None or dim == []:
        return set(range(rank))
    dims: list[int] = [*dim] if isinstance(dim, list | tuple) else [dim]
    return {d % rank for d in dims}
