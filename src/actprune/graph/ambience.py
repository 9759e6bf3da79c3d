"""The modes that a caller stands in, autocast and torch's default device, and those that a forward pass enters.

The house's own linear algebra is done in the precision and on the device that it asks for; the user's functions and
models run where the caller stands. Only captured and compared, a model runs without autocast: that is a matter of
speed, not of what is computed; no axis rule could see through it, and the rounding of bfloat16 would hide what a proof
looks for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import partial
from threading import Lock
from typing import Any

import torch

_KINDS = ("cpu", "cuda")

_USERS: ContextVar[tuple[Callable[[], Any], ...]] = ContextVar("users", default=())
"""What makes the modes that the caller stood in."""

_OFF: ContextVar[bool] = ContextVar("off", default=False)
_LOCK = Lock()
_inside = 0
_enter: Any = torch.autocast.__enter__


@contextlib.contextmanager
def own_modes() -> Iterator[None]:
    """No autocast, and new tensors on the CPU."""
    cast = [kind for kind in _KINDS if torch.is_autocast_enabled(kind)]
    users: list[Callable[[], Any]] = [partial(torch.autocast, kind, torch.get_autocast_dtype(kind)) for kind in cast]
    own: list[Any] = [torch.autocast(kind, enabled=False) for kind in cast]
    if (device := torch.get_default_device()).type != "cpu":
        users.append(partial(torch.device, device))
        own.append(torch.device("cpu"))
    token = _USERS.set(tuple(users) or _USERS.get())
    try:
        with _entered(own):
            yield
    finally:
        _USERS.reset(token)


@contextlib.contextmanager
def users_modes() -> Iterator[None]:
    """The modes that the caller stood in, again."""
    with _entered(make() for make in _USERS.get()):
        yield


@contextlib.contextmanager
def uncast() -> Iterator[None]:
    """The caller's default device, but no autocast, not even where the forward pass enters one."""
    token = _OFF.set(True)
    _count(1)
    try:
        with own_modes(), users_modes():
            yield
    finally:
        _count(-1)
        _OFF.reset(token)


@contextlib.contextmanager
def _entered(modes: Iterable[Any]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        yield


def _enter_region(region: Any) -> Any:
    entered = _enter(region)
    if _OFF.get():  # here, not in the region itself: as a decorator it is one for all threads
        torch.set_autocast_enabled(region.device, False)
    return entered


def _count(more: int) -> None:
    """torch's class has another entrance only while somebody is inside."""
    global _inside, _enter
    with _LOCK:
        if not _inside:
            _enter = torch.autocast.__enter__
        _inside += more
        torch.autocast.__enter__ = _enter_region if _inside else _enter  # pyright: ignore[reportAttributeAccessIssue]
