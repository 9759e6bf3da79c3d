"""`range(0, size, step)` that remembers its step: a loop over parts of a dimension, `x[:, i : i + step]` each time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from actprune.graph.numbers import TracedInt
from actprune.graph.traced_int import standing_for


def traced_range(model: nn.Module, note: Callable[[TracedInt], None]) -> contextlib.AbstractContextManager[None]:
    """Where a file of the model does no more with `range` than to call it.

    Args:
        note: is told of the number of rounds, which no cut may change.
    """

    class Range(type):
        def __call__(cls, *args: Any) -> Sequence[int]:
            rounds, found = range(*args), _parts(*args)
            if found is None:
                return rounds
            start, _, step = found
            note(_rounds(*found))
            return [start + k * step if k else start for k in range(len(rounds))]

        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, range)

    return standing_for("range", Range("range", (), {}), model)


def _parts(*args: Any) -> tuple[Any, Any, TracedInt] | None:
    """(start, stop, step) where the step is known to come from a size, and the parts leave nothing over."""
    if len(args) != 3 or not isinstance(args[2], TracedInt):
        return None
    start, stop, step = args
    return (start, stop, step) if step > 0 and stop > start and int(stop - start) % int(step) == 0 else None


def _rounds(start: Any, stop: Any, step: TracedInt) -> TracedInt:
    return (stop - start if start else stop) // step
