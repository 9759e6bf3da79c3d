"""What is changed in Keras itself for a while, by threads that overlap: the last gives back what the first found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from threading import Lock

Change = Callable[[], AbstractContextManager[None]]


def across_threads(change: Change) -> Change:
    """The same context, entered once however often it is asked for."""
    lock, held, within = Lock(), ExitStack(), list[None]()

    @wraps(change)
    @contextmanager
    def entered() -> Iterator[None]:
        with lock:
            if not within:
                held.enter_context(change())
            within.append(None)
        try:
            yield
        finally:
            with lock:
                within.pop()
                if not within:
                    held.close()

    return entered
