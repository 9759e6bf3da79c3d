"""One batch of a fine-tune, through the model and the loss before any work: what can't be used is told at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from actprune.errors import DataError
from actprune.recovery.steps import empty
from actprune.recovery.streams import put_states, states


def repeats(loader: Any) -> bool:
    """Whether a loader gives its batches again, and nothing but its random state moves by that."""
    if isinstance(loader, DataLoader):
        return not isinstance(loader.dataset, IterableDataset)
    return isinstance(loader, list | tuple)


def first_of(loader: Any) -> Any:
    """The first batch; the random state that a loader draws from is put back.

    Raises:
        DataError: there is none.
    """
    drawn = states(loader)
    try:
        batch = next(iter(loader), None)
    finally:
        put_states(loader, drawn)
    if batch is None:
        raise empty()
    return batch


def rehearsed(
    model: nn.Module,
    batch: Any,
    outputs_of: Callable[[nn.Module, Any], Any],
    targets_of: Callable[[nn.Module, Any], Any],
    loss: Callable[[Any, Any], Tensor],
) -> tuple[Any, Any]:
    """(outputs, targets) of a batch, of which the loss can be taken.

    Raises:
        DataError: the model, the batch or the loss can't do it; the message says which.
    """
    targets = targets_of(model, batch)
    try:
        outputs = outputs_of(model, batch)
    except Exception as error:  # whatever the user's forward raises
        raise _fails("The model does not run on a batch of the fine-tune.", error, "loader") from error
    try:
        value = loss(outputs, targets)
    except Exception as error:
        raise _fails("The loss can't be taken of the model's outputs and these targets.", error, "loss") from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise _fails("The loss is no scalar.", value, "loss")
    if not value.requires_grad:
        raise _fails("The loss has no gradient.", value, "loss")
    return outputs, targets


def _fails(problem: str, found: Any, where: str) -> DataError:
    return DataError(
        problem,
        expected="(outputs as the model returns them, targets) → a scalar tensor, of every batch of the loader",
        got=f"{type(found).__name__}: {str(found)[:300]}",
        where=f"SGD({where}=…)",
        hint="forward=lambda model, batch: … says how to get the outputs, for example model(batch[0]).logits",
    )
