"""Layers that no `call` reaches, since training alone calls them: they read what may be narrower now.

Keras tells of which shapes that was. Which width the plan leaves of the last dimension, their own variables tell: it is
one of their sizes, with which the layer makes all of them as the plan wants them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from actprune.keras3.backend import keras_on_torch
from actprune.keras3.own import shapes_of

Shape = tuple[int, ...]


def widths(wanted: Iterable[Shape]) -> Iterator[int | None]:
    """What may be left of the width that such a layer reads; None for all of it."""
    yield None
    yield from dict.fromkeys(size for shape in wanted for size in shape)


def build_unread(new: Any, old: Any, wanted: list[Shape], again: Callable[[Any], Any]) -> None:
    """Build `new`, which is smaller, as `old` was built.

    Args:
        wanted: the shapes of its variables.
        again: `old` → one more like `new`.
    """
    given, keras = old.get_build_config(), keras_on_torch()
    for width in widths(wanted):
        narrowed = keras.tree.map_shape_structure(lambda shape, width=width: _with(shape, width), given)
        with suppress(Exception):  # whatever a layer raises on such a shape
            with keras.device("meta"):
                twin = again(old)
                twin.build_from_config(narrowed)
            if shapes_of(twin) == wanted:
                new.build_from_config(narrowed)
                return
    new.build_from_config(given)


def inputs_of(model: Any, width: int | None) -> list[Any]:
    """Symbolic inputs like those of a connected model, of this width."""
    keras = keras_on_torch()
    return [keras.KerasTensor(_with(one.shape, width), dtype=one.dtype) for one in model.inputs]


def _with(shape: Any, width: int | None) -> Shape:
    return tuple(shape) if width is None or not shape else (*shape[:-1], width)
