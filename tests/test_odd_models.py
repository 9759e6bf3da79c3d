"""Whole runs on models that are written in unusual ways, as users bring them."""

from __future__ import annotations

import copy
import logging
import pickle
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.optim.swa_utils import AveragedModel

import actprune as ap
from actprune.artifacts.checkpoint import proved_folder
from actprune.data.take import fit, take
from actprune.errors import CaptureError, DataError
from actprune.graph.boxes import MANY
from actprune.graph.keep import copied, held_values
from actprune.graph.names import plain_slots

pytestmark = pytest.mark.accurate


def called(model: Any, batch: Any) -> Any:
    """The model on all of a batch."""
    return model(*batch)


class Attention(nn.Module):
    """Inputs under names that nodes of the graph, and what is added to it, would have."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, linear: Tensor, mask: Tensor, mul: Tensor) -> Tensor:
        scores = self.q(linear) @ self.k(linear).transpose(1, 2)
        return self.o(scores.masked_fill(mask[:, None], -1e9).softmax(-1) @ self.v(linear)) + mul


@pytest.mark.parametrize("form", ["class", "graph"])
def test_inputs_may_have_any_name(form: str) -> None:
    torch.manual_seed(0)
    batch = {"linear": torch.randn(3, 6, 6), "mask": torch.rand(3, 6) > 0.8, "mul": torch.randn(3, 1, 1)}
    result = ap.prune(Attention(), [batch] * 2, keep="units=50%", form=form)
    assert result.proof.passed and len(result.plan.widths) == 2


def test_an_encoder_still_takes_a_padding_mask() -> None:
    """Its stock form hands nested tensors to the attention, which only the stock kernels read."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(4, 6, 16)
    padding = torch.zeros(4, 6, dtype=torch.bool)
    padding[:, 4:] = True
    unaware = ap.prune(model, [x] * 2, keep="units=50%", method="l2").model
    with torch.no_grad():
        assert unaware(x, src_key_padding_mask=padding)[:, :4].isfinite().all()
    result = ap.prune(model, [{"src": x, "src_key_padding_mask": padding}] * 2, keep="units=50%", method="l2")
    assert result.plan.widths["layers.0.self_attn#1"] == 2, "heads are cut as without a mask"


def test_groups_have_the_same_names_for_a_single_sample() -> None:
    """Heads and dimensions of heads are as many here: a plan under other names would cut the wrong ones."""
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 1).eval()
    single, several = ([(g.name, g.members) for g in ap.capture(model, torch.randn(n, 5, 16)).groups] for n in (1, 3))
    assert single == several


class Noisy(nn.MultiheadAttention):
    """An attention of the user's own."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        out, weights = super().forward(query, key, value, **settings)
        return out + 0.1 * torch.randn_like(out) if self.training else out, weights


class WithNoisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.a, self.o = nn.Linear(6, 16), Noisy(16, 2, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.i(x)
        return self.o(self.a(h, h, h, need_weights=False)[0])


def test_a_class_made_from_an_attention_keeps_its_code() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 7, 6)
    result = ap.prune(WithNoisy(), [x] * 2, keep="units=50%", method="l2")
    assert isinstance(result.model.a, Noisy)
    assert result.plan.widths == {"i": 8, "a#1": 1, "a#2": 4, "a#3": 4, "a#4": 8}, "head sizes, too"
    assert not torch.equal(result.model.train()(x), result.model(x)), "its noise in training"
    again = pickle.loads(pickle.dumps(result.model)).eval()
    assert torch.equal(again(x), result.model.eval()(x)) and type(again.a) is type(result.model.a)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_a_causal_decoder_loses_head_sizes() -> None:
    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.t, self.o = nn.Transformer(16, 4, 1, 1, 32), nn.Linear(16, 20)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.o(self.t(a, b, tgt_mask=nn.Transformer.generate_square_subsequent_mask(len(b))))

    torch.manual_seed(0)
    batch = torch.randn(6, 4, 16), torch.randn(6, 4, 16)
    result = ap.prune(Translator(), [batch] * 2, forward=called, keep="units=50%", method="l2")
    assert len(result.plan.widths) == 11


class Packed(nn.Module):
    def __init__(self, make: Any, **how: Any) -> None:
        super().__init__()
        self.up, self.steps = nn.Linear(6, 10), make(10, 12, batch_first=True, **how)
        self.head = nn.Linear(24 if how.get("bidirectional") else 12, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.up(x), lengths, batch_first=True, enforce_sorted=False)
        return self.head(pad_packed_sequence(self.steps(packed)[0], batch_first=True)[0])


@pytest.mark.parametrize(
    ("make", "how"), [(nn.LSTM, {}), (nn.GRU, {"num_layers": 2, "bidirectional": True})], ids=["lstm", "deep gru"]
)
def test_packed_samples(make: Any, how: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Packed(make, **how).eval()
    data = [(torch.randn(8, 5, 6), torch.tensor([5, *torch.randint(1, 6, (7,)).tolist()])) for _ in range(6)]
    errors: dict[str, float] = {}
    for method in ("sgd-ap", "l2"):
        result = ap.prune(model, data, keep={"steps": 7}, method=method, forward=called)
        assert result.proof.passed
        with torch.no_grad():
            errors[method] = sum(float((result.model(*b) - model(*b)).square().mean()) for b in data)
    assert errors["sgd-ap"] < 0.5 * errors["l2"]


class Graph(nn.Module):
    """Two rounds of messages along edges."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        for layer in (self.a, self.b):
            h = layer(x)
            x = torch.relu(torch.zeros_like(h).index_add(0, edges[1], h[edges[0]]))
        return self.c(x)


def test_inputs_that_hold_no_samples_may_differ_from_batch_to_batch() -> None:
    torch.manual_seed(0)
    data = [(torch.randn(10, 6), torch.randint(0, 10, (2, 30))) for _ in range(12)]
    model = Graph().eval()
    result = ap.prune(model, data, keep="macs=50%", forward=called, recover=ap.Distill(steps=4))
    assert result.proof.passed
    taken = take(model, data, 120, called)
    assert all(torch.equal(taken.batch(i, i + 10)[1], data[i // 10][1]) for i in range(0, 120, 10))
    with pytest.raises(DataError, match="can only be used as they came"):
        fit(ap.capture(model, (torch.randn(5, 6), data[0][1])).program, taken)


def test_batches_that_can_not_be_used_as_they_came() -> None:
    batches = [(torch.randn(n, 6), torch.randint(0, 4, (2, 30))) for n in (10, 4, 10)]
    with pytest.raises(DataError, match="do not fit together") as caught:
        ap.prune(Graph(), batches, keep="macs=50%", forward=called)
    assert caught.value.got == "batches of 10, 4, 10"
    with pytest.raises(DataError, match="do not fit together") as caught:
        ap.prune(Graph(), [(torch.randn(4, 6), torch.randint(0, 4, (2, n))) for n in (9, 8)], forward=called)
    assert "input 1, which holds no samples" in str(caught.value.expected)


class Spread(nn.Module):
    """A graph network by products with a sparse matrix."""

    def __init__(self, matrix: Tensor | None = None) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, x: Tensor, matrix: Tensor | None = None) -> Tensor:
        matrix = self.matrix if matrix is None else matrix
        return self.b(torch.relu(torch.sparse.mm(matrix, self.a(x))))


@pytest.mark.parametrize("where", ["buffer", "input", "another in every batch"])
def test_sparse_matrices(where: str) -> None:
    torch.manual_seed(0)
    matrices = [(torch.rand(10, 10) > 0.7).float().to_sparse() for _ in range(8)]
    if where != "another in every batch":
        matrices = matrices[:1] * 8
    model = Spread(matrices[0] if where == "buffer" else None)
    data = [(torch.randn(10, 6), *(() if where == "buffer" else (own,))) for own in matrices]
    result = ap.prune(model, data, keep="macs=60%", forward=called)
    assert result.proof.passed and result.plan.widths["a"] < 16


class Masked(nn.Module):
    """A policy: moves that are not allowed have −∞."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, forbidden: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x))).masked_fill(forbidden, float("-inf"))


@pytest.mark.parametrize("method", ["sgd-ap", "taylor", "l2"])
def test_outputs_may_be_masked_out(method: str) -> None:
    torch.manual_seed(0)
    data = [(torch.randn(8, 6), torch.rand(8, 3) > 0.7) for _ in range(4)]
    result = ap.prune(Masked(), data, keep="macs=50%", forward=called, method=method, recover=ap.Distill(steps=4))
    assert result.proof.passed
    assert result.plan.widths["a"] <= 8


def test_inputs_that_are_not_finite_are_still_refused() -> None:
    data = [(torch.full((8, 6), float("inf")), torch.rand(8, 3) > 0.7)]
    with pytest.raises(DataError, match="Activations are not finite"):
        ap.prune(Masked(), data, keep="units=50%", forward=called, method="l2")


class Decided(nn.Module):
    """Gives a class, not its score."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.b(F.relu(self.a(x))) > 0).long().squeeze(-1)


@pytest.mark.parametrize("seed", range(4))
def test_whole_numbers_are_proved_by_what_they_are_made_of(seed: int) -> None:
    torch.manual_seed(seed)
    model, x = Decided().eval(), torch.randn(4, 6)
    graph = ap.capture(model, x)
    plan = ap.allocate(graph, ap.guide(graph, None, method="l2"), keep={"a": 8})
    small = ap.cut(model, plan)
    assert ap.verify(model, small, plan, x, graph=graph).passed
    with torch.no_grad():
        small.b.weight.copy_(small.b.weight.flip(1))
    assert not ap.verify(model, small, plan, x, graph=graph, check=False).passed


def test_the_report_names_what_no_call_has_reached() -> None:
    class Tasks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 16)
            self.heads = nn.ModuleDict({"one": nn.Linear(16, 3), "two": nn.Linear(16, 2)})
            self.heads.register_parameter("temperature", nn.Parameter(torch.ones(())))  # beside a head that is reached

        def forward(self, x: Tensor, task: str = "one") -> Tensor:
            return self.heads[task](F.relu(self.a(x)))

    notes = ap.prune(Tasks(), [torch.randn(8, 6)] * 2, keep="units=50%").report.notes
    assert any("Not reached" in note and "as they were: heads.temperature, heads.two." in note for note in notes)
    assert not any("heads.one" in note for note in notes)


class Exits(nn.Module):
    """Easy inputs leave behind the first layer."""

    def __init__(self, deep: bool) -> None:
        super().__init__()
        self.a, self.early, self.last = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 3)
        self.b = nn.Linear(16, 16) if deep else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        return self.early(h) if x.abs().max() < 1 else self.early(h) - self.last(F.relu(self.b(h)))


@pytest.mark.parametrize("deep", [True, False])
def test_batches_that_take_another_branch_than_the_first(deep: bool) -> None:
    torch.manual_seed(0)
    easy, hard = torch.rand(8, 6), 3 * torch.randn(8, 6)
    model = Exits(deep)
    with pytest.raises(ap.EquivalenceError, match="does not run on calibration batch 3") as caught:
        ap.prune(model, [easy, easy, hard], keep="macs=50%", method="l2")
    assert "begin the calibration data with a batch that reaches every layer" in str(caught.value)
    result = ap.prune(model, [hard, easy, easy], keep="macs=50%", method="l2")
    assert any("On 2 of the first 3 calibration batches" in note for note in result.report.notes)
    assert all(result.model(x).shape == (8, 3) for x in (easy, hard))
    assert not any("calibration batches the" in note for note in ap.prune(model, [hard] * 3, keep=0.5).report.notes)


@pytest.mark.parametrize("recurrent", [False, True])
def test_samples_that_are_single_rows(recurrent: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.GRU(6, 16) if recurrent else nn.Linear(6, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)[0][-1] if recurrent else F.relu(self.a(x)))

    torch.manual_seed(0)
    data = [torch.randn(5, 6) if recurrent else torch.randn(6) for _ in range(8)]
    assert ap.prune(Net(), data, keep="macs=60%").proof.passed


@pytest.mark.filterwarnings("error", "ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_weights_that_a_hook_makes_are_no_reason_to_warn() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.utils.weight_norm(nn.Linear(6, 16)), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x)))

    assert ap.prune(Normed(), [torch.randn(8, 6)] * 3, keep="macs=60%").plan.widths["a"] < 16


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (layers(), np.zeros((64, 6))),
        (layers().bfloat16(), torch.randn(64, 6)),
        (layers(), torch.randint(0, 5, (64, 6))),
    ],
    ids=["numpy", "bfloat16", "whole numbers"],
)
def test_inputs_of_another_precision(model: nn.Module, x: Any) -> None:
    """Export follows them through linear layers, which do not run."""
    with pytest.raises(CaptureError, match="must have the same dtype"):
        ap.prune(model, x, keep="macs=50%", method="l2")


def test_a_graph_of_many_nodes_stays_whole() -> None:
    torch.manual_seed(0)
    x, edges = torch.randn(2708, 6), torch.randint(0, 2708, (2, 5000))
    assert take(Graph(), [(x, edges)], 2048, called).count == 2708
    some = [(torch.randn(10, 6), torch.randint(0, 10, (2, 30))) for _ in range(5)]
    assert take(Graph(), some, 25, called).count == 20, "whole batches"
    graph = ap.capture(layers(), torch.randn(2708, 6))
    assert ap.collect(graph, [torch.randn(2708, 6)]).samples == 2708


def test_recovery_needs_outputs_with_a_slope() -> None:
    with pytest.raises(DataError, match="no slope to go by") as caught:
        ap.prune(Decided(), [torch.randn(8, 6)], keep="macs=50%", recover=ap.Distill(steps=4))
    assert caught.value.got == "int64"


@pytest.mark.parametrize("kind", ["complex", "classes"])
def test_outputs_that_are_no_real_numbers_are_told_apart(kind: str) -> None:
    """Else every network would seem as good as the dense one."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(32, 4)
            with torch.no_grad():
                self.c.weight[:, 16:] *= 0.01

        def forward(self, x: Tensor) -> Tensor:
            y = self.c(torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], 1))
            return torch.fft.fft(y) if kind == "complex" else y.argmax(1)

    torch.manual_seed(0)
    result = ap.prune(Net(), list(torch.randn(256, 6).split(32)), keep="macs=60%")
    assert result.proof.passed
    assert result.plan.widths["a"] > result.plan.widths["b"], "what hardly counts goes"


def test_a_parameter_without_elements() -> None:
    """A vision transformer with no register tokens has one."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.registers = nn.Parameter(torch.zeros(1, 0, 16))
            self.embed, self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 32), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            tokens = torch.cat([self.registers.expand(len(x), -1, -1), self.embed(x)], 1)
            return self.down(F.gelu(self.up(tokens))).mean(1)

    result = ap.prune(Net(), list(torch.randn(64, 5, 6).split(16)), keep="macs=50%")
    assert result.proof.passed
    assert result.model.registers.shape[1] == 0


@pytest.mark.parametrize("normed", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_spectral_norm_in_training_mode_stays_as_it_is(normed: Any) -> None:
    """Its vectors move whenever the weight is read there."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))
    normed(model[2])
    before = {name: tensor.clone() for name, tensor in model.train().state_dict().items()}
    result = ap.prune(model, list(torch.randn(64, 6).split(16)), keep="macs=50%", method="l2")
    assert result.proof.passed and model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Forces(nn.Module):
    """An energy and its gradient by the inputs, as potentials and physics-informed networks have them."""

    def __init__(self, by: str, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.by = by
        self.net = nn.Sequential(
            nn.Linear(3, 24), activation or nn.Tanh(), nn.Linear(24, 16), nn.SiLU(), nn.Linear(16, 1)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.by == "jvp":
            return torch.func.jvp(self.net, (x,), (torch.ones_like(x),))
        if self.by == "vmap":
            return self.net(x), torch.vmap(torch.func.grad(lambda row: self.net(row).sum()))(x)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.net(x)
            (slope,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
            (curve,) = torch.autograd.grad(slope[:, 0].sum(), x)
        return energy.detach(), torch.cat([slope.detach(), curve], 1)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's jvp on itself
@pytest.mark.parametrize("by", ["autograd", "vmap", "jvp"])
@pytest.mark.parametrize("method", ["sgd-ap", "l2"])
def test_gradients_that_the_forward_pass_takes(by: str, method: str) -> None:
    torch.manual_seed(0)
    model, x = Forces(by).eval(), torch.randn(128, 3)
    result = ap.prune(model, list(x.split(32)), keep="params=60%", method=method)
    assert result.proof.passed and set(result.plan.widths) == {"net.0", "net.2"}
    with torch.no_grad():
        assert [out.shape for out in result.model(x[:5])] == [out.shape for out in model(x[:5])]


@pytest.mark.parametrize("activation", [nn.Softplus(), nn.ELU(), nn.LeakyReLU(), nn.Hardswish(), nn.Mish(), nn.GELU()])
def test_the_slope_of_an_activation_is_element_wise(activation: nn.Module) -> None:
    torch.manual_seed(0)
    graph = ap.capture(Forces("autograd", activation).eval(), torch.randn(32, 3))
    assert [group.name for group in graph.groups] == ["net.0", "net.2"]


class Scores(nn.Module):
    """A convolutional energy, with norms, pooling and a slice, and its gradient by the image."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(1, 12, 3, padding=1), nn.GroupNorm(4, 12)
        self.two, self.alone = nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.flat, self.out = nn.Linear(64, 24), nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            h = F.max_pool2d(F.silu(self.norm(self.one(x))), 2)
            h = F.avg_pool2d(F.logsigmoid(self.alone(self.two(h))), 2)
            h = self.flat(h.flatten(1))
            energy = self.out(h[:, :12] * torch.tanh(h[:, 12:]))[:, 0].sum()
            (slope,) = torch.autograd.grad(energy, x, create_graph=True)  # a loss of it may be trained with
        return slope


@pytest.mark.parametrize("form", ["class", "graph"])
def test_gradients_through_convolutions_and_norms(form: str) -> None:
    torch.manual_seed(0)
    model, x = Scores().eval(), torch.randn(64, 1, 8, 8)
    result = ap.prune(model, list(x.split(16)), keep="units=70%", method="flap", form=form)
    assert result.proof.passed and result.graph.unknown_ops == ()
    assert {name: group.width for name in result.plan.widths for group in [result.graph[name]]} == {
        "one": 4, "two": 16, "flat": 12
    }  # fmt: skip


class Turned(nn.Module):
    """Of every head some dimensions are turned as complex numbers, in place, as a latent attention has them."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.read = nn.Linear(6, 2 * (8 + 4)), nn.Linear(2 * (8 + 4), 3)
        self.register_buffer("turn", torch.polar(torch.ones(2), torch.tensor([0.3, 1.1])))

    def forward(self, x: Tensor) -> Tensor:
        still, turned = self.make(x).view(*x.shape[:-1], 2, 12).split([8, 4], -1)
        pairs = torch.view_as_complex(turned.reshape(*turned.shape[:-1], -1, 2)) * self.turn
        return self.read(torch.cat([still, torch.view_as_real(pairs).flatten(-2)], -1).flatten(-2))


def test_what_lies_beside_complex_numbers_stays_even() -> None:
    torch.manual_seed(0)
    model, x = Turned().eval(), torch.randn(64, 5, 6)
    result = ap.prune(model, list(x.split(16)), keep="units=70%", method="l2")
    assert result.proof.passed and {group.multiple for group in result.graph.groups if group.width == 8} == {2}
    assert set(result.plan.widths.values()) <= {1, 2, 4, 6}


class Ensemble(nn.Module):
    """Several networks as one, as torch.func stacks them."""

    def __init__(self, members: int) -> None:
        super().__init__()
        nets = [nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)) for _ in range(members)]
        stacked, _ = torch.func.stack_module_state(nets)
        self.weights = nn.ParameterDict({name.replace(".", "_"): value.detach() for name, value in stacked.items()})
        self.one = [nets[0]]

    def forward(self, x: Tensor) -> Tensor:
        weights = {name.replace("_", "."): value for name, value in self.weights.items()}
        return torch.vmap(lambda w: torch.func.functional_call(self.one[0], w, (x,)))(weights).mean(0)


def test_an_ensemble_that_vmap_calls() -> None:
    torch.manual_seed(0)
    result = ap.prune(Ensemble(3), list(torch.randn(128, 6).split(32)), keep="params=60%")
    assert result.proof.passed and list(result.plan.widths) == ["weights.0_weight"]
    assert result.model.weights["0_weight"].shape == (3, result.plan.widths["weights.0_weight"], 6)


class Quantizing(nn.Module):
    """Weights rounded with a scale for each output, activations with one for all, as training for int8 has them."""

    def __init__(self, observed: bool) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 12, 3), nn.Linear(12, 3)
        on = torch.tensor([1])
        self.register_buffer("observing", on.clone() if observed else 0 * on)
        self.register_buffer("rounding", on.clone())
        for name, size in (("first", 8), ("second", 12), ("between", 1)):
            self.register_buffer(f"{name}_low", torch.full((size,), -0.5))
            self.register_buffer(f"{name}_high", torch.full((size,), 0.5))
            self.register_buffer(f"{name}_scale", torch.linspace(0.004, 0.01, size))
            self.register_buffer(f"{name}_zero", torch.zeros(size, dtype=torch.int32))

    def rounded(self, x: Tensor, name: str, rows: bool) -> Tensor:
        low, high, scale, zero = (getattr(self, f"{name}_{part}") for part in ("low", "high", "scale", "zero"))
        return torch.ops.aten.fused_moving_avg_obs_fake_quant(
            x, self.observing, self.rounding, low, high, scale, zero, 0.01, -128, 127, 0, rows, True
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.rounded(self.one.weight, "first", True), self.one.bias, padding=1).relu()
        x = F.conv2d(self.rounded(x, "between", False), self.rounded(self.two.weight, "second", True), self.two.bias)
        return self.out(x.relu().mean((2, 3)))


@pytest.mark.parametrize("method", ["sgd-ap", "l2"])
def test_a_network_prepared_for_quantisation_is_cut_with_its_scales(method: str) -> None:
    torch.manual_seed(0)
    model, x = Quantizing(observed=False).eval(), torch.randn(64, 1, 6, 6)
    result = ap.prune(model, list(x.split(16)), keep={"one.weight": 5, "two.weight": 7}, method=method)
    assert result.proof.passed and result.graph.unknown_ops == ()
    small = result.model
    assert len(small.first_scale) == len(small.first_zero) == len(small.first_high) == len(small.one.weight) == 5
    assert len(small.second_scale) == 7 and len(small.between_scale) == 1
    assert {site.kind for site in result.graph.sites} == {"conv", "linear"}  # zero stays zero: weights like any others


def test_an_observer_that_is_on_freezes_and_says_so() -> None:
    torch.manual_seed(0)
    graph = ap.capture(Quantizing(observed=True).eval(), torch.randn(16, 1, 6, 6))
    assert any("disable_observer" in reason for reason in graph.frozen.values())
    assert graph.groups == ()


def test_planes_that_are_looked_up_between_their_entries() -> None:
    """Of a radiance field: features are sampled from parameters, and make units as an embedding does."""

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plane = nn.Parameter(torch.randn(1, 6, 4, 4))
            self.hidden, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            found = F.grid_sample(self.plane, x[None, :, None], align_corners=True)
            return self.out(self.hidden(found[0, :, :, 0].T).relu())

    x = torch.rand(16, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    result = ap.prune(Field(), [x, x], keep={"plane": 3, "hidden": 4}, method="l2")
    assert result.model.plane.shape == (1, 3, 4, 4)


def test_a_mask_that_only_training_reads_is_cut_too() -> None:
    """A buffer, as some speech networks draw for their dropout: it would no longer fit."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)
            self.register_buffer("mask", torch.rand(16))

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x).relu()
            return self.second(y * self.mask if self.training else y)

    torch.manual_seed(0)
    small = ap.prune(Masked(), torch.randn(8, 6), keep="units=50%", method="l2").model
    assert small.mask.shape == (8,)
    small.train()(torch.randn(4, 6)).sum().backward()


class Stateful(nn.Module):
    """As many language models of LSTMs are written: the state is returned, to be given in again."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.last = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        steps, state = self.memory(x, state)
        return self.last(steps[:, -1]), state


class Outputs(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[0]


def test_a_state_that_is_returned_is_cut_within_a_wrapper() -> None:
    x = torch.randn(16, 5, 4)
    with pytest.raises(ap.UnsupportedModelError, match="a wrapper whose forward returns less"):
        ap.prune(Stateful(), x, keep="params=50%", method="l2")
    small = ap.prune(Outputs(Stateful()), x, keep="params=50%", method="l2").model.model
    out, state = small(x)
    assert out.shape == (16, 3) and state[0].shape[-1] < 8
    small(x, state)


def test_the_report_tells_of_weights_that_are_computed() -> None:
    normed = nn.utils.parametrizations.spectral_norm(nn.Linear(16, 3))
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), normed)
    told = [ap.prune(model, torch.randn(64, 6), keep=0.5, method=method).report.notes for method in ("flap", "l2")]
    assert ["The weights of 2 are computed" in " ".join(notes) for notes in told] == [True, False]


def test_a_norm_in_front_of_a_layer_makes_its_weights_no_computed_ones() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 3))
    result = ap.prune(model, torch.randn(64, 6), keep=0.5, method="flap")
    assert result.plan.widths["0"] < 16 and not any("are computed" in note for note in result.report.notes)


class OfList(nn.Module):
    """Takes all its inputs as one list."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Linear(6, 16), nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, parts: list[Tensor]) -> Tensor:
        return self.last(torch.relu(self.a(parts[0]) + self.b(parts[1])))


class OfTwo(OfList):
    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        return super().forward([a, b if b is not None else a[:, :4]])


@pytest.mark.parametrize("kind", [OfList, OfTwo])
def test_inputs_in_a_list(kind: type[OfList]) -> None:
    torch.manual_seed(0)
    data = [([torch.randn(16, 6), torch.randn(16, 4)], torch.randint(0, 3, (16,))) for _ in range(4)]
    model = kind().eval()
    tune = ap.SGD(data, F.cross_entropy, epochs=1)
    result = ap.prune(model, data, keep="macs=50%", method="flap", finetune=tune)
    assert result.proof.passed and result.plan.widths["a"] < 16
    inputs = data[0][0]
    graph = ap.capture(model, (inputs,) if kind is OfList else tuple(inputs))
    taken = data if kind is OfList else [tuple(given) for given, _ in data]
    assert ap.collect(graph, taken).sites


def test_a_weight_norm_comes_off_the_small_network_alone() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 16))
    model, x = nn.Sequential(normed, nn.ReLU(), nn.Linear(16, 3)).eval(), torch.randn(32, 6)
    small = ap.prune(model, x, keep=0.5, method="l2").model
    before = model(x), small(x)
    nn.utils.parametrize.remove_parametrizations(small[0], "weight")
    assert type(small[0]) is nn.Linear and torch.equal(small(x), before[1]) and torch.equal(model(x), before[0])


class Cached(nn.Module):
    """Attention with the keys and values of earlier steps in plain attributes, as in the code of the first LLaMA, and a
    gain (in a dict) and a shift of every value."""

    def __init__(self, shift: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads, self.size = 4, 6
        self.qkv, self.out = nn.Linear(8, 72), nn.Linear(24, 5)
        self.keys, self.values = torch.zeros(4, 9, 4, 6), torch.zeros(4, 9, 4, 6)
        self.held = {"gain": torch.full((4, 6), 2.0), "others": torch.ones(3)}
        self.shift = torch.linspace(0, 1, 24).view(4, 6) if shift else None

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, self.size).unbind(2)
        if self.shift is not None:
            v = v + self.shift
        self.keys = self.keys.to(q)
        self.keys[:b, start : start + t] = k
        self.values[:b, start : start + t] = v * self.held["gain"]
        k, v = (held[:b, : start + t].transpose(1, 2) for held in (self.keys, self.values))
        return self.out(F.scaled_dot_product_attention(q.transpose(1, 2), k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("called", [False, True])
def test_caches_in_plain_attributes_are_cut(called: bool, tmp_path: Path) -> None:
    model, x = Cached().eval(), torch.randn(4, 6, 8)
    if called:
        model(x)
    groups = ap.capture(model, x).groups
    assert {group.kind for group in groups} == {"heads", "head dims"}
    result = ap.prune(model, x, keep={group.name: 3 for group in groups}, method="l2")
    small = result.model
    assert isinstance(small, Cached) and small.keys.shape == small.values.shape == (4, 9, 3, 3)
    assert (model.keys.shape, small.heads, small.size, small.held["gain"].shape) == ((4, 9, 4, 6), 3, 3, (3, 3))
    result.save(tmp_path / "run")
    other = ap.load(tmp_path / "run", Cached()).eval()
    assert torch.equal(other(x), small(x)) and torch.equal(other(x[:, :1], 6), small(x[:, :1], 6))


class Followed(nn.Module):
    """An encoder, and another of its kind: called in training alone, or by a method, or by nobody."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.MultiheadAttention(8, 2, batch_first=True)
        self.net, self.head = nn.ModuleList([layer, nn.Linear(8, 12), nn.Linear(12, 8)]), nn.Linear(8, 3)
        self.other = copy.deepcopy(self.net)

    def encoded(self, x: Tensor, net: nn.ModuleList) -> Tensor:
        return net[2](net[1](net[0](x, x, x)[0]).relu())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoded(x, self.net))


class Averaged(Followed):
    def follow(self) -> None:
        for mean, weight in zip(self.other.parameters(), self.net.parameters(), strict=True):
            mean.data.mul_(0.9).add_(weight.data, alpha=0.1)


class Synchronised(Followed):
    def follow(self) -> None:
        self.other.load_state_dict(self.net.state_dict())


class Teacher(Followed):
    """It teaches what the encoder knew: nothing makes it follow."""

    def __init__(self) -> None:
        super().__init__()
        self.other = copy.deepcopy(self.net)
        self.other.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        return found + self.encoded(x, self.other).mean() if self.training else found


@pytest.mark.parametrize("kind", [Averaged, Synchronised])
def test_a_module_that_follows_another_is_cut_as_that_is(kind: type[Followed], tmp_path: Path) -> None:
    model, x = kind().eval(), torch.randn(32, 5, 8)
    result = ap.prune(model, x, keep="units=50%", method="l2")
    small: Any = result.model
    assert not any("Not reached" in note for note in result.report.notes)
    assert small.other[1].out_features == 6 and small.other[0].num_heads == small.net[0].num_heads
    small.follow()
    small.other.load_state_dict(small.net.state_dict())
    assert torch.equal(small.encoded(x, small.other), small.encoded(x, small.net))
    result.save(tmp_path / "run")
    assert ap.load(tmp_path / "run", kind()).state_dict().keys() == model.state_dict().keys()


def update(net: nn.Module, target: nn.Module) -> None:
    for weight, mean in zip(net.parameters(), target.parameters(), strict=True):
        mean.data.copy_(0.1 * weight.data + 0.9 * mean.data)


def _critic() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))


class Critics(nn.Module):
    """Two critics and their targets, of one kind all four, and an average of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.swa = _critic(), _critic(), AveragedModel(_critic())
        self.targets_of_two, self.targets_of_one = copy.deepcopy(self.two), copy.deepcopy(self.one)
        self.swa.module.load_state_dict(self.one.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        return torch.minimum(self.one(x), self.two(x))

    def follow(self) -> None:
        update(self.one, self.targets_of_one)
        update(self.two, self.targets_of_two)
        self.swa.update_parameters(self.one)


def test_the_weights_say_which_of_several_modules_follow_which() -> None:
    small: Any = ap.prune(Critics(), torch.randn(32, 4), keep="units=50%", method="l2").model
    small.follow()
    for net, target in ((small.one, small.targets_of_one), (small.two, small.targets_of_two)):
        assert torch.allclose(net[0].weight, target[0].weight, atol=0.1) and net[0].out_features == 8


class Consolidated(nn.Module):
    """Elastic weight consolidation in two ways, and two moving averages."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        self.old = {name: weight.detach().clone() for name, weight in self.named_parameters()}
        self.means = [weight.detach().clone() for weight in self.net.parameters()]
        for name, weight in self.net.named_parameters():
            self.register_buffer(f"{name.replace('.', '__')}_old", weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def penalties(self) -> list[Tensor]:
        named = [(weight, self.old[name]) for name, weight in self.named_parameters()]
        buffers = [(p, getattr(self, f"{n.replace('.', '__')}_old")) for n, p in self.net.named_parameters()]
        means = zip(self.net.parameters(), self.means, strict=True)
        return [(weight - old).abs().sum() for weight, old in [*named, *buffers, *means]]


def test_what_is_kept_for_every_parameter_is_cut_as_that_is(tmp_path: Path) -> None:
    model = Consolidated()
    result = ap.prune(model, torch.randn(32, 4), keep="units=50%", method="l2", compensate="none")
    small: Any = result.model
    assert small.net[0].weight.shape == (8, 4) and not sum(small.penalties())
    result.save(tmp_path / "run")
    assert not sum(ap.load(tmp_path / "run", copy.deepcopy(model)).penalties())
    assert model.means[0].shape == model.old["net.0.weight"].shape == (16, 4)


class LowRank(nn.Linear):
    """Merges its low-rank weights in eval mode and takes them out in training mode, as loralib does."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__(into, out)
        self.a, self.b = nn.Parameter(torch.randn(2, into) / 4), nn.Parameter(torch.randn(out, 2) / 4)
        self.merged = False

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        if self.merged is mode:
            self.weight.data += (-1 if mode else 1) * self.b.data @ self.a.data
            self.merged = not mode
        return self

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + (0 if self.merged else input @ self.a.T @ self.b.T)


def test_low_rank_weights_that_are_merged_in_eval_mode_are_cut() -> None:
    model, x = nn.Sequential(LowRank(4, 16), nn.ReLU(), LowRank(16, 2)).eval(), torch.randn(32, 4)
    small: Any = ap.prune(model, x, keep="units=50%", method="l2").model
    assert small[0].out_features == small[0].b.shape[0] == small[2].a.shape[1] < 16
    expected = small(x)
    assert torch.allclose(small.train()(x), expected, atol=1e-5) and not small[0].merged
    assert torch.allclose(small.eval()(x), expected, atol=1e-5)


class Square(nn.Module):
    """A layer whose weight is square, so that its bias alone tells what it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features = self.out_features = 16
        self.mean, self.bias = nn.Parameter(torch.randn(16, 16) / 4), nn.Parameter(torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.mean, self.bias).relu()


def test_sizes_of_a_square_layer_of_the_users_own_follow() -> None:
    model = nn.Sequential(nn.Linear(4, 16), Square(), nn.Linear(16, 2))
    small: Any = ap.prune(model, torch.randn(32, 4), keep={"0": 8, "1": 12}, method="l2").model
    assert (small[1].out_features, small[1].in_features) == (12, 8)


@pytest.mark.parametrize("kind", [Followed, Teacher])
def test_a_module_that_nothing_says_to_follow_another_stays_whole(kind: type[Followed]) -> None:
    result = ap.prune(kind().eval(), torch.randn(32, 5, 8), keep="units=50%", method="l2")
    assert result.model.other[1].out_features == 12
    told = [note for note in result.report.notes if note.startswith("Not reached") and "other.0" in note]
    assert told or kind is Teacher  # which training reaches


class TwoTargets(nn.Module):
    """Twin critics with targets, and one of the critics' kind that follows none of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        nets = (nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)) for _ in range(6))
        self.one, self.other, self.mean_one, self.mean_other, self.teacher, self.start = nets
        self.mean_one, self.mean_other = copy.deepcopy(self.one), copy.deepcopy(self.other)
        self.mean_one.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(x), self.other(x)

    def follow(self) -> None:
        for mean, weight in zip(self.mean_one.parameters(), self.one.parameters(), strict=True):
            mean.data.lerp_(weight.data, 0.1)
        means, weights = self.mean_other.state_dict(), self.other.state_dict()
        self.mean_other.load_state_dict({name: means[name] * 0.9 + weights[name] * 0.1 for name in means})
        self.start.load_state_dict(self.one.state_dict())

    def learn(self, x: Tensor) -> None:
        (self.one(x) - self.teacher(x)).square().mean().backward()
        for weight in self.one.parameters():
            weight.data.sub_(weight.grad, alpha=0.1).mul_(0.99)

    def checkpoint(self, held: dict[str, Any] | None) -> dict[str, Any]:
        if held is not None:
            self.one.load_state_dict(held["one"])
            self.teacher.load_state_dict(held["teacher"])
        return {"one": self.one.state_dict(), "teacher": self.teacher.state_dict()}


def test_of_several_of_a_kind_each_is_cut_as_what_it_follows() -> None:
    result = ap.prune(TwoTargets().eval(), torch.randn(32, 8), keep="units=50%", method="l2")
    small: Any = result.model
    assert [net[0].out_features for net in small.children()] == [6, 6, 6, 6, 12, 6]
    for net, mean in ((small.one, small.mean_one), (small.other, small.mean_other)):
        assert torch.equal(mean[0].weight, net[0].weight)
    small.follow()
    small.learn(torch.randn(4, 8))


def test_objects_that_lead_back_to_where_one_came_from() -> None:
    """A logger leads to its manager, and that to all loggers."""
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    model.log = logging.getLogger("one.of.several")  # type: ignore[assignment]
    model.part = Memory()  # type: ignore[assignment]
    model.part.whole = {"again": [model.part]}  # type: ignore[union-attr]
    assert [*plain_slots(model)][:3] == ["part.gain", "part.held.keys", "part.held.values"]
    assert [group.name for group in ap.capture(model, torch.randn(4, 8)).groups] == ["0"]


class Memory:
    """Keys and values, in an object that is no module."""

    def __init__(self) -> None:
        self.held = {"keys": torch.zeros(4, 9, 4, 6), "values": torch.zeros(4, 9, 4, 6)}
        self.gain = torch.ones(4, 6)

    def put(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        b, t = keys.shape[:2]
        self.held["keys"][:b, :t], self.held["values"][:b, :t] = keys, values * self.gain
        return self.held["keys"][:b, :t], self.held["values"][:b, :t]


class Remembered(nn.Module):
    """A memory for every layer, in a list."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads, self.size, self.memories = 4, 6, [Memory()]
        self.qkv, self.out = nn.Linear(8, 72), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, self.size).unbind(2)
        k, v = self.memories[0].put(k, v)
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_caches_in_objects_are_cut(tmp_path: Path) -> None:
    model, x = Remembered().eval(), torch.randn(4, 6, 8)
    result = ap.prune(model, x, keep={group.name: 3 for group in ap.capture(model, x).groups}, method="l2")
    small = result.model
    assert isinstance(small, Remembered) and small.memories[0].held["keys"].shape == (4, 9, 3, 3)
    assert model.memories[0].gain.shape == (4, 6) and small.memories[0].gain.shape == (3, 3)
    result.save(tmp_path / "run")
    assert torch.equal(ap.load(tmp_path / "run", Remembered()).eval()(x), small(x))


class Kept(nn.Module):
    """An agent whose parts are no modules: what it has seen last, and how it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 6), nn.Linear(6, 3)
        memory, learner = SimpleNamespace(last=None), SimpleNamespace(sgd=torch.optim.SGD(self.parameters(), 0.1))
        self.agent = SimpleNamespace(memories=[memory], learner=learner)

    def forward(self, x: Tensor) -> Tensor:
        self.agent.memories[0].last = self.first(x).relu()
        return self.second(self.agent.memories[0].last)


class Untold:
    """It has no attributes, and asked for any it raises what getattr doesn't expect."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if name == "__dict__":
            raise KeyError(name)
        raise AttributeError(name)


@pytest.mark.parametrize(
    "held", [Untold, lambda: torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)])], ids=["untold", "nested"]
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_odd_things_in_objects_are_let_be(held: Any) -> None:
    model: Any = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    model.data = SimpleNamespace(part=SimpleNamespace(odd=held()))
    assert [group.name for group in ap.capture(model, torch.randn(4, 8)).groups] == ["0"]


def test_objects_in_objects_are_put_back_and_followed() -> None:
    model: Any = Kept().eval()
    small: Any = ap.prune(model, torch.randn(4, 8), keep="units=50%", method="l2").model
    assert model.agent.memories[0].last is None and small.agent.memories[0].last is None
    assert small.agent.learner.sgd.param_groups[0]["params"][0] is small.first.weight
    assert model.agent.learner.sgd.param_groups[0]["params"][0] is model.first.weight


def test_a_table_in_a_plain_attribute_keeps_its_units() -> None:
    """It is in no file, and nothing says that the class would make the same numbers of fewer units."""
    graph = ap.capture(Cached(shift=True).eval(), torch.randn(4, 6, 8))
    assert not graph.groups  # the size of queries and keys is that of the values
    assert "a constant of the forward pass, read by aten.add.Tensor at the model, test_odd_models.py:" in str(
        graph.account()
    )


class Seen(nn.Module):
    """What is written under one name is read under another: the same memory, as another shape or of another layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 12), nn.Linear(12, 3)
        self.mean = torch.zeros(12)
        self.other = {
            "view": lambda: self.mean.view(1, 12),
            "halves": lambda: torch.zeros(12),
            "weight": lambda: self.first.bias.detach(),
            "sparse": lambda: torch.eye(4).to_sparse(),
        }[kind]()
        if kind == "halves":
            self.mean, self.other = torch.zeros(2, 12)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        if self.other.is_sparse:
            return self.second(torch.sparse.mm(self.other, hidden))
        self.mean.copy_(hidden.detach().mean(0))
        return self.second((hidden - self.other).relu())


@pytest.mark.parametrize(("kind", "kept"), [("view", 12), ("halves", 6), ("weight", 6), ("sparse", 6)])
def test_memory_that_two_attributes_see_stays_shared(kind: str, kept: int) -> None:
    """Two slices would not be: a class that is to lose units of both keeps them."""
    model, x = Seen(kind).eval(), torch.randn(4, 8)
    groups = {group.name: 6 for group in ap.capture(model, x).groups}
    assert bool(groups) == (kept < 12)
    if groups:
        small: Any = ap.prune(model, x, keep=groups, method="l2").model
        assert small.first.out_features == kept and small(x).shape == (4, 3)
        if kind == "weight":
            assert not small.other.requires_grad and small.other.data_ptr() == small.first.bias.data_ptr()


def test_an_alias_of_a_weight_is_one_in_a_copy() -> None:
    model = copied(Seen("weight"))
    assert isinstance(model, Seen) and model.other.data_ptr() == model.first.bias.data_ptr()
    assert not isinstance(model.other, nn.Parameter)


def test_a_cache_may_have_grown_before_the_model_was_pruned(tmp_path: Path) -> None:
    model, x = Cached().eval(), torch.randn(4, 6, 8)
    model.keys, model.values = torch.zeros(9, 30, 4, 6), torch.zeros(9, 30, 4, 6)
    result = ap.prune(model, x, keep="units=50%", method="l2")
    result.save(tmp_path / "run")
    other = ap.load(tmp_path / "run", Cached()).eval()
    assert isinstance(other, Cached) and other.keys.shape == (4, 9, other.heads, other.size)
    assert torch.equal(other(x), result.model(x))


class Blurred(nn.Module):
    """A filter of every channel that is in no file: a buffer that is not saved, or a plain attribute."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.filter: Tensor
        if plain:
            self.filter = torch.full((8, 1, 2, 2), 0.25)
        else:
            self.register_buffer("filter", torch.tensor([[1.0, 2], [2, 4]]).repeat(8, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.conv2d(self.first(x).relu(), self.filter, groups=len(self.filter)))


@pytest.mark.parametrize("plain", [False, True])
def test_what_no_file_holds_is_cut_but_not_refitted(plain: bool, tmp_path: Path) -> None:
    """A file would not bring back what a fit had made of it."""
    model, x = Blurred(plain).eval(), torch.randn(16, 3, 8, 8)
    result = ap.prune(model, [x] * 2, keep="units=50%")
    small = result.model
    assert isinstance(small, Blurred) and torch.equal(small.filter, model.filter[:4])
    result.save(tmp_path / "run")
    assert torch.equal(ap.load(tmp_path / "run", Blurred(plain)).eval()(x), small(x))


class Averaged(nn.Module):
    """A batch norm by hand, with its means in plain attributes; `drawn` are no means."""

    def __init__(self, drawn: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.drawn = nn.Linear(8, 12), nn.Linear(12, 3), drawn
        self.mean, self.var = torch.zeros(12), torch.ones(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        mean, var = self.mean, self.var
        if torch.is_grad_enabled():
            mean, var = x.mean(0), x.var(0)
            self.mean = torch.randn(12) if self.drawn else 0.9 * self.mean + 0.1 * mean
            self.var = 0.9 * self.var + 0.1 * var
        self.mean, self.var = self.mean.data, self.var.data
        return self.second(((x - mean) / (var + 1e-5).sqrt()).relu())


def test_means_that_training_keeps_in_plain_attributes_follow_a_cut(tmp_path: Path) -> None:
    x = torch.randn(32, 8) + torch.arange(8)
    model = Averaged(drawn=False)
    model(x)
    kept = model.mean, model.var
    result = ap.prune(model.eval(), x, keep="units=50%")
    assert kept == (model.mean, model.var) and not model.training
    small: Any = result.model
    assert small.mean.shape == small.var.shape == (6,)
    result.save(tmp_path / "run")
    with torch.no_grad():
        assert torch.equal(ap.load(tmp_path / "run", Averaged(drawn=False)).eval()(x), small(x))
    small.train()(x).sum().backward()
    assert small.mean.shape == (6,)
    assert proved_folder(tmp_path / "run", model, small.eval(), x).passed
    last: Any = ap.prune(nn.Sequential(model), x, keep={"0.first": 1}, method="l2").model
    assert last[0].mean.shape == (1,)


def test_a_table_that_training_draws_anew_keeps_its_units() -> None:
    """Nothing would make fewer numbers of it."""
    x, model = torch.randn(32, 8), Averaged(drawn=True)
    model(x)
    assert not ap.capture(model.eval(), x).groups


class Remembering(nn.Module):
    """Its last values, in what an attribute leads to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 12), nn.Linear(12, 3)
        self.layers: dict[str, dict[str, Tensor]] = {"first": {}}
        self.recent: deque[Tensor] = deque(maxlen=2)
        self.state = SimpleNamespace(sums=[(torch.zeros(12),)], calls=0)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        self.layers["first"]["hidden"] = hidden.detach()
        self.recent.append(hidden.detach())
        self.state.sums[0][0].add_(hidden.detach().sum(0))
        self.state.calls += 1
        return self.second(hidden.relu())


def test_what_attributes_lead_to_is_as_before() -> None:
    """A tracer would leave fake tensors there, which nothing runs on, or copies."""
    model, x = Remembering().eval(), torch.randn(4, 8)
    ap.capture(model, x)
    assert not model.layers["first"] and not model.recent
    assert model.state.calls == 0 and not model.state.sums[0][0].any()


def test_what_large_containers_hold_is_passed_by() -> None:
    model = nn.Linear(2, 2)
    model.samples = [(torch.zeros(1),)] * (MANY + 1)
    assert all(
        value is model.weight or value is model.bias for value in held_values(model) if isinstance(value, Tensor)
    )


class Anew(nn.Dropout):
    """Is made again from what it was made of when it is copied, as einops' layers are."""

    def __getstate__(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return {"p": self.p}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


def test_a_module_that_is_copied_by_making_it_anew_stays_in_its_mode() -> None:
    model = nn.Sequential(nn.Linear(3, 4), Anew(0.5), nn.Linear(4, 2)).eval()
    assert not any(module.training for module in copied(model).modules())


class Handed(nn.Module):
    """Hands the weight of a depthwise convolution on without its dimension of one channel, as Mamba does."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.own, self.down = nn.Linear(6, 16), nn.Conv1d(16, 16, 3, groups=16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight, h = self.own.weight.squeeze(1), self.up(x).transpose(1, 2)
        h = nn.functional.conv1d(h, weight.unsqueeze(1), self.own.bias, groups=len(weight))
        return self.down(h.relu().mean(2))


class Moved(nn.Module):
    """Moves a layer to where its input is, and says a size that `torch.export` refuses, as experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down.to(x.device)(self.up(x).relu()[: int((x[0, 0] == x[0, 0]).item()) * len(x)])


class MovedAlone(Moved):
    """The same, which `torch.export` takes."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down.to(x.device)(self.up(x).relu())


@pytest.mark.parametrize("exported", [False, True])
def test_a_layer_that_is_moved_in_forward_has_its_own_weight(exported: bool) -> None:
    torch.manual_seed(0)
    result = ap.prune(MovedAlone() if exported else Moved(), torch.randn(64, 6), keep={"up": 8})
    assert result.proof.passed and not result.graph.masks
    assert "down.weight" in [site.weight for site in result.graph.sites if site.reads]
    assert [told["module"] for told in result.rewrite.record["consumers"].values()] == ["down"]


def test_a_weight_that_is_only_handed_on_is_no_computed_one() -> None:
    torch.manual_seed(0)
    result = ap.prune(Handed(), torch.randn(64, 7, 6), keep="macs=50%")
    assert result.proof.passed and len(result.plan.widths) == 1 and result.graph["up"].width == 16
    assert "own.weight" in [site.weight for site in result.graph.sites] and not result.graph.masks
    assert not any("ranked by weights alone" in note for note in result.report.notes)
