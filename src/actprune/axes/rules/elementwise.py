"""Element-wise ops: every result entry depends on the entries at its own place, so axes unify with broadcasting."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from actprune.axes.call import Call, rule
from actprune.axes.expr import ONE, Axis, size
from actprune.axes.site import Dims

UNARY = """
    relu relu6 sigmoid tanh gelu silu mish elu selu celu leaky_relu hardtanh hardsigmoid hardswish softplus log_sigmoid
    exp log log2 log10 log1p expm1 sqrt rsqrt reciprocal neg abs sign ceil floor round trunc sin cos tan asin acos atan
    sinh cosh erf erfc square threshold clone contiguous to _to_copy type_as logical_not bitwise_not isnan isinf
    isfinite nan_to_num logit hardshrink softshrink rrelu positive fill zero absolute negative arctan arcsin arccos
    arcsinh arccosh arctanh fix special_expit special_erf special_erfc special_expm1 special_exp2 special_log1p
    special_round special_digamma special_gammaln special_logit special_sinc special_i0 isreal resolve_conj resolve_neg
    real conj
""".split()
"""Ops that torch's own tag for element-wise ops leaves out, or that are met often.

Their first argument decides the shape; a second tensor, if any, only gives a dtype or one value."""

BROADCASTING = """
    add sub mul div rsub pow maximum minimum fmod remainder floor_divide atan2 where eq ne lt le gt ge logical_and
    logical_or logical_xor bitwise_and bitwise_or __and__ __or__ masked_fill lerp addcmul addcdiv min.other max.other
    copysign hypot xlogy clamp clamp_min clamp_max copy divide multiply subtract true_divide greater greater_equal less
    less_equal not_equal clip special_xlogy isclose complex polar __xor__ _prelu_kernel elu_backward
    hardshrink_backward hardsigmoid_backward hardswish_backward hardtanh_backward leaky_relu_backward
    mish_backward softplus_backward softshrink_backward
""".split()


@rule(*(f"aten.{name}" for name in UNARY), "aten.fake_quantize_per_tensor_affine")
def unary(call: Call) -> Dims:
    return call.axes(call.values[0])


@rule(*(f"aten.{name}" for name in BROADCASTING))
def broadcasting(call: Call) -> Dims:
    return broadcast(call, [value for value in call.values if isinstance(value, Node)])


def broadcast(call: Call, operands: list[Node]) -> Dims:
    """The axes of an element-wise result, its operands' axes unified from the last dimension on."""
    return broadcast_axes(call, [call.axes(operand) for operand in operands], len(call.shape()))


def broadcast_with(call: Call, dims: Dims, value: Any) -> Dims:
    """The axes of a result that `value` is added to; it may be a number."""
    return broadcast_axes(call, [dims, call.axes(value)], len(dims))


def broadcast_axes(call: Call, operands: list[Dims], rank: int) -> Dims:
    """The axes of something of `rank` dimensions that all of these broadcast to."""
    result: list[Axis] = []
    for back in range(rank, 0, -1):
        meeting = [axes[-back] for axes in operands if len(axes) >= back]
        wide = [axis for axis in meeting if size(axis) != 1]
        for other in wide[1:]:
            call.unify(wide[0], other)
        result.append(wide[0] if wide else ONE)
    return tuple(result)


@rule("aten.broadcast_tensors")
def broadcast_tensors(call: Call) -> list[Dims]:
    several: list[Node] = list(call["tensors"])
    rank = max(len(call.shape(value)) for value in several)
    return [broadcast_axes(call, [call.axes(value) for value in several], rank)] * len(several)


@rule("aten.glu")
def glu(call: Call) -> Dims:
    """The first half of an axis, gated by the second."""
    source = call.axes(call["self"])
    dim = call.dim(len(source))
    first, second = call.algebra.sections(source[dim], [size(source[dim]) // 2] * 2, call.where)
    call.unify(first, second)
    return (*source[:dim], first, *source[dim + 1 :])
