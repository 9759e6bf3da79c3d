"""Layers of the user's own class that hold smaller layers than their config makes.

`TransformerDecoder(num_heads=4)` makes heads of a fourth of its inputs' width: no number in its config leaves three of
them. So the class makes its layers as the config says, and those that a plan made smaller take their places. What is
left is an instance of that class, whose config says both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from typing import Any

from actprune.keras3.backend import keras_on_torch
from actprune.keras3.own import is_own
from actprune.keras3.reconnect import forget, is_functional, reconnect


class Resized:
    """Mixed into the class of such a layer; Keras knows it under the name `actprune>Resized`.

    Attributes:
        _actprune_parts: "kind", the layer as its class makes it, and "within": the place of a layer in it → that layer.
    """

    _actprune_parts: dict[str, Any]
    name: str
    trainable: bool

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "trainable": self.trainable, **self._actprune_parts}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Any:
        def made(config: Mapping[str, Any]) -> Any:
            return keras_on_torch().saving.deserialize_keras_object(deepcopy(config))  # classes may take it apart

        layer = resized(made(config["kind"]), {place: made(inner) for place, inner in config["within"].items()})
        vars(layer)["_actprune_parts"] = {"kind": config["kind"], "within": config["within"]}
        layer.trainable = config["trainable"]
        return layer


def register() -> None:
    """Tell Keras of `actprune>Resized`, so that it loads files with such layers."""
    keras_on_torch().saving.register_keras_serializable("actprune", "Resized")(Resized)


def resized(layer: Any, within: Mapping[str, Any]) -> Any:
    """The layer, or functional model, itself, with other layers in it.

    Args:
        within: place → the layer that takes it: "2.0" is the first layer in the third one that `layer` holds, or of
            a functional model, in what it calls third.

    Raises:
        LookupError: it holds no layer there, or none that can be taken out.
    """
    inner: dict[str, dict[str, Any]] = {}
    new: dict[int, Any] = {}
    for place, one in within.items():
        first, _, rest = place.partition(".")
        if rest:
            inner.setdefault(first, {})[rest] = one
        else:
            new[id(at(layer, first))] = one
    for place, parts in inner.items():
        old = at(layer, place)
        _resized_inside(new.get(id(old), old), parts)
    if is_functional(layer):
        reconnect(layer, new)
    else:
        for old in [one for one in layer._layers if id(one) in new]:
            _put(layer, old, new[id(old)])
    forget(layer)
    layer.__class__ = _resized_class(type(layer))
    return layer


def _resized_inside(layer: Any, within: Mapping[str, Any]) -> None:
    """As `resized`, of a layer in another one; a model there can be saved by itself, too."""
    if is_functional(layer):
        config = serialized(layer, within)
        vars(layer)["_actprune_parts"] = {"kind": config["kind"], "within": config["within"]}
        resized(layer, within)
        return
    own = type(layer)
    resized(layer, within).__class__ = own  # what the outermost one is made of says the rest


def serialized(layer: Any, within: Mapping[str, Any]) -> dict[str, Any]:
    """The config for `Resized.from_config` of a built layer, and layers, or their configs, that take places in it."""
    parts = vars(layer).get("_actprune_parts") or {"kind": config_of(layer), "within": {}}
    inner = {place: one if isinstance(one, dict) else config_of(one) for place, one in within.items()}
    before = {
        place: one
        for place, one in parts["within"].items()
        if not any(f"{place}.".startswith(f"{new}.") for new in inner)
    }
    return {"name": layer.name, "trainable": True, "kind": parts["kind"], "within": {**before, **inner}}


def config_of(layer: Any) -> dict[str, Any]:
    """What Keras writes of a layer, but for how it is compiled."""
    made = keras_on_torch().saving.serialize_keras_object(layer)
    made.pop("compile_config", None)
    return made


def inner_layers(layer: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """The layers in one of the user's own class that can take another's place: (place, layer).

    Layers of Keras's classes as a whole, and of classes of the user's own those that hold no layers.
    """
    for i, inner in enumerate(layer._layers):
        own = f"{place}.{i}" if place else str(i)
        if is_own(inner) and inner._layers:
            yield from inner_layers(inner, own)
        else:
            yield own, inner


def at(layer: Any, place: str) -> Any:
    """The layer at a place."""
    for step in place.split("."):
        layer = (layer.operations if is_functional(layer) else layer._layers)[int(step)]
    return layer


@cache
def _resized_class(kind: type) -> type:
    if issubclass(kind, Resized):
        return kind
    made = type(kind.__name__, (Resized, kind), {"__module__": __name__})
    return keras_on_torch().saving.register_keras_serializable("actprune", "Resized")(made)


def _put(holder: Any, old: Any, new: Any) -> None:
    """`new` in every attribute of `holder` that is `old`, or a list or dict with it."""
    holder._tracker.replace_tracked_value("layers", old, new)
    found = [_exchanged(value, old, new) for name, value in vars(holder).items() if not name.startswith("_layers")]
    for name, value in [*vars(holder).items(), *holder._modules.items()]:
        if value is old:
            setattr(holder, name, new)
            found.append(True)
    if not any(found):
        raise LookupError(f"no attribute of {type(holder).__name__} holds {old.name}")


def _exchanged(value: Any, old: Any, new: Any) -> bool:
    """Exchange entries of a list or dict; whether there was one."""
    if not isinstance(value, list | dict):
        return False
    found = False
    for key, entry in list(value.items() if isinstance(value, dict) else enumerate(value)):
        if entry is old:
            value[key] = new
        found |= entry is old or _exchanged(entry, old, new)
    return found
