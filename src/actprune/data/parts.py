"""What a batch of a data loader holds: what the model is called with, and what stands beside it, such as labels."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from torch import Tensor, nn


def needed(model: nn.Module) -> int:
    """How many arguments by position `forward` can't do without, at least 1."""
    parameters = inspect.signature(model.forward).parameters.values()
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return max(1, sum(p.kind in by_position and p.default is p.empty for p in parameters))


def parted(batch: Any, inputs: int = 1) -> tuple[Any, tuple[Any, ...]]:
    """(what the model is called with, what stands beside it: labels first, if there are any) of a batch.

    Of a tuple or list the first element is the input, as in a loader of (x, y). A model that can't be called with fewer
    than several `inputs` is called with so many, as in one of (a, b, y), unless the first element holds them all:
    ((a, b), y). Of a dict it takes what it can use, and labels are the entry "labels".
    """
    if isinstance(batch, Mapping):
        named = cast("Mapping[str, Any]", batch)
        return batch, (named["labels"],) if "labels" in named else ()
    if not isinstance(batch, tuple | list) or not batch:
        return batch, ()
    held = cast("tuple[Any, ...]", tuple(batch))
    if len(held) >= inputs > 1 and all(isinstance(value, Tensor | np.ndarray) for value in held[:inputs]):
        return held[:inputs], held[inputs:]
    return held[0], held[1:]
