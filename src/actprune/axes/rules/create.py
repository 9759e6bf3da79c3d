"""Tensors that a call makes from sizes.

One that is constant along a new axis may follow a cut there: the axis is nobody's until it meets another one. Where
the values depend on the place (a range) or on chance, they would not be the same after a cut, so the axis is fixed.
"""

from __future__ import annotations

from actprune.axes.call import Call, rule
from actprune.axes.expr import size
from actprune.axes.site import Dims


@rule(
    "aten.zeros", "aten.ones", "aten.full", "aten.empty", "aten.new_zeros", "aten.new_ones", "aten.new_full",
    "aten.new_empty", "aten.scalar_tensor", "aten.empty_permuted", "aten.empty_strided", "aten.new_empty_strided",
)  # fmt: skip
def constant(call: Call) -> Dims:
    return tuple(call.algebra.leaf(n) for n in call.shape())


@rule("aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.empty_like")
def constant_like(call: Call) -> Dims:
    """As many entries as the other tensor has, whichever these are."""
    source = call.axes(call.values[0])
    result = tuple(axis if call.is_frozen(axis) else call.algebra.leaf(size(axis)) for axis in source)
    for pair in zip(source, result, strict=True):
        call.counts(pair)
    return result


@rule(
    "aten.arange", "aten.linspace", "aten.logspace", "aten.range", "aten.eye", "aten.tril_indices",
    "aten.triu_indices", "aten.hann_window", "aten.hamming_window", "aten.blackman_window", "aten.bartlett_window",
    "aten.kaiser_window", "aten.fft_fftfreq", "aten.fft_rfftfreq",
)  # fmt: skip
def numbered(call: Call) -> Dims:
    return tuple(call.fixed(n, "made with a fixed size") for n in call.shape())


@rule(
    "aten.rand", "aten.randn", "aten.randint", "aten.randperm", "aten.normal.float_float", "aten.rand_like",
    "aten.randn_like", "aten.randint_like", "aten.bernoulli", "aten.normal.Tensor_float", "aten.normal.Tensor_Tensor",
    "aten.normal.float_Tensor", "aten.normal_functional", "aten.uniform", "aten.exponential", "aten.poisson",
)  # fmt: skip
def drawn(call: Call) -> Dims:
    """One draw per entry: fewer entries would draw other numbers."""
    for source in call.node.all_input_nodes:
        for axis in call.axes(source):
            call.freeze(axis, "drawn at random")
    return tuple(call.fixed(n, "drawn at random") for n in call.shape())
