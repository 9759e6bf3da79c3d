"""Keras models that can't be built anew, refused by name."""

from __future__ import annotations

from typing import Any

from actprune.errors import PlanError, UnsupportedModelError
from actprune.keras3.backend import keras_on_torch
from actprune.keras3.reconnect import is_functional


def check_rebuildable(model: Any) -> None:
    """Refuse, by name, what its config doesn't describe.

    Raises:
        UnsupportedModelError: a subclassed model, or one that holds one.
    """
    keras = keras_on_torch()
    for layer in model._flatten_layers():
        if getattr(layer, "stateful", False):
            raise UnsupportedModelError(
                f"{type(layer).__name__} {layer.name!r} can't be pruned: it keeps its state from call to call.",
                expected="layers whose outputs depend on their inputs alone",
                got="stateful=True",
                where=layer.name,
                hint="prune the same model with stateful=False, and give the weights of the result to a stateful one",
            )
        if isinstance(layer, keras.Model) and not (isinstance(layer, keras.Sequential) or is_functional(layer)):
            raise UnsupportedModelError(
                f"{type(layer).__name__} {layer.name!r} can't be rebuilt: nothing says how its layers are connected.",
                expected="a Sequential or a functional model, or a class that is one inside",
                got=f"the subclass {type(layer).__name__}, whose `call` is its own",
                where=layer.name,
                hint="write it with keras.Input and keras.Model(inputs, outputs)",
            )


def misfit(name: str, error: Exception) -> PlanError:
    """What is said of a layer that raises on the size that a plan leaves."""
    said = next((line for line in str(error).splitlines() if line.strip()), "")
    return PlanError(
        f"Layer {name!r} can't be rebuilt in the size that the plan leaves.",
        expected="a layer that its config describes, and that takes inputs of the new size",
        got=f"{type(error).__name__}: {said[:200]}",
        where=name,
        hint="protect the layers that feed it, or write it without a fixed size",
    )
