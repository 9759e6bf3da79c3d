"""The seed, row by row: one test per row of the tables in docs/seed.md.

Each number is derived by hand or by NumPy on explicit samples. Where the seed's code is broken, the broken lines are
run here as they stand there, so that the table claims nothing that was not seen.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LassoCV
from torch import Tensor, nn

import actprune
from actprune import SGD, Budget, allocate, capture, collect, cost, cut, guide, load, make_plan, prune
from actprune.allocation.correct import describe, within_budget, within_drop
from actprune.allocation.measured import Measured
from actprune.allocation.rules import layerwise, spatial
from actprune.allocation.sensitivity import interpolate
from actprune.allocation.space import make_space
from actprune.allocation.walks import trim
from actprune.axes.capture import Graph
from actprune.demo import main_job
from actprune.demo.lenet5 import LeNet5, Split, accuracy, minibatches, tensors, train_dense
from actprune.demo.mnist_files import FACTS, Mnist
from actprune.errors import DataError, UnsupportedModelError
from actprune.guidance import patterns
from actprune.guidance.greedy import eliminate
from actprune.guidance.guide import Guide
from actprune.guidance.judge import Judge
from actprune.guidance.lasso import contribution_gram, lasso_path
from actprune.guidance.problem import problems
from actprune.plan import Plan
from actprune.rewrite import zero_columns
from actprune.stats.sparsity import sparsity
from actprune.stats.statistics import Stats

pytestmark = pytest.mark.accurate

ROOT = Path(__file__).resolve().parents[1]
TABLE = (ROOT / "docs" / "seed.md").read_text("utf-8")


class Two(nn.Module):
    """Linear n → m, ReLU, Linear m → o: one group, `first`, of m neurons."""

    def __init__(self, n: int, m: int, o: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(n, m), nn.Linear(m, o)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class Maps(nn.Module):
    """A group of channels on maps of 4 × 4 and one of 2 × 2, then a group of neurons."""

    def __init__(self, channels: int = 16, neurons: int = 16) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, channels, 3), nn.Conv2d(channels, channels, 3)
        self.fc1, self.fc2 = nn.Linear(4 * channels, neurons), nn.Linear(neurons, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


def filled(layer: nn.Linear | nn.Conv2d, weight: Any, bias: Any = 0.0) -> None:
    """Set the weight and the bias of a layer."""
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(weight, dtype=torch.float32).expand_as(layer.weight))
        assert layer.bias is not None
        layer.bias.copy_(torch.as_tensor(bias, dtype=torch.float32).expand_as(layer.bias))


def passing(x: Any, head: Any = 1.0) -> tuple[Graph, Stats]:
    """Graph and statistics of a network whose hidden units simply hold the columns of x (≥ 0)."""
    rows = torch.as_tensor(x, dtype=torch.float32)
    n = rows.shape[1]
    outputs = len(head) if isinstance(head, list) else 1
    model = Two(n, n, outputs)
    filled(model.first, torch.eye(n))
    filled(model.second, head)
    graph = capture(model.eval(), rows)
    return graph, collect(graph, [rows])


def ranked(norms: list[float], outputs: int = 1) -> tuple[Two, Graph, Guide]:
    """A network whose hidden units have these filter norms, and its guide by L2 norm."""
    model = Two(1, len(norms), outputs)
    filled(model.first, torch.tensor(norms)[:, None])
    filled(model.second, 1.0)
    graph = capture(model.eval(), torch.ones(2, 1))
    return model, graph, guide(graph, None, method="l2")


# -- the table itself --------------------------------------------------------------------------------


def test_the_table_and_the_tests_name_each_other() -> None:
    named = set(re.findall(r"test_seed\.py::(\w+)", TABLE))
    tests = {name for name in globals() if name.startswith("test_")}
    assert named == tests - {"test_the_table_and_the_tests_name_each_other", "test_every_name_in_the_table_exists"}


def test_every_name_in_the_table_exists() -> None:
    found = re.findall(r"`actprune\.([\w.]+)`", TABLE)
    assert len(found) > 20
    for name in found:
        parts = name.split(".")
        home, rest = import_module("actprune"), parts
        for i in range(len(parts), 0, -1):
            try:
                home, rest = import_module(f"actprune.{'.'.join(parts[:i])}"), parts[i:]
                break
            except ImportError:
                continue
        for attribute in rest:
            fields = getattr(home, "__dataclass_fields__", {})
            assert hasattr(home, attribute) or attribute in fields, name
            home = getattr(home, attribute, None)


# -- definitions ---------------------------------------------------------------------------------------


def test_a_pruned_neuron_goes_with_its_weights_and_its_output() -> None:
    model = Two(2, 3, 1)
    filled(model.first, [[1, 2], [3, 4], [5, 6]], [7, 8, 9])
    filled(model.second, [[1, 10, 100]], 5)
    graph = capture(model.eval(), torch.ones(2, 2))
    small = cut(model, make_plan(graph, {"first": [0, 2]}))
    assert small.first.weight.tolist() == [[1, 2], [5, 6]]
    assert small.first.bias.tolist() == [7, 9]
    assert small.second.weight.tolist() == [[1, 100]]
    # (1 + 2 + 7) + 100 · (5 + 6 + 9) + 5
    assert small(torch.ones(1, 2)).item() == 10 + 2000 + 5


def test_compression_is_counted_in_parameters_multiply_adds_and_bytes() -> None:
    graph = capture(Two(4, 8, 3).eval(), torch.ones(2, 4))
    dense, half = cost(graph), cost(graph, {"first": 4})
    assert (dense.params, dense.macs, dense.bytes) == (4 * 8 + 8 + 8 * 3 + 3, 4 * 8 + 8 * 3, 4 * 67)
    assert (half.params, half.macs, half.bytes) == (4 * 4 + 4 + 4 * 3 + 3, 4 * 4 + 4 * 3, 4 * 35)


def test_sparsity_is_the_fraction_of_effective_parameters() -> None:
    model = Two(2, 3, 1)  # 6 + 3 and 3 + 1 parameters
    filled(model.first, [[1, 2], [0, 0], [5, 6]], 1.0)
    filled(model.second, [[1, 0, 2]], 1.0)
    assert sparsity(model) == (13 - 3) / 13
    small = cut(model, make_plan(capture(model.eval(), torch.ones(2, 2)), {"first": [0, 2]}))
    assert sparsity(small) == 1.0  # nothing that is left is zero
    assert sparsity(small, model) == 9 / 13  # 4 + 2 and 2 + 1 of 13
    assert 1 - sparsity(model) == pytest.approx(3 / 13)  # what the word means today
    model.second.weight = nn.Parameter(model.first.weight[:1].detach())
    model.register_parameter("again", model.second.weight)
    assert sparsity(model) == (12 - 2) / 12  # a tied parameter counts once
    with pytest.raises(UnsupportedModelError, match="no sparsity"):
        sparsity(nn.ReLU())


def test_the_activation_value_is_mean_plus_std_of_the_absolute_value() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    first = model[0]
    assert isinstance(first, nn.Linear)
    filled(first, torch.eye(2))
    x = torch.tensor([[1.0, 0.5], [-3.0, 0.5]])
    graph = capture(model.eval(), x)
    stats = collect(graph, [x])
    # |1|, |−3|: mean 2, std 1. A constant: mean 0.5, std 0
    assert stats.units["0"].value.tolist() == [3.0, 0.5]
    seed = [np.mean(np.abs(x[:, i].numpy())) + np.std(np.abs(x[:, i].numpy())) for i in range(2)]
    assert seed == [3.0, 0.5]
    assert guide(graph, stats, method="activation").kept("0", 1) == (0,)


def test_activation_patterns_are_kept_as_moments() -> None:
    x = np.abs(np.random.default_rng(0).normal(size=(40, 3))).astype(np.float32)
    graph, stats = passing(x)
    pattern = stats.moments(graph["first"].consumers[0].node)
    assert pattern.count == 40
    np.testing.assert_allclose(pattern.mean, x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(pattern.covariance, np.cov(x.T, bias=True), rtol=1e-5)
    half, twice = passing(x[:20])
    other = collect(half, [torch.tensor(x[20:])])
    merged = twice.merge(other).moments(half["first"].consumers[0].node)
    torch.testing.assert_close(merged.covariance, pattern.covariance, rtol=1e-6, atol=1e-9)


# -- activation analysis -------------------------------------------------------------------------------


def test_analysis_needs_one_pass_and_names_layers_by_their_module() -> None:
    model = Maps().eval()
    x = torch.rand(6, 1, 6, 6)
    graph = capture(model, x)
    stats = collect(graph, [x])
    assert list(stats.units) == ["conv1", "conv2", "fc1"]
    assert stats.samples == 6
    shown = {"actprune": actprune, "model": model, "x": x}
    exec(TABLE.split("```python\n")[1].split("```")[0], shown)  # what the page says of numbers to look at
    middle = torch.relu(model.conv1(x)).detach()[:, :, 1:-1, 1:-1].transpose(0, 1).flatten(1)
    alive = middle.std(1) > 0
    found = patterns.correlation(graph, stats, graph["conv1"])
    assert found is not None
    np.testing.assert_allclose(found[alive][:, alive], np.corrcoef(middle[alive]), atol=1e-6)
    with pytest.raises(
        ValueError, match="must match exactly"
    ):  # the seed: layers whose input and output differ in size
        np.corrcoef(np.ones((8, 6)), np.ones((8, 4)))


def test_mean_and_standard_deviation_of_every_unit() -> None:
    _, stats = passing([[0, 2], [4, 2], [2, 5]])
    assert stats.units["first"].signed.mean.tolist() == [2, 3]
    np.testing.assert_allclose(stats.units["first"].signed.std, [np.sqrt(8 / 3), np.sqrt(2)])


def test_correlation_of_a_layers_input_with_its_output() -> None:
    x = np.array([[0, 2], [4, 2], [2, 5], [1, 1]])
    graph, stats = passing(x, [[1, 3], [2, -1]])
    output = x @ np.array([[1, 3], [2, -1]]).T
    expected = np.corrcoef(x.mean(1), output.mean(1))[0, 1]
    assert stats.input_output_correlation(graph["first"].consumers[0].node) == pytest.approx(expected, abs=1e-6)


def test_correlation_between_units_discounts_what_others_can_predict() -> None:
    # the second unit is twice the first; the third is uncorrelated with both
    graph, stats = passing([[1, 2, 0], [1, 2, 2], [3, 6, 0], [3, 6, 2]], [[1, 1, 1]])
    correlation = stats.correlation(graph["first"].consumers[0].node)
    np.testing.assert_allclose(correlation, [[1, 1, 0], [1, 1, 0], [0, 0, 1]], atol=1e-6)
    with pytest.raises(DataError, match=r"(?s)expected: .*got: first.*graph\['conv1'\].consumers\[0\].node"):
        stats.correlation("first")
    unpredicted = torch.tensor(guide(graph, stats, method="correlation").groups["first"].scores)
    assert unpredicted[2] > 100 * unpredicted[:2].max()


# -- the three simpler methods -------------------------------------------------------------------------


@pytest.mark.parametrize(("percent", "expected"), [(70, [4, 11, 84, 58]), (30, [1, 4, 36, 25]), (1, [1, 1, 1, 1])])
def test_layerwise_pruning(percent: int, expected: list[int]) -> None:
    graph = capture(LeNet5().eval(), torch.rand(2, 1, 28, 28))
    plan = allocate(graph, guide(graph, None, method="l2"), keep=f"units={percent}%")
    assert list(plan.widths.values()) == [max(percent * n // 100, 1) for n in (6, 16, 120, 84)] == expected
    # under a budget ρ is searched, and what is left over is filled unit by unit
    space = make_space(graph, Budget("macs", 0.5))
    rho, widths = layerwise(space, guide(graph, None, method="l2"))
    for name, n in (("conv1", 6), ("conv2", 16), ("fc1", 120), ("fc2", 84)):
        assert widths[name] >= max(int(rho * n), 1)
    assert 0.48 < space.cost(widths) / cost(graph).macs <= 0.5


def test_global_pruning() -> None:
    """One ranking over all layers: a layer of equal units is thinned last, one with a single strong unit first."""
    model = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    for index, weight in ((0, [[9], [1], [1], [1]]), (2, [[1] * 4] * 4)):
        layer = model[index]
        assert isinstance(layer, nn.Linear)
        filled(layer, weight)
    graph = capture(model.eval(), torch.ones(2, 1))
    ranking = guide(graph, None, method="l2")
    assert ranking.groups["0"].scores == (3.0, 1 / 3, 1 / 3, 1 / 3)  # divided by the layer's mean, 3
    assert ranking.groups["2"].scores == (1, 1, 1, 1)
    # 4 + 16 + 4 multiply-adds; without the three weakest units 1 + 4 + 4
    plan = allocate(graph, ranking, keep=Budget("macs", 9 / 24), allocation="global")
    assert plan.widths == {"0": 1, "2": 4}
    assert plan.groups["0"].kept == (0,)


def test_filter_pruning() -> None:
    model = Two(2, 3, 1)
    filled(model.first, [[0.5, 0.01], [0.02, -0.03], [-0.4, 0.3]])
    filled(model.second, 1.0)
    result = prune(model, [torch.rand(8, 2)], method="filter", threshold=0.1)
    assert result.plan.groups["first"].kept == (0, 2)  # no weight of the second one reaches the threshold
    torch.testing.assert_close(result.model.first.weight, torch.tensor([[0.5, 0.0], [-0.4, 0.3]]))
    assert result.proof.passed
    assert sparsity(result.model, model) < sparsity(cut(model, result.plan), model)


# -- SGD-AP, its steps ---------------------------------------------------------------------------------


def test_sgd_ap_does_all_its_steps() -> None:
    torch.manual_seed(0)
    model = Two(4, 8, 3).eval()
    x, wanted = torch.randn(96, 4), torch.randn(96, 4) @ torch.randn(4, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def evaluate(network: nn.Module) -> float:
        return -F.mse_loss(network(x), wanted).item()

    stages: list[str] = []
    result = prune(
        model, [x], keep="macs=50%", evaluate=evaluate, finetune=SGD([(x, wanted)], loss=F.mse_loss, epochs=5),
        progress=lambda stage, done, total: stages.append(stage) if done == 0 else None,
    )  # fmt: skip
    order = list(dict.fromkeys(stages))
    expected = ["capture", "evaluate", "statistics", "guide", "allocate", "cut and verify", "fine-tune", "report"]
    assert order == expected
    assert result.stats is not None and result.proof.passed and result.before_finetune is not None
    assert result.plan.widths == {"first": 4}
    # statistics, guide, plan, cut, fine-tune and evaluation leave their traces
    assert result.guide.groups["first"].beta is not None
    assert result.report.finetuned is not None and result.report.pruned.accuracy is not None
    assert not torch.equal(result.model.first.weight, result.before_finetune.first.weight)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("mean", [2, 50])
def test_the_score_unites_mean_deviation_and_correlation(mean: float) -> None:
    """Two units of variance 1 and correlation 0.6, whose weights are 3 and 1; their mean goes into the bias."""
    signs = [(a, c) for a in (-1, 1) for c in (-1, 1)]
    graph, stats = passing([[mean + a, mean + 0.6 * a + 0.8 * c] for a, c in signs], [[3, 1]])
    order, curve = eliminate(problems(graph, stats, graph["first"]))
    assert order == [0, 1]
    # ‖w‖² · σ² · (1 − R²) of the second one, 1 · 1 · (1 − 0.36); then all that there was, 9 + 1 + 2 · 3 · 0.6
    assert curve == pytest.approx([13.6, 0.64, 0.0], rel=0.01)


def test_counts_per_layer_follow_from_the_guide_and_the_ratio() -> None:
    """A layer whose narrowing costs nothing pays for one whose narrowing costs much."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    graph = capture(model, torch.rand(8, 4))
    ranking = guide(graph, None, method="l2")
    options = (1, 2, 3, 4)
    errors = ranking.groups["0"].curve
    curves = {
        "0": interpolate(options, errors, {1: 0.0, 3: 0.0}),
        "2": interpolate(options, errors, {1: 8.0, 2: 4.0, 3: 2.0}),
    }

    def around(widths: dict[str, int]) -> Callable[[dict[str, int]], float]:
        return lambda changed: sum(curves[name](k) for name, k in {**widths, **changed}.items())

    measured = Measured(curves, around)
    # 16 · 3 multiply-adds; with one unit in the first layer 4 + 4 + 16
    plan = allocate(graph, ranking, keep=Budget("macs", 24 / 48), allocation="sensitivity", measured=measured)
    assert plan.widths == {"0": 1, "2": 4}


def test_every_layer_stays() -> None:
    graph = capture(LeNet5().eval(), torch.rand(2, 1, 28, 28))
    space = make_space(graph, Budget("units", 0.001))
    assert set(space.narrowest.values()) == {1}
    plan = allocate(graph, guide(graph, None, method="l2"), keep="units=0.1%")
    assert list(plan.widths.values()) == [1, 1, 1, 1]


# -- initialising --------------------------------------------------------------------------------------


def test_rho_is_the_fraction_that_stays() -> None:
    _, graph, ranking = ranked([4, 3, 2, 1])
    plan = allocate(graph, ranking, keep="units=75%")
    assert plan.note["rho"] == 0.75
    assert plan.groups["first"].kept == (0, 1, 2)


def seed_init_prune_state(rho: float, input_shapes: list[Any], layer_nums: int) -> tuple[list[float], list[list[bool]]]:
    """The seed's function, to the letter."""
    prune_rates, prune_states = [], []
    for l in range(layer_nums):  # noqa: E741
        _, h, w, c = input_shapes[l]
        prune_rates.append(rho ** (1 / h))
        cur_num = int(c * rho ** ((1 / h) * (1 / w)))
        total_num = c * (h // 2) ** 2 * (w // 2) ** 2
        prune_states.append([True] * cur_num + [False] * (total_num - cur_num))
    return prune_rates, prune_states


def test_spatial_rates() -> None:
    graph = capture(Maps().eval(), torch.rand(2, 1, 6, 6))
    # the widths at ρ = 1/16: 16 · ρ^(1/16) = 13.45, 16 · ρ^(1/4) = 8, 16 · ρ = 1
    expected = {"conv1": 13, "conv2": 8, "fc1": 1}
    target = cost(graph, expected).macs / cost(graph).macs
    rho, widths = spatial(make_space(graph, Budget("macs", target)), guide(graph, None, method="l2"))
    assert widths == expected
    assert [max(int(16 * rho ** (1 / places)), 1) for places in (16, 4, 1)] == list(expected.values())
    rates, states = seed_init_prune_state(rho, [(None, 4, 4, 16), (None, 2, 2, 16), (None, 1, 1, 16)], 3)
    np.testing.assert_allclose(
        [rates[0] ** (1 / 4), rates[1] ** (1 / 2), rates[2]], [rho ** (1 / p) for p in (16, 4, 1)]
    )
    assert [sum(state) for state in states] == list(expected.values())
    # but its states are as long as nothing in the network, and a single input channel is pruned away
    assert [len(state) for state in states] == [256, 16, 1]
    assert sum(seed_init_prune_state(0.5, [(None, 28, 28, 1)], 1)[1][0]) == 0
    with pytest.raises(ValueError, match="not enough values"):
        seed_init_prune_state(0.5, [(None, 120)], 1)


def test_prune_states_hold_one_entry_per_unit() -> None:
    _, graph, _ = ranked([4, 3, 2, 1])
    round_ = describe(make_plan(graph, {"first": [0, 2]}), "plan", 0.5, 0.9, 1.0, True)
    assert round_.prune_states == {"first": "1010"}
    assert describe(make_plan(graph, {}), "plan", 1.0, 1.0, 1.0, True).prune_states == {"first": "1111"}


def test_the_guide_keeps_the_maps_of_a_layer() -> None:
    model = Maps(channels=2).eval()
    x = torch.rand(5, 1, 6, 6)
    graph = capture(model, x)
    found = collect(graph, [x])
    activation = torch.relu(model.conv1(x)).detach().double().flatten(2)  # (samples, C, H · W)
    assert found.maps["conv1"].mean.shape == (2, 4 * 4)
    torch.testing.assert_close(found.maps["conv1"].mean, activation.mean(0))
    torch.testing.assert_close(found.maps["conv1"].std, activation.std(0, unbiased=False))
    # in front of a flatten the map is the mean of the linear layer's C · H · W columns
    columns = found.moments(graph["conv2"].consumers[0].node).mean
    before = torch.relu(model.conv2(torch.relu(model.conv1(x)))).detach().double()
    torch.testing.assert_close(columns, before.mean(0).flatten(), rtol=1e-6, atol=1e-7)


# -- updating ------------------------------------------------------------------------------------------


def test_the_most_important_units_stay() -> None:
    _, _, ranking = ranked([0.1, 3.0, 2.0, 0.5])
    assert ranking.groups["first"].orders["l2"] == (1, 2, 3, 0)
    assert [ranking.kept("first", k) for k in (1, 2, 3)] == [(1,), (1, 2), (1, 2, 3)]
    g = np.array([0.1, 3.0, 2.0, 0.5])
    assert (-np.abs(g)).argsort()[::-1].tolist() == [0, 3, 2, 1]  # the seed: the least important first
    assert [round(rate ** (1 / (16 + 1e-10))) for rate in (0.3, 0.5, 0.9)] == [1, 1, 1]  # and no rate but 1


def test_a_kept_set_has_exactly_its_units() -> None:
    """The seed extends the state by `[True] * (index + 1)` for every index: its length is a sum of indices."""
    chosen, new_s = [1, 2], list[bool]()
    for index in chosen:
        new_s += [True] * (index + 1)
    assert len(new_s) == 5
    with pytest.raises(ValueError, match="False is not in list"):
        new_s[:-1].index(False)
    _, graph, ranking = ranked([0.1, 3.0, 2.0, 0.5])
    plan = make_plan(graph, ranking.supports({"first": 2}))
    assert describe(plan, "plan", 0.5, 1.0, 1.0, True).prune_states == {"first": "0110"}


def test_the_remaining_ratio_never_exceeds_the_target() -> None:
    _, graph, ranking = ranked([5, 4, 3, 2, 1])
    space = make_space(graph, Budget("macs", 0.55))  # 2 multiply-adds a unit, 10 in all: two units
    assert trim(space, {"first": 5}, lambda name, now, then: 1.0) == {"first": 2}
    for allocation in ("uniform", "layerwise", "spatial", "global"):
        plan = allocate(graph, ranking, keep="macs=55%", allocation=allocation)
        assert plan.groups["first"].kept == (0, 1)
    assert allocate(graph, ranking, keep="macs=60%", allocation="uniform").widths == {"first": 3}


def test_remaining_ratios_are_recorded_in_percent() -> None:
    _, graph, _ = ranked([3, 2, 1])
    found = describe(make_plan(graph, {"first": [0, 1]}), "plan", 0.7, 0.95, 0.98, True)
    assert found.remaining_ratios == {"first": 66.67}
    assert found.widths == {"first": 2}
    assert found.drop == pytest.approx(0.03)


# -- the pruning guide ---------------------------------------------------------------------------------


def test_the_target_of_the_lasso_is_what_the_consumer_computes() -> None:
    x = np.random.default_rng(0).random((40, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seed = LassoCV(cv=5, fit_intercept=False, selection="random", random_state=0).fit(x, np.zeros(40))
    assert seed.coef_.tolist() == [0.0]  # nothing can be learnt from zeros
    # three independent units of variance 1 with weights 3, 2, 1: A = diag(9, 4, 1)
    cube = [[a, b, c] for a in (0, 2) for b in (0, 2) for c in (0, 2)]
    graph, stats = passing(cube, [[3, 2, 1]])
    gram = contribution_gram(problems(graph, stats, graph["first"]))
    np.testing.assert_allclose(gram, np.diag([9, 4, 1]), atol=1e-6)
    path = lasso_path(np.diag([9.0, 4.0, 1.0]))
    np.testing.assert_allclose(path.alphas, [3, 2, 1, 0], atol=1e-9)
    # β_g = 1 − α / √A_gg
    np.testing.assert_allclose(path.betas.T, [[0, 0, 0], [1 / 3, 0, 0], [2 / 3, 1 / 2, 0], [1, 1, 1]], atol=1e-9)
    assert [path.support(k) for k in (1, 2, 3)] == [[0], [0, 1], [0, 1, 2]]


def test_five_folds_judge_refits_and_choose_the_natural_width() -> None:
    """The third unit is the sum of the first two, so that two units are enough; one is not."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(200, 2, generator=generator)
    x = torch.cat([x, x.sum(1, keepdim=True)], 1)
    graph, stats = passing(x, [[1, 2, 1]])
    found = problems(graph, stats, graph["first"])
    assert [fold.count for fold in found[0].folds] == [40] * 5
    assert Judge(found)([0, 1]) < 1e-4 < 0.1 < Judge(found)([0])
    own = guide(graph, stats, method="sgd-ap").groups["first"]
    assert own.natural == 2
    assert own.beta is not None and sum(factor > 0 for factor in own.beta) == 2


# -- the practical case --------------------------------------------------------------------------------


@pytest.fixture
def digits() -> Mnist:
    """In the place of MNIST: noise with a bright bar, whose column is the label."""
    rng = np.random.default_rng(0)

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.integers(0, 10, count).astype(np.uint8)
        images = rng.integers(0, 40, (count, 28, 28)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[4:24, 4 + 2 * label : 6 + 2 * label] = 255
        return images, labels

    return Mnist(*part(500), *part(60))


def test_data_is_the_published_one(digits: Mnist) -> None:
    assert FACTS["x_train"].shape == (60000, 28, 28)
    assert FACTS["x_test"].shape == (10000, 28, 28)  # not 20,000
    assert 28 * 28 == 784
    split = tensors(digits)
    assert split.train.images.shape == (400, 1, 28, 28)  # (N, C, H, W): the seed's reshape has channels last
    np.testing.assert_array_equal(split.test.images[:, 0], digits.x_test.astype(np.float32) / np.float32(255))
    assert float(split.train.images.max()) == 1.0
    assert split.test.labels.tolist() == digits.y_test.tolist()


def test_the_model_is_the_seeds() -> None:
    model = LeNet5().eval()
    shapes = [tuple(p.shape) for p in model.parameters() if p.dim() > 1]
    assert shapes == [(6, 1, 5, 5), (16, 6, 5, 5), (120, 256), (84, 120), (10, 84)]
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.5, 0.5]
    total = cost(capture(model, torch.rand(2, 1, 28, 28)))
    assert total.params == 156 + 2416 + 30840 + 10164 + 850 == 44426
    assert total.macs == 6 * 25 * 24**2 + 16 * 6 * 25 * 8**2 + 256 * 120 + 120 * 84 + 84 * 10 == 281640


def test_training_is_the_seeds(digits: Mnist) -> None:
    defaults = {name: p.default for name, p in inspect.signature(train_dense).parameters.items()}
    assert (defaults["lr"], defaults["epochs"], defaults["batch_size"]) == (1e-3, 5, 32)
    split = tensors(digits)
    assert len(split.validation.images) == len(digits.x_train) // 5
    assert split.validation.labels.tolist() == digits.y_train[400:].tolist()  # the last fifth, as in Keras
    steps: list[int] = []
    untrained = accuracy(train_dense(split, seed=0, epochs=0), *split.validation)
    model = train_dense(split, seed=0, epochs=5, progress=lambda done, total, text: steps.append(total))
    assert steps[-1] == 5 * 13  # 400 images in batches of 32
    assert accuracy(model, *split.validation) > untrained + 0.3


def test_evaluation_is_the_accuracy() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [0.0, 5.0]])
    assert accuracy(nn.Identity(), logits, torch.tensor([0, 1, 1, 1])) == 0.75


def test_the_fine_tune_is_stochastic_gradient_descent() -> None:
    model = nn.Linear(1, 1)
    filled(model, [[2.0]])
    model.bias.requires_grad_(False)
    SGD([(torch.ones(1, 1), torch.ones(1, 1))], loss=F.mse_loss, lr=0.1, epochs=1, clip=None)(model)
    # d/dw (w − 1)² = 2 at w = 2; the first Nesterov step is lr · (1 + 0.9) · gradient
    assert model.weight.item() == pytest.approx(2 - 0.1 * 1.9 * 2)
    dense = Two(2, 4, 1).eval()
    small = cut(dense, make_plan(capture(dense, torch.ones(2, 2)), {"first": [1, 3]}))
    batches = minibatches(torch.rand(20, 2), torch.rand(20, 1), 8, torch.Generator().manual_seed(0))
    SGD(batches, loss=F.mse_loss, epochs=2)(small)
    assert small.first.weight.shape == (2, 2)  # what was removed does not come back


def steps_of(graph: Graph, ranking: Guide) -> Any:
    """ρ → the plan that keeps this share of the units."""
    return lambda rho: make_plan(graph, ranking.supports({"first": max(int(rho * 10), 1)}))


def test_correction_finds_the_smallest_network_within_the_drop() -> None:
    _, graph, ranking = ranked(list(range(10, 0, -1)))

    def evaluate(plan: Plan) -> float:
        return 0.9 if plan.widths["first"] >= 4 else 0.5

    corrected = within_drop(steps_of(graph, ranking), evaluate, dense=0.9, max_drop=0.01, least=0.1, first=0.5)
    assert corrected.plan.widths == {"first": 4}
    assert [r.action for r in corrected.rounds[:2]] == ["lower ρ", "raise ρ"]  # 5 units are enough, 3 are not
    assert [r.accepted for r in corrected.rounds[:2]] == [True, False]


def test_correction_trades_width_between_layers() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    graph = capture(model, torch.ones(2, 2))
    start = make_plan(graph, {"0": [0, 1], "2": [0, 1]})
    regrown = make_plan(graph, {"0": [0, 1, 2], "2": [0]})

    def metric(plan: Plan) -> float:
        return 0.7 + 0.1 * plan.widths["0"]

    found = within_budget(graph, start, Budget("macs", 0.5), lambda plan: [regrown], metric, dense=1.0)
    assert found.plan is regrown
    assert [(r.action, r.accepted) for r in found.rounds] == [("plan", True), ("regrow and shrink", True)]


@pytest.fixture
def spied(digits: Mnist, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The main job on a few synthetic digits; which part of the data each evaluation looked at, in order."""
    split, seen = tensors(digits), list[str]()

    def spy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
        seen.append(next(part for part in Split.__annotations__ if getattr(split, part).images is images))
        return accuracy(model, images, labels)

    monkeypatch.setattr(main_job, "load_mnist", lambda data, cache: digits)
    monkeypatch.setattr(main_job, "tensors", lambda mnist: split)
    monkeypatch.setattr(main_job, "accuracy", spy)
    yield seen


def test_the_test_set_is_looked_at_once_at_the_end(spied: list[str], tmp_path: Path) -> None:
    options = main_job.Options(
        method="activation", finetune_epochs=1, epochs=1, out=tmp_path / "run", cache=tmp_path / "cache"
    )
    outcome = main_job.run(options)
    first = spied.index("test")
    assert first > 0 and set(spied[:first]) == {"validation"}
    assert set(spied[first:]) == {"test"}
    assert len(spied[first:]) == 4  # dense, the L2 norm beside it, after the cut, after the fine-tune: once each
    assert outcome.report.rounds[0]["prune_states"].keys() == outcome.result.plan.widths.keys()
    again = load(outcome.folder, LeNet5())
    assert cost(capture(again, torch.rand(2, 1, 28, 28))).macs <= 281640 // 2


def test_decisions_are_made_on_the_dense_network() -> None:
    """What the seed masks while it decides, and never removes: here mask and cut are proved to be equal."""
    torch.manual_seed(0)
    model = Two(3, 6, 2).eval()
    x = torch.randn(4, 3)
    graph = capture(model, x)
    plan = make_plan(graph, {"first": [0, 3, 4]})
    masked = torch.func.functional_call(model, zero_columns(graph, plan), (x,))
    torch.testing.assert_close(cut(model, plan)(x), masked)
