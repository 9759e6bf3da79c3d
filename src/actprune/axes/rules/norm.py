"""Normalisations, and other ops with one parameter per channel."""

from __future__ import annotations

from actprune.axes.call import Call, rule
from actprune.axes.expr import ONE, Axis, size
from actprune.axes.site import Dims


@rule("aten.batch_norm", "aten.instance_norm")
def batch_norm(call: Call) -> Dims:
    """input (N, C, …); weight, bias, running_mean, running_var (C,): every channel for itself.

    Statistics of the input itself run over all other dimensions: as weight standardisation does with a weight.
    """
    source = call.axes(call["input"])
    for name in ("weight", "bias", "running_mean", "running_var"):
        parameter = call.axes(call[name])
        if parameter:
            call.unify(source[1], parameter[0])
    if call["training"] or call["use_input_stats"] or call["running_mean"] is None:
        for d, axis in enumerate(source):
            if d > 1 and call["running_mean"] is None:
                call.normalizes(call["input"], d)
            elif d > 1 or (d == 0 and call["use_input_stats"] is None):
                call.freeze(axis, "normalised over")
    return source


@rule(
    "aten.native_batch_norm", "aten._native_batch_norm_legit", "aten._native_batch_norm_legit_no_training",
    "aten._batch_norm_with_update",
)  # fmt: skip
def native_batch_norm(call: Call) -> list[Dims]:
    """As `batch_norm`; further results are statistics per channel, or empty."""
    result = batch_norm(call)
    _, *others = call.node.meta["val"]
    return [result, *(tuple(_statistic(call, n, result[1]) for n in other.shape) for other in others)]


def _statistic(call: Call, n: int, channels: Axis) -> Axis:
    return channels if n == size(channels) else call.fixed(n)


@rule("aten.layer_norm", "aten.rms_norm")
def layer_norm(call: Call) -> Dims:
    """Statistics run over the last axes, so removing one entry changes all the others."""
    source = call.axes(call["input"])
    count = len(call["normalized_shape"])
    for d in range(len(source) - count, len(source)):
        call.normalizes(call["input"], d)
    for name in ("weight", "bias"):
        for own, axis in zip(call.axes(call[name]), source[-count:], strict=False):
            call.unify(own, axis)
    return source


@rule("aten.native_layer_norm", "aten._fused_rms_norm")
def native_layer_norm(call: Call) -> list[Dims]:
    """As `layer_norm`; further results are statistics per row."""
    result = layer_norm(call)
    rows = result[: -len(call["normalized_shape"])]
    statistics = (*rows, *[ONE] * len(call["normalized_shape"]))
    return [result, *[statistics] * (len(call.node.meta["val"]) - 1)]


@rule("aten.group_norm")
def group_norm(call: Call) -> Dims:
    """input (N, C, …): whole groups may go; the channels within one share their statistics. One is a layer norm."""
    group_axis(call, call["num_groups"])
    return call.axes(call["input"])


@rule("aten.native_group_norm")
def native_group_norm(call: Call) -> list[Dims]:
    """As `group_norm`; two further results (N, groups)."""
    group = group_axis(call, call["group"])
    source = call.axes(call["input"])
    return [source, (source[0], group), (source[0], group)]


_WITHIN = "normalised within a group"
"""Why channels that share statistics with others of their group, and places in a map, stay: `norms=True` frees none."""


def group_axis(call: Call, groups: int) -> Axis:
    """The axis of the groups of a call's `input` (N, C, …)."""
    source, group = call.axes(call["input"]), ONE
    if groups == 1:
        call.normalizes(call["input"], 1)
    else:
        if not call.axes(call["weight"]):
            # without a weight nothing in the model tells how many groups are left
            call.freeze(source[1], "grouped without a weight")
        group, within = call.algebra.split(source[1], [groups, size(source[1]) // groups], call.where)
        call.freeze(within, _WITHIN)
    for axis in source[2:]:
        call.freeze(axis, _WITHIN)
    for name in ("weight", "bias"):
        parameter = call.axes(call[name])
        if parameter:
            call.unify(source[1], parameter[0])
    return group


@rule("aten._weight_norm")
def weight_norm(call: Call) -> Dims:
    """v, scaled to norm g in every slice along `dim` (over all of it where `dim` is -1): a norm of what stays."""
    source, gain = call.axes(call["v"]), call.axes(call["g"])
    for own, axis in zip(gain, source, strict=False):
        if size(own) != 1:
            call.unify(own, axis)
    for d in range(len(source)):
        if call["dim"] is None or call["dim"] == -1 or d != call["dim"] % len(source):
            call.mixes(call["v"], d)
    return source


@rule("aten._weight_norm_interface")
def weight_norm_interface(call: Call) -> list[Dims]:
    return [weight_norm(call), call.axes(call["g"])]


@rule("aten.native_dropout")
def native_dropout(call: Call) -> list[Dims]:
    """The values, and which of them stayed."""
    return [call.axes(call["input"])] * 2


@rule("aten.prelu")
def prelu(call: Call) -> Dims:
    """input (N, C, …), weight (C,) or (1,)."""
    source, weight = call.axes(call["self"]), call.axes(call["weight"])
    if weight and size(weight[0]) > 1:
        call.unify(source[min(1, len(source) - 1)], weight[0])
    return source


@rule("aten.embedding")
def embedding(call: Call) -> Dims:
    """weight (V, D), indices (…) → (…, D)."""
    weight = call.axes(call["weight"])
    call.freeze(weight[0], "looked up by index")
    call.makes("embedding", call["weight"], 1)
    return (*call.axes(call["indices"]), weight[1])
