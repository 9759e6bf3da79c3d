"""Latency: the table of ops against a clock that counts, and budgets met on a clock that disagrees with the table."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import actprune as ap
from actprune.allocation.budget import Budget
from actprune.allocation.rounding import best_multiple
from actprune.axes.capture import Graph
from actprune.errors import ActpruneError, BudgetError, DataError
from actprune.latency.bench import Bench
from actprune.latency.calls import grid
from actprune.latency.timing import side_by_side
from nets import NETS, build

Clock = Callable[[tuple[int, ...]], float]
"""The shape of a tensor that an op reads → what reading it takes."""


def entries(shape: tuple[int, ...]) -> float:
    return float(math.prod(shape))


def likes_8(shape: tuple[int, ...]) -> float:
    """As on a machine that has fast kernels for multiples of 8 channels alone."""
    return math.prod(shape) * (1 if len(shape) < 4 or shape[1] % 8 == 0 else 2)


@pytest.fixture
def op_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Ops take as long as the entries of their arguments are many, or what another clock says; what was timed."""
    timed: list[Any] = [entries]

    def ms(call: Any, *_: Any) -> float:
        call()
        timed.append(call)
        return sum(timed[0](tuple(t.shape)) for t in pytree.tree_leaves(call.args) if isinstance(t, Tensor))

    monkeypatch.setattr("actprune.latency.bench.call_ms", ms)
    yield timed


@pytest.fixture
def model_clock(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[nn.Module], float]]:
    """Networks take what the last function in the list says of them."""
    says: list[Callable[[nn.Module], float]] = [lambda model: 1.0 + sum(p.numel() for p in model.parameters())]
    monkeypatch.setattr(
        "actprune.latency.bench.side_by_side", lambda calls, *_, **__: [says[-1](c.func) for c in calls]
    )
    return says


def captured(name: str, batch: int = 4) -> tuple[nn.Module, Graph]:
    model, x = build(name, batch)
    return model, ap.capture(model, x)


# ---- timing


def test_hooks_that_watch_are_not_timed_and_hooks_that_compute_are() -> None:
    seen: list[str] = []
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2)).eval()
    pre, normed = dict(model[0]._forward_pre_hooks), model[0]._forward_pre_hooks
    model[2].register_forward_hook(lambda module, args, out: seen.append("watched"))
    bench = Bench(ap.capture(model, torch.randn(3, 4)).program)
    seen.clear()
    assert bench.models([model], quick=True)[0] > 0
    assert len(seen) == 1 and len(model[2]._forward_hooks) == 1 and dict(normed) == pre
    model[2].register_forward_hook(lambda module, args, out: (seen.append("changed"), 2 * out)[1])
    bench.models([model], quick=True)
    assert seen.count("changed") > 3  # as often as there is time for, on a busy machine
    assert [hook.__name__ for hook in model[2]._forward_hooks.values()] == ["<lambda>"] * 2


class Counting(nn.Linear):
    """Counts its calls, and holds the last input."""

    def __init__(self) -> None:
        super().__init__(4, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x
        return super().forward(x)


def test_what_a_model_holds_of_its_calls_is_put_back() -> None:
    model = Counting()
    assert Bench(ap.capture(model, torch.randn(3, 4)).program).models([model], quick=True)[0] > 0
    assert int(model.calls) == 0 and model.last is None


def test_calls_are_timed_in_turns() -> None:
    short, long = side_by_side([lambda: sum(range(20_000)), lambda: sum(range(100_000))], 0.05)
    assert 0 < 2 * short < long < 12 * short
    assert len(side_by_side([int], 1e-3)) == 1


def test_a_profilers_timer_makes_the_clock_no_coarser() -> None:
    """One thread is timed by what the processor spends on it; while such a timer runs, that of the process stands still
    for milliseconds, so that a pass took no time at all."""
    x = torch.randn(64, 64)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    signal.setitimer(signal.ITIMER_PROF, 1000)
    try:
        first, second = side_by_side([lambda: x @ x] * 2, 0.02)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        torch.set_num_threads(threads)
    assert 1e-3 < first < 10 * second < 100 * first


def test_the_grid_is_coarse_and_ends_at_the_dense_width() -> None:
    assert grid(64) == (1, 4, 8, 16, 24, 32, 40, 48, 56, 64)
    assert grid(10) == (1, 4, 8, 10) and grid(1) == (1,) and grid(3) == (1, 3)
    assert len(grid(4096)) <= 10 and all(n % 8 == 0 for n in grid(4096)[2:])
    assert grid(24, 8) == (8, 16, 24) and grid(20, 5) == (5, 20)


# ---- the table


@pytest.mark.parametrize("name", ["chain", "residual", "dense", "depthwise", "grouped", "two_inputs"])
def test_between_measured_widths_time_is_linear(name: str, op_clock: Any, model_clock: Any) -> None:
    """Entries are linear in each size, so the interpolated table must say just what ops of the true shapes take."""
    model, graph = captured(name)
    table = ap.measure_latency(model, graph)
    assert table({}) == pytest.approx(table.dense) == pytest.approx(model_clock[0](model))
    for share in (0.9, 0.6, 0.3, 0.0):
        widths = {g.name: max(1, int(share * g.width)) for g in graph.groups}
        assert table(widths) == pytest.approx(table.exact(widths), rel=1e-9)
        assert table(widths) < table.dense


def test_an_entry_is_measured_once(op_clock: list[Any], model_clock: Any) -> None:
    model, graph = captured("residual")
    table = ap.measure_latency(model, graph)
    at_first = len(op_clock)
    table({"stem": 6, "conv1": 10})
    later = len(op_clock)
    assert later > at_first
    again = ap.measure_latency(model, graph, bench=table.bench)
    again({"stem": 6, "conv1": 10})
    assert len(op_clock) == later
    assert all(len({key[1], key[0]}) == 2 for key in table.bench.ops)


def test_the_ops_are_those_of_the_batch_that_was_named(op_clock: list[Any], model_clock: Any) -> None:
    model, graph = captured("residual")
    table = ap.measure_latency(model, graph, ap.Latency(batch=16))
    sizes = {t.shape[0] for call in op_clock[1:] for t in call.args if isinstance(t, Tensor) and t.dim() == 4}
    assert 16 in sizes and 4 not in sizes
    assert table.bench.inputs[0][0].shape[0] == 16 and table.bench.about()["batch_size"] == 16


def test_a_depthwise_op_has_as_many_groups_as_channels(op_clock: list[Any], model_clock: Any) -> None:
    model, graph = captured("depthwise")
    ap.measure_latency(model, graph)({graph.groups[0].name: 5})
    groups = {call.args[6] for call in op_clock[1:] if len(call.args) > 6 and isinstance(call.args[6], int)}
    assert {4, 8} <= groups  # the grid around 5


def test_an_op_that_does_not_run_at_other_widths_is_scaled(monkeypatch: pytest.MonkeyPatch, model_clock: Any) -> None:
    def ms(call: Any, *_: Any) -> float:
        if any(isinstance(t, Tensor) and 4 in t.shape[1:2] for t in call.args):
            raise RuntimeError("no kernel for 4")
        return sum(t.numel() for t in call.args if isinstance(t, Tensor))

    monkeypatch.setattr("actprune.latency.bench.call_ms", ms)
    model, graph = captured("chain", 3)
    table = ap.measure_latency(model, graph)
    assert table({"fc1": 1}) < table({"fc1": 5}) < table({"fc1": 7}) < table.dense  # 4 and 8 are around 5
    assert None in table.bench.ops.values()


def test_the_table_goes_through_what_was_measured_of_networks(op_clock: Any, model_clock: Any) -> None:
    model, graph = captured("residual")
    table = ap.measure_latency(model, graph)
    half, less = ({g.name: max(1, int(s * g.width)) for g in graph.groups} for s in (0.5, 0.25))
    led = table.through(half, 0.9).through(less, 0.6)
    assert led(half) == pytest.approx(0.9 * led.dense) and led(less) == pytest.approx(0.6 * led.dense)
    assert led({}) == pytest.approx(led.dense)
    between = led({g.name: max(1, int(0.4 * g.width)) for g in graph.groups})
    assert 0.6 * led.dense < between < 0.9 * led.dense
    assert table.through({}, 0.5) is table  # says nothing of narrower ones
    # noise never makes a narrower network the slower one
    assert table.through(half, 0.5).through(less, 0.7)(less) <= 0.7 * table.dense


def test_real_ops_take_time() -> None:
    model, graph = captured("residual")
    table = ap.measure_latency(model, graph, ap.Latency(seconds=1e-3, channels_last=True))
    assert all(0 < table(widths) < 1e3 for widths in ({}, {g.name: 1 for g in graph.groups}))
    assert all(ms is not None and ms > 0 for ms in table.bench.ops.values())
    assert table.bench.about() == {
        "device": "cpu", "batch_size": 4, "threads": torch.get_num_threads(), "channels_last": True,
    }  # fmt: skip


# ---- budgets


def calibration(name: str) -> list[Any]:
    torch.manual_seed(1)
    return [NETS[name].inputs(8) for _ in range(4)]


def pruned(name: str, **how: Any) -> ap.Result:
    return ap.prune(build(name)[0], calibration(name), method="l2", **how)


@pytest.mark.parametrize("keep", [0.7, 0.5, 0.3])
def test_a_budget_of_latency_is_met_on_the_real_network(keep: float, op_clock: Any, model_clock: Any) -> None:
    """Networks take a share that no cut saves, and the rest grows otherwise than the ops do one by one."""
    model_clock.append(lambda model: 5000 + sum(p.numel() for p in model.parameters()) ** 0.9)
    result = pruned("lenet", keep=f"latency={keep:.0%}")
    report = result.report
    assert report.budget == f"latency={100 * keep:g}%" == result.plan.note["budget"]
    reached = report.pruned.latency_ms / report.dense.latency_ms
    assert reached == pytest.approx(keep, rel=0.05)
    assert report.notes == (
        f"Latency is {reached:.1%} of the dense network's (batches of 8 on cpu with "
        f"{torch.get_num_threads()} threads).",
    )
    assert result.plan.note["predicted"]["latency_ms"] <= keep * report.dense.latency_ms * (1 + 1e-9)


def test_by_sensitivity_and_with_a_metric(op_clock: Any, model_clock: Any) -> None:
    model, _ = build("residual")
    result = ap.prune(model, calibration("residual"), keep="latency=60%", method="greedy", evaluate=lambda m: 1.0)
    reached = result.report.pruned.latency_ms / result.report.dense.latency_ms
    assert 0.54 < reached <= 0.6 * 1.02  # so few channels leave no plan that is nearer
    assert result.report.rounds[0]["metric"] == 1.0
    with_drop = pruned("residual", keep="latency=60%", max_drop=0.1, evaluate=lambda m: 1.0)
    assert with_drop.report.pruned.latency_ms <= 0.66 * with_drop.report.dense.latency_ms


def test_a_latency_that_no_cut_reaches(op_clock: Any, model_clock: Any) -> None:
    model_clock.append(lambda model: 1e6 + sum(p.numel() for p in model.parameters()))
    with pytest.raises(BudgetError, match="can't be reached") as caught:
        pruned("lenet", keep="latency=50%")
    says(caught.value, "expected: at least latency=95.", "got: latency=50%")


def test_allocate_by_a_table(op_clock: Any, model_clock: Any) -> None:
    model, graph = captured("lenet")
    guide = ap.guide(graph, None, method="l2")
    table = ap.measure_latency(model, graph)
    for rule in ("uniform", "spatial", "global"):
        plan = ap.allocate(graph, guide, keep="latency=60%", allocation=rule, latency=table)
        assert 0.5 * table.dense < table(plan.widths) <= 0.6 * table.dense * (1 + 1e-9)
        assert plan.note["predicted"]["latency_ms"] == table(plan.widths)
    with pytest.raises(BudgetError, match="needs measurements") as caught:
        ap.allocate(graph, guide, keep="latency=60%")
    says(caught.value, "where: latency", "measure_latency(model, graph)")


# ---- rounding


@pytest.mark.parametrize(("clock", "chosen"), [(entries, 1), (likes_8, 8)])
@pytest.mark.parametrize("keep", ["macs=50%", "latency=60%", "units=45%"])
def test_the_multiple_is_what_the_machine_likes(
    keep: str, clock: Clock, chosen: int, op_clock: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    op_clock[0] = clock
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(a, b, 1) for a, b in ((3, 64), (64, 64), (64, 64), (64, 2)))).eval()
    graph = ap.capture(model, torch.randn(2, 3, 32, 32))
    monkeypatch.setattr("actprune.latency.bench.side_by_side", lambda calls, *_, **__: [1.0 for _ in calls])
    table = ap.measure_latency(model, graph)
    found = best_multiple(graph, Budget(keep.split("=")[0], float(keep.split("=")[1][:-1]) / 100), table)
    assert (found == 1) is (chosen == 1) and (found % chosen == 0)


def test_a_measured_multiple_stands_in_the_plan(op_clock: list[Any], model_clock: Any) -> None:
    op_clock[0] = likes_8
    result = pruned("residual", keep="macs=60%", round_to="auto")
    multiple = result.plan.note["round_to"]
    assert multiple in (1, 4, 8, 16)
    assert all(k % multiple == 0 or k == result.graph[name].width for name, k in result.plan.widths.items())


# ---- what is said


def test_fewer_macs_without_speed_are_told(op_clock: Any, model_clock: Any) -> None:
    model_clock.append(lambda model: 1.0)
    told = pruned("residual", keep="macs=50%").report
    assert len(told.notes) == 1
    assert "Fewer MACs, but hardly faster" in told.notes[0] and "latency is 100%" in told.notes[0]
    assert told.latency == {
        "device": "cpu", "batch_size": 8, "threads": torch.get_num_threads(), "channels_last": False,
    }  # fmt: skip
    model_clock.append(lambda model: float(sum(p.numel() for p in model.parameters())))
    assert pruned("residual", keep="macs=50%").report.notes == ()


def test_the_report_is_of_the_batch_that_was_named(model_clock: Any) -> None:
    assert pruned("chain", keep="macs=60%", latency=ap.Latency(batch=1)).report.latency["batch_size"] == 1


def says(error: ActpruneError, *words: str) -> None:
    for word in words:
        assert word in str(error), str(error)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ap.Latency(batch=0), ("batch=…", "got: 0")),
        (lambda: ap.Latency(batch=1.5), ("batch=…", "1 or more")),  # type: ignore[arg-type]
        (lambda: ap.Latency(seconds=0), ("seconds=…", "> 0")),
        (lambda: ap.Latency(device="nowhere"), ("device=…", "'nowhere'")),
    ],
)
def test_settings_that_measure_nothing(make: Callable[[], Any], words: tuple[str, ...]) -> None:
    with pytest.raises(BudgetError, match="can't be measured so") as caught:
        make()
    says(caught.value, *words, "next: for example Latency(")


def test_other_wrong_settings(model_clock: Any) -> None:
    with pytest.raises(DataError, match="no setting of how to measure") as caught:
        pruned("chain", keep="macs=50%", latency=1)
    says(caught.value, "where: prune(latency=…)", "actprune.Latency(batch=1)")
    model, x = build("chain", 1)
    with pytest.raises(BudgetError, match="can't be timed on 3 samples") as wrong:
        ap.measure_latency(model, ap.capture(model, x), ap.Latency(batch=3))
    says(wrong.value, "a capture with 1", "calibration batches of 2")
