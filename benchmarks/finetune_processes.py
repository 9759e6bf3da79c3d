"""Does a fine-tune by several processes come to that of one? `python benchmarks/finetune_processes.py` (a few minutes).

LeNet-5 and a small Llama, both without BatchNorm, cut to half of their units, learn from labels and from the dense
network: by one process and by two of gloo, replicated (DDP) and sharded (FSDP2), with one thread each and the
same batches. Then a process of each is killed in the middle, and the fine-tune gone on with. Writes
`benchmarks/results/finetune.json`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from benchmarks.coverage.suites.case import declare_torchvision_ops
from benchmarks.ranks import run_ranks
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import actprune as ap
from actprune.artifacts.weights import read_weights, write_weights
from actprune.demo.lenet5 import LeNet5
from actprune.memory import peak_bytes
from actprune.report.measure import versions

RESULTS = Path(__file__).parent / "results"
SAMPLES, BATCH, EPOCHS = 630, 32, 3  # the last batch has 22 samples
WAYS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {"strategy": "fsdp"},
    "ddp, two batches a step, bf16": {"accumulate": 2, "precision": "bf16"},
    "fsdp, two batches a step, bf16": {"strategy": "fsdp", "accumulate": 2, "precision": "bf16"},
}
WORLDS = (2,)


@dataclass(frozen=True)
class Task:
    """A network, its data (inputs, targets), and how they are called."""

    dense: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], Tensor]
    targets: Callable[[Tensor], Tensor]
    forward: Callable[[nn.Module, Any], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    calibration: Callable[[Tensor], Any]


def llama() -> nn.Module:
    declare_torchvision_ops()
    from transformers import LlamaConfig, LlamaForCausalLM  # pyright: ignore[reportMissingImports]

    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def bars(draw: torch.Generator) -> Tensor:
    """(samples, 1, 28, 28) noise that is brighter in one of four vertical stripes."""
    x = torch.rand(SAMPLES, 1, 28, 28, generator=draw)
    stripe = torch.randint(0, 4, (SAMPLES,), generator=draw)
    return x + 0.5 * F.one_hot(stripe, 4).repeat_interleave(7, 1)[:, None, None, :]


def progressions(draw: torch.Generator) -> Tensor:
    """(samples, 17) tokens of arithmetic progressions modulo 64."""
    start, step = (torch.randint(0, 64, (SAMPLES, 1), generator=draw) for _ in range(2))
    return (start + step * torch.arange(17)) % 64


TASKS = {
    "LeNet-5": Task(
        LeNet5,
        bars,
        lambda x: x.mean((1, 2)).unflatten(1, (4, 7)).mean(2).argmax(1),
        lambda model, batch: model(batch[0]),
        F.cross_entropy,
        lambda x: x,
    ),
    "Llama": Task(
        llama,
        progressions,
        lambda x: x[:, 1:],
        lambda model, batch: model(input_ids=batch[0][:, :-1]).logits.flatten(0, 1),
        lambda outputs, targets: F.cross_entropy(outputs, targets.flatten()),
        lambda x: {"input_ids": x[:, :-1]},
    ),
}


def dense(task: Task) -> nn.Module:
    torch.manual_seed(0)
    return task.dense().eval()


# -- one process -----------------------------------------------------------------------------------


def work(name: str, way: str, folder: Path, ends_at: int) -> None:
    """Fine-tune the cut network; the last of several processes ends itself in a step. Rank 0 writes what it found."""
    torch.set_num_threads(1)
    task, rank, world = TASKS[name], int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    teacher = dense(task)
    small = ap.load(folder.parent / f"{name} cut", dense(task)).eval()
    torch.manual_seed(1)
    x = task.inputs(torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(x, task.targets(x)), BATCH, shuffle=True)
    calls = iter(range(ends_at))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if ends_at and rank == world - 1 and next(calls, None) is None:
            (folder / "killed").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        return task.loss(outputs, targets)

    losses: list[list[float]] = []
    tune = ap.SGD(
        loader, loss, lr=0.05, epochs=EPOCHS, forward=task.forward, checkpoint=folder / "step.safetensors",
        checkpoint_every=5, **WAYS[way],
    )  # fmt: skip
    started = time.perf_counter()
    try:
        tune.run(small, teacher, losses=losses)
    except ap.DistributedError as error:
        (folder / f"error{rank}").write_text(json.dumps([str(error).partition("\n")[0], time.time()]))
        return
    if rank == 0:
        write_weights(folder / "weights.safetensors", small.state_dict(), {})
        seconds, peak = time.perf_counter() - started, (peak_bytes() or 0) / 1e6
        (folder / "losses.json").write_text(json.dumps({"losses": losses, "seconds": seconds, "peak_mb": peak}))


# -- all of them -----------------------------------------------------------------------------------


def run(name: str, way: str, world: int, folder: Path, ends_at: int = 0) -> None:
    """So many processes, to their end."""
    folder.mkdir(exist_ok=True)
    run_ranks([__file__, "work", name, way, str(folder), str(ends_at)], world, timeout=60)


def found(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    state = read_weights(folder / "weights.safetensors", "").state()
    return json.loads((folder / "losses.json").read_text()), state


def differences(one: Path, other: Path) -> dict[str, float]:
    """Of the losses of all steps that are recorded, and of the weights, from those of the other."""
    (a, b), (x, y) = zip(found(one), found(other), strict=True)
    assert [step for step, _ in a["losses"]] == [step for step, _ in b["losses"]]
    return {
        "curve": max(abs(p - q) for (_, p), (_, q) in zip(a["losses"], b["losses"], strict=True)),
        "weights": max(float((x[key] - y[key]).abs().max()) for key in y),
    }


def rows(name: str, way: str, place: Path) -> list[dict[str, Any]]:
    """One process, then more of them, and each of these interrupted and gone on with."""
    alone, made = place / f"{name} {way} 1", []
    for world in (1, *WORLDS):
        folder = place / f"{name} {way} {world}"
        run(name, way, world, folder)
        told, _ = found(folder)
        row: dict[str, Any] = {"network": name, "way": way, "processes": world, "steps": told["losses"][-1][0]}
        row |= {"first_loss": told["losses"][0][1], "last_loss": told["losses"][-1][1]}
        row |= {"seconds": round(told["seconds"], 2), "peak_mb": round(told["peak_mb"])}
        row["from_one_process"] = differences(folder, alone)
        again = place / f"{name} {way} {world} again"
        run(name, way, world, again, ends_at=23)
        if world > 1:
            text, ended = json.loads((again / "error0").read_text())
            row["killed"] = {"error": text, "seconds": round(ended - float((again / "killed").read_text()), 2)}
        assert (again / "step.safetensors").exists()
        run(name, way, world, again)
        row["resumed_from_undisturbed"] = differences(again, folder)
        made.append(row)
        print(row, flush=True)
    return made


def main(names: list[str]) -> None:
    about = {
        "cores": os.cpu_count(), "threads": 1, "samples": SAMPLES, "batch": BATCH, "epochs": EPOCHS,
        "versions": versions(),
    }  # fmt: skip
    told: dict[str, Any] = {"schema": "actprune.benchmark.finetune/1", "about": about, "rows": []}
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            task, place = TASKS[name], Path(scratch)
            x = task.calibration(task.inputs(torch.Generator().manual_seed(1))[:64])
            ap.prune(dense(task), [x], keep="units=50%", method="l2", save_to=place / f"{name} cut")
            for way in WAYS:
                told["rows"] += rows(name, way, place)
                (RESULTS / "finetune.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(sys.argv[2], sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]))
    else:
        main(sys.argv[1:] or list(TASKS))
