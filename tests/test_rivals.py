"""The criteria of other papers and their compensations: against NumPy on explicit samples, and through a whole cut."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import actprune as ap
from actprune.axes.capture import Graph, capture
from actprune.axes.expr import positions
from actprune.compensation.ridge_map import channel_columns
from actprune.compensation.rows import contracted
from actprune.errors import DataError, PlanError
from actprune.graph.run import run
from actprune.guidance.problem import problems
from actprune.guidance.ranking import guide
from actprune.guidance.scores import SCORES
from actprune.guidance.scores.columns import standardised
from actprune.guidance.thinet import removals
from actprune.methods import COMPENSATIONS, METHODS
from actprune.plan import make_plan
from actprune.stats import maps as mapping
from actprune.stats.collect import collect
from actprune.stats.maps import independence, places, ranks
from actprune.stats.measures import MEASURES
from actprune.stats.statistics import Stats
from nets import build

Array = NDArray[np.float64]
RIVALS = "thinet lasso flap wanda grail taylor hrank chip bn_scale fpgm".split()


class Two(nn.Module):
    """`first` makes the units, a ReLU, `second` reads them."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class Pooled(Two):
    """With class scores."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(super().forward(x).mean((2, 3)), 1)


class Decoder(nn.Module):
    """Tokens: attention with grouped queries or without, and a gated MLP, both on a residual stream."""

    def __init__(self, heads: int = 4, key_heads: int = 4) -> None:
        super().__init__()
        self.heads, self.key_heads = heads, key_heads
        self.stem, self.q = nn.Linear(6, 12), nn.Linear(12, 3 * heads)
        self.k, self.v = nn.Linear(12, 3 * key_heads), nn.Linear(12, 3 * key_heads)
        self.o, self.up, self.gate = nn.Linear(3 * heads, 12), nn.Linear(12, 10), nn.Linear(12, 10)
        self.down, self.head = nn.Linear(10, 12, bias=False), nn.Linear(12, 4)
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm1(x)
        q = self.q(y).unflatten(2, (self.heads, 3)).transpose(1, 2)
        k, v = (f(y).unflatten(2, (self.key_heads, 3)).transpose(1, 2) for f in (self.k, self.v))
        z = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.heads != self.key_heads)
        x = x + self.o(z.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.head(x.mean(1))


def decoder(key_heads: int = 4) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Decoder(4, key_heads).double().eval(), torch.randn(32, 5, 6).double()


def known_of(model: nn.Module, x: Tensor, *measures: str, batch: int = 4, **more: Any) -> tuple[Graph, Stats]:
    graph = capture(model, x[:batch])
    return graph, collect(graph, x, measures=measures, **more)


def score(name: str, graph: Graph, stats: Stats | None, group: str = "first") -> Array:
    found = SCORES[name](graph, stats, graph[group], 0)
    assert found is not None and found.dtype == torch.float64
    return found.numpy()


def linear() -> tuple[Two, Tensor]:
    torch.manual_seed(2)
    return Two(nn.Linear(6, 5), nn.Linear(5, 3)).double(), torch.randn(40, 6).double()


def conv() -> tuple[Two, Tensor]:
    torch.manual_seed(2)
    return Pooled(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3, stride=2)).double(), torch.randn(12, 3, 7, 7).double()


def hidden(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.relu(model.first(x))


def input_rows(model: Any, x: Tensor) -> Array:
    """(rows, units, b) what each unit's columns of `second` are multiplied with."""
    h = hidden(model, x)
    if isinstance(model.second, nn.Linear):
        return h.numpy()[:, :, None]
    return F.unfold(h, 3, stride=2).transpose(1, 2).flatten(0, 1).unflatten(1, (5, 9)).numpy()


def weights(model: Any) -> Array:
    """(outputs, units, b)"""
    return (
        model.second.weight.detach().flatten(2).numpy()
        if model.second.weight.dim() == 4
        else model.second.weight.detach().numpy()[:, :, None]
    )


TWO = pytest.mark.parametrize("made", [linear, conv], ids=["linear", "conv"])


# ---- scores by their formulas


@TWO
def test_fpgm_adds_up_the_distances_to_all_other_filters(made: Any) -> None:
    model, x = made()
    filters = model.first.weight.detach().flatten(1).numpy()
    expected = np.sqrt(((filters[:, None] - filters[None]) ** 2).sum(2)).sum(1)
    assert np.allclose(score("fpgm", capture(model, x[:4]), None), expected, rtol=1e-12)


def test_a_filter_that_occurs_twice_is_no_nearer_to_itself_by_rounding() -> None:
    model, x = linear()
    with torch.no_grad():
        model.first.weight[1] = model.first.weight[0] = 1e4  # type: ignore[index]
        model.first.weight[2:] = 1e4 + 1e-3  # type: ignore[index]
    found = score("fpgm", capture(model, x[:4]), None)
    assert np.allclose(found[:2], 3 * np.sqrt(6) * 1e-3, rtol=1e-6)


def test_filters_of_a_shortcut_are_compared_end_to_end() -> None:
    model, x = build("residual")
    parts = [model.get_submodule(name).weight.detach().double().flatten(1) for name in ("stem", "conv2")]
    expected = torch.cdist(torch.cat(parts, 1), torch.cat(parts, 1)).sum(1).numpy()
    assert np.allclose(score("fpgm", capture(model, x), None, "stem"), expected, rtol=1e-6)


def test_the_gain_of_batchnorm_is_the_mean_over_those_that_a_channel_passes() -> None:
    model, x = build("residual")
    with torch.no_grad():
        for norm in (model.bn, model.bn1, model.bn2):
            norm.weight.normal_()
    graph = capture(model, x)
    both = (model.bn.weight.abs() + model.bn2.weight.abs()).detach().double() / 2
    assert np.allclose(score("bn_scale", graph, None, "stem"), both)
    assert np.allclose(score("bn_scale", graph, None, "conv1"), model.bn1.weight.abs().detach().double())


@TWO
def test_wanda_is_weight_times_norm(made: Any) -> None:
    model, x = made()
    rows = input_rows(model, x)
    norm = np.sqrt((rows**2).sum(0) / len(rows))
    expected = (np.abs(weights(model)) * norm).sum((0, 2))
    assert np.allclose(score("wanda", *known_of(model, x)), expected, rtol=1e-8)


@TWO
def test_flap_is_standardised_column_by_column(made: Any) -> None:
    model, x = made()
    scores = input_rows(model, x).var(0) * (weights(model) ** 2).sum(0)
    expected = ((scores - scores.mean()) / scores.std()).mean(1)
    graph, stats = known_of(model, x)
    found = standardised(graph, stats, graph["first"], 0)
    assert found is not None and np.allclose(found, expected, rtol=1e-7)
    own = guide(graph, stats, method="flap").groups["first"]
    assert np.allclose(own.scores, expected, rtol=1e-7)
    assert own.orders["flap"] == tuple(np.argsort(-scores.sum(1), kind="stable"))


def test_wanda_and_flap_by_unit_where_no_rows_are_known() -> None:
    torch.manual_seed(0)
    model, x = Two(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 41)).double(), torch.randn(8, 3, 43, 43).double()
    second: Any = model.second
    own = np.sqrt((hidden(model, x).numpy() ** 2).mean((0, 2, 3)))
    expected = second.weight.detach().abs().sum((0, 2, 3)).numpy() * own
    assert np.allclose(score("wanda", *known_of(model, x)), expected, rtol=1e-8)


# ---- ThiNet


@TWO
def test_thinet_removes_what_the_next_layer_misses_least(made: Any) -> None:
    model, x = made()
    parts = np.einsum("rnb,onb->ron", input_rows(model, x), weights(model))  # what each unit adds to each output

    def cost(gone: Sequence[int]) -> float:
        return float((parts[:, :, list(gone)].sum(2) ** 2).sum(1).mean())

    graph, stats = known_of(model, x)
    order, curve = removals(problems(graph, stats, graph["first"]))
    gone: list[int] = []
    lost = [0.0]
    for unit in order[::-1]:
        rest = [u for u in range(5) if u not in gone]
        assert cost([*gone, unit]) <= min(cost([*gone, u]) for u in rest) * (1 + 1e-9)
        gone.append(unit)
        lost.append(max(lost[-1], cost(gone)))
    assert np.allclose(curve, lost[::-1], rtol=1e-8)
    assert guide(graph, stats, method="thinet").groups["first"].orders == {"thinet": tuple(order)}


# ---- Taylor


def slopes(graph: Graph, batch: Any, loss: Any, group: str) -> Array:
    """∂L/∂z by central differences: z scales all that reads a unit, its columns and its masks."""
    program, own = graph.program, graph[group]
    places_of = [(s.weight, s.in_dim, graph.tensor_axes[s.weight][s.in_dim]) for s in own.consumers]
    places_of += [(name, 0, mask.axis) for name, mask in graph.masks.items() if mask.touches([own.key])]
    found: list[float] = []
    for unit in range(own.width):
        sides = []
        for z in (1 + 1e-5, 1 - 1e-5):
            tensors = {}
            for name, dim, axis in dict.fromkeys(places_of):
                factor = torch.tensor(np.where(positions(axis, own.key) == unit, z, 1.0))
                value = program.tensors[name].detach().movedim(dim, -1) * factor
                tensors[name] = value.movedim(-1, dim)
            sides.append(float(loss(run(program, batch, tensors)[0])))
        found.append((sides[0] - sides[1]) / 2e-5)
    return np.array(found)


def own_classes(x: Tensor) -> Tensor:
    return F.cross_entropy(x, x.argmax(1))


@pytest.mark.parametrize("made", [linear, conv, decoder, lambda: decoder(2)], ids="linear conv heads kv-heads".split())
def test_taylor_is_the_squared_slope_of_a_gate(made: Any) -> None:
    model, x = made()
    graph, stats = known_of(model, x, "taylor")
    for group in graph.groups:
        expected = np.mean(
            [slopes(graph, (x[i : i + 4],), own_classes, group.name) ** 2 for i in range(0, len(x), 4)], 0
        )
        assert np.allclose(score("taylor", graph, stats, group.name), expected, rtol=1e-4, atol=1e-12)
        assert guide(graph, stats, method="taylor").groups[group.name].orders.keys() == {"taylor"}
    assert stats.measures["taylor"].keys() == {group.name for group in graph.groups}
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_taylor_with_labels_and_a_loss_of_the_user() -> None:
    model, x = linear()
    y = torch.arange(40) % 3
    graph = capture(model, x[:4])
    pairs = list(zip(x.split(10), y.split(10), strict=True))
    stats = collect(graph, pairs, measures=("taylor",), loss=F.cross_entropy)
    expected = np.mean(
        [
            slopes(graph, (x[i : i + 4],), lambda out, i=i: F.cross_entropy(out, y[i : i + 4]), "first") ** 2
            for i in range(0, 40, 4)
        ],
        0,
    )
    assert np.allclose(score("taylor", graph, stats), expected, rtol=1e-4)
    with pytest.raises(DataError, match="holds no labels"):
        ap.prune(model, x, keep="units=60%", method="taylor", loss=F.cross_entropy)
    named = [{"x": a, "labels": b} for a, b in pairs]  # as text data comes
    how: dict[str, Any] = {"keep": "units=60%", "method": "taylor", "loss": F.cross_entropy, "calibration_size": 38}
    result = ap.prune(model, named, **how)
    assert result.plan.kept.keys() == ap.prune(model, pairs, **how).plan.kept.keys()
    assert result.proof.passed and result.stats is not None
    assert result.stats.measures["taylor"]["first"].count == 3


def test_networks_that_are_no_classifiers_have_half_the_square_of_their_outputs() -> None:
    torch.manual_seed(0)
    model, x = Two(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 2, 1)).double(), torch.randn(8, 3, 6, 6).double()
    graph, stats = known_of(model, x, "taylor", batch=8)
    with torch.no_grad():
        size = model(x).pow(2).mean()
    expected = slopes(graph, (x,), lambda out: out.pow(2).mean() / (2 * size), "first") ** 2
    assert np.allclose(score("taylor", graph, stats), expected, rtol=1e-4)


def test_fisher_weighs_outputs_by_the_squared_slope_of_the_loss() -> None:
    model, x = linear()
    y = torch.arange(40) % 3
    graph = capture(model, x[:4])
    stats = collect(graph, list(zip(x.split(4), y.split(4), strict=True)), measures=("fisher",), loss=F.cross_entropy)
    with torch.no_grad():
        out = model(x)
    slope = (out.softmax(1) - F.one_hot(y, 3)) / 4  # of the mean over a batch of four
    expected = slope.pow(2).sum(0) / 10
    (site,) = graph["first"].consumers
    assert torch.allclose(stats.measures["fisher"][site.name].mean, expected.double(), rtol=1e-4)
    (problem,) = problems(graph, stats, graph["first"], "fisher")
    assert torch.allclose(problem.rows, expected.double() / expected.double().mean(), rtol=1e-4)
    assert problems(graph, stats, graph["first"])[0].rows.tolist() == [1, 1, 1]


@pytest.mark.parametrize("batch", [1, 40])
def test_without_labels_fisher_is_the_curvature_of_the_distance_to_the_dense_outputs(batch: int) -> None:
    model, _ = linear()
    x = torch.randn(2000, 6).double()
    graph, stats = known_of(model, x, "fisher", batch=batch)
    with torch.no_grad():
        p = model(x).softmax(1)
    expected = (p * (1 - p)).mean(0).double() / batch  # the diagonal of the Hessian of the KL divergence
    (site,) = graph["first"].consumers
    assert torch.allclose(stats.measures["fisher"][site.name].mean, expected, rtol=0.1)


@pytest.mark.parametrize("made", [linear, conv, decoder, lambda: decoder(2)], ids="linear conv heads kv-heads".split())
def test_every_consumer_has_its_fisher_information(made: Any) -> None:
    model, x = made()
    graph, stats = known_of(model, x, "fisher")
    for group in graph.groups:
        assert {site.name for site in group.consumers} <= stats.measures["fisher"].keys()
        for site in group.consumers:
            assert (
                len(stats.measures["fisher"][site.name].mean) == graph.program.tensors[site.weight].shape[site.out_dim]
            )
    assert ap.prune(model, x, keep="params=70%", method="sgd-ap-fisher").proof.passed


def test_fisher_weights_are_those_of_a_run_with_a_folder(tmp_path: Path) -> None:
    model, x = conv()
    how: dict[str, Any] = {"keep": "units=60%", "method": "sgd-ap-fisher", "compensate": "none"}
    found = [ap.prune(model, x, **how, save_to=folder) for folder in (None, tmp_path / "run")]
    rows = [[p.rows for p in result.guide.problems["first"]] for result in found]
    assert all(torch.equal(a, b) for a, b in zip(*rows, strict=True)) and not bool((rows[0][0] == 1).all())
    assert found[0].plan.groups == found[1].plan.groups


def test_fisher_of_a_network_with_one_number() -> None:
    class Sum(Two):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).sum()

    _, stats = known_of(Sum(nn.Linear(6, 5), nn.Linear(5, 3)), torch.randn(8, 6), "fisher")
    assert all(bool((spread.mean > 0).all()) for spread in stats.measures["fisher"].values())


def test_bare_scores_are_on_one_scale() -> None:
    """Molchanov et al. rank all units of the network together: the groups' means must not be made equal."""
    model, x = build("chain", 32)
    graph, stats = known_of(model, x, "taylor", batch=32)
    found = guide(graph, stats, method="taylor").groups
    raw = np.concatenate([score("taylor", graph, stats, name) for name in found])
    assert np.allclose(np.concatenate([own.scores for own in found.values()]), raw / raw.mean())


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda out, y: out.argmax(1).sum(), "without a gradient"),
        (lambda out, y: out, "shape (4, 3)"),
        (lambda out, y: 1.0, "got: float"),
        (lambda out, y: out.detach().sum(), "without a gradient"),
    ],
)
def test_losses_that_can_not_be_differentiated(loss: Any, words: str) -> None:
    model, x = linear()
    with pytest.raises(DataError, match="no loss to differentiate") as error:
        collect(capture(model, x[:4]), [(x, x)], measures=("taylor",), loss=loss)
    assert words in str(error.value) and "where: loss" in str(error.value) and "next: " in str(error.value)


def test_gradients_that_are_not_finite_are_refused() -> None:
    model, x = linear()
    with pytest.raises(DataError, match="Gradients are not finite"):
        collect(capture(model, x[:4]), [(x, x)], measures=("taylor",), loss=lambda out, y: (out * 0).sum().sqrt())


# ---- feature maps


def test_ranks_and_independence_are_those_of_numpy() -> None:
    torch.manual_seed(0)
    maps = torch.randn(3, 6, 4, 5).double()
    maps[0, 1, 2] = maps[0, 1, 0]
    maps[1, 2] = 0
    maps[2, 3, 1:] = 0
    assert ranks(maps).tolist() == [[np.linalg.matrix_rank(m) for m in sample.numpy()] for sample in maps]
    for n in (6, 3):  # fewer units than positions, and with 2 positions more
        for a in (maps[:, :n], maps[:, :n, :1, :2]):
            flat = a.flatten(2).numpy()
            expected = [
                [
                    np.linalg.norm(s, "nuc") - np.linalg.norm(np.where(np.arange(n)[:, None] == i, 0, s), "nuc")
                    for i in range(n)
                ]
                for s in flat
            ]
            assert np.allclose(independence(a), expected, atol=1e-6)


def test_a_vector_has_rank_0_or_1_and_neurons_have_the_batch_for_their_map() -> None:
    values = torch.tensor([[0.0, 1, 2], [0, 0, 3]]).double()[:, :, None, None]
    assert ranks(values).tolist() == [[0, 1, 1], [0, 0, 1]]
    a = values[:, :, 0, 0].T.numpy()
    expected = [np.linalg.norm(a, "nuc") - np.linalg.norm(np.delete(a, i, 0), "nuc") for i in range(3)]
    assert np.allclose(independence(values), [expected], atol=1e-7)


@TWO
def test_maps_are_what_the_next_layer_reads(made: Any) -> None:
    model, x = made()
    graph, stats = known_of(model, x, "hrank", "chip")
    h = hidden(model, x)
    h = h[:, :, None, None] if h.dim() == 2 else h
    assert np.allclose(score("hrank", graph, stats), ranks(h).mean(0))
    batches = torch.cat([independence(part) for part in h.split(4)])
    assert np.allclose(score("chip", graph, stats), batches.mean(0), rtol=1e-9)


def test_where_maps_are_looked_at() -> None:
    """In front of the flatten; per head tokens × dimensions; of a neuron its values as a row."""
    found = {}
    for name, (model, x) in {"lenet": build("lenet", 3), "decoder": decoder(2)}.items():
        graph = capture(model, x[:3])
        seen = places(graph)
        shapes: dict[str, Any] = {}

        def observe(node: Any, args: Any, value: Any, seen: Any = seen, shapes: Any = shapes) -> None:
            for group, place in seen.items():
                if place.node == node.name:
                    shapes[group] = tuple(place.maps(value).shape)

        run(graph.program, (x[:3],), observe=observe)
        assert shapes.keys() == {group.name for group in graph.groups}
        found[name] = {g.name: (g.kind, shapes[g.name]) for g in graph.groups}
    assert [shape for _, shape in found["lenet"].values()] == [
        (3, 6, 12, 12), (3, 16, 4, 4), (3, 120, 1, 1), (3, 84, 1, 1)
    ]  # fmt: skip
    kinds = dict(found["decoder"].values())
    assert kinds["heads"] == (3, 2, 10, 3)  # two query heads of five tokens
    assert kinds["neurons"] == (3, 10, 1, 5)


def test_ranks_that_say_nothing_leave_it_to_l2_by_name() -> None:
    model, x = decoder()
    graph, stats = known_of(model, x, "hrank")
    found = guide(graph, stats, method="hrank").groups
    neurons = next(group for group in graph.groups if group.kind == "neurons")
    assert SCORES["hrank"](graph, stats, neurons, 0) is None
    assert found[neurons.name].orders.keys() == {"l2"}
    plain = guide(graph, None, method="bn_scale").groups
    assert all(own.orders.keys() == {"l2"} for own in plain.values())


def test_wide_groups_get_fewer_samples_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = conv()
    monkeypatch.setattr(mapping, "WORK", 3 * 5 * 5**3)
    _, stats = known_of(model, x, "chip")
    assert stats.measures["chip"]["first"].count == 3
    monkeypatch.setattr(mapping, "WORK", 1.0)
    graph, stats = known_of(model, x, "chip")
    assert stats.measures["chip"] == {}
    assert guide(graph, stats, method="chip").groups["first"].orders.keys() == {"l2"}


# ---- measures as data


def test_measures_are_taken_only_where_asked_for() -> None:
    model, x = conv()
    graph, stats = known_of(model, x)
    assert stats.measures == {}
    asking = {measure: name for name, preset in METHODS.items() for measure in preset.measures}
    assert asking.keys() == set(MEASURES)
    for name, method in asking.items():
        with pytest.raises(PlanError, match=f"no measure '{name}'") as error:
            guide(graph, stats, method=method)
        assert f'measures=("{name}",)' in str(error.value)
    with pytest.raises(PlanError, match="no measure named 'hrang'") as error:
        collect(graph, x, measures=("hrang",))
    assert "did you mean 'hrank'?" in str(error.value)


def test_measures_merge_and_are_saved(tmp_path: Path) -> None:
    model, x = conv()
    graph, whole = known_of(model, x, *MEASURES)
    a, b = (collect(graph, x[i:j], measures=MEASURES, first=i) for i, j in ((0, 4), (4, len(x))))
    merged = a.merge(b)
    merged.save(tmp_path / "stats.safetensors")
    again = Stats.load(tmp_path / "stats.safetensors")
    for stats in (merged, again):
        assert stats.measures.keys() == set(MEASURES)
        for name in MEASURES:
            ((place, expected),) = whole.measures[name].items()
            found = stats.measures[name][place]
            assert found.count == expected.count
            assert torch.allclose(found.mean, expected.mean, rtol=1e-9)
            assert torch.allclose(found.deviations, expected.deviations, rtol=1e-6)
    with pytest.raises(DataError, match="can't be merged"):
        a.merge(collect(graph, x[4:], measures=("chip",)))


# ---- the ridge map


def by_hand(matrix: Array, rows: Array, kept: Sequence[int]) -> Array:
    """W B of a matrix (o, C, p) with the second moments of channel rows (n, C); zero for the others."""
    gram = rows.T @ rows / len(rows)
    inner = gram[np.ix_(kept, kept)]
    inner = inner + 1e-3 * inner.diagonal().mean() * np.eye(len(kept))
    found = np.zeros_like(matrix)
    found[:, kept] = np.einsum("ocp,kc->okp", matrix, np.linalg.solve(inner, gram[kept]))
    return found


@TWO
def test_the_ridge_map_of_kept_channels_to_all(made: Any) -> None:
    model, x = made()
    graph, _ = known_of(model, x)
    plan = make_plan(graph, {"first": [0, 2, 3]})
    rewrite = ap.compensate(graph, plan, x, method="ridge_map")
    rows = hidden(model, x).transpose(0, 1).flatten(1).T.numpy()
    found = rewrite.tensors["second.weight"].flatten(2) if made is conv else rewrite.tensors["second.weight"][..., None]
    assert np.allclose(found, by_hand(weights(model), rows, [0, 2, 3]), atol=1e-9)
    assert rewrite.tensors.keys() == {"second.weight"}
    assert ap.verify(model, ap.cut(model, plan, rewrite), plan, x[:4], graph=graph, rewrite=rewrite).passed


@pytest.mark.parametrize("net", ["channel_slowest", "channel_fastest"])
def test_places_of_a_flattened_map_share_a_coefficient(net: str) -> None:
    model, x = build(net, 8)
    graph = capture(model, x)
    rewrite = ap.compensate(graph, make_plan(graph, {"conv": [1, 2]}), [x], method="ridge_map")
    (site,) = graph["conv"].consumers
    columns = channel_columns(graph, site, 1)
    last = torch.arange(36).reshape(4, 9) if net == "channel_slowest" else torch.arange(36).reshape(9, 4).T
    assert torch.equal(columns, last)
    with torch.no_grad():
        rows = torch.relu(model.conv(x)).transpose(0, 1).flatten(1).T.double().numpy()
    expected = by_hand(model.fc.weight.detach().double().numpy()[:, columns], rows, [1, 2])
    assert np.allclose(rewrite.tensors["fc.weight"][:, columns], expected, atol=1e-5)


def test_channels_behind_a_group_norm_are_channels_of_their_own() -> None:
    parts = nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 3)
    model, x = nn.Sequential(*parts).eval(), torch.randn(8, 1, 6, 6)
    assert ap.prune(model, [x, x], keep="units=50%", method="grail").proof.passed


def test_columns_of_heads_are_channels_of_their_own() -> None:
    model, x = decoder()
    graph = capture(model, x[:4])
    heads = next(group for group in graph.groups if group.kind == "heads")
    (site,) = heads.consumers
    assert channel_columns(graph, site, 1).shape == (12, 1)
    node = next(node for node in graph.program.nodes if node.name == site.node)
    rows: list[Tensor] = []

    def observe(seen: Any, args: Any, value: Any) -> None:
        if seen is contracted(node):
            rows.append(value.flatten(0, 1))

    for part in x.split(4):
        run(graph.program, (part,), observe=observe)
    rewrite = ap.compensate(graph, make_plan(graph, {heads.name: [0, 3]}), x, method="ridge_map")
    kept = [0, 1, 2, 9, 10, 11]
    expected = by_hand(model.o.weight.detach().numpy()[:, :, None], torch.cat(rows).numpy(), kept)[..., 0]  # type: ignore[union-attr]
    assert np.allclose(rewrite.tensors["o.weight"], expected, atol=1e-9)


def test_consumers_that_can_not_be_compensated_are_told() -> None:
    torch.manual_seed(0)
    transposed = Two(nn.Conv2d(3, 5, 3), nn.ConvTranspose2d(5, 4, 2))
    result = ap.prune(transposed, torch.randn(32, 3, 6, 6), keep="units=60%", method="grail")
    assert "1 of 1 consumers were not compensated: second does not sum over all" in " ".join(result.report.notes)
    free = Two(nn.Linear(6, 8), nn.Linear(8, 3, bias=False))
    result = ap.prune(free, torch.randn(64, 6), keep="units=60%", method="flap", allocation="uniform")
    assert "not compensated: second has no bias of its own, nor a BatchNorm" in " ".join(result.report.notes)


# ---- every method with every compensation


@cache
def subject(name: str) -> tuple[Any, Tensor, Graph, Stats]:
    model, x = decoder(2) if name == "decoder" else build("residual", 32)
    graph = ap.capture(model, x[:8])
    return model, x, graph, collect(graph, x, measures=MEASURES)


@pytest.mark.parametrize("net", ["residual", pytest.param("decoder", marks=pytest.mark.long)])
@pytest.mark.parametrize("method", RIVALS)
def test_every_rival_with_every_compensation(method: str, net: str) -> None:
    model, x, graph, stats = subject(net)
    ranked = guide(graph, stats, method=method)
    plan = ap.allocate(graph, ranked, keep="units=60%")
    assert any(len(group.kept) < group.width for group in plan.groups.values())
    for compensation in COMPENSATIONS:
        rewrite = ap.compensate(graph, plan, x, method=compensation)
        small = ap.cut(model, plan, rewrite)
        assert ap.verify(model, small, plan, x[:8], rewrite=rewrite, graph=graph).passed


@pytest.mark.parametrize("method", RIVALS)
def test_every_rival_prunes_a_transformer(method: str) -> None:
    model, x = decoder(2)
    result = ap.prune(model.float(), x.float().split(8), keep="params=70%", method=method, allocation="uniform")
    assert result.proof.passed
    assert result.report.pruned.params <= 0.7 * result.report.dense.params
    assert result.report.compensation == (METHODS[method].compensate or "none")
    assert {row.criterion for row in result.report.groups} <= {*METHODS[method].criteria, "whole", "l2"}


def test_every_score_is_tested() -> None:
    here = {"fpgm", "bn_scale", "wanda", "taylor", "hrank", "chip"}
    assert set(SCORES) == {*"l1 l2 random mean std activation apoz correlation flap".split(), *here}
