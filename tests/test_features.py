"""What a recovery compares inside of two networks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import actprune as ap
from actprune.data.take import fit
from actprune.plan import make_plan
from actprune.recovery.features import Features, called, features
from actprune.repair.adapt import adapt
from nets import NETS, build

pytestmark = pytest.mark.accurate


class Stream(nn.Module):
    """Blocks on a stream of ten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 10), nn.Linear(10, 3)
        self.up = nn.ModuleList(nn.Linear(10, 16) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(16, 10) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.relu(up(x)))
        return self.head(x)


def made(**kept: int) -> tuple[Any, ...]:
    """A dense network, its graph, a plan that keeps so many units of a group, the cut network, a batch."""
    torch.manual_seed(0)
    dense, x = Stream().eval(), torch.randn(8, 6)
    graph = ap.capture(dense, x)
    plan = make_plan(graph, {name: range(width) for name, width in kept.items()})
    return dense, graph, plan, ap.cut(dense, plan), (x,)


def reordered(dense: Any, graph: Any, plan: Any, small: Any, batch: Any) -> tuple[Any, ...]:
    return graph, plan, dense, small, batch


def compared(*given: Any) -> Features:
    found = features(*reordered(*given))
    assert found is not None
    return found


def test_what_layers_read_of_whole_streams_is_compared() -> None:
    found = compared(*made(**{"up.0": 5, "up.1": 6}))
    assert len(found.left) == 2  # in front of the second block and of the head; not the units between
    assert all(indices is None for left in found.left for indices in left)


def test_of_streams_that_lost_little_what_is_left_is_compared() -> None:
    dense, graph, plan, small, batch = made(**{"up.0": 5, "stem": 9})
    found = compared(dense, graph, plan, small, batch)
    assert [left[-1].tolist() for left in found.left if left[-1] is not None] == [list(range(9))] * 2
    (_, wanted), (_, values) = found.wanted(batch), found.found(batch)
    assert [v.shape for v in wanted] == [v.shape for v in values]


def test_streams_that_lost_much_are_not_compared() -> None:
    dense, graph, plan, small, batch = made(**{"stem": 5, "up.0": 5, "up.1": 5})
    assert features(graph, plan, dense, small, batch) is None


def cuts(name: str) -> Iterator[tuple[Any, ...]]:
    """Every group of a network cut to half, one at a time: what `made` gives."""
    dense, x = build(name)
    graph = adapt(ap.capture(dense, x))
    batch = tuple(graph.program.example)
    for group in graph.groups:
        plan = make_plan(graph, {group.name: range(max(group.multiple, group.width // 2))})
        yield dense, graph, plan, ap.cut(dense, plan), batch


COMPARED = "lenet residual in_place depthwise grouped".split()


@pytest.mark.parametrize("name", NETS)
def test_graphs_hold_the_parameters_of_the_networks(name: str) -> None:
    seen = 0
    for dense, graph, plan, small, batch in cuts(name):
        found = features(graph, plan, dense, small, batch)
        if found is None:
            continue
        seen += 1
        assert {id(p) for p in found.small.parameters()} <= {id(p) for p in small.parameters()}
        for module, network in ((found.wanted, dense), (found.found, small)):
            for ours, theirs in zip(module(batch)[0], called(network, graph.program, batch), strict=True):
                torch.testing.assert_close(ours, theirs)
    assert seen or name not in COMPARED, f"{name}: nothing was compared"


def test_parameters_of_a_module_called_constants_are_trained() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.constants = Stream()

        def forward(self, x: Tensor) -> Tensor:
            return self.constants(x)

    torch.manual_seed(0)
    dense, x = Named().eval(), torch.randn(8, 6)
    graph = ap.capture(dense, x)
    plan = make_plan(graph, {"constants.up.0": range(5)})
    small = ap.cut(dense, plan)
    assert {id(p) for p in compared(dense, graph, plan, small, (x,)).small.parameters()} == {
        id(p) for p in small.parameters()
    }


class Folded(nn.Module):
    """Samples and channels in one dimension, which loses units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.each, self.head = nn.Linear(6, 20), nn.Linear(1, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        return self.head(torch.relu(self.each(y.reshape(-1, 1))).reshape(x.shape[0], -1, 4).sum(1))


@pytest.mark.parametrize("size", [2, 16])
@pytest.mark.parametrize("net", [Stream, Folded])
def test_steps_may_have_batches_of_another_size(net: type[nn.Module], size: int) -> None:
    torch.manual_seed(0)
    dense, x = net().eval(), torch.randn(64, 6)
    for batches in (x.split(8), x.split(1)):
        keep = "units=90%"
        result = ap.prune(dense, batches, keep=keep, method="l2", recover=ap.Distill(steps=3, batch_size=size))
        assert result.report.recovered is not None


def test_values_in_front_of_every_cut_are_no_aim() -> None:
    found = compared(*made(**{"up.1": 6}))
    assert len(found.left) == 1
    assert features(*reordered(*made(**{"up.1": 16}))) is None


def test_the_first_of_several_rounds_looks_inside() -> None:
    torch.manual_seed(0)
    how: dict[str, Any] = {"keep": "params=70%", "recover": ap.Distill(steps=2), "protect": "stem", "method": "l2"}
    results = ap.prune_in_rounds(Stream().eval(), [torch.randn(32, 6)], rounds=2, **how)
    assert ["values inside" in " ".join(result.report.notes) for result in results] == [True, False]


def test_a_network_that_computes_something_else_is_compared_by_its_outputs_alone() -> None:
    dense, graph, plan, small, batch = made(**{"up.0": 5})
    small.head.register_forward_hook(lambda module, args, out: 2 * out)
    assert features(graph, plan, dense, small, batch) is None
    program = replace(graph.program, bindings={})  # a graph that can't be run
    assert features(replace(graph, program=program), plan, dense, small, batch) is None
    assert features(graph, plan, dense, nn.Sequential(copy.deepcopy(small)), batch) is None


def test_values_inside_come_nearer() -> None:
    dense, graph, plan, small, batch = made(**{"up.0": 5, "up.1": 6})
    data = fit(graph.program, torch.randn(80, 6).split(8))

    def apart(share: float) -> float:
        own = copy.deepcopy(small)
        done = ap.Distill(steps=60, features=share).run(own, dense, graph.program, data, graph=graph, plan=plan)
        assert done.distance_after < done.distance_before
        found = compared(dense, graph, plan, own, batch)
        with torch.no_grad():
            pairs = zip(found.wanted(batch)[1], found.found(batch)[1], strict=True)
            return sum(float((a - b).square().sum()) for a, b in pairs)

    assert apart(3.0) < 0.8 * apart(0.0)
