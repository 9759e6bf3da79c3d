"""The layers of a Keras model and their variables, under paths of layer names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from actprune.keras3.wrapped_torch import buffers

_NUMBERED = re.compile(r"^variable_\d+$")
"""Keras's names for variables that were given none count on through the session, so another model has others."""


@dataclass(frozen=True, eq=False)
class Placed:
    """One layer of a model.

    Attributes:
        path: the names of the layers around it and its own, joined by dots; "" for the model.
        layer: the `keras.Layer`.
        variables: name → (its variable, whether training may change it), without what its sublayers hold.
    """

    path: str
    layer: Any
    variables: dict[str, tuple[Any, bool]]

    def full(self, name: str) -> str:
        """The name in a state dict of one of its variables."""
        return f"{self.path}.{name}" if self.path else name


def placed(model: Any) -> list[Placed]:
    """Every layer once, the model first, each before its sublayers. A shared one has the path of its first place."""
    return list(_walk(model, "", set()))


def _walk(layer: Any, path: str, seen: set[int]) -> Iterator[Placed]:
    seen.add(id(layer))
    variables: dict[str, tuple[Any, bool]] = {}
    within = {id(v) for inner in layer._layers for v in inner.variables}  # a wrapper may hold one of what it wraps
    for trainable, held in ((True, layer._trainable_variables), (False, layer._non_trainable_variables)):
        for variable in (v for v in held if id(v) not in within):
            name = _NUMBERED.sub("variable", variable.name)
            variables[_unique(name, variables)] = variable, trainable
    for buffer in buffers(layer).values():
        variables[_unique(buffer.name, variables)] = buffer, False
    yield Placed(path, layer, variables)
    names: dict[str, Any] = dict.fromkeys(variables)
    for inner in layer._layers:
        if id(inner) not in seen:
            name = _unique(inner.name, names)
            names[name] = inner
            yield from _walk(inner, f"{path}.{name}" if path else name, seen)


def _unique(name: str, taken: dict[str, Any]) -> str:
    """A name without dots that isn't taken."""
    found = name = name.replace(".", "_")
    number = 1
    while found in taken:
        found, number = f"{name}_{number}", number + 1
    return found


def quantization(layer: Any) -> str | None:
    """What Keras has quantized a layer's weights to, "int8"; None for a layer as it was trained."""
    return getattr(layer, "quantization_mode", None)


def operations(model: Any) -> list[Any]:
    """Calls of a functional model that are no layers, such as a `keras.ops.reshape`, also those of models within."""
    layers = [one.layer for one in placed(model)]
    held = {id(op): op for layer in layers for op in getattr(layer, "_operations", ())}
    known = {id(layer) for layer in layers}
    return [op for key, op in held.items() if key not in known]
