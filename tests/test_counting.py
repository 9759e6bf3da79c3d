"""Widths that are one number, and stacks: as many units stay of each part, and each keeps its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actprune.axes.capture import capture
from actprune.errors import PlanError
from actprune.plan import make_plan
from actprune.proof.check import verify
from actprune.repair.adapt import capture as adapted
from actprune.report.inspection import inspect
from actprune.surgery.graph_form import as_graph
from actprune.surgery.slicing import cut

Parts = Callable[[Tensor, int], tuple[Tensor, ...]]
"""(tokens, 3 · heads · size), heads → q, k and v, each (samples, heads, tokens, size)."""


def unbound(y: Tensor, heads: int) -> tuple[Tensor, ...]:
    b, t, n = y.shape
    return y.reshape(b, t, 3, heads, n // (3 * heads)).permute(2, 0, 3, 1, 4).contiguous().unbind(0)


def selected(y: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Of each head its own q | k | v."""
    b, t, n = y.shape
    y = y.view(b, t, heads, 3, n // (3 * heads)).unsqueeze(0)[0].transpose(1, 2)
    return y[..., 0, :], y[..., 1, :], y[..., -1, :]


def folded(y: Tensor, heads: int) -> tuple[Tensor, ...]:
    """A view leaves q | k | v as they are, and folds the heads into the samples."""
    b, t, _ = y.shape
    y = y.reshape(b, t, 3, heads, -1).permute(2, 0, 3, 1, 4).reshape(3, b * heads, t, -1)
    return tuple(part.view(b, heads, t, -1) for part in y.unbind(0))


def chunked(y: Tensor, heads: int) -> tuple[Tensor, ...]:
    return tuple(part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in y.chunk(3, -1))


class Attention(nn.Module):
    """One attention of 2 heads of 4, and what it does with q | k | v."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out, self.parts = nn.Linear(6, 24), nn.Linear(8, 3), parts

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(self.qkv(x), 2)
        y = (0.5 * q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2)).mean(1)


@pytest.mark.parametrize("parts", [unbound, selected, folded, chunked])
def test_values_keep_units_of_their_own(parts: Parts) -> None:
    """As many as queries and keys, since the class has one number for all; heads go together."""
    model, x = Attention(parts).eval(), torch.randn(5, 7, 6)
    graph = adapted(model, x)
    groups = {group.name: (group.width, group.kind) for group in graph.groups}
    assert groups == {"qkv#1": (2, "heads"), "qkv#2": (4, "head dims"), "qkv#3": (4, "head dims")}
    assert graph.peers["qkv#2"] == ("qkv#2", "qkv#3")
    plan = make_plan(graph, {"qkv#1": [1], "qkv#2": [0, 2], "qkv#3": [1, 2]})
    small: Any = cut(model, plan)
    assert (small.qkv.out_features, small.out.in_features) == (6, 2)
    assert verify(model, small, plan, x, graph=graph).passed
    plain = capture(model, x)
    plan = make_plan(plain, {name: group.kept for name, group in plan.groups.items()})
    assert verify(model, as_graph(model, plain, plan), plan, x, graph=plain).passed
    with pytest.raises(PlanError, match="can't have different widths"):
        make_plan(graph, {"qkv#2": [0, 2]})


def test_inspect_names_the_groups_of_one_width() -> None:
    found = inspect(adapted(Attention(unbound).eval(), torch.randn(5, 7, 6)))
    assert [group.peers for group in found.groups] == [(), ("qkv#3",), ("qkv#2",)]
    head, *rows = [line.split() for line in str(found).splitlines() if line.strip().startswith(("group ", "qkv#"))]
    assert head[-3:] == ["one", "width", "with"]
    assert [row[-1] for row in rows] == ["out", "qkv#3", "qkv#2"]


def read_whole(y: Tensor, heads: int) -> tuple[Tensor, ...]:
    q, k, v = unbound(y, heads)
    b, t, n = y.shape
    return q, k, v + y.reshape(b, t, 3, heads, n // (3 * heads)).mean(2).transpose(1, 2)


def shifted(y: Tensor, heads: int) -> tuple[Tensor, ...]:
    """A call that does more than to rearrange, before the parts are taken."""
    b, t, n = y.shape
    return (y.reshape(b, t, 3, heads, n // (3 * heads)) + 1).permute(2, 0, 3, 1, 4).unbind(0)


def windows(y: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Seven dimensions, as windows of pictures have them; the last of three rows is read."""
    b, _, n = y.shape
    y = y.reshape(b, 3, 2, 2, 3, heads, n // (3 * heads)).permute(4, 0, 5, 2, 1, 3, 6)
    return tuple(part[:, :, :, 2].flatten(2, 3) for part in y.unbind(0))


def test_a_stack_of_seven_dimensions() -> None:
    model, x = Attention(windows).eval(), torch.randn(4, 12, 6)
    graph = adapted(model, x)
    assert [group.name for group in graph.groups] == ["qkv#1", "qkv#2", "qkv#3"]
    plan = make_plan(graph, {"qkv#1": [1], "qkv#2": [0, 2], "qkv#3": [1, 2]})
    assert verify(model, cut(model, plan), plan, x, graph=graph).passed


@pytest.mark.parametrize("parts", [read_whole, shifted])
def test_what_is_read_as_a_whole_has_one_set_of_units(parts: Parts) -> None:
    model, x = Attention(parts).eval(), torch.randn(5, 7, 6)
    graph = adapted(model, x)
    assert {group.name: group.width for group in graph.groups} == {"qkv#1": 2, "qkv#2": 4}
    plan = make_plan(graph, {"qkv#1": [1], "qkv#2": [0, 2]})
    assert verify(model, cut(model, plan), plan, x, graph=graph).passed


class Grid(nn.Module):
    """Rows of a stack, which a view divides and a loop takes apart as well."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.out = nn.Linear(6, 24), nn.ModuleList(nn.Linear(4, 5) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu().view(-1, 2, 12).transpose(1, 2).reshape(-1, 3, 4, 2)
        return sum(out(y[:, i // 2, :, i % 2]) for i, out in enumerate(self.out))  # type: ignore[return-value]


def test_of_a_stack_that_is_taken_apart_twice_one_dimension_has_units_of_its_own() -> None:
    model, x = Grid().eval(), torch.randn(5, 6)
    graph = adapted(model, x)
    assert {group.name: group.width for group in graph.groups} == {"first#1": 4, "first#2": 4}
    plan = make_plan(graph, {"first#1": [0, 2], "first#2": [1, 2]})
    assert verify(model, cut(model, plan), plan, x, graph=graph).passed


class Halves(nn.Module):
    """Two of three parts are read, one of them by a norm."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.left, self.right = nn.Linear(6, 12), nn.Linear(4, 5), nn.Linear(4, 5)
        self.norm = nn.LayerNorm(4) if norm else nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        left, right, _ = self.first(x).relu().view(-1, 3, 4).unbind(1)
        return self.left(left) + self.right(self.norm(right))


def test_a_part_that_nothing_reads_goes_with_the_others() -> None:
    model, x = Halves(norm=False).eval(), torch.randn(5, 6)
    graph = adapted(model, x)
    assert {group.name: group.width for group in graph.groups} == {"first": 4}
    plan = make_plan(graph, {"first": [0, 2, 3]})
    small: Any = cut(model, plan)
    assert small.first.out_features == 9
    assert verify(model, small, plan, x, graph=graph).passed


def test_a_part_that_stays_whole_keeps_the_others_whole() -> None:
    assert adapted(Halves(norm=True).eval(), torch.randn(5, 6), norms=False).groups == ()


class Sized(nn.Module):
    """Of what the first layer makes only the size is used: zeros as large are read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.zeros_like(self.first(x)))


def test_zeros_that_nothing_makes_go_with_what_they_have_the_size_of() -> None:
    model, x = Sized().eval(), torch.randn(4, 6)
    graph = adapted(model, x)
    assert [(group.name, group.width) for group in graph.groups] == [("first", 8)]
    plan = make_plan(graph, {"first": [0, 1, 5]})
    assert verify(model, cut(model, plan), plan, x, graph=graph).passed


class Cells(nn.Module):
    """Two cells that start from zeros of one size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden = 8
        self.first, self.second = nn.GRU(5, 8, batch_first=True), nn.GRU(8, 8, batch_first=True)
        self.out = nn.Linear(8, 3)

    def start(self, x: Tensor) -> Tensor:
        return torch.zeros(1, len(x), self.hidden)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.first(x, self.start(x))
        y, _ = self.second(y, self.start(x))
        return self.out(y[:, -1])


def test_cells_that_start_from_one_number_keep_units_of_their_own() -> None:
    model, x = Cells().eval(), torch.randn(4, 6, 5)
    graph = adapted(model, x)
    assert graph.peers["first"] == ("first", "second")
    plan = make_plan(graph, {"first": [0, 1, 2], "second": [5, 6, 7]})
    small: Any = cut(model, plan)
    assert small.hidden == 3
    assert verify(model, small, plan, x, graph=graph).passed


class Mean(nn.Module):
    """Divides by how many units there are, which ones in their place say."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.out, self.gain = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        count = torch.ones_like(y).sum(-1, keepdim=True)
        return self.out(y) + self.gain(y.sum(-1, keepdim=True) / count)


def test_ones_that_no_weight_reads_are_masked_with_what_they_are_like() -> None:
    model, x = Mean().eval(), torch.randn(5, 6)
    graph = adapted(model, x)
    plan = make_plan(graph, {"first": [0, 2, 3]})
    assert verify(model, cut(model, plan), plan, x, graph=graph).passed
