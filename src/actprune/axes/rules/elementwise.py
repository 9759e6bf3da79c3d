"""Element-wise ops: every result entry depends on the entries at its own place, so axes unify with broadcasting."""

from __future__ import annotations

from torch.fx import Node

from actprune.axes.expr import ONE, Axis, size
from actprune.axes.inference import Call, Dims, rule

UNARY = """
    relu relu_ relu6 sigmoid sigmoid_ tanh tanh_ gelu silu silu_ mish mish_ elu elu_ selu selu_ celu leaky_relu
    leaky_relu_ hardtanh hardtanh_ hardsigmoid hardsigmoid_ hardswish hardswish_ softplus softsign log_sigmoid
    exp log log2 log10 log1p expm1 sqrt rsqrt reciprocal neg abs sign ceil floor round trunc sin cos tan asin acos
    atan sinh cosh erf erfc square threshold threshold_ clamp clamp_ clamp_min clamp_max clamp_min_ clamp_max_
    dropout feature_dropout alpha_dropout clone contiguous detach alias to _to_copy type_as logical_not bitwise_not
    isnan isinf isfinite nan_to_num logit hardshrink softshrink tanhshrink rrelu positive lift_fresh_copy zeros_like
    ones_like full_like empty_like rand_like float half double pow.Scalar rsub.Scalar
""".split()

BROADCASTING = """
    add add_ sub sub_ mul mul_ div div_ rsub pow maximum minimum fmod remainder floor_divide atan2 where
    eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and bitwise_or __and__ __or__ masked_fill
    masked_fill_ lerp addcmul addcdiv min.other max.other copysign hypot xlogy
""".split()

_VALUE_ONLY = {"type_as", "zeros_like"}  # a second tensor argument gives a dtype, not a value


@rule(*(f"aten.{name}" for name in UNARY))
def unary(call: Call) -> Dims:
    return call.axes(call.values[0])


@rule(*(f"aten.{name}" for name in BROADCASTING))
def broadcasting(call: Call) -> Dims:
    return broadcast(call, [value for value in call.values if isinstance(value, Node)])


def broadcast(call: Call, operands: list[Node]) -> Dims:
    """The axes of an element-wise result, its operands' axes unified from the last dimension on."""
    rank = len(call.shape())
    result: list[Axis] = []
    for back in range(rank, 0, -1):
        meeting = [call.axes(operand)[-back] for operand in operands if len(call.axes(operand)) >= back]
        wide = [axis for axis in meeting if size(axis) != 1]
        for other in wide[1:]:
            call.unify(wide[0], other)
        result.append(wide[0] if wide else ONE)
    return tuple(result)
