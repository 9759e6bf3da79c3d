"""Sweeps: budgets × methods × seeds, in this process and by others, and gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import joblib
import pytest
import torch
from torch import Tensor

import actprune as ap
from actprune.asked import Finished
from actprune.errors import ArtifactError, BudgetError, DataError, DistributedError
from nets import build

KEEPS = ("params=70%", "params=50%")


def data(seed: int = 0) -> list[Tensor]:
    return list(torch.randn(32, 6, generator=torch.Generator().manual_seed(seed)).split(8))


def swept(calibration: Any = None, keeps: Any = KEEPS, **given: Any) -> list[Any]:
    batches = data() if calibration is None else calibration
    return list(ap.sweep(build("chain")[0], batches, keeps, evaluate=spread, **given))


def spread(model: torch.nn.Module) -> float:
    return float(model(torch.cat(data(7))).detach().std())


def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets an entry with every pass of statistics."""
    found: list[int] = []
    collect = ap.collect
    monkeypatch.setattr("actprune.looking.collect", lambda *a, **k: (found.append(1), collect(*a, **k))[1])
    return found


def alone(keep: str, method: str, seed: int, calibration: Any) -> ap.Result:
    return ap.prune(build("chain")[0], calibration, keep=keep, method=method, seed=seed, evaluate=spread)


def test_methods_and_seeds_of_one_pass_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = passes(monkeypatch)
    methods, seeds = ("l2", "taylor", "flap"), (3, 4)
    found = swept(data, KEEPS[:1], methods=methods, seeds=seeds, save_to=tmp_path / "all")
    assert len(counted) == len(seeds)
    names = [f"params-70-{method}-seed{seed}" for seed in seeds for method in methods]
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == sorted(names)
    assert [path.name for path in tmp_path.iterdir()] == ["all"]
    each = [(method, seed) for seed in seeds for method in methods]
    assert [(one.report.method, one.report.seed) for one in found] == each
    for (method, seed), one in list(zip(each, found, strict=True))[:3]:
        assert one.plan.groups == alone(KEEPS[0], method, seed, data(seed)).plan.groups
    # read, not made again; and one more budget
    again = swept(data, KEEPS, methods=methods[:1], seeds=seeds, save_to=tmp_path / "more")
    counted.clear()
    assert len(again) == 4 and not counted
    whole = swept(data, KEEPS[:1], methods=methods, seeds=seeds, save_to=tmp_path / "all", resume=True)
    assert not counted and all(isinstance(one, Finished) for one in whole)
    for one, before in zip(whole, found, strict=True):
        assert one.plan.groups == before.plan.groups and one.report.pruned == before.report.pruned
        assert torch.equal(one.model(data()[0]), before.model(data()[0]))


def test_a_finished_run_of_something_else_is_refused(tmp_path: Path) -> None:
    swept(keeps=KEEPS[:1], method="flap", save_to=tmp_path / "all")
    for more in ({"method": "l2"}, {"method": "flap", "norms": True}, {"method": "flap", "calibration": data(1)}):
        with pytest.raises(ArtifactError, match="another one"):
            swept(keeps=KEEPS[:1], save_to=tmp_path / "all", resume=True, **more)
    both = swept(method="flap", save_to=tmp_path / "all", resume=True)
    assert [type(one) for one in both] == [Finished, ap.Result]


def test_processes_do_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By loky; the second budget's folder is there already, and a result without a folder has its network."""
    counted = passes(monkeypatch)
    here = swept(method="flap", save_to=tmp_path / "here")
    counted.clear()
    swept(keeps=KEEPS[1:], method="flap", save_to=tmp_path / "there")
    there = swept(method="flap", save_to=tmp_path / "there", resume=True, jobs=2)
    assert len(counted) == 2 and sorted(path.name for path in tmp_path.iterdir()) == ["here", "there"]
    assert [one.plan.groups for one in there] == [one.plan.groups for one in here]
    for name in ("params-70", "params-50"):
        one, other = (tmp_path / place / name / "weights.safetensors" for place in ("here", "there"))
        assert one.read_bytes() == other.read_bytes()
    with joblib.parallel_config("threading"):
        (free,) = swept(keeps=KEEPS[:1], method="flap", jobs=2)
    assert not free.folder.exists() and torch.equal(free.model(data()[0]), here[0].model(data()[0]))


def test_an_interrupted_sweep_of_methods_goes_on(tmp_path: Path) -> None:
    """One method is through: what is left is asked for by the same sweep all the same."""
    given: dict[str, Any] = {"methods": ("l2", "flap"), "save_to": tmp_path / "half"}
    half = ap.sweep(build("chain")[0], data(), KEEPS[:1], evaluate=spread, **given)
    next(half)
    half.close()  # type: ignore[attr-defined]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "half.unfinished"]
    found = swept(keeps=KEEPS[:1], resume=True, **given)
    assert [type(one) for one in found] == [Finished, ap.Result]
    assert found[1].plan.groups == alone(KEEPS[0], "flap", 0, data()).plan.groups
    assert [path.name for path in tmp_path.iterdir()] == ["half"]


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({"jobs": 0}, DataError, "no number of processes"),
        ({"keeps": ["macs=50%", 0.5]}, BudgetError, "one run folder"),
        ({"methods": ["l2", "l2"]}, BudgetError, "one run folder"),
        ({"keeps": []}, BudgetError, "A sweep has no budget"),
        ({"keep": 0.5}, TypeError, "keeps"),
        ({"inplace": True}, TypeError, "inplace"),
        ({"method": ["l1", "l2"]}, TypeError, "methods="),
    ],
)
def test_what_can_not_be_swept(more: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        swept(**more)


def test_a_sweep_is_not_for_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(DistributedError, match="jobs="):
        swept()
