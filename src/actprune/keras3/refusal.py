"""Keras models that can't be built anew, refused by name."""

from __future__ import annotations

import re
from typing import Any

from actprune.errors import PlanError, UnsupportedModelError
from actprune.graph.frames import raised_in
from actprune.keras3.backend import keras_on_torch
from actprune.keras3.own import is_own
from actprune.keras3.places import quantization
from actprune.keras3.reconnect import is_functional


def check_rebuildable(model: Any) -> None:
    """Refuse, by name, what its config doesn't describe.

    Raises:
        UnsupportedModelError: a functional model with a `call` of its own, or one that holds one; layers that keep
            their state from call to call; a model whose matrices are all quantized.
    """
    keras = keras_on_torch()
    _check_floats(model)
    for layer in model._flatten_layers():
        if getattr(layer, "stateful", False):
            raise UnsupportedModelError(
                f"{type(layer).__name__} {layer.name!r} can't be pruned: it keeps its state from call to call.",
                expected="layers whose outputs depend on their inputs alone",
                got="stateful=True",
                where=layer.name,
                hint="prune the same model with stateful=False, and give the weights of the result to a stateful one",
            )
        known = is_own(layer) or isinstance(layer, keras.Sequential) or is_functional(layer)
        if isinstance(layer, keras.Model) and not known:
            raise UnsupportedModelError(
                f"{type(layer).__name__} {layer.name!r} can't be rebuilt: it is connected in two ways.",
                expected="a Sequential or a functional model, or a class with a `call` of its own",
                got=f"the functional subclass {type(layer).__name__}, whose `call` is its own",
                where=layer.name,
                hint="write it with keras.Input and keras.Model(inputs, outputs), or make its layers in __init__ alone",
            )


def _check_floats(model: Any) -> None:
    """`quantize` leaves some layers as they are (convolutions, those that its filters name): these can be cut."""
    matrices = [
        (layer, quantization(layer))
        for layer in model._flatten_layers()
        if any(len(v.shape) > 1 for v in (*layer._trainable_variables, *layer._non_trainable_variables))
    ]
    if matrices and all(mode is not None for _, mode in matrices):
        layer, mode = matrices[0]
        raise UnsupportedModelError(
            f"{type(layer).__name__} {layer.name!r} can't be pruned: its weights are quantized, as all others are.",
            expected="weights in floating point",
            got=f"the quantization mode {mode!r}",
            where=layer.name,
            hint="prune the model as it was before model.quantize(…), and quantize what is left",
        )


def said(error: Exception) -> str:
    """What an error says, in a line."""
    text = re.sub(r"\x1b\[\d*m", "", str(error))  # Keras says where it was ("Exception encountered when calling …"),
    inner = re.split(r".* encountered(?: when calling .*|:)\n", text)[-1]  # and what it was behind that, in bold
    line = next((line for line in inner.splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line[:200]}"


def uncalled(name: str) -> UnsupportedModelError:
    """What is said of a class that was never called, and says of itself that it is built (`self.built = True`)."""
    return UnsupportedModelError(
        f"Nothing tells what {name!r} is called on.",
        expected="a model that Keras has built as it was called, or example inputs",
        got="neither",
        where=name,
        hint="load(folder, model, inputs), with inputs as for capture",
    )


def misfit(name: str, error: Exception) -> PlanError:
    """What is said of a layer that raises on the size that a plan leaves."""
    return PlanError(
        f"Layer {name!r} can't be rebuilt in the size that the plan leaves.",
        expected="a layer that its config describes, and that takes inputs of the new size",
        got=f"{said(error)}{raised_in(error)}",
        where=name,
        hint="protect the layers that feed it, or write it without a fixed size",
    )
