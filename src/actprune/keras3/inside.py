"""A layer of the user's own class, built anew: what its config can't make small is put into it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from types import FunctionType, SimpleNamespace
from typing import Any, TypeVar

from actprune.keras3.backend import keras_on_torch
from actprune.keras3.own import shapes_of, variables_within
from actprune.keras3.places import placed
from actprune.keras3.resized import (
    Resized,
    at,
    config_of,
    inner_layers,
    number_at,
    own_layers,
    own_variables,
    resized,
    serialized,
)

Made = TypeVar("Made")
Shape = tuple[int, ...]
Like = Callable[[Any], Any]
Wanted = Callable[[Any], Shape]
Numbers = Mapping[str, Any]


def rebuilt_inside(layer: Any, like: Like, wanted: Wanted, numbers: Numbers, args: Any, kwargs: Any) -> Any:
    """A layer of the same class, or derived from it where it holds smaller layers than its config makes.

    Args:
        like: a layer → a new one with the numbers in its config that the plan leaves, not yet built.
        wanted: a variable of `layer` → its shape in the new one.
        numbers: place and attribute → its value in the new one; see `attributes.numbers_within`.
        args, kwargs: the symbolic inputs that the new layer is called on.
    """
    with own_classes(layer):
        config = lightly(lambda: _config_inside(layer, like, wanted, numbers, args, kwargs))
        return Resized.from_config(config) if config["within"] else like(layer)


def _config_inside(layer: Any, like: Like, wanted: Wanted, numbers: Numbers, args: Any, kwargs: Any) -> dict[str, Any]:
    plain, given = _called_as(layer, like, args, kwargs)
    draft = keras_on_torch().saving.deserialize_keras_object(config_of(plain))
    if shapes_of(draft) != shapes_of(plain):  # a layer that is built as it is called
        draft(*_fresh(given.args), **_fresh(given.kwargs))
    return serialized(plain, put_inside(draft, layer, like, wanted, numbers, args, kwargs))


def _called_as(layer: Any, like: Like, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """A layer as `like` makes it, built by a call, and the arguments of that call: the dense ones where its class fixes
    the width of its inputs (`Conv2D(width, 3, groups=width)`), for which smaller layers are then put inside."""
    for given in (SimpleNamespace(args=args, kwargs=kwargs), layer._inbound_nodes[0].arguments):
        made = like(layer)
        try:
            made(*_fresh(given.args), **_fresh(given.kwargs))
            return made, given
        except Exception as error:  # whatever a class raises on widths that it doesn't expect
            refused = error
    raise refused


def lightly(make: Callable[[], Made]) -> Made:
    """What `make` gives, without memory for weights if it runs so: not all calls take tensors without values, and a
    class that computes with its weights as it is built gives no twin (None) of that kind."""
    made = None
    with suppress(Exception), keras_on_torch().device("meta"):  # whatever a call raises
        made = make()
    return make() if made is None else made


def put_inside(
    made: Any, layer: Any, like: Like, wanted: Wanted, numbers: Numbers, args: Any, kwargs: Any
) -> dict[str, Any]:
    """Put smaller layers into `made`, which is like `layer` and built; they are built as it calls them.

    Returns:
        place → the layer that was put there.
    """
    small: dict[str, Any] = {
        place: like(inner)
        for place, inner in inner_layers(layer)
        if shapes_of(at(made, place)) != [wanted(variable) for variable in variables_within(inner)]
    }
    small |= {
        place: value
        for place, value in numbers.items()
        if isinstance(value, list) or number_at(made, place) != value or _within(place, small)
    }
    for place, own in own_layers(layer):
        for i, (old, new) in enumerate(zip(own_variables(own), own_variables(at(made, place)), strict=True)):
            if tuple(new.shape) != wanted(old):
                small[f"{place}.#{i}".lstrip(".")] = [*wanted(old)]
    if small:
        made = resized(made, small)
        try:  # where Keras can't go without values, it computes with 83 of what may be any number
            _compute(made, _fresh(args, _FEW), _fresh(kwargs, _FEW))
        except Exception:  # whatever a call raises on so few
            _compute(made, _fresh(args), _fresh(kwargs))
    return small


_FEW = 4
"""As many samples, steps or pixels are tried first where there may be any number."""


def _compute(layer: Any, args: Any, kwargs: Any) -> None:
    keras_on_torch().Operation.compute_output_spec(layer, *args, **kwargs)


def _within(place: str, places: Iterable[str]) -> bool:
    return any(place.startswith(f"{other}.") for other in places)


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
    """A context in which Keras knows the classes of these layers, registered or not, and those of their regularizers,
    constraints and initializers, and functions in their place. Of two with one name it knows neither."""
    saving = keras_on_torch().saving
    layers = [place.layer for place in placed(layer)]
    found = {type(one) for one in layers} | {own for one in layers for own in map(_written, vars(one).values())}
    named = [
        (saving.get_registered_name(own), own) for own in found if own and not f"{own.__module__}".startswith("keras.")
    ]
    count = Counter(name for name, _ in named)
    return saving.custom_object_scope({name: own for name, own in named if count[name] == 1})


def _written(value: Any) -> Any:
    """The class of a regularizer, constraint or initializer; a function itself; None for anything else."""
    keras = keras_on_torch()
    kinds = keras.regularizers.Regularizer, keras.constraints.Constraint, keras.initializers.Initializer
    return type(value) if isinstance(value, kinds) else value if isinstance(value, FunctionType) else None


def _fresh(arguments: Any, unknown: int | None = None) -> Any:
    """Inputs like these that belong to no model, with a size in the place of those that aren't known, if given."""
    keras = keras_on_torch()

    def fresh(value: Any) -> Any:
        if not isinstance(value, keras.KerasTensor):
            return value
        shape = tuple(unknown if size is None else size for size in value.shape)
        return keras.Input(batch_shape=shape, dtype=value.dtype)

    return keras.tree.map_structure(fresh, arguments)
