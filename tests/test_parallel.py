"""A fine-tune shared out to processes comes to what one process comes to, and goes on where it was interrupted."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import actprune as ap
import tuning_ranks as worker
from actprune.artifacts.weights import read_weights, write_weights
from actprune.distributed import Ranks
from actprune.graph.keep import apart
from actprune.recovery.batches import samples
from actprune.recovery.parallel import rows
from actprune.recovery.streams import put_states, states
from nets import build

HERE = Path(__file__).parent
LAUNCH = """
from importlib.util import find_spec
import torch
if find_spec("torchvision"):  # which is imported; its compiled operators may not load beside another build of torch
    try:
        import torchvision
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor d, Tensor s, float t) -> Tensor")
from accelerate.commands.accelerate_cli import main
main()
"""


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(map(str, (HERE.parent / "src", HERE)))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ACTPRUNE_TIMEOUT": "100", **more}


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def started(folder: Path, world: int = 2) -> list[dict[str, Any]]:
    """What each process has printed."""
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    words = [sys.executable, str(HERE / "tuning_ranks.py"), str(folder)]
    each = [
        subprocess.Popen(words, env=environment(**shared, RANK=str(rank)), stdout=-1, stderr=-1, text=True)
        for rank in range(world)
    ]
    ended = [process.communicate(timeout=300) for process in each]
    assert [process.returncode for process in each] == [0] * world, [err for _, err in ended]
    return [json.loads(out.splitlines()[-1]) for out, _ in ended]


def apart_by(one: list[list[float]], other: list[list[float]]) -> float:
    """The largest difference of two curves with the same steps."""
    assert [step for step, _ in one] == [step for step, _ in other]
    return max(abs(a - b) for (_, a), (_, b) in zip(one, other, strict=True))


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """Shuffled batches that they don't divide, a teacher, tied weights; then each way in which one differs or fails."""
    first, second = started(tmp_path)
    for name, given in worker.RUNS.items():
        losses, state = worker.tuned(**given)
        assert first["losses"][name] == second["losses"][name]
        exact = "precision" not in given
        assert apart_by(first["losses"][name], losses) < (1e-5 if exact else 1e-3), name
        assert worker.furthest(read_weights(tmp_path / f"{name}.safetensors", "").state(), state) < (
            1e-5 if exact else 2e-3
        ), name
    for found in (first, second):
        assert found["resumed"] and all(same == [True, 0.0] for same in found["resumed"].values())
        assert "do not give the same batches" in found["other batches"]
        assert "without a DistributedSampler" in found["other batches"]
        assert "lr=0.1, as rank 0 has it" in found["other settings"] and "lr=1.1" in found["other settings"]
    assert second["one fails"] == "Stopped" and first["one fails"].startswith("DistributedError")
    assert "rank 1: Stopped" in first["one fails"]
    assert not (tmp_path / "step.safetensors").exists()
    assert first["statistics"] == second["statistics"] == worker.statistics()
    alone = worker.pruned()
    assert "by 2 processes" in first["pruned"][1] and "by 2 processes" not in alone[1]
    for found in (first, second):
        assert found["pruned"] == first["pruned"] and apart_by(found["pruned"][0], alone[0]) < 1e-5
        assert found["function"][0] == first["function"][0] and len(found["function"][0]) == 3
    losses, _ = worker.tuned()
    assert apart_by(worker.tuned(checkpoint=tmp_path / "left.safetensors")[0], losses) < 1e-5  # one process goes on
    assert not (tmp_path / "left.safetensors").exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="accelerate is not installed")
def test_accelerate_launches_it(tmp_path: Path) -> None:
    script = tmp_path / "tune.py"
    script.write_text(
        "import json, torch, tuning_ranks as worker\n"
        "torch.set_num_threads(1)\n"
        "losses, _ = worker.tuned(epochs=1)\n"
        "if worker.launched() == (0, 2):\n"
        "    print(json.dumps(losses), flush=True)\n"
    )
    words = "launch --multi_gpu --num_processes=2 --num_machines=1 --mixed_precision=no --dynamo_backend=no".split()
    words += ["--num_cpu_threads_per_process=1", f"--main_process_port={free_port()}", str(script)]
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, *words],
        env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert apart_by(json.loads(done.stdout.splitlines()[-1]), worker.tuned(epochs=1)[0]) < 1e-5


# ---- one process


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_fine_tune_ends_as_an_undisturbed_one(accumulate: int, tmp_path: Path) -> None:
    """Also with dropout, momentum, a loader that shuffles, and an interruption between two checkpoints."""
    path = tmp_path / "new" / "step.safetensors"
    given: dict[str, Any] = {"accumulate": accumulate, "dropout": True}
    losses, state = worker.tuned(**given)
    worker.interrupted(path, **given)
    assert path.exists()
    again, resumed = worker.tuned(checkpoint=path, **given)
    assert again == losses and worker.furthest(resumed, state) == 0
    assert list(path.parent.iterdir()) == []


def test_a_resumed_run_goes_on_within_its_fine_tune(tmp_path: Path) -> None:
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)) + 3
    calls: list[int] = []

    def run(ends_at: int, out: str, resume: bool = False) -> ap.Result:
        stopping = worker.stopping(ends_at)

        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            calls.append(1)
            return stopping(outputs, targets)

        tune = ap.SGD([(x, x[:, 0].gt(3).long())], loss, lr=0.01, epochs=6)
        return ap.prune(
            build("chain")[0], x, keep="params=60%", method="l2", finetune=tune, save_to=tmp_path / out, resume=resume
        )

    whole = run(100, "whole")
    with pytest.raises(worker.Stopped):
        run(4, "run")
    assert (tmp_path / "run.unfinished" / "fine-tuning-0.safetensors").exists()
    calls.clear()
    resumed = run(100, "run", resume=True)
    assert len(calls) == 1 + 3 and resumed.report.losses == whole.report.losses
    assert worker.furthest(resumed.model.state_dict(), whole.model.state_dict()) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "whole"]


def test_accumulated_batches_are_one(tmp_path: Path) -> None:
    """Of uneven sizes, with the mean over all their samples."""
    x = torch.randn(14, 6, generator=torch.Generator().manual_seed(3))
    y = x[:, :3].argmax(1)
    apart = list(zip(x.split([5, 5, 3, 1]), y.split([5, 5, 3, 1]), strict=True))
    together = list(zip(x.split([13, 1]), y.split([13, 1]), strict=True))
    one, other = (worker.tuned(loader=given, accumulate=k) for given, k in ((apart, 3), (together, 1)))
    assert apart_by(one[0], other[0]) < 1e-6 and worker.furthest(one[1], other[1]) < 1e-6


def test_outputs_are_computed_in_bfloat16() -> None:
    seen: list[Any] = []

    def forward(model: nn.Module, batch: Any) -> Tensor:
        outputs = model(batch[0])
        seen.append(outputs.dtype)
        return outputs

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(outputs.dtype)
        return F.cross_entropy(outputs, targets)

    worker.tuned(precision="bf16", forward=forward, loss=loss, epochs=1)
    assert seen[:3] == [torch.bfloat16, torch.float32, torch.bfloat16]


def test_checkpoints_of_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "step.safetensors"
    worker.interrupted(path)
    with pytest.raises(ap.ArtifactError, match="another fine-tune") as caught:
        worker.tuned(checkpoint=path, lr=0.2)
    assert "expected: lr=0.1" in str(caught.value) and "got: lr=0.2" in str(caught.value)
    assert f"remove {path}" in str(caught.value)
    with pytest.raises(ap.ArtifactError, match="expected: model="):
        ap.SGD(worker.loader(), F.cross_entropy, lr=0.1, epochs=2, checkpoint=path).run(worker.made(5), worker.made(1))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ap.ArtifactError, match="can't be read"):
        worker.tuned(checkpoint=path)
    path.unlink()
    worker.interrupted(path)
    state = {name: held.clone() for name, held in read_weights(path, "").state().items()}
    for record in (
        '{"schema": "actprune.finetune/2"}',
        "[]",
        '{"schema": "actprune.finetune/1", "begun": {"done": []}}',
    ):
        write_weights(path, state, {"record": record})
        with pytest.raises(ap.ArtifactError, match="expected: a checkpoint of SGD"):
            worker.tuned(checkpoint=path)
    (tmp_path / "file").touch()
    with pytest.raises(ap.ArtifactError, match="can't be written"):
        worker.tuned(checkpoint=tmp_path / "file" / "step.safetensors", checkpoint_every=1)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"accumulate": 0}, "a whole number ≥ 1"),
        ({"precision": "fp8"}, "None or 'bf16'"),
        ({"strategy": "zero"}, "'ddp' or 'fsdp' or None"),
        ({"checkpoint_every": 0}, "a whole number ≥ 1, or None"),
    ],
)
def test_settings_that_are_none(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ap.DataError, match="no setting of SGD") as caught:
        worker.tuned(**given)
    assert f"expected: {words}" in str(caught.value) and f"SGD({next(iter(given))}=…)" in str(caught.value)


def test_samples_of_batches_and_shares_of_them() -> None:
    x, y = torch.arange(10).view(5, 2), torch.arange(5)
    batch = ({"x": x, "scale": torch.ones(3), "one": torch.tensor(2)}, [y, "name"])
    assert samples(batch) == 5 and samples((x, "name")) == 5
    shares = [rows(batch, Ranks(rank, 2).shard(5), 5) for rank in range(2)]
    assert torch.equal(torch.cat([held["x"] for held, _ in shares]), x)
    assert [held[0].tolist() for _, held in shares] == [[0, 1, 2], [3, 4]]
    assert all(held["scale"].numel() == 3 and names[1] == "name" for held, names in shares)
    with pytest.raises(ap.DataError, match="can't be told how many samples"):
        samples(("a", "b"))


def test_blocks_that_share_parameters_are_left_to_the_whole() -> None:
    from actprune.recovery.sharding import Sharded, blocks

    net = worker.Net()
    assert blocks(net) == list(net.blocks)
    net.blocks[1].up.weight = net.blocks[0].up.weight
    assert blocks(net) == []
    net.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ap.DataError, match=r"got: scale of shape \(\)") as caught:
        Sharded(net, lambda model, batch: model(batch[0]).sum(), Ranks(0, 2))
    assert 'strategy="ddp"' in str(caught.value)


def test_streams_go_on() -> None:
    loader = worker.loader()
    loader.generator = torch.Generator().manual_seed(4)

    def drawn() -> list[float]:
        own = torch.rand((), generator=loader.generator)
        return [random.random(), float(np.random.rand()), float(torch.rand(())), float(own)]

    held = json.loads(json.dumps(states(loader)))
    with apart(1, 2):
        first = drawn()
    with apart(1, 3):
        assert drawn()[:3] != first[:3]
    put_states(loader, held)
    before = drawn()
    put_states(loader, held)
    assert drawn() == before
