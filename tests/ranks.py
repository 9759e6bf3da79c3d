"""One process of the two that `test_distributed.py` starts; it prints one JSON object.

    python tests/ranks.py FOLDER

with the environment of torchrun.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import actprune as ap
from actprune.data.take import fit
from actprune.distributed import Ranks
from actprune.joining import joined
from actprune.latency import bench
from actprune.stats.across import collect_across
from actprune.stats.store import flat
from nets import build

METHOD, DENSE = "flap", 143
"""What is pruned by; parameters of the dense network."""


def data(samples: int) -> Tensor:
    return torch.randn(samples, 6, generator=torch.Generator().manual_seed(1)) + 3


def furthest(one: ap.Stats, other: ap.Stats) -> float:
    """The largest relative difference of two statistics with the same entries."""
    a, b = flat(one), flat(other)
    assert a.counts == b.counts and a.samples == b.samples and a.tensors.keys() == b.tensors.keys()
    return max(float((a.tensors[k] - b.tensors[k]).abs().max() / b.tensors[k].abs().max()) for k in b.tensors)


def differences(ranks: Ranks) -> list[float]:
    """Of the statistics of two processes from those of one: with uneven shards, and with a rank that has no batch."""
    model = build("chain")[0]
    graph = ap.capture(model, data(8))
    whole = [fit(graph.program, data(8 * batches)) for batches in (3, 1)]

    def collected(part: Any, **more: int) -> ap.Stats:
        return ap.collect(graph, part, measures=("taylor",), **more)

    return [furthest(collect_across(ranks, part, collected), collected(part)) for part in whole]


def error(**given: Any) -> str:
    try:
        ap.prune(build("chain")[0], list(data(40).split(8)), keep="params=60%", method=METHOD, **given)
    except ap.ActpruneError as found:
        return str(found)
    return ""


def main(folder: Path) -> None:
    found: dict[str, Any] = {}
    bench.QUICK_SECONDS = 1e-3
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))  # as a user's own program does
    rank = dist.get_rank()
    with joined(torch.device("cpu")) as ranks:
        found["differences"] = differences(ranks)
    result = ap.prune(build("chain")[0], list(data(40).split(8)), keep="params=60%", method=METHOD)
    found["kept"] = {name: group.kept for name, group in result.plan.groups.items()}
    found["seen"] = [result.report.pruned.params, result.proof.passed]
    found["another seed"] = error(seed=rank)

    measuring = folder / "measuring"

    def evaluate(model: torch.nn.Module) -> float:
        """Of the dense network a number; of a cut one there is none before somebody is gone."""
        if sum(p.numel() for p in model.parameters()) < DENSE:
            measuring.touch()
            time.sleep(60)
        return 1.0

    def end() -> None:
        while not measuring.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

    if rank == 1:
        print(json.dumps(found), flush=True)
        threading.Thread(target=end, daemon=True).start()
    started = time.monotonic()
    found["killed"] = error(evaluate=evaluate, save_to=folder / "run")
    found["seconds"] = time.monotonic() - started
    print(json.dumps(found), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
