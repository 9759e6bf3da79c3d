"""Activation statistics against NumPy on rows that are obtained independently: by hand, or by `F.unfold`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from actprune.axes.capture import Graph, capture
from actprune.errors import ArtifactError, DataError
from actprune.stats import room
from actprune.stats.collect import collect
from actprune.stats.moments import Few
from actprune.stats.patches import as_weight, has_rows, input_rows, output_rows, weight_matrix
from actprune.stats.statistics import Stats, merge_stats
from nets import NETS, build

Array = NDArray[np.float64]


class Two(nn.Module):
    """`first`, a ReLU, something between, `second`."""

    def __init__(self, first: nn.Module, second: nn.Module, between: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.first, self.second, self.between = first, second, between

    def hidden(self, x: Tensor) -> Tensor:
        """What `second` gets."""
        with torch.no_grad():
            return self.between(torch.relu(self.first(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(torch.relu(self.first(x))))


def made(model: nn.Module, x: Tensor, batch: int = 4, **settings: Any) -> tuple[Graph, Stats]:
    graph = capture(model, x[:batch])
    return graph, collect(graph, [x], **settings)


def consumer(graph: Graph, module: str = "second") -> Any:
    return next(site for site in graph.sites if site.module == module)


def assert_moments(stats: Stats, node: str, rows: Array) -> None:
    """The moments of all folds are those of `rows` (rows, columns)."""
    found = stats.moments(node)
    covariance = np.cov(rows, rowvar=False, bias=True)
    assert found.count == len(rows)
    assert np.allclose(found.mean, rows.mean(0), atol=1e-6)
    assert np.allclose(found.covariance, covariance, atol=1e-6 * (1 + np.abs(covariance).max()))


def columns_fit_the_weight(graph: Graph, model: Two, x: Tensor, rows: Array) -> None:
    """rows · weight_matrixᵀ + bias is what the consumer computes, and `as_weight` is the way back."""
    site = consumer(graph)
    weight = graph.program.tensors[site.weight].detach()
    matrix = weight_matrix(site, weight)
    assert torch.equal(as_weight(site, matrix, weight), weight)
    y = model(x).detach()
    y = y.flatten(2).transpose(1, 2).flatten(0, 1) if site.kind == "conv" else y.flatten(0, -2)
    bias = 0 if site.bias is None else graph.program.tensors[site.bias].detach().numpy()
    assert np.allclose(rows @ matrix.numpy().T + bias, y.numpy(), atol=1e-5)


# ---- the rows of every kind of consumer


@pytest.mark.parametrize("shape", [(12, 6), (12, 3, 6), (12, 2, 3, 6)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    model, x = Two(nn.Linear(6, 5), nn.Linear(5, 3, bias=bias)), torch.randn(shape)
    graph, stats = made(model, x)
    rows = model.hidden(x).double().numpy().reshape(-1, 5)
    assert_moments(stats, consumer(graph).node, rows)
    columns_fit_the_weight(graph, model, x, rows)


@pytest.mark.parametrize("form", ["x @ w", "addmm"])
def test_products_with_a_stored_transpose(form: str) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.b1 = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(5))
            self.w2, self.b2 = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(3))

        def forward(self, x: Tensor) -> Tensor:
            if form == "addmm":
                return torch.addmm(self.b2, torch.relu(torch.addmm(self.b1, x, self.w1)), self.w2)
            return torch.relu(x @ self.w1 + self.b1) @ self.w2 + self.b2

    torch.manual_seed(0)
    model, x = Product(), torch.randn(12, 6)
    graph, stats = made(model, x)
    site = next(site for site in graph.sites if site.weight == "w2")
    assert_moments(stats, site.node, torch.relu(x @ model.w1 + model.b1).detach().double().numpy())
    assert torch.equal(weight_matrix(site, model.w2), model.w2.T)
    assert torch.equal(as_weight(site, model.w2.T, model.w2), model.w2)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3},
        {"kernel_size": (2, 3), "stride": (2, 1)},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": 3, "padding": (2, 1), "dilation": (1, 2)},
        {"kernel_size": 3, "dilation": 2, "padding": "valid"},
        {"kernel_size": 3, "padding": "same", "bias": False},
        {"kernel_size": (3, 5), "padding": "same", "dilation": (2, 1)},
        {"kernel_size": 1},
    ],
    ids=str,
)
def test_convolution(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = Two(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, **settings)), torch.randn(6, 3, 8, 7)
    graph, stats = made(model, x, 3)
    conv = model.second
    assert isinstance(conv, nn.Conv2d)
    padding = conv.padding
    if padding == "same":
        padding = tuple(d * (k - 1) // 2 for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
    padding = 0 if padding == "valid" else padding
    patches = F.unfold(model.hidden(x), conv.kernel_size, conv.dilation, padding, conv.stride)  # type: ignore[arg-type]
    rows = patches.transpose(1, 2).flatten(0, 1).double().numpy()
    assert_moments(stats, consumer(graph).node, rows)
    columns_fit_the_weight(graph, model, x, rows)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_same_padding_of_an_even_kernel_has_one_more_at_the_end() -> None:
    torch.manual_seed(0)
    model, x = Two(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, (2, 4), padding="same")), torch.randn(6, 3, 8, 7)
    graph, stats = made(model, x, 3)
    patches = F.unfold(F.pad(model.hidden(x), (1, 2, 0, 1)), (2, 4))
    rows = patches.transpose(1, 2).flatten(0, 1).double().numpy()
    assert_moments(stats, consumer(graph).node, rows)
    columns_fit_the_weight(graph, model, x, rows)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stride": 2},
        {"stride": (2, 3), "padding": (1, 2), "output_padding": (1, 2), "dilation": (2, 1)},
        {"bias": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["conv_transpose2d", "convolution"])
def test_transposed_convolution(form: str, settings: dict[str, Any]) -> None:
    """Its rows times its weight are what it gives; their moments are those of all positions."""
    torch.manual_seed(0)
    second = nn.ConvTranspose2d(4, 5, (2, 3), **settings)
    model, x = Two(nn.Conv2d(3, 4, 1), second), torch.randn(6, 3, 4, 5)
    if form == "convolution":
        model = Two(model.first, Generic(second))
    graph, stats = made(model, x, 3)
    site = next(site for site in graph.sites if site.kind == "conv_transpose")
    node = next(node for node in graph.program.nodes if node.name == site.node)
    hidden, weight = model.hidden(x).detach(), second.weight.detach()
    rows = input_rows(site, node, hidden, weight)
    assert torch.equal(as_weight(site, weight_matrix(site, weight), weight), weight)
    y = rows @ weight_matrix(site, weight).T + (0 if second.bias is None else second.bias.detach())
    torch.testing.assert_close(y, output_rows(site, second(hidden).detach()), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(input_rows(site, node, hidden, weight, slice(1, None, 3)), rows[:, 1::3])
    assert_moments(stats, site.node, rows.flatten(0, 1).double().numpy())


class Generic(nn.Module):
    """A transposed convolution by the call of which all convolutions are cases."""

    def __init__(self, like: nn.ConvTranspose2d) -> None:
        super().__init__()
        self.like = like

    def forward(self, x: Tensor) -> Tensor:
        c = self.like
        rest = (c.stride, c.padding, c.dilation, True, c.output_padding, 1)
        return torch.convolution(x, c.weight, c.bias, *rest)


@pytest.mark.parametrize("settings", [{}, {"stride": 2, "padding": 1}, {"padding": "same"}, {"dilation": 2}], ids=str)
def test_convolution_in_one_dimension(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = Two(nn.Conv1d(3, 4, 1), nn.Conv1d(4, 5, 3, **settings)), torch.randn(6, 3, 9)
    graph, stats = made(model, x, 3)
    padding, stride, dilation = (settings.get(key, n) for key, n in (("padding", 0), ("stride", 1), ("dilation", 1)))
    flat = model.hidden(x)[:, :, None]
    patches = F.unfold(flat, (1, 3), (1, dilation), (0, 1 if padding == "same" else padding), (1, stride))
    rows = patches.transpose(1, 2).flatten(0, 1).double().numpy()
    assert_moments(stats, consumer(graph).node, rows)
    columns_fit_the_weight(graph, model, x, rows)


def test_convolution_in_three_dimensions() -> None:
    torch.manual_seed(0)
    second = nn.Conv3d(2, 3, (2, 3, 1), stride=(1, 2, 1), padding=(0, 1, 1))
    model, x = Two(nn.Conv3d(3, 2, 1), second), torch.randn(4, 3, 3, 5, 4)
    graph, stats = made(model, x, 2)
    h = F.pad(model.hidden(x), (1, 1, 1, 1, 0, 0)).double().numpy()
    corners = [(a, b, c) for a in range(2) for b in range(0, 5, 2) for c in range(6)]
    rows = np.stack([h[:, :, a : a + 2, b : b + 3, c : c + 1].reshape(4, -1) for a, b, c in corners], 1)
    assert_moments(stats, consumer(graph).node, rows.reshape(-1, 12))
    columns_fit_the_weight(graph, model, x, rows.reshape(-1, 12))


def channel_fastest(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2).permute(0, 2, 3, 1).flatten(1)


def channel_slowest(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2).flatten(1)


@pytest.mark.parametrize("flatten", [channel_slowest, channel_fastest])
def test_linear_after_a_flattened_map(flatten: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, x = Two(nn.Conv2d(1, 4, 3), nn.Linear(16, 3), flatten), torch.randn(8, 1, 6, 6)
    graph, stats = made(model, x)
    rows = model.hidden(x).double().numpy()
    assert_moments(stats, consumer(graph).node, rows)
    unit = rows.reshape(8, 4, 4) if flatten is channel_slowest else rows.reshape(8, 4, 4).transpose(0, 2, 1)
    assert_units(stats, "first", unit.transpose(1, 0, 2).reshape(4, -1))


@pytest.mark.parametrize("net", sorted(NETS))
def test_every_consumer_of_every_net_has_statistics(net: str) -> None:
    model, inputs = build(net)
    graph = capture(model, inputs)
    stats = collect(graph, [(inputs,) if isinstance(inputs, tuple) else inputs])
    for group in graph.groups:
        for site in group.consumers:
            weight = graph.program.tensors[site.weight]
            if site in graph.sites and has_rows(site, weight):
                assert stats.moments(site.node).mean.shape == (weight.numel() // weight.shape[site.out_dim],)
        if any(site in graph.sites for site in group.consumers):
            assert stats.units[group.name].value.shape == (group.width,)
            assert bool((stats.units[group.name].value > 0).any())


# ---- folds


def fold_rows(rows: Array, fold: int, folds: int = 5) -> Array:
    """Rows (samples, …, columns) of the samples dealt to one fold."""
    return rows[fold::folds].reshape(-1, rows.shape[-1])


def assert_folds(stats: Stats, node: str, rows: Array, folds: int = 5) -> None:
    """Sample i is in fold i mod `folds`, with all that belongs to it."""
    parts = stats.sites[node]
    assert len(parts) == folds
    for fold, part in enumerate(parts):
        own = fold_rows(rows, fold, folds)
        assert part.count == len(own)
        assert np.allclose(part.mean, own.mean(0), atol=1e-6)
        assert np.allclose(part.covariance, np.cov(own, rowvar=False, bias=True), atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_samples_are_dealt_to_the_folds_in_turn(batch: int) -> None:
    torch.manual_seed(0)
    model, x = Two(nn.Linear(6, 5), nn.Linear(5, 3)), torch.randn(21, 2, 6)
    graph = capture(model, x[:batch])
    stats = collect(graph, x[: 21 - 21 % batch])
    assert stats.samples == 21 - 21 % batch
    rows = model.hidden(x[: stats.samples]).double().numpy()
    assert_folds(stats, consumer(graph).node, rows)


def test_the_number_of_folds() -> None:
    torch.manual_seed(0)
    model, x = Two(nn.Linear(6, 5), nn.Linear(5, 3)), torch.randn(12, 6)
    graph, stats = made(model, x, folds=3)
    assert_folds(stats, consumer(graph).node, model.hidden(x).double().numpy(), 3)
    assert [part.count for part in made(model, x[:4])[1].sites[consumer(graph).node]] == [1, 1, 1, 1, 0]


def test_wide_consumers_get_two_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "WIDE", 4)
    torch.manual_seed(0)
    model, x = Two(nn.Linear(6, 5), nn.Linear(5, 3)), torch.randn(12, 6)
    graph, stats = made(model, x)
    assert_folds(stats, consumer(graph).node, model.hidden(x).double().numpy(), 2)
    assert len(made(model, x, folds=1)[1].sites[consumer(graph).node]) == 1


class Positions(nn.Module):
    """Positions come first, as in `nn.MultiheadAttention`, before the linear layers; flat or not."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.first, self.second, self.flat = nn.Linear(6, 5), nn.Linear(5, 3), flat

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x.transpose(0, 1)))
        if self.flat:
            return self.second(x.reshape(-1, 5)).reshape(x.shape[0], x.shape[1], 3).transpose(0, 1)
        return self.second(x).transpose(0, 1)


class Windows(nn.Module):
    """Windows of one sample share the first dimension with the samples, as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x.reshape(x.shape[0] * 4, 2, 6)))).reshape(x.shape[0], 8, 3)


@pytest.mark.parametrize("model", [Positions(False), Positions(True), Windows()], ids=["first", "flat", "windows"])
def test_what_belongs_to_one_sample_stays_in_one_fold(model: Any) -> None:
    x = torch.randn(10, 8, 6)
    graph, stats = made(model, x, 5)
    rows = torch.relu(model.first(x)).detach()
    assert_folds(stats, consumer(graph).node, rows.double().numpy())
    means = rows.mean((1, 2)), model(x).detach().mean((1, 2))
    exact = np.corrcoef(means[0].numpy(), means[1].numpy())[0, 1]
    assert stats.input_output_correlation(consumer(graph).node) == pytest.approx(exact, abs=1e-5)


def test_rows_that_no_sample_has_a_part_in() -> None:
    class Table(nn.Module):
        """A small network computes a bias from constant coordinates, as in Swin V2."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 5), nn.Linear(5, 6)
            self.register_buffer("table", torch.randn(7, 2))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.second(torch.relu(self.first(self.table))).mean(0)

    torch.manual_seed(0)
    model, x = Table(), torch.randn(6, 6)
    graph, stats = made(model, x, 3)
    rows = torch.relu(model.first(model.table)).detach().double().numpy()
    assert_moments(stats, consumer(graph).node, np.concatenate([rows, rows]))


# ---- units


def assert_units(stats: Stats, group: str, values: Array) -> None:
    """The activation values are those of `values` (units, activations)."""
    unit = stats.units[group]
    size = np.abs(values)
    assert unit.signed.count == values.shape[1]
    assert np.allclose(unit.value, size.mean(1) + size.std(1), atol=1e-6)
    assert np.allclose(unit.signed.mean, values.mean(1), atol=1e-6)
    assert np.allclose(unit.signed.std, values.std(1), atol=1e-6)
    assert np.allclose(1 - unit.positive, (values <= 0).mean(1), atol=1e-12)  # APoZ
    assert np.allclose(unit.least, values.min(1))
    assert np.allclose(unit.most, values.max(1))


def test_activation_values_of_neurons() -> None:
    torch.manual_seed(0)
    model, x = Two(nn.Linear(6, 5), nn.Linear(5, 3), lambda x: x - 0.3), torch.randn(12, 3, 6)
    _, stats = made(model, x)
    assert_units(stats, "first", model.hidden(x).double().numpy().reshape(-1, 5).T)


def test_activation_values_and_maps_of_channels() -> None:
    torch.manual_seed(0)
    model, x = Two(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, padding=1)), torch.randn(8, 3, 6, 5)
    _, stats = made(model, x)
    h = model.hidden(x).double().numpy()
    assert_units(stats, "first", h.transpose(1, 0, 2, 3).reshape(4, -1))
    assert np.allclose(stats.maps["first"].mean, h.mean(0).reshape(4, -1), atol=1e-6)
    assert np.allclose(stats.maps["first"].std, h.std(0).reshape(4, -1), atol=1e-6)


def test_units_of_a_concatenation_are_told_apart() -> None:
    model, x = build("dense", 8)
    graph, stats = made(model, x)
    a = model.conv1(x).detach()
    b = model.conv2(torch.relu(a)).detach()
    seen = torch.relu(model.bn(torch.cat([a, b], 1))).detach().double().numpy()
    assert graph["conv2"].consumers[0].module == "conv3"
    assert_units(stats, "conv2", seen[:, 4:].transpose(1, 0, 2, 3).reshape(5, -1))
    assert_units(stats, "conv1", torch.relu(a).double().numpy().transpose(1, 0, 2, 3).reshape(4, -1))


def test_units_that_every_group_of_a_convolution_has() -> None:
    """The consumer's weight holds the channels within a group: unit u is channel u of each."""
    torch.manual_seed(0)
    model, x = Two(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, groups=2)), torch.randn(4, 3, 5, 5)
    graph, stats = made(model, x)
    h = model.hidden(x).double().numpy()
    within = next(group for group in graph.groups if group.width == 3 and group.name.startswith("first"))
    assert_units(stats, within.name, h.reshape(4, 2, 3, -1).transpose(2, 0, 1, 3).reshape(3, -1))
    assert consumer(graph).node not in stats.sites


class Branch(nn.Module):
    """In training mode another head is called first: calls of the same name in the two modes are not the same."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head1, self.head2 = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 3)
        self.aux1, self.aux2 = nn.Linear(8, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.stem(x))
        aux = self.aux2(torch.relu(self.aux1(x))) if self.training else None
        y = self.head2(torch.relu(self.head1(x)))
        return (y, aux) if self.training else y


def test_calls_of_training_mode_have_no_statistics() -> None:
    torch.manual_seed(0)
    model, x = Branch(), torch.randn(12, 6)
    graph, stats = made(model, x)
    assert {site.module for site in graph.training_sites} == {"aux1", "aux2"}
    assert set(stats.units) == {"stem", "head1"}
    assert_units(stats, "stem", torch.relu(model.stem(x)).detach().double().numpy().T)
    assert_moments(stats, consumer(graph, "head1").node, torch.relu(model.stem(x)).detach().double().numpy())


# ---- the two correlations


def test_correlation_between_columns() -> None:
    torch.manual_seed(0)
    model, x = Two(nn.Linear(6, 5), nn.Linear(5, 3)), torch.randn(40, 6)
    with torch.no_grad():
        model.first.weight[2], model.first.bias[2] = 0, 0.1  # type: ignore[index]
    graph, stats = made(model, x)
    found = stats.correlation(consumer(graph).node).numpy()
    varied = [0, 1, 3, 4]
    exact = np.corrcoef(model.hidden(x).numpy()[:, varied], rowvar=False)
    assert np.allclose(found[np.ix_(varied, varied)], exact, atol=1e-5)
    assert np.array_equal(found[2], np.zeros(5))
    assert np.array_equal(found[:, 2], np.zeros(5))


def test_correlation_of_a_layer_s_input_with_its_output() -> None:
    torch.manual_seed(0)
    model, x = Two(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)), torch.randn(16, 3, 6, 6)
    graph, stats = made(model, x)
    means = model.hidden(x).mean((1, 2, 3)).numpy(), model(x).detach().mean((1, 2, 3)).numpy()
    found = stats.input_output_correlation(consumer(graph).node)
    assert found == pytest.approx(np.corrcoef(*means)[0, 1], abs=1e-4)


def test_correlation_with_an_output_that_does_not_vary() -> None:
    model, x = Two(nn.Linear(6, 5), nn.Linear(5, 3)), torch.randn(8, 6)
    nn.init.zeros_(model.second.weight)  # type: ignore[arg-type]
    graph, stats = made(model, x)
    assert stats.input_output_correlation(consumer(graph).node) == 0


# ---- merging and storing


def contents(stats: Stats) -> dict[str, Tensor]:
    """Every tensor and count under a name."""
    found: dict[str, Tensor] = {"samples": torch.tensor(stats.samples)}
    items: dict[str, Any] = {f"sites {n} {i}": m for n, parts in stats.sites.items() for i, m in enumerate(parts)}
    items |= {f"layers {n}": m for n, m in stats.layers.items()} | {f"maps {n}": m for n, m in stats.maps.items()}
    for name, unit in stats.units.items():
        items |= {f"signed {name}": unit.signed, f"absolute {name}": unit.absolute}
        found |= {f"{key} {name}": getattr(unit, key) for key in ("positive", "least", "most")}
    for name, item in items.items():
        found |= {f"{name} count": torch.tensor(item.count), f"{name} mean": item.mean}
        found[f"{name} rest"] = item.scatter if hasattr(item, "scatter") else item.deviations
    return found


def assert_stats(a: Stats, b: Stats, tolerance: float = 0.0) -> None:
    first, second = contents(a), contents(b)
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype, name
        assert torch.allclose(first[name], second[name], rtol=0, atol=tolerance * float(second[name].abs().max())), name


@pytest.mark.parametrize("net", ["lenet", "residual", "dense", "grouped"])
def test_merged_statistics_equal_one_pass(net: str) -> None:
    model, x = build(net, 20)
    model = model.double()
    graph = capture(model, x[:5].double())
    whole = collect(graph, x.double())
    assert_stats(merge_stats(collect(graph, x[:10].double()), collect(graph, x[10:].double())), whole, 1e-12)
    assert_stats(collect(graph, x[:10].double()).merge(collect(graph, x[10:].double())), whole, 1e-12)


def test_large_maps_give_as_many_rows_as_their_columns_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same positions of every map, so that parts which know of the whole merge to it."""
    monkeypatch.setattr("actprune.stats.collector.most_rows", lambda columns: 40)
    torch.manual_seed(0)
    model, x = Two(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 3)), torch.randn(20, 3, 8, 7)
    graph = capture(model.double(), x[:5].double())
    whole = collect(graph, x.double())
    node = consumer(graph).node
    assert whole.moments(node).count == 2 * 20  # of 6 · 5 positions
    places = torch.randperm(30, generator=torch.Generator().manual_seed(30))[:2].sort().values
    patches = F.unfold(model.hidden(x.double()), 3)[..., places].transpose(1, 2).flatten(0, 1)
    assert torch.allclose(whole.moments(node).mean, patches.mean(0).detach())
    parts = [collect(graph, part.double(), total=20) for part in x.split(10)]
    assert_stats(merge_stats(*parts), whole, 1e-12)
    assert whole.units[graph.groups[0].name].signed.count == 20 * 8 * 7  # activation values are of all positions


def test_statistics_of_another_form_do_not_merge() -> None:
    torch.manual_seed(0)
    model, x = Two(nn.Linear(6, 5), nn.Linear(5, 3)), torch.randn(12, 6)
    graph, stats = made(model, x)
    with pytest.raises(DataError, match="can't be merged") as error:
        merge_stats(stats, collect(graph, x, folds=2))
    assert "expected: the same consumers and groups, with (folds, columns) = (5, 5)" in str(error.value)
    assert "got: (2, 5)" in str(error.value)
    assert "linear_1" in str(error.value)
    with pytest.raises(DataError, match="can't be merged"):
        merge_stats(stats, made(Two(nn.Linear(6, 4), nn.Linear(4, 3)), x)[1])


@pytest.mark.parametrize("net", ["lenet", "residual", "grouped"])
def test_saved_statistics_load_bit_for_bit(net: str, tmp_path: Path) -> None:
    model, x = build(net, 8)
    _, stats = made(model, x)
    stats.save(tmp_path / "stats.safetensors")
    assert_stats(Stats.load(tmp_path / "stats.safetensors"), stats)


def test_statistics_of_few_rows_are_saved_as_rows(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 600), nn.ReLU(), nn.Linear(600, 3)).eval()
    _, stats = made(model, torch.randn(20, 6))
    assert all(isinstance(fold, Few) for fold in stats.sites["linear_1"])
    stats.save(tmp_path / "stats.safetensors")
    found = Stats.load(tmp_path / "stats.safetensors")
    assert all(isinstance(fold, Few) for fold in found.sites["linear_1"])
    assert_stats(found, stats)
    assert (tmp_path / "stats.safetensors").stat().st_size < 8 * 600**2


def test_files_that_hold_no_statistics(tmp_path: Path) -> None:
    model, x = build("chain", 8)
    _, stats = made(model, x)
    whole, bad = tmp_path / "whole", tmp_path / "bad"
    stats.save(whole)
    refused: list[Callable[[], object]] = [
        lambda: bad.unlink(missing_ok=True),
        lambda: bad.write_bytes(b"no statistics"),
        lambda: bad.write_bytes(whole.read_bytes()[:-8]),
        lambda: save_file({"x": torch.zeros(1)}, bad),
        lambda: save_file({"x": torch.zeros(1)}, bad, {"schema": "actprune.stats/1"}),
        lambda: save_file({"x": torch.zeros(1)}, bad, {"schema": "actprune.stats/1", "samples": "many"}),
        lambda: save_file(load_file(whole), bad, {"schema": "actprune.stats/2", "samples": "8"}),
        lambda: save_file({}, bad, {"schema": "actprune.stats/1", "samples": "8", "count sites/linear/0": "8"}),
    ]
    for spoil in refused:
        spoil()
        with pytest.raises(ArtifactError, match="can't be read") as error:
            Stats.load(bad)
        for label in ("expected: a safetensors file", "got: ", f"where: {bad}", "next: collect"):
            assert label in str(error.value)


# ---- what is not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_data_that_is_not_finite_is_named_at_the_first_layer(value: float) -> None:
    model, x = build("chain", 8)
    graph = capture(model, x[:4])
    x[6, 2] = value
    with pytest.raises(DataError, match="not finite") as error:
        collect(graph, x)
    text = str(error.value)
    assert f"got: {'NaN' if value != value else 'infinite'} values in the input of this layer" in text
    assert "linear.default at fc1, nets.py:" in text
    assert "next: look for NaN" in text


def test_a_weight_that_is_not_finite_is_named_at_its_layer() -> None:
    model, x = build("chain", 8)
    with torch.no_grad():
        model.fc2.weight[1, 1] = float("nan")  # type: ignore[union-attr, index, operator]
    with pytest.raises(DataError, match="NaN values in the output of this layer") as error:
        made(model, x)
    assert "at fc2" in str(error.value)


def test_an_overflow_is_named_at_its_layer() -> None:
    model, x = build("chain", 8)
    with torch.no_grad():
        model.fc3.weight.fill_(3e38)  # type: ignore[union-attr, operator]
    with pytest.raises(DataError, match="infinite values in the output of this layer") as error:
        made(model, x.abs() * 10)
    assert "at fc3" in str(error.value)


def test_data_of_another_shape() -> None:
    model, x = build("chain", 8)
    graph = capture(model, x)
    with pytest.raises(DataError, match="captured shape"):
        collect(graph, torch.randn(8, 5))
