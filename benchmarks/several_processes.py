"""Do several processes come to the plan of one? `python benchmarks/several_processes.py` (half an hour on two cores).

LeNet-5, ResNet-56 and a small Llama with random weights, by the default method on 1, 2 and 4 processes of gloo with one
thread each: kept units, statistics and seconds are compared. Then one of two processes is killed after the guide, and
the run gone on with. Writes `benchmarks/results/distributed.json`; names of networks measure these alone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from benchmarks.coverage.suites.case import declare_torchvision_ops
from benchmarks.method.networks import ResNet56
from benchmarks.ranks import run_ranks
from torch import Tensor, nn

import actprune as ap
from actprune.demo.lenet5 import LeNet5
from actprune.memory import peak_bytes
from actprune.report.measure import versions
from actprune.stats.store import flat

RESULTS = Path(__file__).parent / "results"
WORLDS = (1, 2, 4)
BATCHES, BATCH = 7, 32  # no number of processes above divides them


def lenet5() -> tuple[nn.Module, Any]:
    return LeNet5(), torch.rand(BATCHES * BATCH, 1, 28, 28)


def resnet56() -> tuple[nn.Module, Any]:
    return ResNet56(), torch.randn(BATCHES * BATCH, 3, 32, 32)


def llama() -> tuple[nn.Module, Any]:
    declare_torchvision_ops()
    from transformers import LlamaConfig, LlamaForCausalLM  # pyright: ignore[reportMissingImports]

    config = LlamaConfig(
        vocab_size=500, hidden_size=128, intermediate_size=352, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=64, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config), torch.randint(0, 500, (BATCHES * BATCH, 32))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {"LeNet-5": lenet5, "Llama": llama, "ResNet-56": resnet56}
KILLED = "LeNet-5"


def batches(samples: Tensor) -> list[Any]:
    return [x if x.is_floating_point() else {"input_ids": x} for x in samples.split(BATCH)]


# -- one process -----------------------------------------------------------------------------------


def work(name: str, folder: Path, last_rank_ends: bool) -> None:
    """Prune; rank 0 writes what it found beside the run folder, and the others what error they ended with."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, samples = NETWORKS[name]()
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

    def tell(stage: str, done: int, total: int) -> None:
        if last_rank_ends and stage == "allocate" and world > 1:  # only rank 0 is told: it has the other one end
            os.kill(int((folder / f"pid{world - 1}").read_text()), signal.SIGKILL)
            (folder / "killed").write_text(str(time.time()))

    (folder / f"pid{rank}").write_text(str(os.getpid()))
    started = time.perf_counter()
    try:
        result = ap.prune(
            model.eval(), batches(samples), keep="macs=50%", save_to=folder / "run", resume=True, progress=tell
        )
    except ap.DistributedError as error:
        (folder / f"error{rank}").write_text(json.dumps([str(error), time.time()]))
        return
    if rank == 0 and result.stats is not None:
        result.stats.save(folder / "stats.safetensors")
        told = {"total": time.perf_counter() - started, **result.report.seconds, "peak_mb": (peak_bytes() or 0) / 1e6}
        (folder / "seconds.json").write_text(json.dumps(told))


# -- all of them -----------------------------------------------------------------------------------


def run(name: str, world: int, folder: Path, last_rank_ends: bool = False) -> None:
    """So many processes, to their end."""
    folder.mkdir(exist_ok=True)
    run_ranks([__file__, name, str(folder), *(["ends"] if last_rank_ends else [])], world, timeout=30)


def furthest(one: Path, other: Path) -> float:
    """The largest difference of two statistics, as a share of the largest number of its tensor."""
    a, b = (flat(ap.Stats.load(folder / "stats.safetensors")) for folder in (one, other))
    if a.counts != b.counts or a.samples != b.samples:
        return float("inf")
    pairs = ((a.tensors[key], b.tensors[key]) for key in b.tensors)
    return max(float((x - y).abs().max() / y.abs().max().clamp_min(1e-300)) for x, y in pairs)


def kept(folder: Path) -> Any:
    plan = json.loads((folder / "run" / "plan.json").read_text())
    return {name: group["kept"] for name, group in plan["groups"].items()}


def compared(name: str, place: Path) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    one = place / f"{name}1"
    for world in WORLDS:
        folder = place / f"{name}{world}"
        run(name, world, folder)
        seconds = {key: round(value, 2) for key, value in json.loads((folder / "seconds.json").read_text()).items()}
        same = kept(folder) == kept(one)
        rows[str(world)] = {"same_units": same, "moments": furthest(folder, one), "seconds": seconds}
        print(name, world, same, rows[str(world)]["moments"], seconds, flush=True)
    return rows


def killed(name: str, place: Path) -> dict[str, Any]:
    """Seconds from the kill of one of two processes to the error of the other, and the run gone on with."""
    folder = place / f"{name}killed"
    run(name, 2, folder, last_rank_ends=True)
    text, ended = json.loads((folder / "error0").read_text())
    left = sorted(path.name for path in (folder / "run.unfinished").iterdir())
    run(name, 2, folder)
    found = {
        "error": text.partition("\n")[0], "seconds": round(ended - float((folder / "killed").read_text()), 2),
        "stages_left": left, "same_units_when_resumed": kept(folder) == kept(place / f"{name}1"),
    }  # fmt: skip
    print(name, "killed", found, flush=True)
    return found


def main(names: list[str]) -> None:
    """Of some networks; what is known of the others stays."""
    path = RESULTS / "distributed.json"
    about = {"cores": os.cpu_count(), "threads": 1, "batches": BATCHES, "batch": BATCH, "versions": versions()}
    known = json.loads(path.read_text()) if path.exists() else {}
    found = {**known, "schema": "actprune.benchmark.distributed/1", "about": about}
    found["networks"] = {name: own for name, own in found.get("networks", {}).items() if name in NETWORKS}
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            found["networks"][name] = compared(name, Path(scratch))
            if name == KILLED:
                found["killed"] = {"network": name, **killed(name, Path(scratch))}
            path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 2 and Path(sys.argv[2]).is_dir():
        work(sys.argv[1], Path(sys.argv[2]), sys.argv[-1] == "ends")
    else:
        main(sys.argv[1:] or list(NETWORKS))
