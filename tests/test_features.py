"""What a recovery compares inside of two networks."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import actprune as ap
from actprune.data.take import fit
from actprune.graph.program import Batch
from actprune.plan import make_plan
from actprune.recovery.features import Features, called, features
from nets import NETS, build


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


def compared(*given: Any) -> Features:
    dense, graph, plan, small, batch = given
    found = features(graph, plan, dense, small, batch)
    assert found is not None
    return found


def test_what_layers_read_of_whole_streams_is_compared() -> None:
    found = compared(*made(**{"up.0": 5, "up.1": 6}))
    assert len(found.left) == 3  # in front of both blocks and of the head; not the units between
    assert all(indices is None for left in found.left for indices in left)


def test_of_streams_that_lost_little_what_is_left_is_compared() -> None:
    dense, graph, plan, small, batch = made(**{"up.0": 5, "stem": 9})
    found = compared(dense, graph, plan, small, batch)
    assert [left[-1].tolist() for left in found.left if left[-1] is not None] == [list(range(9))] * 3
    (_, wanted), (_, values) = found.wanted(batch), found.found(batch)
    assert [v.shape for v in wanted] == [v.shape for v in values]
    torch.testing.assert_close(wanted[0], values[0])  # nothing is lost in front of the first block


def test_streams_that_lost_much_are_not_compared() -> None:
    dense, graph, plan, small, batch = made(**{"stem": 5, "up.0": 5, "up.1": 5})
    assert features(graph, plan, dense, small, batch) is None


@pytest.mark.parametrize("name", [name for name in NETS if name != "two_inputs"])
def test_graphs_hold_the_parameters_of_the_networks(name: str) -> None:
    dense, x = build(name)
    result = ap.prune(dense, [x], keep="units=80%", method="l2")
    program = result.graph.program
    batch: Batch = fit(program, [x]).batches[0]
    found = features(result.graph, result.plan, dense, result.model, batch)
    if found is None:
        return
    own = {id(p) for p in result.model.parameters()}
    assert {id(p) for p in found.small.parameters()} <= own
    for module, network in ((found.wanted, dense), (found.found, result.model)):
        for ours, theirs in zip(module(batch)[0], called(network, program, batch), strict=True):
            torch.testing.assert_close(ours, theirs)


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
