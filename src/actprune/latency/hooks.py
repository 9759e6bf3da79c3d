"""Hooks of the user's that watch a network are no part of it: it is timed without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torchs
from torch.utils import _pytree as pytree


@contextmanager
def unwatched(model: nn.Module, call: Callable[[], Any]) -> Iterator[None]:
    """Without the forward hooks and forward pre-hooks that only watch, also global ones; all are put back.

    Hooks of torch's own stay, for some compute a weight (the older weight norm and spectral norm, masks of
    `torch.nn.utils.prune`). The others are left out where `call` gives the same without them: hooks that change what is
    computed are part of the network, and then all stay. They see one call instead of the thousands that are timed.
    """
    boxes: list[Any] = [torchs._global_forward_hooks, torchs._global_forward_pre_hooks]  # pyright: ignore
    boxes += [box for own in model.modules() for box in (own._forward_hooks, own._forward_pre_hooks)]
    held = [(box, dict(box)) for box in boxes if any(map(_is_users, box.values()))]
    if not held:
        yield
        return
    with_hooks = _outputs(call)
    try:
        for box, hooks in held:
            for key in [key for key, hook in hooks.items() if _is_users(hook)]:
                del box[key]
        if not _same(with_hooks, _outputs(call)):
            _put_back(held)
        yield
    finally:
        _put_back(held)


def _is_users(hook: Any) -> bool:
    return not str(getattr(hook, "__module__", "")).startswith("torch.")


def _put_back(held: list[tuple[Any, dict[Any, Any]]]) -> None:
    """In their order; hooks that were added meanwhile come last."""
    for box, hooks in held:
        more = {key: hook for key, hook in box.items() if key not in hooks}
        box.clear()
        box.update(hooks | more)


def _outputs(call: Callable[[], Any]) -> list[Any] | None:
    """With the same random numbers every time; None where it does not run."""
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            return pytree.tree_leaves(call())
    except Exception:  # whatever a forward pass raises that relies on its hooks
        return None


def _same(some: list[Any] | None, others: list[Any] | None) -> bool:
    if some is None or others is None or len(some) != len(others):
        return False
    tensors = [(a, b) for a, b in zip(some, others, strict=True) if isinstance(a, Tensor) and isinstance(b, Tensor)]
    alike = all(a.shape == b.shape and a.dtype == b.dtype and a.device == b.device for a, b in tensors)
    return alike and all(torch.allclose(a, b, equal_nan=True) for a, b in tensors)
