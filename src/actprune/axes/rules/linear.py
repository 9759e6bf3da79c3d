"""Linear layers and matrix products."""

from __future__ import annotations

from typing import Any

from actprune.axes.call import Call, rule
from actprune.axes.expr import size
from actprune.axes.rules.einsum import batch_letters, contract
from actprune.axes.rules.elementwise import broadcast_axes
from actprune.axes.site import Dims


@rule("aten.linear")
def linear(call: Call) -> Dims:
    """input (…, I), weight (O, I) or (I,) → (…, O) or (…)."""
    source, weight, bias = (call.axes(call[name]) for name in ("input", "weight", "bias"))
    call.unify(source[-1], weight[-1])
    if bias and len(weight) > 1:
        call.unify(bias[0], weight[0])
    if len(weight) == 1:
        call.mixes(call["input"], -1)  # one row: nothing is made, so no site could name it
    else:
        call.site("linear", call["weight"], call["bias"], in_dim=1, out_dim=0, source=(call["input"], -1))
    call.macs([*source[:-1], *weight])
    return (*source[:-1], *weight[:-1])


@rule("aten.addmm")
def addmm(call: Call) -> Dims:
    """bias (O,), mat1 (N, I), mat2 (I, O) → (N, O)."""
    rows, weight, bias = (call.axes(call[name]) for name in ("mat1", "mat2", "self"))
    if bias and size(bias[-1]) != 1:
        call.unify(bias[-1], weight[1])
    if call["beta"] != 1 or call["alpha"] != 1:
        # the weight and the bias that act here are not the stored ones
        call.freeze(rows[1], "scaled and contracted")
    return _contract(call, call["mat1"], call["mat2"], call["self"])


@rule("aten.mm", "aten.matmul", "aten.bmm", "aten.linalg_matmul")
def matmul(call: Call) -> Dims:
    """left (…, n, k), right (…, k, m) → (…, n, m); vectors as in `torch.matmul`.

    A parameter on the left is a layer whose features are not the last dimension; one with dimensions before its last
    two holds a matrix for each member of an ensemble.
    """
    left, right = call.values[:2]
    a, b = len(call.shape(left)), len(call.shape(right))
    of_left, of_right = (call.inference.stored.find(value) is not None for value in (left, right))
    if a > 1 and ((b > 2 and of_right) or (of_left and not of_right)):
        columns = ["m"] if b > 1 else []
        terms = [[*batch_letters(a - 2), "n", "k"], [*batch_letters(b - 2), "k", *columns]]
        return contract(call, [left, right], terms, [*batch_letters(max(a, b) - 2), "n", *columns])
    return _contract(call, left, right, None)


@rule("aten._sparse_mm")
def sparse_matmul(call: Call) -> Dims:
    """left (n, k), right (k, m), one of them sparse, → (n, m): what the nodes of a graph are stays."""
    left, right = call.axes(call.values[0]), call.axes(call.values[1])
    call.unify(left[1], right[0])
    call.freeze(left[1], "multiplied with a sparse matrix")
    return (left[0], right[1])


def _contract(call: Call, left: Any, right: Any, bias: Any) -> Dims:
    a, b = call.axes(left), call.axes(right)
    rows, inner_a = a[-2:-1], a[-1]
    columns, inner_b = b[1:][-1:], b[max(len(b) - 2, 0)]  # a vector on the right has no columns
    call.unify(inner_a, inner_b)
    batch = broadcast_axes(call, [a[:-2], b[:-2]], max(len(a), len(b)) - 2)
    stored, columns_at = call.inference.stored, len(b) - 1
    whole = len(b) == 2 and (stored.joined(right) or call.made_of(right, 1)) is not None
    if whole or (len(b) > 1 and len(a) > 1 and stored.made_alone(right)):
        call.site("linear", right, bias, in_dim=columns_at - 1, out_dim=columns_at, source=(left, -1))
    elif len(a) == 2 and stored.made_alone(left):  # W @ x, whose rows make units as those of a layer's weight do
        call.site("product", left, None, in_dim=1, out_dim=0, source=(right, max(len(b) - 2, 0)))
    else:
        # two activations: there are no columns of a weight that could be set to zero
        call.mixes(left, -1)
        call.attends(batch)
    call.macs([*batch, *rows, inner_a, *columns])
    return (*batch, *rows, *columns)
