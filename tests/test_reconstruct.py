"""Blocks fitted as a whole: against least squares, on networks whose best weights are known, and what must stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import actprune as ap
from actprune.axes.capture import Graph, capture
from actprune.compensation import choice, reconstruct
from actprune.compensation.gauss_newton import best_size, gauss_newton, twice_differentiable
from actprune.compensation.refit import compensate
from actprune.errors import DataError
from actprune.graph.run import run
from actprune.plan import Plan, make_plan
from actprune.rewrite import Rewrite
from nets import NETS, build

pytestmark = pytest.mark.accurate

SAMPLES, BATCH = 512, 128


class Mlp(nn.Module):
    """x + down(act(up x)), and a head."""

    def __init__(self, act: Any, width: int = 12, gated: bool = False) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(6, width), nn.Linear(width, 6), nn.Linear(6, 3)
        self.gate = nn.Linear(6, width, bias=False) if gated else None
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        made = self.act(self.up(x)) if self.gate is None else self.act(self.gate(x)) * self.up(x)
        return self.head(x + self.down(made))


class Attention(nn.Module):
    """Self-attention of four heads, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (m(x).unflatten(-1, (4, 2)).transpose(1, 2) for m in (self.query, self.key, self.value))
        return self.head(x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))


class Trunk(nn.Module):
    """A trunk of one layer that two heads read.

    Args:
        row: whether the second one reads what the first one gives, too.
    """

    def __init__(self, row: bool = False) -> None:
        super().__init__()
        self.trunk, self.policy, self.value = nn.Linear(6, 16), nn.Linear(16, 5), nn.Linear(21 if row else 16, 1)
        self.row = row

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.trunk(x))
        policy = self.policy(hidden)
        return policy, self.value(torch.cat([hidden, policy.relu()], -1) if self.row else hidden)


class Gated(nn.Module):
    """x + down(u · gate(u)) with u = act(up x), and a head; the gate has a layer of four units within.

    Args:
        elsewhere: whether that layer leads to an output of its own as well.
    """

    def __init__(self, elsewhere: bool = False) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(6, 12), nn.Linear(12, 6), nn.Linear(6, 3)
        self.squeeze, self.excite = nn.Linear(12, 4), nn.Linear(4, 12)
        self.elsewhere = elsewhere

    def forward(self, x: Tensor) -> Any:
        made = F.silu(self.up(x))
        squeezed = F.silu(self.squeeze(made))
        out = self.head(x + self.down(made * self.excite(squeezed).sigmoid()))
        return (out, squeezed) if self.elsewhere else out


def error(graph: Graph, rewrite: Rewrite, x: Tensor, output: int = 0) -> float:
    dense, cut_ = (
        torch.cat([run(graph.program, (part,), tensors)[output] for part in x.split(BATCH)])
        for tensors in ({}, rewrite.tensors)
    )
    return float(((dense - cut_) ** 2).mean() / dense.var())


def both(graph: Graph, plan: Plan, x: Tensor) -> tuple[Rewrite, Rewrite]:
    return compensate(graph, plan, x), compensate(graph, plan, x, method="reconstruct")


def drawn(shape: tuple[int, ...]) -> Tensor:
    """Samples; images are smooth."""
    if len(shape) < 3:
        return torch.randn(SAMPLES, *shape)
    return F.interpolate(torch.randn(SAMPLES, shape[0], 4, 4), shape[1:], mode="bilinear")


def ratio(make: Callable[[], nn.Module], shape: tuple[int, ...], kept: dict[str, Any]) -> float:
    """Error on new samples of whole blocks, as a share of that of the refit, over some networks together."""
    errors = [0.0, 0.0]
    for seed in range(3):
        torch.manual_seed(seed)
        model = make().eval()
        x, new = drawn(shape), drawn(shape)
        graph = capture(model, x[:BATCH])
        for i, rewrite in enumerate(both(graph, make_plan(graph, kept), x)):
            errors[i] += error(graph, rewrite, new)
    return errors[1] / errors[0]


def test_a_step_solves_least_squares() -> None:
    x, t = torch.randn(3, 40, 5), torch.randn(3, 40, 2)
    residuals = [lambda at, i=i: x[i] @ at[0] + at[1] - t[i] for i in range(3)]
    weight, bias = gauss_newton(residuals, [torch.zeros(5, 2), torch.zeros(2)], 20)
    rows = torch.cat([x.flatten(0, 1), torch.ones(120, 1)], 1)
    wanted = torch.linalg.lstsq(rows, t.flatten(0, 1)).solution
    torch.testing.assert_close(torch.cat([weight, bias[None]]), wanted, atol=5e-3, rtol=1e-2)


def test_the_best_size_of_a_step_may_be_none() -> None:
    step = [torch.tensor([4.0])]
    assert best_size(lambda at: float((at[0] - 1) ** 2), step, 1.0) == ([torch.tensor([1.0])], 0.0)
    assert best_size(lambda at: float((at[0] + 1) ** 2), step, 1.0) == (None, 1.0)


def test_what_nothing_depends_on_stays() -> None:
    """A softmax takes no notice of what is added to all of its inputs: the bias of keys, say."""
    x, t = torch.randn(40, 5), torch.randn(40, 4).softmax(1)
    weight, shift = gauss_newton(
        [lambda at: (x @ at[0] + at[1]).softmax(1) - t], [torch.zeros(5, 4), torch.zeros(1)], 20
    )
    assert weight.abs().max() > 0.1
    assert shift.abs().max() < 0.05


def test_backends_are_as_they_were_behind_a_step_that_fails() -> None:
    backends, convolutions = (torch.backends.cudnn, torch.backends.mkldnn), torch.backends.cudnn.conv
    before, precision = [backend.enabled for backend in backends], convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"  # recurrent layers have another, of which `cudnn.flags` fails
    try:
        with pytest.raises(KeyboardInterrupt), twice_differentiable(recurrent=True):
            assert not any(backend.enabled for backend in backends)
            raise KeyboardInterrupt
    finally:
        convolutions.fp32_precision = precision
    assert [backend.enabled for backend in backends] == before


def test_linear_layers_in_a_row_are_factorised_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three units carry a map of rank three, whichever three they were; some networks take more than three steps."""
    monkeypatch.setattr(choice, "ROUNDS", 16)
    model = nn.Sequential(nn.Linear(6, 9), nn.Identity(), nn.Linear(9, 3)).eval()
    x = torch.randn(SAMPLES, 6)
    graph = capture(model, x[:BATCH])
    refitted, whole = both(graph, make_plan(graph, {"0": [1, 4, 7]}), x)
    assert error(graph, refitted, x) > 0.05
    assert error(graph, whole, x) < 1e-5


class Tables(nn.Module):
    """A row of a table beside a hidden layer, and one map of rank three that reads both."""

    def __init__(self, rows: int = 20) -> None:
        super().__init__()
        self.table, self.up = nn.Embedding(rows, 8), nn.Linear(6, 8)
        self.read = nn.Linear(16, 3)

    def forward(self, i: Tensor, x: Tensor) -> Tensor:
        return self.read(torch.cat([self.table(i), torch.tanh(self.up(x))], 1))


def test_rows_of_a_table_are_fitted_with_what_reads_them() -> None:
    i, x = torch.randint(0, 20, (SAMPLES,)), torch.randn(SAMPLES, 6)
    graph = capture(Tables().eval(), (i[:BATCH], x[:BATCH]))
    plan, data = make_plan(graph, {"table": [0, 2, 5]}), list(zip(i.split(BATCH), x.split(BATCH), strict=True))
    error = [
        float(torch.stack([(a[0] - b[0]).var() for a, b in zip(*outputs, strict=True)]).mean())
        for method in ("least_squares", "reconstruct")
        for rewrite in [compensate(graph, plan, data, method=method)]
        for outputs in [[[run(graph.program, one, t) for one in data] for t in ({}, rewrite.tensors)]]
    ]
    assert error[0] > 0.01
    assert error[1] < 1e-3 * error[0]


def test_a_table_with_more_rows_than_samples_leaves_the_layers_beside_it_to_be_fitted() -> None:
    i, x = torch.randint(0, 1000, (SAMPLES,)), torch.randn(SAMPLES, 6)
    graph = capture(Tables(1000).eval(), (i[:BATCH], x[:BATCH]))
    plan, data = (
        make_plan(graph, {"table": range(4), "up": range(4)}),
        list(zip(i.split(BATCH), x.split(BATCH), strict=True)),
    )
    rewrite = compensate(graph, plan, data, method="reconstruct")
    assert [one["module"] for one in rewrite.record["blocks"].values()] == ["read"]
    assert "up.weight" in rewrite.tensors
    assert "table.weight" not in rewrite.tensors


class Steps(nn.Module):
    """Rows of a table, step by step, for a recurrent layer whose sums of them have rank three."""

    def __init__(self, kind: str, first: bool, packed: bool = False, **given: Any) -> None:
        super().__init__()
        self.table, self.packed, self.first = nn.Embedding(20, 8), packed, first
        self.layer = getattr(nn, kind)(8, 5, batch_first=first, **given)
        basis = torch.randn(3, 8)
        with torch.no_grad():
            for name, weight in self.layer.named_parameters():
                if name.startswith("weight_ih"):
                    weight.copy_(torch.randn(len(weight), 3) @ basis / 4)

    def forward(self, i: Tensor, lengths: Tensor) -> Tensor:
        x = self.table(i)
        if self.packed:
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return pad_packed_sequence(self.layer(packed)[0], batch_first=True)[0]
        return self.layer(x)[0] if self.first else self.layer(x.transpose(0, 1))[0].transpose(0, 1)


@pytest.mark.parametrize(
    "given",
    [
        {"kind": "LSTM", "first": True},
        {"kind": "GRU", "first": False, "bidirectional": True},
        {"kind": "LSTM", "first": True, "packed": True, "bidirectional": True},
    ],
)
def test_rows_of_a_table_are_fitted_with_the_recurrent_layer_that_reads_them(given: dict[str, Any]) -> None:
    i, lengths = torch.randint(0, 20, (SAMPLES, 6)), torch.randint(3, 7, (SAMPLES,))
    lengths[::BATCH] = 6
    graph = capture(Steps(**given).eval(), (i[:BATCH], lengths[:BATCH]))
    data = list(zip(i.split(BATCH), lengths.split(BATCH), strict=True))
    plan = make_plan(graph, {"table": [0, 2, 5, 6]})
    error = [
        sum(float(((a[0] - b[0]) ** 2).sum()) for a, b in zip(*outputs, strict=True))
        for method in ("least_squares", "reconstruct")
        for rewrite in [compensate(graph, plan, data, method=method)]
        for outputs in [[[run(graph.program, one, t) for one in data] for t in ({}, rewrite.tensors)]]
    ]
    assert error[1] < 1e-2 * error[0]


class Last(nn.Module):
    """Recurrent layers whose last states a head reads, through their mean."""

    def __init__(self, kind: str, **given: Any) -> None:
        super().__init__()
        self.layer = getattr(nn, kind)(6, 12, batch_first=True, **given)
        self.head = nn.Linear(12 * (1 + bool(given.get("bidirectional"))), 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0].mean(1))


@pytest.mark.parametrize(
    ("kind", "given"), [("LSTM", {}), ("GRU", {"bidirectional": True}), ("RNN", {"num_layers": 2})]
)
def test_recurrent_layers_are_fitted_with_what_reads_their_states(kind: str, given: dict[str, Any]) -> None:
    groups = ("layer#1", "layer#2") if given else ("layer",)
    assert ratio(lambda: Last(kind, **given), (5, 6), dict.fromkeys(groups, range(0, 12, 2))) < 0.7


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("act", [F.relu, F.gelu, F.silu, torch.tanh])
def test_mlps_come_nearer_on_new_samples(act: Any, gated: bool) -> None:
    assert ratio(lambda: Mlp(act, gated=gated), (6,), {"gate" if gated else "up": range(0, 12, 2)}) < 0.95


def test_hard_sigmoids_whose_op_has_no_second_derivative_are_no_hindrance() -> None:
    assert ratio(lambda: Mlp(lambda x: F.hardsigmoid(6 * x)), (6,), {"up": range(0, 12, 2)}) < 0.95


def test_units_that_a_gate_reads_too_come_nearer_on_new_samples() -> None:
    assert ratio(Gated, (6,), {"up": range(0, 12, 2)}) < 0.9


def test_a_block_within_another_is_fitted_with_it_or_alone() -> None:
    def fitted(samples: int) -> list[str]:
        x = torch.randn(samples, 6)
        graph = capture(Gated().eval(), x[:8])
        plan = make_plan(graph, {"up": range(8), "squeeze": range(2)})
        told = compensate(graph, plan, x, method="reconstruct").record["blocks"]
        return [one["module"] for one in told.values()]

    assert fitted(SAMPLES) == ["down"]
    assert fitted(32) == ["excite"]  # too few samples for all four layers


def test_units_with_readers_side_by_side_come_nearer_on_new_samples_for_each() -> None:
    torch.manual_seed(0)
    model, x, new = Trunk().eval(), torch.randn(SAMPLES, 6), torch.randn(SAMPLES, 6)
    with torch.no_grad():
        model.value.weight *= 100  # neither is forgotten for the other's size
    graph = capture(model, x[:BATCH])
    refitted, whole = both(graph, make_plan(graph, {"trunk": range(6)}), x)
    assert [one["module"] for one in whole.record["blocks"].values()] == ["policy"]
    for output in (0, 1):
        assert error(graph, whole, new, output) < 0.8 * error(graph, refitted, new, output)


def test_heads_in_other_units_are_fitted_alike() -> None:
    """Kilometres in place of millimetres had left the trunk as it was: damped by weights that metres barely need."""

    def errors(*sizes: float) -> list[float]:
        torch.manual_seed(0)
        model, x = Trunk().eval(), torch.randn(SAMPLES, 6)
        with torch.no_grad():
            for head, size in zip((model.policy, model.value), sizes, strict=True):
                head.weight *= size
                head.bias *= size
        graph = capture(model, x[:BATCH])
        rewrite = compensate(graph, make_plan(graph, {"trunk": range(6)}), x, method="reconstruct")
        return [error(graph, rewrite, x, output) for output in (0, 1)]

    alike = errors(1, 1)
    for sizes in ((1e-4, 1e-4), (1e3, 1e-4)):
        assert errors(*sizes) == pytest.approx(alike, rel=0.1)


class Neighbours(nn.Module):
    """Graph convolutions on a ring: what a node is itself, and what its neighbours are, added."""

    def __init__(self, third: bool = False) -> None:
        super().__init__()
        self.own, self.next = nn.Linear(4, 12), nn.Linear(4, 12, bias=False)
        self.own2, self.next2 = nn.Linear(12, 4), nn.Linear(12, 4, bias=False)
        self.far2 = nn.Linear(12, 4, bias=False) if third else None

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.own(x) + self.next(x.roll(1, 1)))
        made = x + (self.own2(h) + self.next2(h.roll(1, 1)))
        return made if self.far2 is None else made + self.far2(h.roll(2, 1))


class Branches(nn.Module):
    """A convolution beside one of 1 × 1, each with its norm, twice (Ding et al. 2021, RepVGG)."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((2, 8), (8, 5))
        self.wide = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in widths)
        self.point = nn.ModuleList(nn.Conv2d(i, o, 1, bias=False) for i, o in widths)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o in widths for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for n, (wide, point) in enumerate(zip(self.wide, self.point, strict=True)):
            x = (self.norms[2 * n](wide(x)) + self.norms[2 * n + 1](point(x))).relu()
        return x.mean((2, 3))


class Splines(nn.Module):
    """Layers of a plain and a radial part (Liu et al. 2024, KAN).

    Args:
        how: the radial part is an einsum, or a linear layer whose weight is a view.
    """

    def __init__(self, how: str, out: int = 2) -> None:
        super().__init__()
        widths = ((4, 10), (10, out))
        self.plain = nn.ModuleList(nn.Linear(i, o) for i, o in widths)
        self.radial = nn.ParameterList(torch.randn(o, i, 5) / i**0.5 for i, o in widths)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        for plain, radial in zip(self.plain, self.radial, strict=True):
            near = torch.exp(-((x[..., None] - torch.linspace(-2, 2, 5)) ** 2))
            if self.how == "einsum":
                made = torch.einsum("bik,oik->bo", near, radial)
            else:
                made = F.linear(near.flatten(1), radial.view(radial.shape[0], -1))
            x = plain(F.silu(x)) + made
        return x


class Skip(nn.Module):
    """Units that an inner level reads, and a last layer beside what that gives."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(6, 16), nn.Linear(16, 6)
        self.last, self.head = nn.Linear(22, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        made = F.silu(self.first(x))
        return self.head(F.silu(self.last(torch.cat([made, F.silu(self.inner(made))], -1))))


class Elsewhere(nn.Module):
    """Units that a linear layer reads, and something else that leads to an output of its own."""

    def __init__(self, how: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.up, self.head, self.how = nn.Linear(6, 12), nn.Linear(12, 3), how
        self.weight = nn.Parameter(torch.randn(5, 12))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.up(x))
        return self.head(hidden), self.how(hidden, self.weight)


@pytest.mark.parametrize(
    "how",
    [
        lambda h, w: h @ h.T,
        lambda h, w: h.norm(dim=1),
        lambda h, w: F.linear(h, w * w.norm(dim=1, keepdim=True)),
        lambda h, w: F.linear(F.normalize(h), F.normalize(w)),
    ],
    ids=["with each other", "norm", "computed weight", "cosine"],
)
def test_units_that_no_layer_reads_as_well_are_no_block(how: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The layer's sum would come nearer, and the other output would go away."""
    graph = capture(Elsewhere(how).eval(), torch.randn(BATCH, 6))
    rewrite = compensate(graph, make_plan(graph, {"up": range(6)}), torch.randn(SAMPLES, 6), method="reconstruct")
    assert rewrite.record["blocks"] == {} and rewrite.record["consumers"]


@pytest.mark.parametrize("third", [False, True])
def test_readers_that_are_added_come_nearer_as_a_sum(third: bool) -> None:
    assert ratio(lambda: Neighbours(third), (5, 4), {"own": range(6)}) < 0.6


def test_branches_that_are_added_come_nearer_as_a_sum() -> None:
    assert ratio(Branches, (2, 4, 4), {"wide.0": range(4)}) < 0.8


@pytest.mark.parametrize(("how", "out"), [("einsum", 2), ("einsum", 1), ("view", 2)])
def test_weights_of_several_numbers_for_each_unit_are_fitted_with_those_beside(how: str, out: int) -> None:
    assert ratio(lambda: Splines(how, out), (4,), {"radial.0": range(5)}) < 0.65


def test_what_is_added_later_is_no_part_of_the_sum() -> None:
    """Both ends join with what stands behind them: their own sum is compared."""
    graph = capture(Neighbours().eval(), torch.randn(BATCH, 5, 4))
    rewrite = compensate(graph, make_plan(graph, {"own": range(6)}), torch.randn(SAMPLES, 5, 4), method="reconstruct")
    (block,) = rewrite.record["blocks"]
    assert block.count("+") == 1


def test_units_that_an_inner_level_reads_too_come_nearer_on_new_samples() -> None:
    assert ratio(Skip, (6,), {"first": range(6)}) < 0.9


def test_units_whose_one_reader_leads_to_the_other_and_elsewhere_are_no_block() -> None:
    x = torch.randn(SAMPLES, 6)
    graph = capture(Trunk(row=True).eval(), x[:BATCH])
    plan = make_plan(graph, {"trunk": range(6)})
    assert compensate(graph, plan, x, method="reconstruct").record["blocks"] == {}


def test_units_whose_readers_lead_elsewhere_are_no_block() -> None:
    x = torch.randn(SAMPLES, 6)
    graph = capture(Gated(elsewhere=True).eval(), x[:BATCH])
    assert compensate(graph, make_plan(graph, {"up": range(8)}), x, method="reconstruct").record["blocks"] == {}


def test_heads_come_nearer_on_new_samples() -> None:
    assert ratio(Attention, (7, 8), {"query#1": [0, 2]}) < 0.8
    x = torch.randn(SAMPLES, 7, 8)
    graph = capture(Attention().eval(), x[:BATCH])
    _, whole = both(graph, make_plan(graph, {"query#1": [0, 2]}), x)
    assert {"query.weight", "key.weight", "value.weight"} <= whole.tensors.keys()


def test_heads_are_fitted_where_the_layout_of_a_fast_kernel_is_viewed() -> None:
    class Viewed(Attention):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (f(x).view(*x.shape[:2], 4, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
            made = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            return self.head(x + self.out(made.view(*x.shape[:2], -1)))

    assert ratio(Viewed, (7, 8), {"query#1": [0, 2]}) < 0.8


def test_convolutions_come_nearer_through_norm_relu_and_pooling() -> None:
    def make() -> nn.Module:
        first, second = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 6, 3)
        middle = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        return nn.Sequential(first, middle, second, nn.ReLU(), nn.Flatten(), nn.Linear(6, 3))

    assert ratio(make, (2, 8, 8), {"0": [0, 2, 5], "2": [1, 2, 3, 5]}) < 1


def test_sequences_count_as_samples_where_time_comes_first() -> None:
    class One(Last):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x)[0])

    data = [torch.randn(8, 6) for _ in range(24)]
    graph = capture(One("GRU").eval(), data[0])
    told = compensate(graph, make_plan(graph, {"layer": range(6)}), data, method="reconstruct").record["blocks"]
    assert [one["batches"] for one in told.values()] == [23]  # all but one: a batch is one sequence


def test_states_between_the_layers_of_one_call_are_no_block() -> None:
    x = torch.randn(24, 9, 6)
    graph = capture(Last("GRU", num_layers=2).eval(), x[:8])
    plan = make_plan(graph, dict.fromkeys(("layer#1", "layer#2"), range(6)))
    assert compensate(graph, plan, x, method="reconstruct").record["blocks"] == {}  # too few for all of it


def test_only_what_stays_changes() -> None:
    first = nn.Linear(6, 8)
    model = nn.Sequential(first, nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    x = torch.randn(SAMPLES, 6)
    graph = capture(model, x[:BATCH])
    whole = compensate(graph, make_plan(graph, {"0": [0, 3, 4], "2": [1, 2]}), x, method="reconstruct").tensors
    for name, rows in (("0", [1, 2, 5, 6, 7]), ("2", [0, 3, 4, 5, 6, 7])):
        assert torch.equal(whole[f"{name}.bias"][rows], model.state_dict()[f"{name}.bias"][rows])
    assert torch.equal(whole["0.weight"][[1, 2, 5, 6, 7]], first.weight[[1, 2, 5, 6, 7]])
    assert not whole["2.weight"][:, [1, 2, 5, 6, 7]].any()
    assert not whole["4.weight"][:, [0, 3, 4, 5, 6, 7]].any()


def test_shared_weights_are_fitted_through_all_calls_and_the_model_itself_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.other = nn.Linear(6, 10), nn.Linear(10, 6), nn.Linear(10, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.down(self.up(x).tanh())
            return self.down(self.up(x).tanh())

    model = Twice().eval()
    x, new = torch.randn(SAMPLES, 6), torch.randn(SAMPLES, 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = capture(model, x[:BATCH])
    refitted, whole = both(graph, make_plan(graph, {"up": range(5)}), x)
    (told,) = whole.record["blocks"].values()
    assert told["weights"] == ["down.bias", "down.weight", "up.bias", "up.weight"]
    assert error(graph, whole, new) < 0.8 * error(graph, refitted, new)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("samples", [8, 2 * BATCH])
def test_too_few_samples_leave_the_refit(samples: int) -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 2)).eval()
    x = torch.randn(samples, 64)
    graph = capture(model, x[: min(samples, BATCH)])
    refitted, whole = both(graph, make_plan(graph, {"0": range(16)}), x)
    assert whole.record["blocks"] == {}
    assert all(torch.equal(whole.tensors[name], value) for name, value in refitted.tensors.items())


def test_half_as_many_residuals_as_weights_will_do_where_no_block_lies_within() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4)).eval()
    x = torch.randn(64, 16)
    graph = capture(model, x[:16])
    told = compensate(graph, make_plan(graph, {"0": range(16)}), x, method="reconstruct").record["blocks"]
    assert [(one["module"], one["batches"]) for one in told.values()] == [("2", 3)]  # 192 residuals, 340 weights


def test_work_and_memory_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Mlp(F.gelu).eval()
    x = torch.randn(SAMPLES, 6)
    graph = capture(model, x[:BATCH])
    plan = make_plan(graph, {"up": range(6)})
    assert compensate(graph, plan, x, method="reconstruct").record["blocks"]
    assert not compensate(graph, plan, x, method="reconstruct", memory_limit="4KB").record["blocks"]
    monkeypatch.setattr(choice, "WORK", 1e3)
    monkeypatch.setattr(choice, "FIRST", 1e3)
    assert not compensate(graph, plan, x, method="reconstruct").record["blocks"]
    with pytest.raises(DataError, match="memory limit"):
        compensate(graph, plan, x, method="reconstruct", memory_limit="much")


def test_calls_without_a_second_derivative_leave_the_refit(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise NotImplementedError("the derivative for 'odd' is not implemented")

    monkeypatch.setattr(reconstruct, "gauss_newton", refuse)
    model = Mlp(F.gelu).eval()
    x = torch.randn(SAMPLES, 6)
    graph = capture(model, x[:BATCH])
    refitted, whole = both(graph, make_plan(graph, {"up": range(6)}), x)
    (told,) = whole.record["blocks"].values()
    assert "not implemented" in told["failed"] and told["left"] == 1
    assert all(torch.equal(whole.tensors[name], value) for name, value in refitted.tensors.items())


def test_the_same_again() -> None:
    model = Mlp(F.silu, gated=True).eval()
    x = torch.randn(SAMPLES, 6)
    graph = capture(model, x[:BATCH])
    plan = make_plan(graph, {group.name: range(6) for group in graph.groups if group.width == 12})
    first, second = (compensate(graph, plan, x, method="reconstruct").tensors for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", NETS)
def test_every_cut_is_proved(name: str) -> None:
    model, _ = build(name)
    found = [NETS[name].inputs(8) for _ in range(8)]
    batches = [(each, 0) for each in found] if isinstance(found[0], tuple) else found
    assert ap.prune(model, batches, keep="units=60%", method="l2", compensate="reconstruct").proof.passed


def test_the_report_says_how_much_nearer_blocks_came() -> None:
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 6)
    report = ap.prune(Mlp(nn.GELU()), x, keep="units=50%", method="l2", compensate="reconstruct").report
    (note,) = (note for note in report.notes if "as a whole" in note)
    assert note.startswith("1 of 1 blocks of layers were fitted")
