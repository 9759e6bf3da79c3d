"""What a step of training changes that Keras does not note, put back: weights that it writes to by itself or by an
optimizer of torch, gradients, counters, and what lists and other objects of the user's hold (a replay buffer)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from actprune.graph.boxes import KINDS, entries, put_back
from actprune.graph.copies import Copy, copies, write_back


def reached(model: Any) -> list[Any]:
    """All that attributes lead to from a model, each once."""
    found: dict[int, Any] = {}
    waiting = [model]
    while waiting:
        one = waiting.pop()
        if id(one) not in found and not isinstance(one, type | ModuleType | FunctionType):
            found[id(one)] = one
            waiting += _within(one)
    return [*found.values()]


@contextmanager
def unchanged(model: Any) -> Iterator[list[Copy]]:
    """Put back what is done to a model; within it, no weight has a gradient.

    Yields:
        Its tensors, with the values that they had.
    """
    found = reached(model)
    boxes = [box for one in found if (box := _box(one)) is not None]
    held = [(box, entries(box)) for box in boxes]
    arrays = [(one, one.copy()) for one in found if isinstance(one, np.ndarray) and one.flags.writeable]
    tensors, gradients = copies(found), [(one, one.grad) for one in found if isinstance(one, Tensor) and one.is_leaf]
    for tensor, _ in gradients:
        tensor.grad = None
    try:
        yield tensors
    finally:
        for box, own in held:
            put_back(box, own)
        for array, values in arrays:
            array[...] = values
        write_back(tensors)
        for tensor, gradient in gradients:
            tensor.grad = gradient


def _box(one: Any) -> Any:
    """What holds the entries or the attributes of an object; None for one that has neither."""
    return one if isinstance(one, KINDS) else getattr(one, "__dict__", None)


def _within(one: Any) -> Iterable[Any]:
    if isinstance(one, Tensor | np.ndarray):
        return ()
    inner = one if isinstance(one, tuple | frozenset) else _box(one)
    return [*(inner.values() if isinstance(inner, dict) else inner or ())]
