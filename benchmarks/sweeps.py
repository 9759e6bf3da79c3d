"""Does a sweep that is interrupted end as one that nobody disturbs? `python benchmarks/sweeps.py` (minutes).

Three budgets × two methods × two seeds of a small network: in this process, by two processes of loky, by two that are
killed twice and gone on with, and by dask's local cluster where dask is installed. Plans and weights are compared byte
by byte. Writes `benchmarks/results/sweeps.json`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import joblib
import torch
from torch import Tensor, nn

import actprune as ap
from actprune.report.measure import versions

RESULTS = Path(__file__).parent / "results"
KEEPS, METHODS, SEEDS = ("macs=70%", "macs=50%", "macs=35%"), ("flap", "l2"), (0, 1)
RUNS = len(KEEPS) * len(METHODS) * len(SEEDS)


def batches(seed: int) -> list[Tensor]:
    return list(torch.randn(128, 3, 12, 12, generator=torch.Generator().manual_seed(seed)).split(32))


def network() -> nn.Module:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 24)]
    return nn.Sequential(*parts, nn.ReLU(), nn.Linear(24, 5)).eval()


def sweep(folder: Path, jobs: int) -> int:
    """How many runs came back as read from an earlier call's folders."""
    before = content(folder)
    for _ in ap.sweep(network(), batches, KEEPS, methods=METHODS, seeds=SEEDS, jobs=jobs, save_to=folder, resume=True):
        pass
    return len(before)


def content(folder: Path) -> dict[str, bytes]:
    """Every run's plan, which names the digest of its weights. A process that is killed while it writes a folder leaves
    one with a hidden name, which is no run."""
    plans = (path for path in folder.glob("*/plan.json") if not path.parent.name.startswith("."))
    return {path.parent.name: path.read_bytes() for path in plans}


def killed_at(folder: Path, runs: int) -> int:
    """Start a sweep of two processes, and kill all of them when so many folders are there: how many are."""
    with subprocess.Popen([sys.executable, __file__, str(folder)], start_new_session=True) as process:
        while len(content(folder)) < runs and process.poll() is None:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    return len(content(folder))


def dask() -> AbstractContextManager[Any]:
    from dask.distributed import Client, LocalCluster  # pyright: ignore[reportMissingImports]

    stack = ExitStack()
    cluster = stack.enter_context(LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None))
    stack.enter_context(Client(cluster))
    stack.enter_context(joblib.parallel_config("dask"))
    return stack


def killed_twice(place: Path) -> dict[str, Any]:
    stops = [killed_at(place / "killed", 3), killed_at(place / "killed", 8)]
    read = sweep(place / "killed", 2)
    left = sorted(path.name for path in place.iterdir() if path.name.startswith("killed"))
    return {"runs_when_killed": stops, "read_at_the_end": read, "left": left}


def main() -> None:
    about = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "versions": versions()}
    found: dict[str, Any] = {"schema": "actprune.benchmark.sweeps/1", "about": about, "sweeps": {}}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        kinds = {"here": (1, nullcontext), "killed": (2, nullcontext), "loky": (2, nullcontext), "dask": (2, dask)}
        if importlib.util.find_spec("distributed") is None:
            del kinds["dask"]
        for name, (jobs, by) in kinds.items():
            started = time.perf_counter()
            row = killed_twice(place) if name == "killed" else {}
            with by():
                sweep(place / name, jobs)
            row |= {
                "jobs": jobs,
                "runs": len(content(place / name)),
                "seconds": round(time.perf_counter() - started, 1),
            }
            row["same_bytes"] = content(place / name) == content(place / "here")
            found["sweeps"][name] = row
            print(name, row, flush=True)
            (RESULTS / "sweeps.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sweep(Path(sys.argv[1]), 2)
    else:
        main()
