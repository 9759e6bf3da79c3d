"""Calls in the widths that stay: the same values there, or the calls as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actprune.axes.capture import Graph, capture
from actprune.axes.expr import left_of
from actprune.compensation import blocks
from actprune.compensation.narrowed import WHOLE, Narrowed, narrowed
from actprune.compensation.refit import compensate
from actprune.plan import make_plan
from actprune.rewrite import kept_units


class Residual(nn.Module):
    """x + conv2(relu(bn(conv1 x))), and a head; or with a view in between that names the width."""

    def __init__(self, view: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn, self.conv2 = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 3, 3, padding=1),
        )
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1)
        self.head, self.view = nn.Linear(3, 4), view

    def forward(self, x: Tensor) -> Tensor:
        h = self.depthwise(F.relu(self.bn(self.conv1(x))))
        h = h.view(-1, 8, 5, 5) if self.view else h
        return self.head((x + self.conv2(h)).mean((2, 3)))


def graph_of(**how: Any) -> tuple[Graph, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(64, 3, 5, 5)
    return capture(Residual(**how).eval(), x[:16]), x


def between(graph: Graph, first: str, last: str) -> list[Any]:
    nodes = list(graph.program.nodes)
    names = [node.name for node in nodes]
    sites = {site.module: site.node for site in graph.sites}
    return [n for n in nodes[names.index(sites[first]) : names.index(sites[last]) + 1] if n.op == "call_function"]


def run_in(graph: Graph, narrow: Narrowed, calls: list[Any], x: Tensor) -> dict[Any, Tensor]:
    known: dict[Any, Any] = {}
    for node in calls:
        for source in node.all_input_nodes:
            if source not in known:
                name = graph.program.bindings.get(source.name)
                known[source] = narrow.value(source, x if name is None else graph.program.tensors[name].detach())
        known[node] = narrow.call(node, known)
    return known


def test_the_values_that_stay_are_the_same() -> None:
    graph, x = graph_of()
    kept = kept_units(graph, make_plan(graph, {"conv1": [1, 4, 6]}))
    calls = between(graph, "conv1", "depthwise")[:-1]
    narrow = narrowed(graph, kept, calls)
    dense, found = run_in(graph, WHOLE, calls, x[:16]), run_in(graph, narrow, calls, x[:16])
    assert narrow and not WHOLE
    for node in calls:
        assert found[node].shape == narrow.shape(node) and found[node].shape[1] == 3
        torch.testing.assert_close(found[node], dense[node][:, [1, 4, 6]])


def test_a_change_of_what_stays_is_one_of_the_whole() -> None:
    graph, _ = graph_of()
    kept = kept_units(graph, make_plan(graph, {"conv1": [1, 4], "depthwise": [0, 3, 7]}))
    narrow = narrowed(graph, kept, between(graph, "conv1", "conv2"))
    weight = graph.program.tensors["depthwise.weight"]
    part = narrow.tensor("depthwise.weight", weight)
    assert part.shape[:2] == (3, 2)
    whole = narrow.put("depthwise.weight", part, weight)
    assert whole.shape == weight.shape and torch.equal(narrow.tensor("depthwise.weight", whole), part)
    assert int((whole != 0).sum()) == part.numel()


class Grouped(nn.Module):
    """Two convolutions with a grouped one between them, and a norm of groups behind it."""

    def __init__(self, groups: int, transposed: bool = False, norm: bool = False) -> None:
        super().__init__()
        made = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)
        self.grouped = made(8, 8, 3, padding=1, groups=groups)
        self.norm, self.head = nn.GroupNorm(4, 8) if norm else nn.Identity(), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.grouped(F.relu(self.conv1(x))))
        return self.head(self.conv2(F.relu(h)).mean((2, 3)))


def read_by(graph: Graph, module: str) -> Any:
    return next(group for group in graph.groups if any(site.module == module for site in group.consumers))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("groups", "norm"), [(8, False), (4, False), (2, False), (4, True)])
def test_of_grouped_calls_the_groups_that_stay_are_counted(groups: int, norm: bool, transposed: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 5, 5)
    graph = capture(Grouped(groups, transposed, norm).eval(), x)
    cut = read_by(graph, "conv2")
    kept = kept_units(graph, make_plan(graph, {cut.name: range(cut.width // 2)}))
    calls = between(graph, "conv1", "conv2")[:-1]
    narrow = narrowed(graph, kept, calls)
    dense, found = run_in(graph, WHOLE, calls, x), run_in(graph, narrow, calls, x)
    last = calls[-1]
    assert narrow and found[last].shape == narrow.shape(last) and found[last].shape[1] < 8
    torch.testing.assert_close(found[last], narrow.value(last, dense[last]))


def test_calls_that_name_a_width_stay_as_they_are() -> None:
    graph, _ = graph_of(view=True)
    kept = kept_units(graph, make_plan(graph, {read_by(graph, "conv2").name: [0, 3]}))
    assert any(left_of(axis, kept) is not None for axis in graph.tensor_axes["conv2.weight"])
    assert not narrowed(graph, kept, between(graph, "conv1", "conv2"))


class OverTime(nn.Module):
    """A layer over the steps, then two over the features of each: both kinds of units are cut."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.up, self.down, self.head = (nn.Linear(*n) for n in ((6, 12), (5, 16), (16, 5), (12, 3)))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.steps(x)).transpose(1, 2)
        return self.head(F.relu(self.down(F.relu(self.up(h)))).transpose(1, 2))


def test_positions_that_are_cut_are_those_of_the_target() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 5, 6)
    graph = capture(OverTime().eval(), x[:64])
    plan = make_plan(graph, {"steps": range(5), "up": range(7)})
    assert compensate(graph, plan, x, method="reconstruct").record["blocks"]


def test_blocks_come_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x = graph_of()
    plan = make_plan(graph, {"conv1": [1, 4, 6], "depthwise": [0, 2, 3, 7]})
    tried: list[bool] = []

    def spied(*given: Any) -> Narrowed:
        found = narrowed(*given)
        tried.append(bool(found))
        return found

    def fitted() -> dict[str, Any]:
        return dict(compensate(graph, plan, x, method="reconstruct").record["blocks"])

    monkeypatch.setattr(blocks, "narrowed", spied)
    narrow = fitted()
    monkeypatch.setattr(blocks, "narrowed", lambda *_: WHOLE)
    whole = fitted()
    assert tried and all(tried) and narrow.keys() == whole.keys()
    for name, block in narrow.items():
        assert block["left"] < 1 and block["left"] == pytest.approx(whole[name]["left"], rel=0.1)
