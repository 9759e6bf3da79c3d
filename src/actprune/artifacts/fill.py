"""Saved tensors are put into a replayed model: exact in names, shapes, kinds of numbers and ties."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from actprune.artifacts.files import unreadable
from actprune.artifacts.folder import AGAIN
from actprune.artifacts.weights import Weights, tied
from actprune.errors import ArtifactError
from actprune.graph.names import plain_slots
from actprune.surgery.tensors import held_in


def fill(target: nn.Module, weights: Weights, path: Path) -> None:
    """Put them there.

    Args:
        path: of the weights, for messages.

    Raises:
        ArtifactError: the model has other tensors, or does not take these.
    """
    live = {name: held for name, held in target.state_dict(keep_vars=True).items() if isinstance(held, Tensor)}
    saved = weights.state()
    beside = saved.keys() - live.keys()  # statistics in plain attributes
    slots = {name: slot for name, slot in plain_slots(target).items() if name in beside} if beside else {}
    every = {**live, **{name: held_in(slot) for name, slot in slots.items()}}
    _check_entries(every, saved, path)
    _check_ties(every, saved, weights, path)
    try:
        with torch.no_grad():
            for name, held in live.items():
                if held.dtype != saved[name].dtype:
                    held.data = held.data.to(saved[name].dtype)
        # Through the model's own door: it knows its hooks, and the versions of its modules stand in state._metadata.
        state = target.state_dict()
        state.update({name: tensor for name, tensor in saved.items() if name not in slots})
        target.load_state_dict(state, strict=True)
        for name, (box, key) in slots.items():
            box[key] = saved[name].to(box[key].device, copy=True)
    except Exception as error:  # whatever the model's hooks, or torch for a dtype that it can't hold, raise
        raise unreadable(path, "tensors that the model takes", f"{type(error).__name__}: {error}", AGAIN) from error
    target.zero_grad(set_to_none=True)


def _check_entries(live: Mapping[str, Tensor], saved: Mapping[str, Tensor], path: Path) -> None:
    missing, extra = sorted(live.keys() - saved.keys()), sorted(saved.keys() - live.keys())
    if missing or extra:
        expected = f"{len(live)} tensors" + (f", among them {', '.join(missing[:3])}" if missing else "")
        got = f"{len(saved)} tensors" + (f", among them {', '.join(extra[:3])}" if extra else "")
        raise unreadable(path, expected, got, AGAIN)
    for name, held in live.items():
        entry = saved[name]
        if entry.shape != held.shape or not _same_kind(entry.dtype, held.dtype):
            expected = f"{name} of shape {tuple(held.shape)}, {held.dtype}"
            raise unreadable(path, expected, f"shape {tuple(entry.shape)}, {entry.dtype}", AGAIN)


def _same_kind(saved: torch.dtype, held: torch.dtype) -> bool:
    """A model may have been saved in another precision than its dense original, but not as another kind of number."""
    if saved.is_floating_point or saved.is_complex:
        return (saved.is_floating_point, saved.is_complex) == (held.is_floating_point, held.is_complex)
    return saved == held


def _check_ties(live: Mapping[str, Tensor], saved: Mapping[str, Tensor], weights: Weights, path: Path) -> None:
    """Names that share a tensor in the file must share one in the model, and the other way round or be equal."""
    held = {name: first for first, names in tied(live).items() for name in names}
    for first, names in weights.names.items():
        apart = [name for name in names if held[name] != held[first]]
        if apart:
            raise ArtifactError(
                "The saved model ties tensors that this model keeps apart.",
                expected=f"{first} and {apart[0]} to be one tensor",
                got="two",
                where=str(path),
                hint="build the dense model with its weights tied, as it was before pruning",
            )
    for name, first in held.items():
        if name != first and not _equal(saved[name], saved[first]):
            raise unreadable(path, f"{first} and {name} to be equal, which the model ties", "two values", AGAIN)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a is b or (
        a.dtype == b.dtype and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
    )
