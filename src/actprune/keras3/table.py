"""Which fields of a layer's config repeat the sizes of its variables: what each must say after a cut.

A layer that isn't here has no such field: a batch norm takes its width from its input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from actprune.keras3.backend import keras_on_torch
from actprune.plan import Plan
from actprune.surgery.modules import remaining_groups

Config = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Cut:
    """A layer and what a plan leaves of its variables.

    Attributes:
        layer: the dense layer.
        path: its path.
        shapes: name of a variable within the layer, such as `query.kernel` → its new shape.
        plan: the plan.
    """

    layer: Any
    path: str
    shapes: Mapping[str, tuple[int, ...]]
    plan: Plan

    def size(self, name: str, dim: int) -> int:
        return self.shapes[name][dim]

    def groups(self, name: str, dim: int, count: int) -> int:
        """How many of `count` groups along a dimension are left."""
        axes = self.plan.dims.get(f"{self.path}.{name}")
        return count if axes is None else remaining_groups(axes[dim], count, self.plan)


def _conv(cut: Cut) -> Config:
    sizes = {"filters": cut.size("kernel", -1), "groups": cut.groups("kernel", -1, cut.layer.groups)}
    return {**sizes, "kernel_size": cut.shapes["kernel"][:-2]}  # it may cover a dimension that is cut


def _depthwise(cut: Cut) -> Config:
    return {"depth_multiplier": cut.size("kernel", -1)}


def _separable(cut: Cut) -> Config:
    return {
        "filters": cut.size("pointwise_kernel", -1),
        "depth_multiplier": cut.size("depthwise_kernel", -1),
    }


def _einsum(cut: Cut) -> Config:
    """Only what the equation gives to the output alone, or shares with the kernel, is a size of the config."""
    equation = cut.layer.equation.replace(" ", "").replace("...", "0")
    left, right = equation.split("->")
    kernel = left.split(",")[1]
    given = cut.layer.get_config()["output_shape"]
    letters = right[len(right) - len(given) :]
    sizes = [
        cut.size("kernel", kernel.index(letter)) if letter in kernel else old
        for letter, old in zip(letters, given, strict=True)
    ]
    return {"output_shape": sizes if isinstance(given, list | tuple) else sizes[0]}


def _attention(cut: Cut) -> Config:
    _, heads, key = cut.shapes["query.kernel"]
    config: Config = {"num_heads": heads, "key_dim": key, "value_dim": cut.size("value.kernel", 2)}
    made, width = list(cut.shapes["attention_output.kernel"][2:]), cut.size("query.kernel", 0)
    if cut.layer.get_config().get("output_shape") or made != [width]:  # else as wide as what asks
        config["output_shape"] = made
    return config


def _grouped_attention(cut: Cut) -> Config:
    _, heads, size = cut.shapes["query.kernel"]
    return {"num_query_heads": heads, "num_key_value_heads": cut.size("key.kernel", 1), "head_dim": size}


def _recurrent(cut: Cut) -> Config:
    """The hidden units read themselves: the rows of the weight with the cell's name for that."""
    name = next(name for name in cut.shapes if name.rpartition(".")[2] == "recurrent_kernel")
    return {"units": cut.size(name, 0)}


def _recurrent_conv(cut: Cut) -> Config:
    name = next(name for name in cut.shapes if name.rpartition(".")[2] == "recurrent_kernel")
    return {"filters": cut.size(name, -2)}


def _embedding(cut: Cut) -> Config:
    return {"input_dim": cut.size("embeddings", 0), "output_dim": cut.size("embeddings", 1)}


def _group_norm(cut: Cut) -> Config:
    count = cut.layer.groups
    return {"groups": cut.groups("gamma", 0, count)} if "gamma" in cut.shapes and count > 0 else {}


TABLE: dict[str, Callable[[Cut], Config]] = {
    "Dense": lambda cut: {"units": cut.size("kernel", -1)},
    "EinsumDense": _einsum,
    "Conv1D": _conv,
    "Conv2D": _conv,
    "Conv3D": _conv,
    "Conv1DTranspose": lambda cut: {"filters": cut.size("kernel", -2)},
    "Conv2DTranspose": lambda cut: {"filters": cut.size("kernel", -2)},
    "Conv3DTranspose": lambda cut: {"filters": cut.size("kernel", -2)},
    "DepthwiseConv1D": _depthwise,
    "DepthwiseConv2D": _depthwise,
    "SeparableConv1D": _separable,
    "SeparableConv2D": _separable,
    "Embedding": _embedding,
    "MultiHeadAttention": _attention,
    "GroupedQueryAttention": _grouped_attention,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "SimpleRNN": _recurrent,
    "LSTMCell": _recurrent,
    "GRUCell": _recurrent,
    "SimpleRNNCell": _recurrent,
    "ConvLSTM1D": _recurrent_conv,
    "ConvLSTM2D": _recurrent_conv,
    "ConvLSTM3D": _recurrent_conv,
    "ConvLSTMCell": _recurrent_conv,
    "GroupNormalization": _group_norm,
}
"""Class of Keras → fields of the config. A subclass of one stands for it."""


def fields(cut: Cut) -> Config:
    """The fields that the cut changes.

    Raises:
        KeyError, IndexError, ValueError, StopIteration: a subclass that keeps its variables in another form.
    """
    begun = _begun(cut)
    for kind in type(cut.layer).__mro__:
        if kind.__module__.startswith("keras.") and kind.__name__ in TABLE:
            return begun | TABLE[kind.__name__](cut)
    return begun


def _begun(cut: Cut) -> Config:
    """Constants that a layer begins with, a number for every unit: the identity in the bias of a T-net."""
    keras, found = keras_on_torch(), Config()
    for name in cut.shapes:
        told: Any = getattr(cut.layer, field := f"{name}_initializer", None)
        value = np.asarray(told.value if isinstance(told, keras.initializers.Constant) else 0.0)
        if value.ndim and hasattr(cut.layer, name):
            value = np.broadcast_to(value, getattr(cut.layer, name).shape)
            for dim, kept in enumerate(cut.plan.indices(f"{cut.path}.{name}")):
                value = value if kept is None else value.take(kept, dim)
            found[field] = keras.saving.serialize_keras_object(keras.initializers.Constant(value))
    return found
