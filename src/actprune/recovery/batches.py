"""What a fine-tune takes a batch for: inputs and targets, as a pair or as a dict that holds "labels"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from actprune.errors import DataError
from actprune.graph.arguments import call_arguments

LABELS = "labels"


def check_batch(batch: Any) -> None:
    """A tensor alone would pass for a pair: its first sample for the inputs, its second for the targets."""
    if isinstance(batch, tuple | list) and len(batch) > 1:
        return
    if isinstance(batch, Mapping) and LABELS in batch:
        return
    raise DataError(
        "A fine-tune batch has no targets.",
        expected=f'(inputs, targets), or a dict with "{LABELS}"',
        got=f"{len(batch)} of them" if isinstance(batch, tuple | list) else type(batch).__name__,
        where="SGD.loader",
        hint="pass a loader of pairs, or a function of your own as finetune",
    )


def targets_of(batch: Any) -> Any:
    """What the loss compares outputs with."""
    return cast("Mapping[str, Any]", batch)[LABELS] if isinstance(batch, Mapping) else batch[1]


def outputs_of(model: nn.Module, batch: Any) -> Any:
    """Of the inputs; of a dict, the model gets what its `forward` takes, labels too."""
    if isinstance(batch, Mapping):
        args, kwargs = call_arguments(model, batch)
        return model(*args, **kwargs)
    return model(batch[0])


def _parts(batch: Any) -> Any:
    return cast("Mapping[str, Any]", batch).values() if isinstance(batch, Mapping) else batch


def samples(batch: Any) -> int:
    """How many samples a batch has: rows of its targets, or else of its inputs."""
    for held in (targets_of(batch), batch):
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
