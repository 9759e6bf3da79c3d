"""Products with several matrices at once are layers like any other: one for each matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import actprune as ap

pytestmark = pytest.mark.accurate

MEMBERS, WIDTH, INPUTS, OUTPUTS = 3, 8, 6, 4


class Separate(nn.Module):
    """An ensemble of linear layers, the outputs beside each other: (B, INPUTS) → (B, MEMBERS, OUTPUTS)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(INPUTS, WIDTH) for _ in range(MEMBERS))
        self.second = nn.ModuleList(nn.Linear(WIDTH, OUTPUTS) for _ in range(MEMBERS))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([b(torch.tanh(a(x))) for a, b in zip(self.first, self.second, strict=True)], 1)


class Stacked(nn.Module):
    """The same in two products, written as `forward` says; weights are (members, inputs, outputs)."""

    def __init__(self, like: Separate, form: str) -> None:
        super().__init__()
        self.form = form
        parts: list[tuple[str, Any]] = [("1", like.first), ("2", like.second)]
        for name, layers in parts:
            weight = torch.stack([layer.weight.detach().T for layer in layers])
            bias = torch.stack([layer.bias.detach() for layer in layers])
            if form == "rows behind":  # "eoi,bei->beo"
                weight = weight.transpose(1, 2).contiguous()
            self.register_parameter(f"w{name}", nn.Parameter(weight))
            self.register_parameter(f"b{name}", nn.Parameter(bias[:, None] if form in ("bmm", "@") else bias))

    def forward(self, x: Tensor) -> Tensor:
        return FORMS[self.form](self, x)


def _bmm(m: Any, x: Tensor) -> Tensor:
    hidden = torch.tanh(torch.bmm(x.expand(MEMBERS, -1, -1), m.w1) + m.b1)
    return (torch.bmm(hidden, m.w2) + m.b2).transpose(0, 1)


def _broadcast(m: Any, x: Tensor) -> Tensor:
    return (torch.tanh(x[None] @ m.w1 + m.b1) @ m.w2 + m.b2).transpose(0, 1)


def _einsum(m: Any, x: Tensor) -> Tensor:
    hidden = torch.tanh(torch.einsum("bi,eio->beo", x, m.w1) + m.b1)
    return torch.einsum("bei,eio->beo", hidden, m.w2) + m.b2


def _rows_behind(m: Any, x: Tensor) -> Tensor:
    hidden = torch.tanh(torch.einsum("eoi,bi->beo", m.w1, x) + m.b1)
    return torch.einsum("eoi,bei->beo", m.w2, hidden) + m.b2


FORMS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "bmm": _bmm, "@": _broadcast, "einsum": _einsum, "rows behind": _rows_behind,
}  # fmt: skip


@pytest.fixture(params=FORMS)
def pair(request: pytest.FixtureRequest) -> tuple[Separate, Stacked]:
    torch.manual_seed(0)
    separate = Separate().eval()
    return separate, Stacked(separate, request.param).eval()


def _data(batches: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, INPUTS, generator=generator) for _ in range(batches)]


def test_the_statistics_are_those_of_separate_layers(pair: tuple[Separate, Stacked]) -> None:
    alone, together = (ap.collect(ap.capture(model, _data()[0]), _data()) for model in pair)
    wanted = [alone.moments(name) for name in alone.sites]  # of the second layers, whose inputs are units
    found = [together.moments(name) for name in together.sites]
    assert len(found) == len(wanted) == MEMBERS
    for one, other in zip(found, wanted, strict=True):
        assert one.count == other.count
        torch.testing.assert_close(one.covariance, other.covariance)


def test_every_fold_has_the_same_samples(pair: tuple[Separate, Stacked]) -> None:
    alone, together = (ap.collect(ap.capture(model, _data()[0]), _data()) for model in pair)
    for one, other in zip(together.sites.values(), alone.sites.values(), strict=True):
        for fold, wanted in zip(one, other, strict=True):
            torch.testing.assert_close(fold.mean, wanted.mean)


def test_the_refit_is_that_of_separate_layers(pair: tuple[Separate, Stacked]) -> None:
    kept = [0, 2, 3, 6]
    x = _data(1)[0]
    results: list[Tensor] = []
    for model in pair:
        graph = ap.capture(model, x)
        plan = ap.make_plan(graph, {group.name: kept for group in graph.groups})
        found = ap.compensate(graph, plan, _data(), rounds=0)
        with torch.no_grad():
            results.append(ap.cut(model, plan, found)(x))
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4)


def test_a_bias_behind_that_something_else_reads_stays() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.w2 = (nn.Parameter(torch.randn(MEMBERS, 8, 8)) for _ in range(2))
            self.b1, self.b2 = (nn.Parameter(torch.randn(MEMBERS, 1, 8)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x @ self.w1 + self.b1) @ self.w2 + self.b2 + self.b2.abs().sum()

    torch.manual_seed(0)
    model, data = Reading().eval(), [torch.randn(MEMBERS, 16, 8) for _ in range(8)]
    graph = ap.capture(model, data[0])
    found = ap.compensate(graph, ap.make_plan(graph, {"w1": [0, 1, 5]}), data)
    assert "b2" not in found.tensors
    assert "w2" in found.tensors


class Experts(nn.Module):
    """A mixture: each token goes to the expert that a router names; the rows are sorted by expert."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, MEMBERS)
        self.up = nn.Parameter(torch.randn(MEMBERS, 8, 32) / 3)
        self.down = nn.Parameter(torch.randn(MEMBERS, 32, 8) / 6)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        expert = self.router(rows).argmax(-1)
        order = expert.argsort(stable=True)
        ends = torch.zeros(MEMBERS, dtype=torch.int32).index_add(0, expert, torch.ones_like(expert, dtype=torch.int32))
        ends = ends.cumsum(0).to(torch.int32)
        hidden = torch.tanh(F.grouped_mm(rows[order], self.up, offs=ends))
        made = F.grouped_mm(hidden, self.down, offs=ends)
        return made[order.argsort()].view_as(x)


def test_experts_are_ranked_and_refitted_one_by_one() -> None:
    torch.manual_seed(0)
    model = Experts().eval()
    data = [torch.randn(4, 12, 8) @ torch.randn(8, 8) for _ in range(8)]
    graph = ap.capture(model, data[0])
    (group,) = graph.groups
    (reader,) = group.consumers
    stats = ap.collect(graph, data)
    counts = [stats.moments(f"{reader.name}#{number}").count for number in range(MEMBERS)]
    with torch.no_grad():
        chosen = torch.cat([model.router(x).argmax(-1).flatten() for x in data])
    assert counts == torch.bincount(chosen, minlength=MEMBERS).tolist()
    plan = ap.make_plan(graph, {group.name: ap.guide(graph, stats).kept(group.name, 16)})
    with torch.no_grad():
        dense, *others = (
            torch.cat([one(x) for x in data])
            for one in (model, *(ap.cut(model, plan, ap.compensate(graph, plan, data, method=m)) for m in METHODS))
        )
    plain, refitted = (float((other - dense).square().mean()) for other in others)
    assert refitted < 0.8 * plain


METHODS = ("none", "least_squares")


class Gated(nn.Module):
    """Hidden units that a product of three operands reads."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.gate = nn.Linear(6, 8), nn.Linear(6, MEMBERS)
        self.weight = nn.Parameter(torch.randn(MEMBERS, 8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bh,eho,be->bo", torch.tanh(self.into(x)), self.weight, self.gate(x).softmax(-1))


def test_the_report_tells_of_products_without_a_refit() -> None:
    torch.manual_seed(0)
    result = ap.prune(Gated(), _data(), keep="macs=50%")
    assert result.proof.passed
    assert any("ranked by weights alone" in note for note in result.report.notes)


class OneByOne(nn.Module):
    """Matrices of one parameter, each taken by itself: as experts that are visited in a loop have them."""

    def __init__(self, how: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.how = nn.Linear(6, 8), nn.Linear(8, 3), how
        self.w, self.b = nn.Parameter(torch.randn(2, 8, 10)), nn.Parameter(torch.randn(2, 10))
        self.v = nn.Parameter(torch.randn(2, 10, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        experts = zip(self.w, self.b, self.v, strict=True)
        return self.last(sum(torch.relu(self.how(x, w, b)).matmul(v) for w, b, v in experts))


@pytest.mark.parametrize(
    "how",
    [lambda x, w, b: x @ w.float() + b, lambda x, w, b: torch.addmm(b, x, w), lambda x, w, b: F.linear(x, w.t(), b)],
    ids=["matmul", "addmm", "linear"],
)
def test_matrices_that_are_taken_one_by_one(how: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    model, x = OneByOne(how).eval(), torch.randn(4, 6)
    graph = ap.capture(model, x)
    assert {group.name: group.width for group in graph.groups} == {"first": 8, "w": 10, "v": 8}
    plan = ap.make_plan(graph, {"first": [0, 3], "w": [1, 2, 5], "v": [4, 6]})
    assert ap.verify(model, ap.cut(model, plan), plan, x, graph=graph).passed


class Grouped(nn.Module):
    """A block-diagonal layer: the weight of a linear layer, viewed as a matrix for each group of inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.blocks, self.last, self.groups = nn.Linear(6, 16), nn.Linear(8, 20), nn.Linear(20, 3), 2

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x)).unflatten(-1, (self.groups, -1))
        weight = self.blocks.weight.view(self.groups, -1, x.shape[-1]).transpose(1, 2)
        return self.last(torch.bmm(x.transpose(0, 1), weight).transpose(0, 1).flatten(1))


def test_a_weight_that_is_viewed_as_several_matrices() -> None:
    model, x = Grouped().eval(), torch.randn(4, 6)
    graph = ap.capture(model, x)
    assert {group.name: group.width for group in graph.groups} == {"first#1": 8, "first#2": 2, "blocks.weight": 10}
    plan = ap.make_plan(graph, {"first#1": [1, 3, 4], "first#2": [1], "blocks.weight": [0, 4]})
    assert ap.verify(model, ap.cut(model, plan), plan, x, graph=graph).passed


# -- projections to several dimensions, or from several, at once -------------------------------------

PROJECTIONS: dict[str, tuple[str, tuple[int, ...]]] = {
    "as Keras has it": ("btc,chd->bthd", (0, 1, 2)),
    "rows in front": ("btc,hdc->bthd", (1, 2, 0)),
    "weight first": ("chd,btc->bthd", (0, 1, 2)),
    "heads in front": ("btc,chd->bhtd", (0, 1, 2)),
    "dots": ("...c,chd->...hd", (0, 1, 2)),
}
"""Name → the equation, and the order of the weight's dimensions of (inputs, heads, size)."""


class Projecting(nn.Module):
    """Neurons that a projection to HEADS · SIZE outputs reads, as an einsum; without an equation as a linear layer."""

    HEADS, SIZE = 2, 3

    def __init__(self, weight: Tensor, bias: Tensor, equation: str = "") -> None:
        super().__init__()
        torch.manual_seed(2)
        self.equation, self.hidden = equation, nn.Linear(INPUTS, WIDTH)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.hidden(x))
        if not self.equation:
            return F.linear(hidden, self.weight, self.bias).unflatten(-1, (self.HEADS, self.SIZE))
        operands = (self.weight, hidden) if self.equation.startswith("chd") else (hidden, self.weight)
        made = torch.einsum(self.equation, *operands)
        if self.equation.endswith("bhtd"):
            return (made + self.bias).transpose(1, 2)
        return made + self.bias


@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_projection_to_several_dimensions_is_a_linear_layer(name: str) -> None:
    equation, order = PROJECTIONS[name]
    torch.manual_seed(0)
    weight, bias = torch.randn(WIDTH, 2, 3), torch.randn(2, 3)
    plain = Projecting(weight.reshape(WIDTH, -1).T.contiguous(), bias.reshape(-1)).eval()
    shaped = bias[:, None] if equation.endswith("bhtd") else bias
    several = Projecting(weight.permute(order).contiguous(), shaped, equation).eval()
    data = [x.unflatten(0, (4, 4)) for x in _data()]
    outputs: list[Tensor] = []
    for model in (plain, several):
        graph = ap.capture(model, data[0])
        (group,) = graph.groups
        (reader,) = group.consumers
        assert reader.kind in ("linear", "stacked")
        plan = ap.make_plan(graph, {group.name: [0, 2, 3, 6]})
        found = ap.compensate(graph, plan, data)
        with torch.no_grad():
            outputs.append(ap.cut(model, plan, found)(data[0]))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
