"""The calls of a captured graph whose arguments are sizes, and what these are after a cut."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.fx import Node

from actprune.axes.expr import ONE, product, size
from actprune.axes.masks import masked_call

if TYPE_CHECKING:
    from actprune.surgery.graph_form import Builder

ATEN = torch.ops.aten

Arguments: TypeAlias = dict[str, Any]
"""The arguments of a call by their schema names."""

Resize: TypeAlias = "Callable[[Builder, Node, Arguments], tuple[Any, Arguments]]"
"""(builder, node, its arguments) → the op to call, and its arguments."""


def _as_result(name: str) -> Resize:
    """The argument `name` is the shape of the result."""
    return lambda b, node, given: (node.target, {**given, name: [b.size(axis) for axis in b.dims(node)]})


def _unflatten(b: Builder, node: Node, given: Arguments) -> tuple[Any, Arguments]:
    dims = b.dims(node)
    first = given["dim"] % (len(dims) - len(given["sizes"]) + 1)
    return node.target, {**given, "sizes": [b.size(axis) for axis in dims[first : first + len(given["sizes"])]]}


def _split(b: Builder, node: Node, given: Arguments) -> tuple[Any, Arguments]:
    """Parts of equal size may lose different numbers of units."""
    dim = given["dim"] % len(b.dims(node))
    sizes = [b.size(b.dims(node, i)[dim]) for i in range(b.results(node))]
    return ATEN.split_with_sizes.default, {"self": given["self"], "split_sizes": sizes, "dim": dim}


def _slice(b: Builder, node: Node, given: Arguments) -> tuple[Any, Arguments]:
    axis = b.dims(given["self"])[given["dim"]]
    return node.target, {**given, "start": b.bound(axis, given["start"]), "end": b.bound(axis, given["end"])}


def _narrow(b: Builder, node: Node, given: Arguments) -> tuple[Any, Arguments]:
    axis = b.dims(given["self"])[given["dim"]]
    return node.target, {
        **given, "start": b.bound(axis, given["start"]), "length": b.size(b.dims(node)[given["dim"]]),
    }  # fmt: skip


def _normalized(b: Builder, node: Node, given: Arguments) -> tuple[Any, Arguments]:
    tail = b.dims(node)[-len(given["normalized_shape"]) :]
    return node.target, {**given, "normalized_shape": [b.size(axis) for axis in tail]}


def _convolution(b: Builder, node: Node, given: Arguments) -> tuple[Any, Arguments]:
    """The groups of its weight, which may be made from a parameter."""
    return node.target, {**given, "groups": b.groups(b.dims(given["weight"])[0], given["groups"])}


def _sliced_gradient(b: Builder, node: Node, given: Arguments) -> tuple[Any, Arguments]:
    """A gradient in a run of an axis, the rest zeros."""
    axis = b.dims(node)[given["dim"]]
    place = {"start": b.bound(axis, given["start"]), "end": b.bound(axis, given["end"])}
    return node.target, {**given, "input_sizes": [b.size(axis) for axis in b.dims(node)], **place}


def _group_norm(b: Builder, node: Node, given: Arguments) -> tuple[Any, Arguments]:
    return node.target, {**given, "num_groups": b.groups(b.dims(given["input"])[1], given["num_groups"])}


def _batch_norm(b: Builder, node: Node, given: Arguments) -> tuple[Any, Arguments]:
    """The statistics of the batch in training, as the module's mode says."""
    known = given["running_mean"] is not None and given["training"] is False
    return node.target, {**given, "training": b.graph.get_attr("training")} if known else given


def _attention(b: Builder, node: Node, given: Arguments) -> tuple[Any, Arguments]:
    """The default scale is 1/√d of the tensors as they are; where no mask makes up for that, it stays what it was."""
    masks = [mask for name, mask in b.captured.masks.items() if masked_call(name) == node.name]
    if given["scale"] is None and any(mask.gain is None for mask in masks):
        return node.target, {**given, "scale": 1 / sqrt(size(b.dims(given["key"])[-1]))}
    return node.target, given


def _native_group_norm(b: Builder, node: Node, given: Arguments) -> tuple[Any, Arguments]:
    batch, channels, *_ = b.dims(given["input"])
    sizes = {"N": b.size(batch), "C": b.size(channels), "group": b.groups(channels, given["group"])}
    return node.target, {**given, **sizes}


def _repeated(b: Builder, node: Node, given: Arguments) -> tuple[Any, Arguments]:
    """What was one entry becomes as many as the result has, a batch of any size included."""
    name = "dims" if "dims" in given else "repeats"
    result = b.dims(node)
    source = (ONE,) * (len(result) - len(b.dims(given["self"]))) + tuple(b.dims(given["self"]))
    times = [
        b.size(r) if size(a) == 1 else size(r, b.widths) // size(a, b.widths)
        for a, r in zip(source, result, strict=True)
    ]
    return node.target, {**given, name: times}


def _padded(b: Builder, node: Node, given: Arguments) -> tuple[Any, Arguments]:
    dims, pads = b.dims(node), list(given["pad"])
    for i, n in enumerate(pads):
        if n > 0:
            axis = dims[-1 - i // 2]
            start = size(axis) - n if i % 2 else 0
            pads[i] = b.bound(axis, start + n) - b.bound(axis, start)
    return node.target, {**given, "pad": pads}


def _interleaved(b: Builder, node: Node, given: Arguments) -> tuple[Any, Arguments]:
    """So many copies of each entry as the result has; where every entry has a number of its own, these say it."""
    given = {**given, "output_size": None}
    if isinstance(given["repeats"], int):
        source, result, dim = b.dims(given["self"]), b.dims(node), given["dim"]
        axis = product(source) if dim is None else source[dim]
        given["repeats"] = size(result[dim or 0], b.widths) // size(axis, b.widths)
    return node.target, given


_UPSAMPLED = ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "bicubic2d")

RESIZED: dict[str, Resize] = {
    **dict.fromkeys(("view", "expand", "zeros", "ones", "empty", "full", "rand", "randn"), _as_result("size")),
    **dict.fromkeys(("new_zeros", "new_ones", "new_empty", "new_full", "_unsafe_view"), _as_result("size")),
    "reshape": _as_result("shape"),
    "broadcast_to": _as_result("size"),
    "unflatten": _unflatten,
    "split": _split,
    "split_with_sizes": _split,
    "tensor_split": _split,
    "slice": _slice,
    "narrow": _narrow,
    "layer_norm": _normalized,
    "rms_norm": _normalized,
    "group_norm": _group_norm,
    **dict.fromkeys(("native_group_norm", "native_group_norm_backward"), _native_group_norm),
    **{f"conv{n}d": _convolution for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _convolution for n in (1, 2, 3)},
    **dict.fromkeys(("convolution", "convolution_backward"), _convolution),
    "select_backward": _as_result("input_sizes"),
    "slice_backward": _sliced_gradient,
    **{f"upsample_{how}_backward": _as_result("input_size") for how in _UPSAMPLED},
    "batch_norm": _batch_norm,
    "scaled_dot_product_attention": _attention,
    "repeat": _repeated,
    "tile": _repeated,
    "pad": _padded,
    "constant_pad_nd": _padded,
    "repeat_interleave": _interleaved,
}
