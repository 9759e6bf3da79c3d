"""Norms over what stays: axes that a norm runs over are cut within a branch by default, streams on request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import actprune as ap
from actprune.artifacts.checkpoint import proved_folder
from actprune.axes.twins import TWINS
from actprune.composing import composed
from actprune.forms import alone, capture_form
from actprune.plan import make_plan
from actprune.proof.check import verify
from actprune.repair.adapt import capture, trial_units
from actprune.surgery.graph_form import as_graph
from actprune.surgery.slicing import cut

WIDTH = 12


class WrittenOut(nn.Module):
    """An RMS norm as decoders write it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Standardised(nn.Module):
    """Mean and variance by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt() + x.std(-1, keepdim=True)


class Responses(nn.Module):
    """Global response normalisation (Woo et al. 2023): the norm over all tokens, relative to the mean over channels."""

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        return x + x * (norm / (norm.mean(-1, keepdim=True) + 1e-6))


NORMS: dict[str, Callable[[], nn.Module]] = {
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "layer norm without weights": lambda: nn.LayerNorm(WIDTH, elementwise_affine=False),
    "rms norm": lambda: nn.RMSNorm(WIDTH),
    "written out": WrittenOut,
    "standardised": Standardised,
    "responses": Responses,
}


class Block(nn.Module):
    """An embedding, a normalised residual branch, and a head."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.norm = nn.Embedding(10, WIDTH), norm
        self.up, self.down, self.head = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x)


@pytest.mark.parametrize("name", NORMS)
def test_width_is_cut_on_request(name: str) -> None:
    model, tokens = Block(NORMS[name]()).eval(), torch.randint(0, 10, (2, 5))
    assert {group.kind for group in capture(model, tokens).groups} == {"neurons"}
    graph = capture(model, tokens, norms=True)
    assert [(group.kind, group.width) for group in graph.groups] == [("width", WIDTH), ("neurons", 8)]
    plan = make_plan(graph, trial_units(graph, [group.name for group in graph.groups]))
    small = cut(model, plan)
    verify(model, small, plan, tokens, graph=graph)
    whole = alone(graph)
    verify(model, as_graph(model, whole, plan), plan, tokens, graph=whole)
    assert small.table.weight.shape[1] == plan.widths["table"] < WIDTH
    account = graph.account()
    assert account.prunable > capture(model, tokens).account().prunable


class Gated(nn.Module):
    """A stream, and in its branch a gate whose hidden units are normalised, as in EVA's MLP (Fang et al. 2023)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.first = nn.Linear(4, 6), nn.LayerNorm(6)
        self.gate, self.up, self.norm = nn.Linear(6, WIDTH), nn.Linear(6, WIDTH), norm
        self.down, self.head = nn.Linear(WIDTH, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        h = self.first(x)
        x = x + self.down(self.norm(F.silu(self.gate(h)) * self.up(h)))
        return self.head(x)


class Chain(nn.Module):
    """One layer after another, with norms between them."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.norm, self.head = nn.Linear(4, WIDTH), norm, nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.norm(self.into(x))))


@pytest.mark.parametrize("kind", [Chain, Gated])
@pytest.mark.parametrize("name", NORMS)
def test_what_lies_within_a_branch_is_cut(name: str, kind: Callable[[nn.Module], nn.Module]) -> None:
    model, x = kind(NORMS[name]()).eval(), torch.randn(3, 5, 4)
    assert capture(model, x, norms=False).groups == ()
    graph = capture(model, x)
    assert [(group.kind, group.width) for group in graph.groups] == [("neurons", WIDTH)]
    plan = make_plan(graph, trial_units(graph, [group.name for group in graph.groups]))
    small = cut(model, plan)
    verify(model, small, plan, x)
    whole = alone(graph)
    verify(model, as_graph(model, whole, plan), plan, x, graph=whole)


def test_what_two_layers_add_to_is_a_stream() -> None:
    """Also where neither of them is a residual branch: the gates of a normalised recurrent cell."""

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x, self.h, self.norm, self.head = nn.Linear(4, 6), nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 2)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return self.head(self.norm(self.x(x) + self.h(h)))

    inputs = torch.randn(2, 4), torch.randn(2, 5)
    assert capture(Cell().eval(), inputs).groups == ()
    assert [group.kind for group in capture(Cell().eval(), inputs, norms=True).groups] == ["width"]


class Beside(nn.Module):
    """A norm over a stream and a branch behind one another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.e, self.up, self.norm = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 8), nn.LayerNorm(WIDTH + 8)
        self.down, self.head = nn.Linear(WIDTH + 8, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.e(x)
        return self.head(x + self.down(self.norm(torch.cat([x, F.relu(self.up(x))], -1))))


def test_the_branch_beside_a_stream_is_cut() -> None:
    model, x = Beside().eval(), torch.randn(4, 6)
    graph = capture(model, x)
    assert [(group.name, group.kind) for group in graph.groups] == [("up", "neurons")]
    assert {g.name: g.kind for g in capture(model, x, norms=True).groups} == {"e": "width", "up": "neurons"}
    plan = make_plan(graph, {"up": [0, 3, 4]})
    assert verify(model, cut(model, plan), plan, x, graph=graph).passed


@pytest.mark.parametrize(
    "norm", [lambda: nn.GroupNorm(1, 8), lambda: nn.GroupNorm(1, 8, affine=False), lambda: nn.LayerNorm([8, 5, 5])]
)
def test_statistics_of_channels_and_places_are_those_of_the_channels_that_stay(norm: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm(), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    x = torch.randn(2, 3, 7, 7)
    assert capture(model, x, norms=False).groups == ()
    graph = capture(model, x)
    assert [(group.kind, group.width) for group in graph.groups] == [("channels", 8)]
    plan = make_plan(graph, trial_units(graph, ["0"]))
    verify(model, cut(model, plan), plan, x, graph=graph)


class Turning(nn.Module):
    """Queries and keys under norms over all heads, as in OLMo 2; one table of frequencies for both layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(10, 8), nn.Linear(8, 3)
        self.register_buffer("frequencies", torch.rand(2))
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(8, 8) for name in "qkvo"} | {name: nn.RMSNorm(8) for name in ("qn", "kn")})
            for _ in range(2)
        )

    def turned(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[2])[:, None] * self.frequencies
        angles = torch.cat([angles, angles], -1)
        left, right = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-right, left], -1) * angles.sin()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        for at in self.layers:
            q, k, v = at["qn"](at["q"](x)), at["kn"](at["k"](x)), at["v"](x)
            q, k, v = (part.view(*part.shape[:2], -1, 4).transpose(1, 2) for part in (q, k, v))
            y = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v)
            x = x + at["o"](y.transpose(1, 2).flatten(2))
        return self.head(x)


def test_what_one_table_counts_is_no_stream() -> None:
    model, tokens = Turning().eval(), torch.randint(0, 10, (2, 5))
    graph = capture(model, tokens)
    assert [group.width for group in graph.groups if group.kind == "heads"] == [2, 2]
    plan = make_plan(graph, {group.name: [1] for group in graph.groups if group.kind == "heads"})
    verify(model, cut(model, plan), plan, tokens, graph=graph)


class Reduced(nn.Module):
    """A layer and its reader, beside which a statistic of its units is added."""

    def __init__(self, reduce: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.head, self.reduce = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 3), reduce

    def forward(self, x: Tensor) -> Tensor:
        h = self.into(x)
        return self.head(h) + self.reduce(h)


OVER_ALL: dict[str, Callable[[Tensor], Tensor]] = {
    "mean of no dimensions": lambda h: h.mean([]),
    "mean of None": lambda h: h.mean(None, keepdim=True),
    "variance": lambda h: h.var(),
    "deviation": lambda h: h.std(correction=0),
    "variance of None": lambda h: torch.var(h, None, correction=0, keepdim=True),
    "maximum": lambda h: h.amax(),
    "maximum of what is below zero": lambda h: (-h.abs() - 1).amax(-1, keepdim=True),
}


@pytest.mark.parametrize("name", OVER_ALL)
def test_statistics_of_all_that_stays(name: str) -> None:
    model, x = Reduced(OVER_ALL[name]).eval(), torch.randn(2, 4)
    graph = capture(model, x)
    plan = make_plan(graph, trial_units(graph, ["into"]))
    verify(model, cut(model, plan), plan, x, graph=graph)


def test_what_a_mean_alone_reads_is_cut_on_request() -> None:
    """The members of an ensemble: no layer behind them could make up for those that go."""

    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.members = nn.Linear(4, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.members(x).mean(-1)

    model, x = Ensemble().eval(), torch.randn(2, 4)
    graph = capture(model, x)
    assert graph.groups == ()
    assert "reduced by aten.mean.dim" in str(graph.account())
    assert [group.width for group in capture(model, x, norms=True).groups] == [WIDTH]


def test_what_norms_may_be() -> None:
    model, tokens = Block(nn.LayerNorm(WIDTH)).eval(), torch.randint(0, 10, (2, 5))
    assert capture_form(model, tokens, "class", norms=np.False_).norms is False  # type: ignore[arg-type]
    assert capture_form(model, tokens, "class", norms=np.True_).note == {"form": "class", "norms": True}  # type: ignore[arg-type]
    with pytest.raises(ap.CaptureError, match="expected: \"auto\", True or False\n  got: 'streams'"):
        ap.capture(model, tokens, norms="streams")
    with pytest.raises(ap.CaptureError, match="got: 1"):
        ap.capture(model, tokens, norms=1)  # type: ignore[arg-type]


class StandardWeights(nn.Module):
    """Convolutions whose weights have mean 0 and variance 1 over all that one output reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)
        self.gain, self.head = nn.Parameter(torch.rand(6) + 0.5), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.second.weight.reshape(1, 6, -1)
        weight = F.batch_norm(flat, None, None, self.gain, training=True, momentum=0.0, eps=1e-6)
        return self.head(F.conv2d(self.first(x).relu(), weight.reshape_as(self.second.weight), self.second.bias).relu())


def test_what_a_standardised_weight_reads_is_cut() -> None:
    """Its outputs always, and its inputs where the statistics may be those of the entries that stay."""
    model, x = StandardWeights().eval(), torch.randn(2, 3, 8, 8)
    assert [group.width for group in capture(model, x, norms=False).groups] == [6]
    graph = capture(model, x)
    assert {group.name: group.width for group in graph.groups} == {"first": 8, "second.weight": 6}
    assert graph["first"].kind == "channels"
    plan = make_plan(graph, trial_units(graph, [group.name for group in graph.groups]))
    verify(model, cut(model, plan), plan, x, graph=graph)
    whole = alone(graph)
    verify(model, as_graph(model, whole, plan), plan, x, graph=whole)


def test_the_dense_network_is_not_touched_by_its_twins() -> None:
    model, tokens = Block(nn.LayerNorm(WIDTH)).eval(), torch.randint(0, 10, (2, 5))
    from actprune.graph.run import run

    graph = capture(model, tokens, norms=True)
    assert any(node.target in TWINS.values() for node in graph.program.nodes)
    assert torch.equal(run(graph.program, (tokens,))[0], model(tokens))


@pytest.mark.parametrize("form", ["class", "graph"])
def test_prune_cuts_the_width_on_request(form: str, tmp_path: Path) -> None:
    model = Block(nn.LayerNorm(WIDTH)).eval()
    batches = [torch.randint(0, 10, (8, 5)) for _ in range(4)]
    result = ap.prune(model, batches, keep="params=45%", norms=True, form=form, save_to=tmp_path / "run")
    assert result.proof.passed
    assert result.plan.widths["table"] < WIDTH
    again = ap.load(tmp_path / "run", model, batches[0])
    assert proved_folder(tmp_path / "run", model, again, batches[0]).passed


def test_rounds_together_were_asked_for_what_the_most_of_them_was() -> None:
    """A last round that cut nothing under norms doesn't speak for those before it."""
    model, x = Chain(nn.LayerNorm(WIDTH)).eval(), torch.randn(3, 5, 4)
    graph = capture(model, x)
    first = make_plan(graph, {"into": range(8)})
    small = cut(model, first)
    last = make_plan(capture(small, x, norms=False), {}, norms=False)
    whole = composed(graph, [first, last])
    assert whole.norms == "auto" and whole.widths == {"into": 8}
    assert verify(model, small, whole, x).passed
