"""Fake quantisation, as networks prepared for quantisation-aware training have it: element-wise, with a scale for the
whole tensor or for every channel."""

from __future__ import annotations

from actprune.axes.call import Call, rule
from actprune.axes.site import Dims


@rule("aten.fake_quantize_per_channel_affine")
def per_channel(call: Call) -> Dims:
    """self, scale and zero_point (C,), with C along `axis` of self."""
    return _with_channels(call, int(call["axis"]), "scale", "zero_point")


@rule("aten.fused_moving_avg_obs_fake_quant")
def observed(call: Call) -> Dims:
    """As its scale says; an observer that is on moves that by the range of all entries first."""
    source = call.axes(call["self"])
    if call.inference.may_be_set(call["observer_on"]):
        for axis in source:
            call.freeze(axis, "observed (call model.apply(torch.ao.quantization.disable_observer) first)")
    if call["per_row_fake_quant"]:
        _with_channels(call, int(call["ch_axis"]), "scale", "zero_point", "running_min", "running_max")
    return source


def _with_channels(call: Call, dim: int, *names: str) -> Dims:
    source = call.axes(call["self"])
    for name in names:
        for own in call.axes(call[name]):
            call.unify(source[dim], own)
    return source
