"""The rows of a product with several matrices at once, matrix by matrix."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from torch import Tensor
from torch.fx import Node

from actprune.axes.site import Form, Site, Split


def name_of(site: Site, number: int) -> str:
    """What the statistics of one of the matrices are known by."""
    return f"{site.name}#{number}"


def matrices(site: Site, weight: Tensor) -> Tensor:
    """(matrices, outputs, inputs) of a weight."""
    order = (*stacked_form(site).stack, *site.out_dims, *site.in_dims)
    return weight.permute(order).reshape(site.matrices(weight), site.outputs(weight), -1)


def with_matrices(site: Site, found: Tensor, like: Tensor) -> Tensor:
    """The inverse of `matrices`."""
    return as_stored(found, (*stacked_form(site).stack, *site.out_dims, *site.in_dims), like)


def as_stored(found: Tensor, order: Sequence[int], like: Tensor) -> Tensor:
    """A weight whose dimensions lie in this order, or are flattened so, as it is stored."""
    parts = found.reshape([like.shape[d] for d in order])
    return parts.permute([order.index(d) for d in range(like.dim())]).contiguous().to(like.dtype)


def given_rows(
    site: Site, weight: Tensor, x: Tensor, number: int, ends: Tensor | None, first: int | None = None
) -> Tensor:
    """(n, positions, inputs) what one matrix is multiplied with, of the activation x.

    Args:
        ends: (matrices,) where the rows of each end, of a product with sorted rows.
        first: the dimension of x whose indices come first; None: the first one of its rows.
    """
    return _rows(stacked_form(site), stacked_form(site).given, weight, x, number, ends, first)


def made_rows(site: Site, weight: Tensor | None, y: Tensor, number: int = 0, ends: Tensor | None = None) -> Tensor:
    """(n, positions, outputs) what it makes, of the result y.

    Args:
        weight: None where there is one matrix.
    """
    return _rows(stacked_form(site), stacked_form(site).made, weight, y, number, ends, None)


def stacked_form(site: Site) -> Form:
    if site.form is None:
        raise ValueError(f"{site.name} is no product with several matrices")
    return site.form


def operands_of(site: Site, node: Node, args: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
    """Of a call's arguments the activation, and where the rows of each matrix end, if they are sorted."""
    form = stacked_form(site)
    values: dict[str, Any] = {}
    for given, value in zip(node.args, args, strict=True):
        pairs = zip(given, value, strict=True) if isinstance(given, list | tuple) else ((given, value),)
        values |= {one.name: now for one, now in pairs if isinstance(one, Node)}
    return values[form.source], values.get(form.ends)


def units_last(site: Site, x: Tensor) -> Tensor:
    """(…, inputs) the activation with what is contracted as its last dimension."""
    ins = stacked_form(site).given[2]
    return x.movedim(ins, tuple(range(-len(ins), 0))).flatten(-len(ins))


def _rows(
    form: Form, dims: Split, weight: Tensor | None, x: Tensor, number: int, ends: Tensor | None, first: int | None
) -> Tensor:
    stack, rest, last = dims
    if ends is not None:
        start = int(ends[number - 1]) if number else 0
        return x[None, start : int(ends[number])]
    at = np.unravel_index(number, [weight.shape[d] for d in form.stack]) if form.stack and weight is not None else ()
    index: list[slice | int] = [slice(None)] * x.dim()
    for d, i in zip(stack, at, strict=True):
        if d >= 0:
            index[d] = int(i) if x.shape[d] > 1 else 0
    left = [d for d in range(x.dim()) if d not in stack]
    rest = rest if first is None else (first, *(d for d in rest if d != first))
    own = x[tuple(index)].permute([left.index(d) for d in (*rest, *last)])
    return own.reshape(own.shape[0] if rest else 1, -1, prod(x.shape[d] for d in last))
