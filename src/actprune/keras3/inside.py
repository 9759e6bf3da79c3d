"""A layer of the user's own class, built anew: what its config can't make small is put into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actprune.keras3.backend import keras_on_torch
from actprune.keras3.own import variables_within
from actprune.keras3.places import placed
from actprune.keras3.resized import Resized, at, inner_layers, resized, serialized

Shape = tuple[int, ...]


def rebuilt_inside(
    layer: Any, like: Callable[[Any], Any], wanted: Callable[[Any], Shape], args: Any, kwargs: Any
) -> Any:
    """A layer of the same class, or derived from it where it holds smaller layers than its config makes.

    Args:
        like: a layer → a new one with the numbers in its config that the plan leaves, not yet built.
        wanted: a variable of `layer` → its shape in the new one.
        args, kwargs: the symbolic inputs that the new layer is called on.
    """
    keras = keras_on_torch()
    kinds = {type(place.layer) for place in placed(layer)}
    own = {keras.saving.get_registered_name(kind): kind for kind in kinds if not kind.__module__.startswith("keras.")}
    with keras.saving.custom_object_scope(own):
        with keras.device("meta"):
            plain = _built(like(layer), args, kwargs)
            small = {
                place: like(inner)
                for place, inner in inner_layers(layer)
                if _shapes(at(plain, place)) != [wanted(variable) for variable in variables_within(inner)]
            }
            if small:  # they are built as they are called, so by the class itself
                draft = resized(_built(type(plain).from_config(plain.get_config()), args, kwargs), small)
                keras.Operation.compute_output_spec(draft, *_fresh(args), **_fresh(kwargs))
        return Resized.from_config(serialized(plain, small)) if small else like(layer)


def _built(layer: Any, args: Any, kwargs: Any) -> Any:
    layer(*_fresh(args), **_fresh(kwargs))
    return layer


def _fresh(arguments: Any) -> Any:
    """Inputs like these that belong to no model."""
    keras = keras_on_torch()

    def fresh(value: Any) -> Any:
        symbolic = isinstance(value, keras.KerasTensor)
        return keras.Input(batch_shape=value.shape, dtype=value.dtype) if symbolic else value

    return keras.tree.map_structure(fresh, arguments)


def _shapes(layer: Any) -> list[Shape]:
    return [tuple(variable.shape) for variable in variables_within(layer)]
