"""Normalisations, and other ops with one parameter per channel."""

from __future__ import annotations

from actprune.axes.expr import size
from actprune.axes.inference import Call, Dims, rule


@rule("aten.batch_norm", "aten.instance_norm")
def batch_norm(call: Call) -> Dims:
    """input (N, C, …); weight, bias, running_mean, running_var (C,): every channel for itself."""
    source = call.axes(call["input"])
    for name in ("weight", "bias", "running_mean", "running_var"):
        parameter = call.axes(call[name])
        if parameter:
            call.unify(source[1], parameter[0])
    return source


@rule("aten.layer_norm", "aten.rms_norm")
def layer_norm(call: Call) -> Dims:
    """Statistics run over the last axes, so removing one entry changes all the others."""
    source = call.axes(call["input"])
    count = len(call["normalized_shape"])
    for axis in source[-count:]:
        call.freeze(axis, "normalised over")
    for name in ("weight", "bias"):
        for own, axis in zip(call.axes(call[name]), source[-count:], strict=False):
            call.unify(own, axis)
    return source


@rule("aten.group_norm")
def group_norm(call: Call) -> Dims:
    """input (N, C, …): whole groups may go; the channels within one share their statistics."""
    source, groups = call.axes(call["input"]), call["num_groups"]
    if not call.axes(call["weight"]):
        # without a weight nothing in the model tells how many groups are left
        call.freeze(source[1], "grouped without a weight")
    _, within = call.algebra.split(source[1], [groups, size(source[1]) // groups], call.where)
    call.freeze(within, "normalised over")
    for name in ("weight", "bias"):
        parameter = call.axes(call[name])
        if parameter:
            call.unify(source[1], parameter[0])
    return call.axes(call["input"])


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
