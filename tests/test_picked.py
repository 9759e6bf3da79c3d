"""Rows that the data picks: each expert of a mixture is given the tokens that a router sends to it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import actprune as ap
from actprune.axes.picked import keys_of, picking

EXPERTS = 3


class Expert(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)))


class Mixture(nn.Module):
    def __init__(self, width: int, hidden: int, chosen: int) -> None:
        super().__init__()
        self.chosen, self.router = chosen, nn.Linear(width, EXPERTS)
        self.experts = nn.ModuleList(Expert(width, hidden) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        shares, numbers = self.router(x).softmax(-1).topk(self.chosen, -1)
        found = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, place = torch.where(numbers == number)
            found = found.index_add(0, rows, expert(x[rows]) * shares[rows, place, None])
        return found


class Network(nn.Module):
    def __init__(self, layers: int = 2, chosen: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.out = nn.Linear(12, 16), nn.Linear(16, 3)
        self.mixtures = nn.ModuleList(Mixture(16, 24, chosen) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for mixture in self.mixtures:
            x = x + mixture(x)
        return self.out(x)


def _data() -> list[Tensor]:
    return list(torch.randn(256, 12, generator=torch.Generator().manual_seed(1)).split(32))


def test_the_axes_that_count_picked_rows_are_known() -> None:
    graph = ap.capture(Network(1).eval(), _data()[0])
    calls = picking(graph)
    assert len(calls) == EXPERTS
    counting = frozenset[int]().union(*calls.values())
    picked = [node for node in graph.program.nodes if not keys_of(graph, node).isdisjoint(counting)]
    layers = {site.module for site in graph.sites if site.node in {node.name for node in picked}}
    assert layers == {f"mixtures.0.experts.{i}.{name}" for i in range(EXPERTS) for name in ("up", "down")}


@pytest.mark.parametrize("chosen", [1, 2])
@pytest.mark.parametrize("method", ["sgd-ap", "l2", "flap", "grail"])
def test_mixtures_are_cut_and_proved(method: str, chosen: int) -> None:
    """Also where an expert gets no token in some batch, and where the cut network sends tokens elsewhere."""
    result = ap.prune(Network(chosen=chosen).eval(), _data(), keep="macs=50%", method=method)
    assert result.proof.passed


def test_experts_are_refitted() -> None:
    model, data = Network(chosen=2).eval(), _data()
    graph = ap.capture(model, data[0])
    found = ap.guide(graph, ap.collect(graph, data))
    widths = {group.name: group.width // 2 for group in graph.groups if "experts" in group.name}
    plan = ap.make_plan(graph, found.supports(widths))
    with torch.no_grad():
        dense = torch.cat([model(x) for x in data])
        errors = [
            float((torch.cat([ap.cut(model, plan, rewrite)(x) for x in data]) - dense).square().mean())
            for rewrite in (ap.compensate(graph, plan, data, method=how) for how in ("none", "least_squares"))
        ]
    assert errors[1] < 0.8 * errors[0]


def test_single_rows_are_told_apart_by_their_number() -> None:
    """Of one sample at a time, each expert gets one row or none: no axis counts them."""
    data = list(torch.randn(8, 12, generator=torch.Generator().manual_seed(1)).split(1))
    assert ap.prune(Network(chosen=2).eval(), data, keep="macs=50%").proof.passed


class Counted(nn.Module):
    """How many rows are picked becomes the size of a new tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.hidden(x)[(x[:, 0] > 0).nonzero().squeeze(1)].relu()
        return self.head(rows * rows.new_ones(rows.shape[0], 1)).sum(0)


@pytest.mark.parametrize("method", ["l2", "flap"])
def test_a_number_of_rows_that_becomes_a_size_is_told_with_its_place(method: str) -> None:
    x = torch.arange(1.0, 49.0).view(8, 6)
    with pytest.raises(ap.DataError, match="does not fit the captured graph") as error:
        ap.prune(Counted().eval(), [x, x * torch.tensor([1.0, -1.0] * 4)[:, None]], keep="macs=50%", method=method)
    assert "calibration batch 2, aten.mul.Tensor at the model, test_picked.py:" in str(error.value)


class Masked(nn.Module):
    """Goes on with the tokens that a mask takes.

    Args:
        by: "input": of the input; "units": of what the cut changes; "positions": the same ones of every sample;
            "back": those of the input, whose results are written back.
    """

    def __init__(self, by: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.between, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        h = self.hidden(x).relu()
        if self.by == "positions":
            return self.head(self.between(h[:, torch.tensor([True, False, True, True, False])]).relu())
        mask = (h.sum(-1) > 1.0) if self.by == "units" else x[..., 0] > 0
        rows = self.between(h[mask]).relu()
        if self.by == "back":
            found = torch.zeros_like(h)
            found[mask] = rows
            return self.head(h + found)
        return self.head(rows)


@pytest.mark.parametrize("by", ["input", "positions", "back"])
@pytest.mark.parametrize("method", ["sgd-ap", "flap", "l2"])
def test_what_a_mask_takes_is_cut_and_proved(method: str, by: str) -> None:
    data = torch.randn(32, 5, 6, generator=torch.Generator().manual_seed(1)).split(8)
    result = ap.prune(Masked(by).eval(), list(data), keep="macs=50%", method=method)
    assert result.proof.passed
    assert set(result.plan.widths) == ({"hidden"} if by == "back" else {"hidden", "between"})


class MaskedTable(nn.Module):
    """Rows of a table of parameters, chosen by a mask."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Parameter(torch.randn(8, 16)), nn.Linear(16, 3)
        self.register_buffer("mask", torch.tensor([True, False] * 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.head(torch.tanh(self.table[self.get_buffer("mask")]))


def test_a_table_under_a_mask_makes_its_units() -> None:
    result = ap.prune(MaskedTable().eval(), list(torch.randn(32, 4, 3).split(8)), keep="params=50%", method="l2")
    assert result.proof.passed and set(result.plan.widths) == {"table"}


def test_numbers_of_rows_that_a_cut_changes_are_no_ones_to_compare() -> None:
    data = torch.randn(64, 6, generator=torch.Generator().manual_seed(1)).split(8)
    assert ap.prune(Masked("units").eval(), list(data), keep="macs=50%", method="l2").proof.passed
    with pytest.raises(ap.DataError, match="can't be compared") as error:
        ap.prune(Masked("units").eval(), list(data), keep="macs=50%")
    assert "how many rows come out" in str(error.value)
