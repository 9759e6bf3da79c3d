"""The memory limit: how it is written, and what stages do to keep to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import actprune as ap
from actprune.errors import DataError
from actprune.graph.room import held_bytes
from actprune.memory import limit_bytes, machine_bytes, peak_bytes
from actprune.stats.collect import collect
from actprune.stats.room import folds_within


@pytest.mark.parametrize(
    ("given", "expected"),
    [("4GB", 4 * 10**9), ("500 MB", 5 * 10**8), ("1.5g", 15 * 10**8), (1000, 1000), (None, machine_bytes() // 4)],
)
def test_limits(given: Any, expected: int) -> None:
    assert limit_bytes(given) == expected


@pytest.mark.parametrize("given", ["much", "-1GB", 0, True, "4 GiBs", float("nan")])
def test_limits_that_are_none(given: Any) -> None:
    with pytest.raises(DataError, match="memory limit"):
        limit_bytes(given)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"memory.max": "3000000\n"}, 3000000),
        ("0::/a/b\n", {"memory.max": "max\n", "a/memory.max": "2000000", "a/b/memory.max": "max"}, 2000000),
        ("0::/host/only\n", {"memory.max": "1000000"}, 1000000),
        (
            "12:cpu,cpuacct:/x\n5:memory:/x\n",
            {"memory/memory.limit_in_bytes": "4000000", "x/memory.limit_in_bytes": "1"},
            4000000,
        ),
        ("5:memory:/\n0::/\n", {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, machine_bytes()),
        ("nothing", {}, machine_bytes()),
    ],
)
def test_a_container_has_the_memory_of_its_group(
    groups: str, files: dict[str, str], expected: int, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "cgroup").write_text(groups)
    assert machine_bytes(tmp_path / "cgroup", tmp_path) == expected
    assert machine_bytes(tmp_path / "missing", tmp_path) == machine_bytes()


def test_the_peak_is_that_of_the_process() -> None:
    before = peak_bytes()
    assert before is not None
    assert 5 * 10**7 < before <= (peak_bytes() or 0)


def test_the_peak_is_not_that_of_the_parent() -> None:
    """A process that was forked from a large one, and then another program."""
    held = bytearray(300_000_000)
    told = "from actprune.memory import peak_bytes; print(peak_bytes())"
    done = subprocess.run([sys.executable, "-c", told], check=True, capture_output=True, text=True)
    assert int(done.stdout) < len(held) < (peak_bytes() or 0)


def test_the_peak_where_linux_does_not_tell_it(tmp_path: Path) -> None:
    assert (peak_bytes(tmp_path / "status") or 0) > 5 * 10**7


def network() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    layers = nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 3)
    return nn.Sequential(*layers).eval(), torch.randn(64, 8)


@pytest.mark.parametrize(
    ("room", "folds"),
    [
        (5 * 8 * (400 + 100), [5, 5]),
        (5 * 8 * (400 + 100) - 1, [2, 2]),
        (8 * (400 + 100), [1, 1]),
        (8 * (400 + 100) - 1, [None, 1]),
        (1, [None, None]),
    ],
)
def test_statistics_have_fewer_folds_then_fewer_consumers(room: int, folds: list[int | None]) -> None:
    model, x = network()
    graph = ap.capture(model, x[:8])
    sites = [site for group in graph.groups for site in group.consumers]
    found = folds_within(graph, 5, room)
    assert [found.get(site.name) for site in sites] == folds
    stats = collect(graph, x, memory_limit=room)
    assert {name: len(parts) for name, parts in stats.sites.items()} == found
    plan = ap.allocate(graph, ap.guide(graph, stats), keep="macs=60%", allocation="uniform")  # the rest is ranked too
    assert all(len(group.kept) < group.width for group in plan.groups.values())


def test_refits_use_as_many_samples_as_two_runs_may_hold() -> None:
    model, x = network()
    batches = list(x.split(8))
    graph = ap.capture(model, batches[0])
    calls = [node for node in graph.program.nodes if node.op == "call_function"]
    assert held_bytes(calls) == 4 * 8 * (20 + 20)  # a result and what it was made of
    small = ap.prune(model, batches, keep="macs=60%", allocation="uniform", memory_limit=6 * held_bytes(calls))
    assert any("24 of 64 calibration samples" in note for note in small.report.notes)
    assert small.report.peak_bytes
    whole = ap.prune(model, batches, keep="macs=60%", allocation="uniform")
    assert not any("memory" in note for note in whole.report.notes)
