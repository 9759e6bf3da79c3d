"""Several processes that do one run together: ranks of `torch.distributed`, which only this file and `pulse` talk to.

    torchrun --nproc-per-node 4 -m actprune prune recipe.py

What passes between them is tensors: statistics as float64, JSON and files as bytes. Nothing is pickled, so nothing that
arrives can run. While a rank works, a thread of its own tells the others every half second that it is alive (`pulse`);
so the others may wait for hours, and still hear within a moment when one of them fails or is gone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from actprune.errors import DistributedError
from actprune.pulse import RESUME, Pulse

T = TypeVar("T")

TIMEOUT = "ACTPRUNE_TIMEOUT"
"""The environment variable with the seconds after which a rank that does not answer counts as gone."""

SECONDS = 300.0
"""Where it is not set. A process that is dead is noticed at once: its connections are closed."""

PIECE = 1 << 26
"""Bytes of a file that are sent at a time."""

LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""The environment that torchrun sets, and `init_process_group` reads."""

_WATCHED: ContextVar[bool] = ContextVar("watched", default=False)
"""Whether work goes on that a pulse tells of: it also tells of what is done `together` within."""

SOLO: ContextVar[bool] = ContextVar("solo", default=False)
"""Whether rank 0 does something alone, so that nothing within may wait for the others."""

_LED = re.compile(r"^\[\S+:\d+\] ")
"""What a message of gloo begins with: a line of its source."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """The processes of a run, as one of them sees them. All methods are called on every rank, in the same order.

    Attributes:
        rank: the number of this process, 0 … world − 1. Rank 0 decides and writes.
        world: how many there are.
        group: a gloo group of all of them, for what is in the memory of the CPU; None where there is one process.
    """

    rank: int
    world: int
    group: Any = field(default=None, repr=False)

    @property
    def first(self) -> bool:
        """Whether this is the rank that decides and writes."""
        return self.rank == 0

    def shard(self, count: int) -> range:
        """Which of `count` things in a row are this rank's: equal shares, the first ranks one more; maybe none."""
        each, more = divmod(count, self.world)
        start = self.rank * each + min(self.rank, more)
        return range(start, start + each + (self.rank < more))

    def together(self, work: Callable[[], T]) -> T:
        """Do `work` on every rank: it ends on all of them, or fails on all. No rank may call another one in it, but
        by a group that was made in it.

        Raises:
            DistributedError: another rank has failed, or is gone. What this one does is then interrupted.
        """
        if self.world == 1 or _WATCHED.get():
            return work()
        pulse = Pulse(self.group, self.rank, self.world, self.lost)
        try:
            with _told(_WATCHED), pulse:
                return work()
        except KeyboardInterrupt:
            if pulse.interrupted and pulse.lost is not None:
                raise pulse.lost from None
            raise
        except RuntimeError as error:  # of a group that `work` has made, where the other end is gone
            if pulse.lost is not None and (isinstance(error, dist.DistError) or _LED.match(str(error))):
                raise pulse.lost from error
            raise
        finally:
            pulse.put_back()

    def alone(self, work: Callable[[], T]) -> T | None:
        """Have rank 0 do `work` by itself, which fails on all ranks; None on the others."""

        def own() -> T | None:
            if not self.first:
                return None
            with _told(SOLO):
                return work()

        return own() if self.world == 1 else self.together(own)

    def from_first(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, a value that JSON can hold; the others wait for it."""
        if self.world == 1:
            return make()
        text = self.alone(lambda: json.dumps(make()))
        return json.loads(self._bytes((text or "").encode()))

    def send_file(self, path: Path) -> None:
        """Put rank 0's file at `path` on every rank, and compare what arrived."""
        if self.world == 1:
            return
        size = self.from_first(lambda: path.stat().st_size)
        found = hashlib.sha256()
        with path.open("rb" if self.first else "wb") as file:
            for start in range(0, size, PIECE):
                length = min(PIECE, size - start)
                piece = self._piece(file.read(length) if self.first else b"", length)
                found.update(piece)
                if not self.first:
                    file.write(piece)
        self.check_same({path.name: found.hexdigest()})

    def check_same(self, told: Mapping[str, Any]) -> None:
        """That every rank has the same values as rank 0.

        Raises:
            DistributedError: on every rank, where one has others; it names the value and the rank.
        """
        if self.world == 1:
            return
        own = json.loads(json.dumps(dict(told), default=str))
        first = self.from_first(lambda: own)
        self.together(lambda: self._compare(own, first))

    def sum_(self, x: Tensor) -> Tensor:
        """Of all ranks, in place."""
        return self._reduced(x, dist.ReduceOp.SUM)

    def least_(self, x: Tensor) -> Tensor:
        """Of all ranks, in place."""
        return self._reduced(x, dist.ReduceOp.MIN)

    def most_(self, x: Tensor) -> Tensor:
        """Of all ranks, in place."""
        return self._reduced(x, dist.ReduceOp.MAX)

    def first_(self, x: Tensor) -> Tensor:
        """That of rank 0, in place."""
        if self.world == 1:
            return x
        held = x.detach().cpu().contiguous()
        self._sent(held.reshape(-1).view(torch.uint8))  # its bytes: gloo does not know every type
        with torch.no_grad():
            return x.copy_(held)

    def lost(self, got: str) -> DistributedError:
        """What is said where a rank does not answer."""
        return DistributedError(
            "Another process of the run is gone, or does not answer.",
            expected=f"{self.world} processes that all do the same, and answer within "
            f"{seconds_to_answer():g} s ({TIMEOUT})",
            got=_LED.sub("", got.strip().partition("\n")[0]).partition(". ")[0][:300],
            where=f"rank {self.rank} of {self.world}",
            hint=f"look for what the other processes wrote at their end; {RESUME}",
        )

    # ---- tensors

    def _compare(self, own: Mapping[str, Any], first: Mapping[str, Any]) -> None:
        for key in {**first, **own}:
            if own.get(key) != first.get(key):
                raise DistributedError(
                    "The processes of the run do not do the same thing.",
                    expected=f"{key}={_short(first.get(key))}, as rank 0 has it",
                    got=f"{key}={_short(own.get(key))}",
                    where=f"rank {self.rank} of {self.world}",
                    hint="start every process with the same recipe, data, weights, settings and versions; data that "
                    "are drawn need a seed",
                )

    def _bytes(self, content: bytes) -> bytes:
        """Those of rank 0."""
        size = self._sent(torch.tensor([len(content)]))
        return self._piece(content, int(size))

    def _piece(self, content: bytes, length: int) -> bytes:
        """So many bytes of rank 0."""
        held = torch.frombuffer(bytearray(content), dtype=torch.uint8) if self.first and content else None
        return self._sent(torch.empty(length, dtype=torch.uint8) if held is None else held).numpy().tobytes()

    def _sent(self, x: Tensor) -> Tensor:
        """Rank 0's tensor on every rank."""
        if x.numel():
            self._answered(lambda: dist.broadcast(x, 0, group=self.group))
        return x

    def _reduced(self, x: Tensor, how: Any) -> Tensor:
        if self.world == 1:
            return x
        if x.is_cuda and "nccl" in str(dist.get_backend_config()):
            self._answered(lambda: dist.all_reduce(x, how))
            return x
        held = x.cpu()
        self._answered(lambda: dist.all_reduce(held, how, group=self.group))
        return x if held is x else x.copy_(held)

    def _answered(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except RuntimeError as error:
            raise self.lost(str(error)) from error


ALONE = Ranks(0, 1)
"""One process."""


@contextmanager
def _told(what: ContextVar[bool]) -> Iterator[None]:
    before = what.set(True)
    try:
        yield
    finally:
        what.reset(before)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def seconds_to_answer() -> float:
    """How long a process waits for the others."""
    given = os.environ.get(TIMEOUT, str(SECONDS))
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise DistributedError(
            "The time-out is no time.",
            expected="seconds, more than 0",
            got=repr(given),
            where=f"environment variable {TIMEOUT}",
            hint=f"leave it out for {SECONDS:g} s",
        )
    return seconds
