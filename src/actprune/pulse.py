"""The signs of life of a run's processes: while a rank works, a thread tells the others, and hears of them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from actprune.errors import DistributedError

PERIOD = 0.5
"""Seconds between two pulses."""

TEXT = 4096
"""Bytes of an error that the other ranks hear."""

RESUME = "once it is mended, the same command with --resume (resume=True) goes on from the last finished stage"


class Pulse:
    """While this rank works: the thread that tells the others so, and hears that they do.

    Each pulse is one all-reduce of two numbers, how many ranks are done and how many have failed. It takes as long as
    the slowest rank's thread, never as long as its work.

    Args:
        group: the gloo group of all ranks.
        rank, world: the number of this rank, and of how many.
        gone: (what gloo says) → what is to be raised where a rank does not answer.

    Attributes:
        lost: what is to be raised here, for another rank failed or is gone.
        interrupted: whether the work here was interrupted for it.
    """

    def __init__(self, group: Any, rank: int, world: int, gone: Callable[[str], DistributedError]) -> None:
        self.group, self.rank, self.world, self.gone = group, rank, world, gone
        self.interrupted = False
        self.lost: DistributedError | None = None
        self._done, self._failed = False, ""
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._beat, name="actprune pulse", daemon=True)
        main = threading.current_thread() is threading.main_thread()
        self._handler = signal.getsignal(signal.SIGINT) if main else None

    def __enter__(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._signalled)
        self._thread.start()

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            self._failed = "" if error is None else f"{type(error).__name__}: {error}"
            self._done = error is None
        self._ended.set()
        self._thread.join()
        if error is None and self.lost is not None:
            raise self.lost

    def put_back(self) -> None:
        """The handler of interrupts that was there before."""
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)

    def _beat(self) -> None:
        try:
            while True:
                self._ended.wait(PERIOD)
                told = torch.tensor([int(self._done), int(bool(self._failed))])
                dist.all_reduce(told, group=self.group)
                done, failed = told.tolist()
                if failed:
                    self.lost = self._heard()
                    break
                if done == self.world:
                    return
        except RuntimeError as error:  # of gloo: a connection is closed, or nothing came for too long
            self.lost = self.gone(str(error))
        self._interrupt()

    def _heard(self) -> DistributedError:
        """What the ranks that failed say."""
        own = torch.zeros(TEXT, dtype=torch.uint8)
        content = self._failed.encode()[:TEXT]
        if content:
            own[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        each = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(each, own, group=self.group)
        texts = [one.numpy().tobytes().rstrip(b"\0").decode(errors="replace") for one in each]
        told = "\n    ".join(f"rank {i}: {text}" for i, text in enumerate(texts) if text)
        return DistributedError(
            "Another process of the run has failed.",
            expected=f"{self.world} processes that all go on",
            got=told.replace("\n", "\n    "),
            where=f"rank {self.rank} of {self.world}",
            hint=RESUME,
        )

    def _interrupt(self) -> None:
        """End the work that is going on here, also where it sleeps: nobody waits for it any more."""
        with self._lock:
            if self._handler is None or self._done or self._failed:
                return
            self.interrupted = True
            if hasattr(signal, "pthread_kill"):
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            else:
                signal.raise_signal(signal.SIGINT)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        """The signal is its own here even where a shell has it ignored, as for what it starts in the background."""
        if self.interrupted:
            raise KeyboardInterrupt
        if callable(self._handler):
            self._handler(number, frame)
