"""The processes of a run: those that torchrun or an initialised group has, or this one alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from typing import Any

import torch
import torch.distributed as dist

from actprune.distributed import ALONE, LAUNCHED, SOLO, Ranks, seconds_to_answer


def launched() -> tuple[int, int]:
    """Rank and number of processes, as an initialised group or torchrun's environment says; 0 and 1 without, and in
    what rank 0 does by itself."""
    if SOLO.get():
        return 0, 1
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    if all(name in os.environ for name in LAUNCHED):
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return 0, 1


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The processes of this run: those of an initialised group, or those that torchrun started; else this one alone.

    Args:
        device: where the model is. A group that is made here, and destroyed at the end, is gloo, and nccl for CUDA
            where every process of this machine has a device of its own.

    Raises:
        DistributedError: not all of them are there within the time-out.
    """
    rank, world = launched()
    if world == 1:
        yield ALONE
        return
    own, said = not dist.is_initialized(), sys.excepthook  # which torch wraps with every group
    ranks = Ranks(rank, world)
    timeout = timedelta(seconds=seconds_to_answer())
    if own:
        ranks._answered(lambda: _init(_backend(device), ranks, timeout))
    made: list[Any] = []
    try:
        ranks._answered(lambda: made.append(dist.new_group(backend="gloo", timeout=timeout)))
        yield Ranks(rank, world, made[0])
    finally:
        if own:
            dist.destroy_process_group()
            sys.excepthook = said
        elif made:
            with suppress(ValueError):  # it has gone with the group that it was made in
                dist.destroy_process_group(made[0])


def _init(backend: str, ranks: Ranks, timeout: timedelta) -> None:
    """Groups that are made and destroyed one after the other meet in one store, which stays, each under a name of its
    own: so none takes the addresses of one before for its own."""
    from torch.distributed import PrefixStore, rendezvous  # pyright: ignore[reportPrivateImportUsage]

    if not _STORE:
        _STORE.append(next(rendezvous("env://", timeout=timeout))[0])
    store = PrefixStore(f"actprune {next(_GROUPS)}", _STORE[0])
    dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world, timeout=timeout)


_STORE: list[Any] = []
_GROUPS = count()


def _backend(device: torch.device) -> str:
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    enough = device.type == "cuda" and dist.is_nccl_available() and here <= torch.cuda.device_count()
    return "cpu:gloo,cuda:nccl" if enough else "gloo"
