"""Layers that wrap another one: a `TimeDistributed`, a `Bidirectional`, an `RNN` with a cell."""

from __future__ import annotations

from typing import Any

from actprune.keras3.backend import keras_on_torch
from actprune.keras3.own import is_own

_WITHIN = (("layer", "layer"), ("layer", "forward_layer"), ("backward_layer", "backward_layer"), ("cell", "cell"))
"""Fields of a config that hold the config of a layer, and the attribute with that layer."""


def wrapped(layer: Any) -> dict[str, Any]:
    """Field of the config → the layer that is held in it."""
    held = ((field, getattr(layer, attribute, None)) for field, attribute in _WITHIN)
    return {field: inner for field, inner in held if isinstance(inner, keras_on_torch().Layer)}


def holds_own(layer: Any) -> bool:
    """Whether it is of the user's own class, or wraps one that is: what is within can't be told from a config."""
    return is_own(layer) or any(map(holds_own, wrapped(layer).values()))


def holds_model(layer: Any) -> bool:
    """Whether it is a model that has inputs, or wraps one."""
    has_inputs = isinstance(layer, keras_on_torch().Model) and not is_own(layer)
    return has_inputs or any(map(holds_model, wrapped(layer).values()))


def trailing(layer: Any, given: Any) -> Any:
    """What a wrapped model is called on: of each step of a sequence, of each part of a batch."""
    keras = keras_on_torch()
    if not isinstance(layer, keras.Model) or is_own(layer):
        return given
    pairs = zip(layer.inputs, keras.tree.flatten(given), strict=True)
    return [keras.KerasTensor((None, *now.shape[len(now.shape) - len(was.shape) + 1 :])) for was, now in pairs]
