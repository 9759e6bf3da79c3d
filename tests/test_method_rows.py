"""What the benchmarks of the method share: rows that are measured once, their table, and their loader."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from benchmarks.command import command  # noqa: E402
from benchmarks.method import cost  # noqa: E402
from benchmarks.method.rows import Rows, pivot  # noqa: E402
from benchmarks.method.sources import Batches, Images, flipped_and_shifted, idx  # noqa: E402


def test_a_row_is_measured_once_also_after_an_interruption(tmp_path: Path) -> None:
    rows = Rows("net", "python", tmp_path)
    key = {"method": "l2", "keep": "macs=50%", "stage": "pruned", "seed": 0}
    row = rows.measure(lambda: {"accuracy": 0.5}, **key)
    assert row["accuracy"] == 0.5 and row["seconds"] >= 0 and row["versions"]["torch"]
    with (tmp_path / ".method" / "net.jsonl").open("a") as file:
        file.write('{"method": "l1", "kee')  # a run that was ended while it wrote
    again = Rows("net", "python", tmp_path)
    assert again.has(**key) and not again.has(**{**key, "seed": 1})
    assert again.measure(lambda: pytest.fail("measured twice"), **key) == row
    again.measure(lambda: {"accuracy": 0.7}, **{**key, "seed": 1})
    assert len(Rows("net", "python", tmp_path).found) == 2
    again.write("table")
    assert len(json.loads((tmp_path / "net.json").read_text())["rows"]) == 2


def test_another_machine_goes_on_from_what_is_published(tmp_path: Path) -> None:
    published = {"method": "l2", "keep": "macs=50%", "accuracy": 0.5}
    (tmp_path / "net.json").write_text(json.dumps({"rows": [published]}))
    rows = Rows("net", "python", tmp_path)
    assert rows.measure(lambda: pytest.fail("it is known"), method="l2", keep="macs=50%") == published
    rows.measure(lambda: {"accuracy": 0.7}, method="l1", keep="macs=50%")
    rows.write("table")
    assert len(json.loads((tmp_path / "net.json").read_text())["rows"]) == 2
    assert Rows("net", "python", tmp_path, again=True).found == []


def test_no_folder_of_a_machine_stands_beside_a_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "stories", "--data", str(tmp_path)])
    assert command("benchmarks.method") == "python -m benchmarks.method stories --data FOLDER"


def test_a_table_gives_the_mean_over_seeds() -> None:
    rows = [{"method": "l2", "keep": "50%", "accuracy": value} for value in (0.5, 0.7)]
    found = pivot([*rows, {"method": "l1", "keep": "30%", "accuracy": 0.25}], ("method",), lambda r: r["keep"],
                  lambda r: r["accuracy"])  # fmt: skip
    assert found.splitlines()[0] == "| method | 50% | 30% |"
    assert found.splitlines()[2:] == ["| l2 | 60.00 ± 14.14 |  |", "| l1 |  | 25.00 |"]


def test_the_columns_of_a_table_stand_in_their_order() -> None:
    rows = [{"method": "l2", "keep": keep, "accuracy": 0.5} for keep in ("30%", "other", "50%")]
    found = pivot(rows, ("method",), lambda r: r["keep"], lambda r: r["accuracy"], order=("70%", "50%", "30%"))
    assert found.splitlines()[0] == "| method | 50% | 30% | other |"


def test_batches_hold_every_image_once_in_an_epoch() -> None:
    data = Images(torch.arange(10.0).view(10, 1, 1, 1).expand(10, 3, 8, 8), torch.arange(10))
    loader = Batches(data, 4, 0, lambda images: images + 0.5)
    first, second = (list(loader) for _ in range(2))
    assert len(loader) == len(first) == 3
    for epoch in (first, second):
        assert sorted(int(y) for _, labels in epoch for y in labels) == list(range(10))
        assert all(torch.equal(images[:, 0, 0, 0], labels + 0.5) for images, labels in epoch)
    assert not torch.equal(first[0][1], second[0][1])
    assert flipped_and_shifted(data.images).shape == data.images.shape


def test_an_idx_file(tmp_path: Path) -> None:
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2, 1, 2, 3, 4]))
    assert idx(path).tolist() == [[[1, 2], [3, 4]]]


def test_the_cost_of_a_cut_is_drawn_in_three_series(tmp_path: Path) -> None:
    points = cost.points()
    assert len(points) == len(cost.NETWORKS) * (sum(map(len, cost.SERIES.values())) - 2)
    rows = Rows("cost", "python", tmp_path)
    found = {
        "seconds": 20.0,
        "floor_seconds": 0.5,
        "seconds_by_stage": {"guide": 12.0, "allocate": 4.0},
        "params": 10,
        "peak_gb": 0.4,
    }
    for point in points:
        rows.measure(lambda point=point: {**point, **found}, model=point["model"], setting=str(point))
    text = cost.tables(rows)
    assert (
        text.count("| residual |") == 12
        and "| residual | 8 | 10 | 20.0 | 0.5 | 40 | guide 75%, allocate 25% | 0.4 |" in text
    )
    assert cost._drawing(rows.found).count("<polyline") == 12


def test_the_floor_is_a_forward_pass_and_a_gram_of_every_layer() -> None:
    model, inputs = cost.residual(1, 4, "cpu")
    assert cost.floor(model.eval(), (torch.randn_like(inputs),)) > 0
    assert not any(module._forward_pre_hooks for module in model.modules())
