"""Several processes of one run on this machine, as torchrun would start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence


def run_ranks(words: Sequence[str], world: int, timeout: int) -> None:
    """So many processes of `python words…`, one thread each, to their end.

    Args:
        timeout: seconds after which one that does not answer counts as gone.
    """
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    shared = {
        **os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "ACTPRUNE_TIMEOUT": str(timeout),
    }  # fmt: skip
    each = [subprocess.Popen([sys.executable, *words], env={**shared, "RANK": str(rank)}) for rank in range(world)]
    for process in each:
        process.wait()
