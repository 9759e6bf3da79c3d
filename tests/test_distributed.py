"""Runs of several processes: two of them, as torchrun would start them, and what needs no second one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import actprune as ap
import ranks as worker
from actprune.distributed import ALONE, Ranks
from actprune.joining import joined, launched
from nets import build

HERE = Path(__file__).parent


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def started(folder: Path, world: int = 2) -> list[tuple[int, dict[str, Any]]]:
    """Exit code and output of each process."""
    path = os.pathsep.join(map(str, (HERE.parent / "src", HERE)))
    shared = {
        **os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ACTPRUNE_TIMEOUT": "30", "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    words = [sys.executable, str(HERE / "ranks.py"), str(folder)]
    each = [
        subprocess.Popen(words, env={**shared, "RANK": str(rank)}, stdout=-1, stderr=-1, text=True)
        for rank in range(world)
    ]
    found: list[tuple[int, dict[str, Any]]] = []
    for process in each:
        out, err = process.communicate(timeout=120)
        assert out.strip() and process.returncode in (0, -9), err
        found.append((process.returncode, json.loads(out.splitlines()[-1])))
    return found


def test_two_processes_do_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uneven shards and one without data, other settings on one rank, one that is killed, and the run gone on with."""
    (first_code, first), (second_code, second) = started(tmp_path)
    assert (first_code, second_code) == (0, -9)
    calibration = list(worker.data(40).split(8))
    result = ap.prune(build("chain")[0], calibration, keep="params=60%", method=worker.METHOD)
    for found in (first, second):
        assert max(found["differences"]) < 1e-10
        assert {name: tuple(kept) for name, kept in found["kept"].items()} == {
            name: group.kept for name, group in result.plan.groups.items()
        }
        assert found["seen"] == [result.report.pruned.params, True]
        assert "seed=0, as rank 0 has it" in found["another seed"] and "seed=1" in found["another seed"]
    assert "is gone, or does not answer" in first["killed"] and first["seconds"] < 30
    monkeypatch.setattr("actprune.looking.collect", lambda *_, **__: pytest.fail("statistics were there"))
    resumed = ap.prune(
        build("chain")[0], calibration, keep="params=60%", method=worker.METHOD, evaluate=lambda _: 1.0,
        save_to=tmp_path / "run", resume=True,
    )  # fmt: skip
    assert resumed.plan.groups == result.plan.groups
    assert sorted(path.name for path in tmp_path.iterdir()) == ["measuring", "run"]


@pytest.mark.parametrize(("count", "world"), [(7, 3), (2, 4), (8, 4), (0, 2)])
def test_shards_are_all_of_it_in_order(count: int, world: int) -> None:
    shards = [Ranks(rank, world).shard(count) for rank in range(world)]
    assert [i for shard in shards for i in shard] == list(range(count))
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


def test_parts_know_the_number_of_their_first_sample() -> None:
    """Statistics of the parts, merged, are those of the whole: also what is only taken of the first samples."""
    model, _ = build("lenet")
    x = torch.randn(24, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    graph = ap.capture(model, x[:4])
    given: dict[str, Any] = {"measures": ("hrank",), "folds": 3}
    whole = ap.collect(graph, x, **given)
    parts = [ap.collect(graph, x[a:b], total=24, first=a, **given) for a, b in ((0, 4), (4, 24))]
    assert worker.furthest(parts[0].merge(parts[1]), whole) < 1e-6


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    with joined(torch.device("cpu")) as ranks:
        assert ranks is ALONE and launched() == (0, 1)
    x: Tensor = torch.ones(2)
    assert ranks.sum_(x) is x and ranks.from_first(lambda: (1, 2)) == (1, 2)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    assert launched() == (0, 2)
    monkeypatch.setenv("ACTPRUNE_TIMEOUT", "soon")
    with pytest.raises(ap.DistributedError, match="'soon'"):
        ap.prune(build("chain")[0], worker.data(8), keep=0.5)


def test_the_command_ends_with_a_code_of_its_own(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from actprune.cli import main

    def gone() -> None:
        raise Ranks(1, 2).lost("[pair.cc:553] Connection closed by peer [127.0.0.1]:648. This is typically caused by…")

    monkeypatch.setattr(main, "app", gone)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 3
    said = capsys.readouterr().err
    assert "got: Connection closed by peer [127.0.0.1]:648\n" in said and "--resume" in said
