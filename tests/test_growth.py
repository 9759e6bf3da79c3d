"""The growth benchmark without its measurements: its table, its drawing, and that its networks can be planned."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from benchmarks.growth import NETWORKS, POINTS, drawing, measure, table  # noqa: E402
from benchmarks.line_plot import Panel, svg, ticks  # noqa: E402

ROW: dict[str, Any] = {
    "network": "residual",
    "series": "depth",
    "depth": 2,
    "width": 1024,
    "params": 12_345,
    "nodes": 100,
    "groups": 3,
    "trace_seconds": 0.4,
    "groups_seconds": 0.06,
    "plan_seconds": 0.04,
    "peak_gb": 0.35,
    "peak_gb_before": 0.3,
}


def test_the_table_has_a_part_per_series_and_milliseconds_per_node():
    text = table([ROW, {**ROW, "series": "width", "nodes": 50}])
    assert "## Depth" in text and "## Width" in text
    assert "| residual | 2 | 1,024 | 12,345 | 100 | 3 | 0.40 | 0.06 | 0.04 | 5.00 | 0.35 | 0.30 |" in text
    assert "| 50 | 3 | 0.40 | 0.06 | 0.04 | 10.00 |" in text


def test_the_drawing_is_a_page_of_its_own_with_one_line_per_network():
    rows = [{**ROW, "network": net, "series": series} for net in ("a", "b") for series in ("depth", "width")]
    page = ElementTree.fromstring(drawing(rows))
    lines = page.findall(".//{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 8  # two networks in four panels


def test_a_point_lies_where_its_numbers_are():
    page = ElementTree.fromstring(svg([Panel("<title>", "n", {"line": [(0, 0), (10, 10)]})]))
    line = page.find(".//{http://www.w3.org/2000/svg}polyline")
    assert line is not None and line.get("points") == "44.0,200.0 284.0,30.0"


@pytest.mark.parametrize(
    ("most", "last", "count"), [(10, 10, 6), (3.1, 4, 5), (0.448, 0.5, 6), (2048, 2500, 6), (0, 1, 2)]
)
def test_ticks_are_round_and_reach_the_largest(most: float, last: float, count: int):
    found = ticks(most)
    assert found[0] == 0 and found[-1] == pytest.approx(last) and len(found) == count


@pytest.mark.parametrize("net", ["transformer", "residual"])
def test_the_networks_are_planned_without_memory_for_their_weights(net: str):
    row = measure((net, "depth", 2, 64))
    model, _ = NETWORKS[net](2, 64)
    assert all(p.device == torch.device("meta") for p in model.parameters())
    assert row["params_left"] < 0.9 and row["groups"] >= 3


def test_depth_and_width_cross_at_one_network_of_each_kind():
    depth = {(net, depth, width) for net, series, depth, width in POINTS if series == "depth"}
    width = {(net, depth, width) for net, series, depth, width in POINTS if series == "width"}
    assert len(depth) == len(width) == 12 and len(depth & width) == 2
