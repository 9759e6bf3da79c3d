"""One layer, or variable, in the place of another in what a layer holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actprune.keras3.backend import keras_on_torch
from actprune.keras3.own import is_own


def put(holder: Any, old: Any, new: Any, store: str = "layers") -> None:
    """`new` in every attribute of `holder` that is `old`, or a list, tuple or dict with it."""
    tracker = holder._tracker
    for inner, other in zip(layers_within(old), layers_within(new), strict=False) if store == "layers" else ():
        if tracker.is_in_store(store, inner):
            _exchanged(tracker.config[store][1], inner, other)
            tracker.stored_ids[store] = tracker.stored_ids[store] - {id(inner)} | {id(other)}
    held = tracker.config[store][1]
    _exchanged(held, old, new)  # by hand: Keras looks for what equals it, and variables are compared entry by entry
    tracker.stored_ids[store] = tracker.stored_ids[store] - {id(old)} | {id(new)}
    found = [_exchanged(value, old, new) for value in vars(holder).values() if value is not held]
    for name, value in [*vars(holder).items(), *holder._modules.items()]:
        if (other := _with(value, old, new)) is not value:
            setattr(holder, name, other)
            found.append(True)
    if not any(found):
        raise LookupError(f"no attribute of {type(holder).__name__} holds {old.name}")


def _exchanged(value: Any, old: Any, new: Any) -> bool:
    """Exchange entries of a list or dict, also of those in it; whether there was one."""
    if isinstance(value, tuple):
        each = [_exchanged(entry, old, new) for entry in value]
        return any(each)
    if not isinstance(value, list | dict):
        return False
    found = False
    for key, entry in list(value.items() if isinstance(value, dict) else enumerate(value)):
        if (other := _with(entry, old, new)) is not entry:
            value[key] = other
        found |= other is not entry or _exchanged(entry, old, new)
    return found


def _with(value: Any, old: Any, new: Any) -> Any:
    """What stands for a value: `new` for `old`, and a tuple with it for one that holds that."""
    if value is old:
        return new
    if not isinstance(value, tuple):
        return value
    parts = [_with(entry, old, new) for entry in value]
    if all(part is entry for part, entry in zip(parts, value, strict=True)):
        return value
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def variable_like(holder: Any, old: Any, shape: Sequence[int]) -> Any:
    """A variable of another shape for one that a layer holds itself, not yet filled."""
    with holder._open_name_scope():
        new = keras_on_torch().Variable("zeros", shape, dtype=old.dtype, trainable=old.trainable, name=old.name)
    new.regularizer, new.constraint = old.regularizer, old.constraint
    return new


def layers_within(layer: Any) -> list[Any]:
    """Of a model within: a list of layers that becomes a `Sequential` stays tracked, layer by layer."""
    connected = isinstance(layer, keras_on_torch().Model) and not is_own(layer)
    return list(layer.layers) if connected else []
