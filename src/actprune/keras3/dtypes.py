"""Keras asks a number for its class where it promotes dtypes: one that remembers where it came from is plain to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from actprune.graph.numbers import TracedFloat, TracedInt
from actprune.keras3.threads import across_threads

_PLAIN: dict[Any, type] = {TracedInt: int, TracedFloat: float}


@across_threads
@contextmanager
def plain_numbers() -> Iterator[None]:
    """Within it, Keras takes traced numbers for int and float."""
    from keras.src.backend.common import dtypes  # there is no public way in

    known, weak = dtypes.PYTHON_DTYPES_MAP, dtypes._dtype_and_weaktype
    known |= {kind: known[plain] for kind, plain in _PLAIN.items()}
    dtypes._dtype_and_weaktype = lambda value: weak(_PLAIN.get(value, value) if isinstance(value, type) else value)
    try:
        yield
    finally:
        dtypes._dtype_and_weaktype = weak
        for kind in _PLAIN:
            del known[kind]
