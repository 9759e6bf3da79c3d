"""One process of the two that `test_parallel.py` starts; it prints one JSON object.

    python tests/tuning_ranks.py FOLDER

with the environment of torchrun, or of `accelerate launch`.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import actprune as ap
from actprune import pulse
from actprune.artifacts.weights import write_weights
from actprune.joining import launched
from actprune.latency import bench
from nets import build

SAMPLES, BATCH = 41, 8  # the last batch is of one sample, which no two processes can share
RUNS: dict[str, dict[str, Any]] = {
    "ddp, several batches a step": {"accumulate": 2},
    "fsdp": {"strategy": "fsdp"},
    "fsdp, several batches a step, bf16": {"strategy": "fsdp", "precision": "bf16", "accumulate": 2},
}

RESUMED = "fsdp, several batches a step, bf16"


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Net(nn.Module):
    """Blocks in a list, tied weights, and a parameter that no step uses."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(6) for _ in range(2))
        self.head, self.again = nn.Linear(6, 6), nn.Linear(6, 6)
        self.again.weight = self.head.weight
        self.idle = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.again(F.relu(self.head(x)))[:, :3]


def made(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().eval()


def loader(count: int = SAMPLES) -> Any:
    """Shuffled by the global random state."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(count, 6, generator=draw)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), BATCH, shuffle=True)


def tuned(**given: Any) -> tuple[list[list[float]], dict[str, Tensor]]:
    """Losses and weights of a fine-tune with a teacher."""
    model, teacher, losses = made(), made(1), []
    torch.manual_seed(2 + launched()[0])  # rank 0's order is everybody's
    settings: dict[str, Any] = {"loader": loader(), "loss": F.cross_entropy, "lr": 0.1, "epochs": 2, **given}
    ap.SGD(**settings).run(model, teacher, losses=losses)
    return losses, {name: held.clone() for name, held in model.state_dict().items()}


class Stopped(Exception):
    pass


def stopping(after: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss that is the end at some call of it."""
    left = iter(range(after))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if next(left, None) is None:
            raise Stopped
        return F.cross_entropy(outputs, targets)

    return loss


def interrupted(path: Path, after: int = 10, **given: Any) -> None:
    """Leave a checkpoint."""
    try:
        tuned(loss=stopping(after), checkpoint=path, checkpoint_every=4, **given)
    except (Stopped, ap.DistributedError):  # whoever is first ends the other
        return
    raise AssertionError("it was to be interrupted")


def pruned(function: bool = False) -> tuple[list[list[float]], str]:
    """Losses and report of a run whose fine-tune is an SGD, or a function with one; what measures trains as well."""
    bench.QUICK_SECONDS = 1e-3
    x = torch.randn(41, 6, generator=torch.Generator().manual_seed(1)) + 3
    tune = ap.SGD([(x, x[:, :3])], F.mse_loss, lr=0.01, epochs=3)

    def evaluate(model: nn.Module) -> float:
        return -float(tune(copy.deepcopy(model))(x).square().mean()) if function else 1.0

    result = ap.prune(
        build("chain")[0], list(x.split(8)), keep="params=60%", method="flap", evaluate=evaluate,
        finetune=(lambda model: tune(model)) if function else tune,
    )  # fmt: skip
    return [[float(step), loss or 0.0] for step, loss in result.report.losses], str(result.report.notes)


def statistics() -> list[list[float]]:
    """Those of BatchNorm after a fine-tune that leaves the weights as they are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    torch.manual_seed(2 + launched()[0])
    ap.SGD(loader(40), F.cross_entropy, lr=0.0, epochs=1)(model)
    return [buffer.flatten().tolist() for buffer in model.buffers()]


def furthest(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in other)


def said(work: Callable[[], Any]) -> str:
    try:
        work()
    except ap.ActpruneError as error:
        return f"{type(error).__name__}: {error}"
    except Stopped:
        return "Stopped"
    return ""


def refused(*_: Any) -> Any:
    raise AssertionError("nothing is pickled")


def main(folder: Path) -> None:
    pulse.PERIOD = 0.02
    torch.distributed.distributed_c10d._object_to_tensor = refused  # by which torch pickles whatever it sends
    rank, world = launched()
    found: dict[str, Any] = {"world": world, "losses": {}, "resumed": {}}
    for name, given in RUNS.items():
        found["losses"][name], state = tuned(**given)
        if rank == 0:
            write_weights(folder / f"{name}.safetensors", state, {})
        if name == RESUMED:
            interrupted(folder / "step.safetensors", **given)
            losses, again = tuned(checkpoint=folder / "step.safetensors", **given)
            found["resumed"][name] = [losses == found["losses"][name], furthest(again, state)]
    interrupted(folder / "left.safetensors")
    found["statistics"] = statistics()
    found["pruned"] = pruned()
    found["function"] = pruned(function=True)
    found["other batches"] = said(lambda: tuned(loader=[(torch.full((4, 6), float(rank)), torch.zeros(4).long())]))
    found["other settings"] = said(lambda: tuned(lr=0.1 + rank))
    found["one fails"] = said(lambda: tuned(loss=stopping(5) if rank else F.cross_entropy))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
