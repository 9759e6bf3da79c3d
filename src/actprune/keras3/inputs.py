"""What a model whose `call` is its own is called on: nothing in the model says so but how it was built, or a call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from actprune.keras3.backend import keras_on_torch
from actprune.keras3.own import is_own

Given = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments by position and by name, with a `keras.KerasTensor` for each tensor."""


Data = Callable[[Any], Any]
"""What a model is called on → what a step of training of its own takes."""


@dataclass(slots=True)
class CalledOn:
    """What a model was called on first, if it was; an object with slots, for what a capture sets in a module, or in an
    object there, is taken back.

    Attributes:
        data: where it has a step of training of its own that was tried, what that takes, or why it does not run.
    """

    given: Given | None = None
    data: Data | str | None = None


def has_own_call(model: Any) -> bool:
    """Whether it is a `keras.Model` that is no functional one: its class computes in a `call` of its own."""
    return isinstance(model, keras_on_torch().Model) and is_own(model)


def by_position(model: Any) -> int:
    """How many arguments its `call` can't do without."""
    parameters = inspect.signature(model.call).parameters.values()
    return max(1, sum(p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty for p in parameters))


def side_by_side(model: Any) -> int:
    """How many tensors stand side by side in what it is called on: its arguments by position, or, of a single one, the
    entries of the list that the model was built on."""
    count, shapes = by_position(model), [*dict(model._build_shapes_dict or {}).values()]
    entries = shapes[0] if count == 1 and shapes and isinstance(shapes[0], tuple | list) else ()
    return len(entries) if entries and all(isinstance(entry, tuple | list) for entry in entries) else count


def as_given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given:
    """The arguments of a call, without values."""
    keras = keras_on_torch()

    def symbolic(value: Any) -> Any:
        if not isinstance(value, Tensor | np.ndarray):
            return value
        return keras.KerasTensor(tuple(map(int, value.shape)), dtype=keras.backend.standardize_dtype(value.dtype))

    return keras.tree.map_structure(symbolic, args), keras.tree.map_structure(symbolic, kwargs)


def as_built(model: Any) -> Iterator[Given]:
    """What the model was built for, by Keras's own record: shapes without dtypes, so first as floats, then as ints."""
    keras = keras_on_torch()
    if model._inbound_nodes:
        given = model._inbound_nodes[0].arguments
        yield tuple(given.args), dict(given.kwargs)
    shapes = dict(model._build_shapes_dict or {})
    for dtype in ("float32", "int32"):
        made = [
            keras.tree.map_shape_structure(lambda shape, dtype=dtype: keras.KerasTensor(shape, dtype=dtype), one)
            for one in shapes.values()
        ]
        if len(made) == 1:
            yield (made[0],), {}
        elif made:
            yield (), {name.removesuffix("_shape"): one for name, one in zip(shapes, made, strict=True)}


def run_as_built(layer: Any) -> None:
    """Let a layer build what it builds as it is called, if the record says how."""
    for args, kwargs in as_built(layer):
        with suppress(Exception):  # whatever a call raises on other dtypes
            keras_on_torch().Operation.compute_output_spec(layer, *args, **kwargs)
            return


def of_sizes(model: Any, given: Any) -> list[Any]:
    """Symbolic tensors of these shapes; a size that is none for the model stays so."""

    def symbolic(was: Any, now: Any) -> Any:
        sizes = [None if old is None else int(new) for old, new in zip(was.shape, now.shape, strict=True)]
        return keras_on_torch().KerasTensor(sizes, dtype=was.dtype)

    return [symbolic(was, now) for was, now in zip(model.inputs, given, strict=True)]
