"""The last layer of a classifier, fitted to probabilities: where it helps, and where it must not be touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import actprune as ap
from actprune.axes.capture import capture
from actprune.compensation.logits import _seen, find_head, nearer_logits
from actprune.compensation.refit import compensate
from actprune.data.take import fit
from actprune.graph.run import run
from actprune.plan import Plan, make_plan

pytestmark = pytest.mark.accurate

BATCH = 128
ROOM = 10**9


class Classifier(nn.Module):
    """Two layers, of which the second gives logits or what `last` makes of them."""

    def __init__(self, last: Any = None, bias: bool = True, classes: int = 4) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(6, 24), nn.Linear(24, classes, bias=bias)
        self.last = last
        with torch.no_grad():
            self.head.weight -= self.head.weight.mean(0)
            self.head.weight *= 8  # sure of its classes

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.up(x).relu())
        return y if self.last is None else self.last(y)


def cut_to(model: nn.Module, x: Tensor, width: int = 8) -> tuple[ap.Graph, Plan]:
    graph = capture(model, x[:BATCH])
    return graph, make_plan(graph, {group.name: tuple(range(width)) for group in graph.groups})


def divergence(graph: ap.Graph, x: Tensor, tensors: Any, log: Any = torch.log_softmax) -> float:
    (dense,), (found,) = run(graph.program, (x,)), run(graph.program, (x,), tensors)
    p, q = (log(out.double(), -1) for out in (dense, found))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("bias", [True, False])
def test_brings_the_probabilities_nearer(bias: bool) -> None:
    torch.manual_seed(0)
    x, fresh = torch.randn(2048, 6), torch.randn(4096, 6)
    graph, plan = cut_to(Classifier(bias=bias), x)
    refit = compensate(graph, plan, x).tensors
    new, told = nearer_logits(graph, plan, fit(graph.program, x.split(BATCH)), refit, ROOM)
    assert set(new) == ({"head.weight", "head.bias"} if bias else {"head.weight"})
    assert divergence(graph, fresh, {**refit, **new}) < 0.95 * divergence(graph, fresh, refit)
    assert told["module"] == "head"
    assert told["held_after"] < told["held_before"]
    assert not new["head.weight"][:, 8:].any(), "columns of units that are gone stay zero"


def test_is_the_optimum() -> None:
    """With so many rows the ridge is small, and little of the gradient of the divergence is left."""
    torch.manual_seed(1)
    x = torch.randn(8192, 6)
    graph, plan = cut_to(Classifier(), x)
    refit = compensate(graph, plan, x).tensors
    new, told = nearer_logits(graph, plan, fit(graph.program, x.split(BATCH)), refit, ROOM)
    assert told["ridge"] <= 0.1

    def gradient(tensors: dict[str, Tensor]) -> float:
        hidden = F.linear(x, refit.get("up.weight", graph.program.tensors["up.weight"]), tensors["up.bias"]).relu()
        weight = tensors["head.weight"].clone().requires_grad_()
        (dense,) = run(graph.program, (x,))
        loss = F.cross_entropy(F.linear(hidden[:, :8], weight[:, :8], tensors["head.bias"]), dense.softmax(-1))
        loss.backward()
        assert weight.grad is not None
        return float(weight.grad.norm())

    held = {**graph.program.tensors, **refit}
    assert gradient({**held, **new}) < 0.3 * gradient(held)


@pytest.mark.parametrize(
    ("last", "log"),
    [
        (nn.Softmax(-1), lambda value, _: value.log()),
        (nn.LogSoftmax(-1), lambda value, _: value),
    ],
)
def test_probabilities(last: nn.Module, log: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(2048, 6)
    graph, plan = cut_to(Classifier(last), x)
    refit = compensate(graph, plan, x).tensors
    new, _ = nearer_logits(graph, plan, fit(graph.program, x.split(BATCH)), refit, ROOM)
    assert divergence(graph, x, {**refit, **new}, log) < 0.9 * divergence(graph, x, refit, log)


class Tied(Classifier):
    """The head's weight is read elsewhere, too."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x).relu()
        return self.head(hidden + 0.01 * self.head(hidden).tanh() @ self.head.weight)


class Scaled(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * super().forward(x)


class Direct(nn.Module):
    """There is nothing in front of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


@pytest.mark.parametrize("model", [Tied(), Scaled(), Direct(), Classifier(nn.Sigmoid()), Classifier(classes=1)])
def test_left_alone(model: nn.Module) -> None:
    x = torch.randn(1024, 6)
    graph = capture(model, x[:BATCH])
    assert find_head(graph, make_plan(graph, {})) is None


def test_too_few_rows() -> None:
    x = torch.randn(24, 6)
    graph, plan = cut_to(Classifier(), x)
    refit = compensate(graph, plan, x).tensors
    assert nearer_logits(graph, plan, fit(graph.program, x), refit, ROOM) == ({}, {})


def test_whole_network_is_left_alone() -> None:
    x = torch.randn(1024, 6)
    graph, _ = cut_to(Classifier(), x)
    whole = make_plan(graph, {})
    data = fit(graph.program, x.split(BATCH))
    assert nearer_logits(graph, whole, data, {}, ROOM) == ({}, {})
    same = {"head.weight": graph.program.tensors["head.weight"].detach().clone()}
    assert nearer_logits(graph, whole, data, same, ROOM) == ({}, {})


def test_only_where_the_divergence_is_the_distance() -> None:
    torch.manual_seed(0)
    x = torch.randn(2048, 6)
    graph, plan = cut_to(Classifier(), x)
    by_name = {how: compensate(graph, plan, x, method="reconstruct", distance=how) for how in ("auto", "kl", "mse")}
    assert by_name["auto"].record["logits"] == by_name["kl"].record["logits"] != {}
    assert not by_name["mse"].record.get("logits")
    assert divergence(graph, x, by_name["auto"].tensors) < divergence(graph, x, by_name["mse"].tensors)


def values(scale: float, shift: float) -> nn.Module:
    """Outputs of a regressor: of that size, with a mean that varies or does not."""
    torch.manual_seed(0)
    model = Classifier()
    with torch.no_grad():
        model.head.weight.copy_(scale * (torch.randn(4, 24) / 5 + shift * torch.randn(1, 24)))
    return model


def test_unsure_outputs_are_values() -> None:
    x = torch.randn(2048, 6)
    graph, plan = cut_to(values(0.2, 0.0), x)
    assert not compensate(graph, plan, x, method="reconstruct").record.get("logits")


def test_values_with_a_mean_that_varies_are_left_unless_told() -> None:
    x = torch.randn(2048, 6)
    graph, plan = cut_to(values(20.0, 0.3), x)
    found = {how: compensate(graph, plan, x, method="reconstruct", distance=how) for how in ("auto", "kl")}
    assert not found["auto"].record["logits"]
    assert found["kl"].record["logits"]
    judged = compensate(graph, plan, x, method="reconstruct", distance="kl", judged=True)  # as `prune` has found it
    assert not judged.record["logits"]


class Product(nn.Module):
    """A head that is one call with a bias of this shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.up, self.weight = nn.Linear(6, 24), nn.Parameter(torch.randn(24, 4))
        self.bias = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, self.up(x).relu(), self.weight)


@pytest.mark.parametrize("shape", [(4,), (1, 4), (1,), ()])
def test_products_with_biases_of_any_shape(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(1024, 6)
    graph, plan = cut_to(Product(*shape), x)
    record = compensate(graph, plan, x, method="reconstruct", distance="kl").record["logits"]
    assert bool(record) is (shape == (4,))


def test_inputs_that_are_all_zero() -> None:
    model, x = Classifier(bias=False), torch.randn(1024, 6)
    with torch.no_grad():
        model.up.bias[:8] = -100.0
    graph, plan = cut_to(model, x)
    assert not compensate(graph, plan, x, method="reconstruct", distance="kl").record["logits"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_left_alone(dtype: torch.dtype) -> None:
    x = torch.randn(256, 6, dtype=dtype)
    graph = capture(Classifier().to(dtype), x[:BATCH])
    assert find_head(graph, make_plan(graph, {})) is None


def test_rows_are_thinned_evenly_and_within_the_room() -> None:
    torch.manual_seed(0)
    model, tokens = Speaker(), torch.randint(0, 17, (256, 12))
    graph = capture(model, tokens[:32])
    plan = make_plan(graph, {"up": tuple(range(6))})
    data, refit = fit(graph.program, tokens.split(32)), compensate(graph, plan, tokens).tensors
    head = find_head(graph, plan)
    assert head is not None and head.certain
    assert (head.classes, head.unknowns, head.rows(256)) == (17, 8, 3072)
    x, logits, held = _seen(graph, head, data, refit, 200)
    assert 150 < len(x) == len(logits) == len(held) <= 200
    assert 0.15 < float(held.double().mean()) < 0.35
    every, _, _ = _seen(graph, head, data, refit, 10**6)
    assert torch.equal(every[:: -(-3072 // 200)], x)
    assert nearer_logits(graph, plan, data, refit, 1000) == ({}, {})


class Speaker(nn.Module):
    """A language model with a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(17, 8), nn.Linear(8, 24), nn.Linear(24, 8)
        self.head = nn.Linear(8, 17, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        return self.head(x + self.down(self.up(x).relu()))


class Flat(Speaker):
    """Its outputs are one row for every token: whose sample that was is not said."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens).flatten(0, 1)
        return self.head(x + self.down(self.up(x).relu()))


def test_the_report_tells() -> None:
    torch.manual_seed(0)
    result = ap.prune(Classifier(), torch.randn(2048, 6).split(BATCH), keep="macs=40%")
    assert any("probabilities" in note for note in result.report.notes)


def test_flattened_tokens_are_left_alone() -> None:
    tokens = torch.randint(0, 17, (64, 12))
    graph = capture(Flat(), tokens)
    assert find_head(graph, make_plan(graph, {})) is None


def test_language_model() -> None:
    torch.manual_seed(0)
    model, tokens = Speaker(), torch.randint(0, 17, (256, 12))
    with torch.no_grad():
        model.head.weight *= 12
    result = ap.prune(model, tokens.split(32), keep="macs=50%")
    assert result.rewrite.record["logits"]["module"] == "head"
    assert result.proof.passed
