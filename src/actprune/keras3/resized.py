"""Layers of the user's own class that hold smaller layers than their config makes.

`TransformerDecoder(num_heads=4)` makes heads of a fourth of its inputs' width: no number in its config leaves three of
them. So the class makes its layers as the config says, and those that a plan made smaller take their places. What is
left is an instance of that class, whose config says both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

from actprune.keras3.backend import keras_on_torch
from actprune.keras3.exchange import layers_within, put, variable_like
from actprune.keras3.inputs import run_as_built
from actprune.keras3.places import placed
from actprune.keras3.reconnect import forget, is_functional, reconnect
from actprune.keras3.wrapping import holds_own
from actprune.repair.edits import Edits
from actprune.surgery.source import subclass

SOURCE = "@source"
"""In a place of its own stand the edits of a layer's class, as data: several, where it was cut several times."""


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
            copied: Any = deepcopy(config)  # classes may take it apart
            built = _shapes(copied.get("build_config"))
            return keras_on_torch().saving.deserialize_keras_object({**copied, "build_config": built})

        within = {place: made(one) if isinstance(one, dict) else one for place, one in config["within"].items()}
        layer = made(config["kind"])
        if not all(place.layer.built for place in placed(layer)):
            run_as_built(layer)
        layer = resized(layer, within)
        as_resized(layer, config)
        layer.trainable = config["trainable"]
        return layer


def as_resized(layer: Any, config: Mapping[str, Any]) -> None:
    """Let the layer say that this, see `serialized`, is its config."""
    layer.__class__ = _resized_class(type(layer))
    vars(layer)["_actprune_parts"] = {"kind": config["kind"], "within": config["within"]}


def register() -> None:
    """Tell Keras of `actprune>Resized`, so that it loads files with such layers."""
    keras_on_torch().saving.register_keras_serializable("actprune", "Resized")(Resized)


def resized(layer: Any, within: Mapping[str, Any]) -> Any:
    """The layer, or functional model, itself, with other layers in it.

    Args:
        within: place → the layer that takes it: "2.0" is the first layer in the third one that `layer` holds, or of
            a functional model, in what it calls third. Place and attribute → a number: "2.0.heads". Place and `SOURCE`
            → edits of methods. Place and which
            variable that layer itself holds → its shape: "2.0.#1".

    Raises:
        LookupError: it holds no layer there, or none that can be taken out.
    """
    inner: dict[str, dict[str, Any]] = {}
    new: dict[int, Any] = {}
    for place, one in within.items():
        first, _, rest = place.partition(".")
        if first == SOURCE:
            layer.__class__ = _edited(type(layer), one)
        elif first.startswith("#"):
            _resize(layer, int(first[1:]), one)
        elif not first.isdecimal():
            _set_number(layer, place.split("."), one)
        elif rest:
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
            put(layer, old, new[id(old)])
    forget(layer)
    layer.__class__ = _resized_class(type(layer))
    return layer


def _resized_inside(layer: Any, within: Mapping[str, Any]) -> None:
    """As `resized`, of a layer in another one; a model there can be saved by itself, too."""
    if is_functional(layer):
        try:
            config = serialized(layer, within)
        except Exception:  # whatever a layer raises that has no config: it can't be saved by itself, cut or not
            config = None
        if config is not None:
            as_resized(resized(layer, within), config)
            return
    own = _edited(type(layer), within.get(SOURCE, ()))
    resized(layer, within).__class__ = own  # what the outermost one is made of says the rest


def serialized(layer: Any, within: Mapping[str, Any]) -> dict[str, Any]:
    """The config for `Resized.from_config` of a built layer, and layers, or their configs, that take places in it."""
    parts = vars(layer).get("_actprune_parts") or {"kind": config_of(layer), "within": {}}
    inner = {place: as_config(one) for place, one in within.items()}
    before = {
        place: one
        for place, one in parts["within"].items()
        if _is_source(place) or not any(f"{place}.".startswith(f"{new}.") for new in inner)
    }
    again = {place: [*before[place], *one] for place, one in inner.items() if _is_source(place) and place in before}
    return {"name": layer.name, "trainable": True, "kind": parts["kind"], "within": {**before, **inner, **again}}


def _is_source(place: str) -> bool:
    return place.rpartition(".")[2] == SOURCE


def as_config(one: Any) -> Any:
    """The config of a layer; what is one, or a number or shape, as it is."""
    return one if isinstance(one, dict | int | list) else config_of(one)


def config_of(layer: Any) -> dict[str, Any]:
    """What Keras writes of a layer, but for how it is compiled."""
    made = keras_on_torch().saving.serialize_keras_object(layer)
    made.pop("compile_config", None)
    return made


def has_config(model: Any) -> bool:
    """Whether Keras can write of a model what it is."""
    try:
        config_of(model)
    except Exception:  # whatever a class raises that has no config
        return False
    return True


def _shapes(value: Any) -> Any:
    """Shapes as a layer was built with: in a file they are lists, which a class may take for a list of shapes."""
    if isinstance(value, dict):
        return {key: _shapes(entry) for key, entry in value.items()}
    is_shape = isinstance(value, list) and all(entry is None or isinstance(entry, int) for entry in value)
    return tuple(value) if is_shape else [_shapes(entry) for entry in value] if isinstance(value, list) else value


def inner_layers(layer: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """The layers in one of the user's own class that can take another's place, those of Keras: (place, layer)."""
    for where, own in own_layers(layer, place):
        elsewhere = {id(one) for sibling in own._layers for one in layers_within(sibling)}
        for i, inner in enumerate(own._layers):
            if not holds_own(inner) and id(inner) not in elsewhere:
                yield f"{where}.{i}".lstrip("."), inner


def own_layers(layer: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """A layer of the user's own class and those of such classes within: (place, layer)."""
    yield place, layer
    for i, inner in enumerate(layer._layers):
        if holds_own(inner):
            yield from own_layers(inner, f"{place}.{i}".lstrip("."))


def own_variables(layer: Any) -> list[Any]:
    """What a layer holds beside the layers within."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def at(layer: Any, place: str) -> Any:
    """The layer at a place; "" is that of the layer itself."""
    for step in filter(None, place.split(".")):
        layer = (layer.operations if is_functional(layer) else layer._layers)[int(step)]
    return layer


@cache
def _resized_class(kind: type) -> type:
    if issubclass(kind, Resized):
        return kind
    made = type(kind.__name__, (Resized, kind), {"__module__": __name__})
    return keras_on_torch().saving.register_keras_serializable("actprune", "Resized")(made)


def number_at(layer: Any, place: str) -> Any:
    """The number in an attribute of a layer, or of one within."""
    for step in place.split("."):
        if isinstance(layer, list | tuple):
            layer = layer[int(step)]
        elif isinstance(layer, dict):
            layer = next(entry for key, entry in layer.items() if str(key) == step)
        else:
            layer = at(layer, step) if step.isdecimal() else vars(layer)[step]
    return layer


def set_numbers(layer: Any, numbers: Mapping[str, Any]) -> None:
    """Set attributes of a layer and of those within; place and attribute → the number."""
    for place, value in numbers.items():
        steps = place.split(".")
        depth = next(i for i, step in enumerate(steps) if not step.isdecimal())
        holder = at(layer, ".".join(steps[:depth]))
        if _is_source(place):
            holder.__class__ = _edited(type(holder), value)
        else:
            _set_number(holder, steps[depth:], value)


def _edited(kind: type, edits: Sequence[Mapping[str, Any]]) -> type:
    """The class with sizes in the source of its methods edited, once after the other."""
    for one in edits:
        kind = subclass(kind, Edits.from_data(one).methods)
    return kind


def _set_number(layer: Any, path: Sequence[str], value: int) -> None:
    first, *rest = path
    vars(layer)[first] = with_entry(vars(layer)[first], rest, value)


def with_entry(value: Any, path: Sequence[Any], new: int) -> Any:
    """`value`, or the entry of a list, tuple or dict in it that `path` leads to, replaced."""
    if not path:
        return new
    if isinstance(value, dict):
        return {k: with_entry(v, path[1:], new) if str(k) == str(path[0]) else v for k, v in value.items()}
    entries = (with_entry(v, path[1:], new) if i == int(path[0]) else v for i, v in enumerate(value))
    return tuple(entries) if isinstance(value, tuple) else list(entries)


def _resize(layer: Any, number: int, shape: Sequence[int]) -> None:
    old = own_variables(layer)[number]
    store = "trainable_variables" if number < len(layer._trainable_variables) else "non_trainable_variables"
    put(layer, old, variable_like(layer, old, shape), store)
