"""What a fine-tune takes a batch for: inputs and targets, as a pair or as a dict that holds "labels"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from actprune.data.calls import is_one
from actprune.data.parts import needed, parted
from actprune.errors import DataError
from actprune.graph.arguments import call_arguments


def targets_of(batch: Any, inputs: int = 1) -> Any:
    """What the loss compares outputs with; a tensor alone would pass for a pair, its second sample for the targets.

    Args:
        inputs: how many the model needs, see `actprune.data.parts`.
    """
    _, others = parted(batch, inputs)
    if others:
        return others[0]
    several = f"({', '.join('abcdefgh'[:inputs])}, targets)" if 1 < inputs <= 8 else "(inputs, targets)"
    raise DataError(
        "A fine-tune batch has no targets.",
        expected=f'{several}, or a dict with "labels"' + (f": the model takes {inputs} inputs" if inputs > 1 else ""),
        got=f"{len(batch)} of them" if isinstance(batch, tuple | list) else type(batch).__name__,
        where="SGD.loader",
        hint="pass a loader of pairs, or a function of your own as finetune",
    )


def outputs_of(model: nn.Module, batch: Any) -> Any:
    """Of the inputs; of a dict, the model gets what its `forward` takes, labels too."""
    if isinstance(batch, Mapping):
        args, kwargs = call_arguments(model, batch)
        return model(*args, **kwargs)
    inputs, _ = parted(batch, needed(model))
    return model(*inputs) if isinstance(inputs, tuple | list) and not is_one(model, inputs) else model(inputs)


def _parts(batch: Any) -> Any:
    return cast("Mapping[str, Any]", batch).values() if isinstance(batch, Mapping) else batch


def samples(batch: Any, inputs: int = 1) -> int:
    """How many samples a batch has: rows of its targets, or else of its inputs."""
    for held in (parted(batch, inputs)[1], batch):
        sizes = [x.shape[0] for x in pytree.tree_leaves(held) if isinstance(x, Tensor) and x.dim()]
        if sizes:
            return sizes[0]
    raise DataError(
        "It can't be told how many samples a fine-tune batch has.",
        expected="(inputs, targets) with a tensor whose first dimension counts the samples",
        got=f"{type(batch).__name__} of {', '.join(type(held).__name__ for held in _parts(batch))}",
        where="SGD.loader",
        hint="several processes share out batches, and accumulate= weighs them, by their samples",
    )
