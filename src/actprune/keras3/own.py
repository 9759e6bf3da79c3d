"""Layers of the user's own class: which numbers in their config are sizes of the variables that they hold.

Nothing but the class itself can tell, so it is asked: a layer is made from its config with one number doubled, and
called on symbolic inputs; then its variables are compared with those of the dense layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode

from actprune.graph.numbers import Expr, evaluate
from actprune.keras3.backend import keras_on_torch
from actprune.keras3.places import placed

Path = tuple[Any, ...]
"""A field of a config, or a field and a place in the list that it holds."""

Dim = tuple[int, int]
"""The number of a variable among all that a layer and its sublayers hold, and one of its dimensions."""

Powers = dict[Path, dict[Dim, int]]
"""Number of a config → the sizes that grow with it (1) or with its reciprocal (-1)."""


Caller = tuple[Any, str | None]
"""What a model calls so that a layer runs: the layer itself, or one that holds it in the named field of its config."""


def callers(layers: Iterable[Any]) -> dict[int, Caller]:
    """Of the layers of the user's own classes (derived from the base class of Keras alone) that a model calls, or a
    wrapper or recurrent layer that it calls: the id → what it calls."""
    keras, found = keras_on_torch(), dict[int, Caller]()
    for layer in layers:
        if layer._inbound_nodes:
            found[id(layer)] = layer, None
            for kind, field in ((keras.layers.Wrapper, "layer"), (keras.layers.RNN, "cell")):
                if isinstance(layer, kind):
                    found.setdefault(id(getattr(layer, field)), (layer, field))
    return {id(layer): found[id(layer)] for layer in layers if id(layer) in found and is_own(layer)}


def is_own(layer: Any) -> bool:
    """Whether a layer's class (of a model: one with its own `call`) is derived from Keras's base class alone."""
    keras = keras_on_torch()
    kinds = (kind for kind in type(layer).__mro__ if kind.__module__.startswith("keras."))
    return type(layer) is not keras.Layer and next(kinds) in (keras.Layer, keras.Model)


def variables_within(layer: Any) -> list[Any]:
    """All variables of a layer and its sublayers, in an order that every layer of its class has."""
    return [variable for place in placed(layer) for variable, _ in place.variables.values()]


def shapes_of(layer: Any) -> list[tuple[int, ...]]:
    return [tuple(variable.shape) for variable in variables_within(layer)]


def own_sizes(
    layer: Any, path: str, asked: dict[str, Powers], caller: Caller
) -> tuple[dict[Expr, int], dict[Dim, Expr]]:
    """The numbers in the config of a layer, as attributes, and the sizes that follow from them.

    Sizes that grow by another factor than a number, or not with its reciprocal, are left out.

    Args:
        path: of the layer.
        asked: what is known of layers alike; this one is added.
        caller: see `callers`.
    """
    try:
        config = dict(layer.get_config())
    except Exception:  # a class whose config can't be had: the rebuild says so
        return {}, {}
    numbers, dense = dict(_numbers(config)), _sizes(layer)
    given = [(tensor.shape, tensor.dtype) for tensor in caller[0]._inbound_nodes[0].input_tensors]
    alike = repr((type(layer), {**config, "name": None}, type(caller[0]), given, dense))
    if alike not in asked:
        same = _twin(layer, config, caller)
        calls = None if same is None else same[1]
        asked[alike] = {
            field: _effects(layer, config, field, number, dense, calls, caller) for field, number in numbers.items()
        }
    attributes: dict[Expr, int] = {("attr", path, field): number for field, number in numbers.items()}
    powers: dict[Dim, dict[Expr, int]] = {}
    for field, effects in _followed(asked[alike]).items():
        for dim, power in effects.items():
            powers.setdefault(dim, {})["attr", path, field] = power
    found = {dim: _expression(dense[dim], fields, attributes) for dim, fields in powers.items()}
    return attributes, {dim: expr for dim, expr in found.items() if expr is not None}


def _followed(asked: Powers) -> Powers:
    """Without numbers that divide a width (`width // heads`), and those of the same variables: with three of four heads
    these would be wider, so what they make is resized by itself (see `resized`)."""
    shared = {number for effects in asked.values() if -1 in effects.values() for number, _ in effects}
    return {field: effects for field, effects in asked.items() if shared.isdisjoint(number for number, _ in effects)}


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[Path, int]]:
    for field, value in config.items():
        for k, number in enumerate(value) if isinstance(value, list | tuple) else [(None, value)]:
            if isinstance(number, int) and number > 1:
                yield ((field,) if k is None else (field, k)), number


def _effects(
    layer: Any,
    config: dict[str, Any],
    field: Path,
    number: int,
    dense: Mapping[Dim, int],
    calls: Sequence[str] | None,
    caller: Caller,
) -> dict[Dim, int]:
    """What doubling a number does: 1 for a size that doubles, -1 for one that is halved.

    Where the class refuses it (`x + self.dense(x)`), inputs of that width are doubled too: there they are one number.
    Nothing where it changes what is computed (`if self.filters == self.inputs: x = x + inputs`).

    Args:
        calls: what the layer itself computes; None where it can't be called so.
    """
    first, *rest = field
    value = [2 * n if [k] == rest else n for k, n in enumerate(config[first])] if rest else 2 * number
    for width in (None, number):
        found = _twin(layer, {**config, first: value}, caller, width)
        if found is None:
            continue
        made = _sizes(found[0])
        factors = {dim: made[dim] / was for dim, was in dense.items() if dim in made and made[dim] != was}
        known = made.keys() == dense.keys() and {*factors.values()} <= {2, 0.5} and calls in (None, found[1])
        return {dim: 1 if factor == 2 else -1 for dim, factor in factors.items()} if known else {}
    return {}


def _twin(layer: Any, config: dict[str, Any], caller: Caller, width: int | None = None) -> tuple[Any, list[str]] | None:
    """A layer of the same class that was called once, and what it called; None where the class refuses it.

    Args:
        width: see `_call`.
    """
    try:
        with keras_on_torch().device("meta"), warnings.catch_warnings(), _Calls() as calls:
            warnings.simplefilter("ignore")  # Keras says more of a class that refuses
            twin = type(layer).from_config(config)
            _call(caller, twin, width)
    except Exception:  # whatever a class raises on a number that it doesn't expect
        return None
    return twin, calls.names


class _Calls(TorchFunctionMode):
    """Keeps the names of the torch functions that are called in it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


def _call(caller: Caller, twin: Any, width: int | None) -> None:
    """Call the twin as a model calls the layer, on inputs of its own; those of this width get twice that."""
    keras, (called, field) = keras_on_torch(), caller
    if field is not None:
        config = dict(called.get_config())
        config.pop(field)
        twin = type(called)(twin, **config)

    def fresh(value: Any) -> Any:
        if not isinstance(value, keras.KerasTensor):
            return value
        *before, last = value.shape
        return keras.Input(batch_shape=(*before, 2 * last if before and last == width else last), dtype=value.dtype)

    given = called._inbound_nodes[0].arguments
    twin(*keras.tree.map_structure(fresh, given.args), **keras.tree.map_structure(fresh, given.kwargs))


def _sizes(layer: Any) -> dict[Dim, int]:
    return {(i, dim): size for i, shape in enumerate(shapes_of(layer)) for dim, size in enumerate(shape)}


def _expression(value: int, powers: Mapping[Expr, int], attributes: Mapping[Expr, int]) -> Expr | None:
    """A size computed from fields, such as `dim // heads`; None where whole numbers don't give it."""
    expr: Expr = 1
    for field, power in sorted(powers.items(), key=lambda one: -one[1]):
        expr = ("*" if power == 1 else "//", expr, field)
    made = evaluate(expr, attributes.__getitem__)
    if made and value % made == 0:
        expr = ("*", expr, value // made)
    elif made:
        expr = ("//", expr, made // value)
    return expr if evaluate(expr, attributes.__getitem__) == value else None
