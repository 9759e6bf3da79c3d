"""A layer of the user's own class, built anew: what its config can't make small is put into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from actprune.keras3.backend import keras_on_torch
from actprune.keras3.own import variables_within
from actprune.keras3.places import placed
from actprune.keras3.resized import Resized, at, config_of, inner_layers, resized, serialized

Made = TypeVar("Made")
Shape = tuple[int, ...]
Like = Callable[[Any], Any]
Wanted = Callable[[Any], Shape]


def rebuilt_inside(layer: Any, like: Like, wanted: Wanted, args: Any, kwargs: Any) -> Any:
    """A layer of the same class, or derived from it where it holds smaller layers than its config makes.

    Args:
        like: a layer → a new one with the numbers in its config that the plan leaves, not yet built.
        wanted: a variable of `layer` → its shape in the new one.
        args, kwargs: the symbolic inputs that the new layer is called on.
    """
    with own_classes(layer):
        config = lightly(lambda: _config_inside(layer, like, wanted, args, kwargs))
        return Resized.from_config(config) if config["within"] else like(layer)


def _config_inside(layer: Any, like: Like, wanted: Wanted, args: Any, kwargs: Any) -> dict[str, Any]:
    plain = like(layer)
    plain(*_fresh(args), **_fresh(kwargs))
    draft = type(plain).from_config(plain.get_config())
    draft(*_fresh(args), **_fresh(kwargs))
    return serialized(plain, put_inside(draft, layer, like, wanted, args, kwargs))


def lightly(make: Callable[[], Made]) -> Made:
    """What `make` gives, without memory for weights if it runs so: not all calls take tensors without values."""
    try:
        with keras_on_torch().device("meta"):
            return make()
    except Exception:  # whatever a call raises
        return make()


def put_inside(made: Any, layer: Any, like: Like, wanted: Wanted, args: Any, kwargs: Any) -> dict[str, Any]:
    """Put smaller layers into `made`, which is like `layer` and built; they are built as it calls them.

    Returns:
        place → the layer that was put there.
    """
    small = {
        place: like(inner)
        for place, inner in inner_layers(layer)
        if shapes_of(at(made, place)) != [wanted(variable) for variable in variables_within(inner)]
    }
    if small:
        keras_on_torch().Operation.compute_output_spec(resized(made, small), *_fresh(args), **_fresh(kwargs))
    return small


def twin_of(model: Any) -> Any:
    """Another model of the same class, from the config that the class gives; None where that isn't one like it."""
    try:
        twin = keras_on_torch().saving.deserialize_keras_object(config_of(model))
    except Exception:  # whatever a class raises that has no such config
        return None
    sides = ([(type(place.layer), shapes_of(place.layer)) for place in placed(one)] for one in (model, twin))
    return twin if next(sides) == next(sides) else None


def share_others(model: Any, made: Any) -> None:
    """Let `made` hold what `model` holds beside its own layers, such as a tokenizer: no config has its files."""
    keras = keras_on_torch()
    own = {id(place.layer) for place in placed(model)}
    for name, value in vars(model).items():
        if isinstance(value, keras.Layer) and id(value) not in own:
            vars(made)[name] = value


def own_classes(layer: Any) -> Any:
    """A context in which Keras knows the classes of these layers, registered or not."""
    saving = keras_on_torch().saving
    kinds = {type(place.layer) for place in placed(layer)}
    named = {saving.get_registered_name(kind): kind for kind in kinds if not kind.__module__.startswith("keras.")}
    return saving.custom_object_scope(named)


def _fresh(arguments: Any) -> Any:
    """Inputs like these that belong to no model."""
    keras = keras_on_torch()

    def fresh(value: Any) -> Any:
        symbolic = isinstance(value, keras.KerasTensor)
        return keras.Input(batch_shape=value.shape, dtype=value.dtype) if symbolic else value

    return keras.tree.map_structure(fresh, arguments)


def shapes_of(layer: Any) -> list[Shape]:
    return [tuple(variable.shape) for variable in variables_within(layer)]
