"""What autograd calls where a forward pass takes gradients: energies and their forces, score networks, saliency maps.

A call gives the gradients that its `output_mask` asks for, and nothing in the place of the others.
"""

from __future__ import annotations

from math import prod
from typing import Any

from actprune.axes.call import Call, NotCovered, rule
from actprune.axes.expr import concat, product, size
from actprune.axes.rules.norm import batch_norm, group_axis
from actprune.axes.rules.reduce import along
from actprune.axes.site import Dims


@rule("aten.convolution_backward")
def convolution_backward(call: Call) -> list[Dims]:
    """grad_output (N, Cout, …), input (N, Cin, …), weight → gradients of input, weight and bias.

    The first is a sum over the outputs, the others over samples and places.
    """
    gradient, source, weight = (call.axes(call[name]) for name in ("grad_output", "input", "weight"))
    groups = call["groups"]
    if len(source) != len(weight):
        raise NotCovered("one sample without a batch")
    many, few = (source[1], gradient[1]) if call["transposed"] else (gradient[1], source[1])
    call.unify(gradient[0], source[0])
    call.unify(many, weight[0])
    if groups == 1:
        call.unify(few, weight[1])
    else:
        group, _ = call.algebra.split(many, [groups, size(many) // groups], call.where)
        call.unify(few, product([group, weight[1]]))
    for axis in (*source[2:], *gradient[2:]):
        call.freeze(axis, "slid over")
    for axis in weight[2:]:
        call.freeze(axis, "a kernel size")
    of_input, of_weight, of_bias = call["output_mask"]
    if of_input:
        call.mixes(call["grad_output"], 1)
    if of_weight or of_bias:
        call.freeze(source[0], "summed over")
    large = source if call["transposed"] else gradient
    call.macs([*large, weight[1]], prod(size(axis) for axis in weight[2:]) * (of_input + of_weight))
    return _asked(call, source, weight, (gradient[1],))


def _asked(call: Call, *gradients: Dims) -> list[Dims]:
    """Those that the call gives."""
    return [dims if value is not None else () for dims, value in zip(gradients, _values(call), strict=True)]


def _values(call: Call) -> Any:
    return call.node.meta["val"]


@rule("aten.native_layer_norm_backward")
def layer_norm_backward(call: Call) -> list[Dims]:
    """Every entry of a gradient sees all others that the norm runs over."""
    source = _alike(call, "grad_out", "input")
    count = len(call["normalized_shape"])
    for axis in source[-count:]:
        call.freeze(axis, "normalised over")
    if any(call["output_mask"][1:]):
        for axis in source[:-count]:
            call.freeze(axis, "summed over")
    return _asked(call, source, source[-count:], source[-count:])


@rule("aten.native_group_norm_backward")
def group_norm_backward(call: Call) -> list[Dims]:
    source = _alike(call, "grad_out", "input")
    group_axis(call, call["group"])
    if any(call["output_mask"][1:]):
        call.freeze(source[0], "summed over")
    return _asked(call, source, (source[1],), (source[1],))


@rule("aten.native_batch_norm_backward")
def batch_norm_backward(call: Call) -> list[Dims]:
    """Every channel for itself; with statistics of the input itself its entries see each other."""
    source = _alike(call, "grad_out", "input")
    batch_norm(call)
    if call["train"] or any(call["output_mask"][1:]):
        for axis in (source[0], *source[2:]):
            call.freeze(axis, "normalised over")
    return _asked(call, source, (source[1],), (source[1],))


@rule(
    "aten.avg_pool2d_backward", "aten.avg_pool3d_backward", "aten._adaptive_avg_pool2d_backward",
    "aten.max_pool2d_with_indices_backward", "aten.adaptive_max_pool2d_backward",
    "aten.reflection_pad1d_backward", "aten.reflection_pad2d_backward",
)  # fmt: skip
def pooling_backward(call: Call) -> Dims:
    """grad_output and self (…, C, spatial…): channels pass."""
    gradient, source = call.axes(call["grad_output"]), call.axes(call["self"])
    kept = len(source) - (1 if "1d" in str(call.node.target) else 3 if "3d" in str(call.node.target) else 2)
    for other in (gradient, call.axes(call["indices"])):
        for a, b in zip(source[:kept], other, strict=False):
            call.unify(a, b)
    for axis in (*source[kept:], *gradient[kept:]):
        call.freeze(axis, "slid over")
    return source


@rule(
    "aten.upsample_nearest1d_backward", "aten.upsample_nearest2d_backward", "aten.upsample_nearest3d_backward",
    "aten.upsample_linear1d_backward", "aten.upsample_bilinear2d_backward", "aten.upsample_bicubic2d_backward",
)  # fmt: skip
def upsampling_backward(call: Call) -> Dims:
    """grad_output (N, C, spatial…) → (N, C, the spatial sizes before)."""
    batch, channels, *spatial = call.axes(call["grad_output"])
    for axis in spatial:
        call.freeze(axis, "slid over")
    return (batch, channels, *(call.fixed(n, "a spatial size") for n in call.shape()[2:]))


@rule("aten.log_sigmoid_forward")
def log_sigmoid(call: Call) -> list[Dims]:
    """The values, and what the gradient needs of them, if anything."""
    source, (values, *_) = call.axes(call["self"]), _values(call)
    return [source if value.shape == values.shape else (call.fixed(0),) for value in _values(call)]


@rule("aten.log_sigmoid_backward")
def log_sigmoid_backward(call: Call) -> Dims:
    return _alike(call, "grad_output", "self")


@rule("aten._softmax_backward_data", "aten._log_softmax_backward_data")
def softmax_backward(call: Call) -> Dims:
    _alike(call, "grad_output", "output")
    return along(call)


@rule("aten.select_backward")
def select_backward(call: Call) -> Dims:
    """The gradient at one place along `dim`, zeros elsewhere."""
    dims = list(call.axes(call["grad_output"]))
    dim = call.dim(len(call.shape()))
    dims.insert(dim, call.fixed(call.shape()[dim], "selected from"))
    return tuple(dims)


@rule("aten.slice_backward")
def slice_backward(call: Call) -> Dims:
    """The gradient in a run of an axis, between zeros, of which fewer may be made."""
    gradient = list(call.axes(call["grad_output"]))
    dim = call.dim(len(gradient))
    n, taken = call.shape()[dim], size(gradient[dim])
    if call["step"] != 1:
        call.freeze(gradient[dim], "taken with a step")
        gradient[dim] = call.fixed(n, "taken with a step")
    elif taken != n:
        start = max(0, min(call["start"] + (n if call["start"] < 0 else 0), n))
        before, after = call.algebra.leaf(start), call.algebra.leaf(n - start - taken)
        gradient[dim] = concat([before, gradient[dim], after])
    return tuple(gradient)


def _alike(call: Call, gradient: str, source: str) -> Dims:
    """The axes of what is differentiated, which its gradient has too."""
    axes = call.axes(call[source])
    for own, axis in zip(call.axes(call[gradient]), axes, strict=True):
        call.unify(own, axis)
    return axes
