"""Costs: by hand for the tiny networks, the published numbers for two known ones, and predicted against measured."""

from __future__ import annotations

import random
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from actprune.allocation.cost import COSTS, Cost, cost
from actprune.axes.capture import capture
from actprune.plan import make_plan
from actprune.surgery.slicing import cut
from nets import NETS, build

BY_HAND = {
    "chain": Cost(6 * 8 + 8 * 7 + 7 * 3, 143, 4 * 143),
    # convolutions of 5 × 5 maps: kernel area × channels in × channels out × 25
    "residual": Cost(25 * 27 * 8 + 2 * 25 * 9 * 48 + 32, 1182, 4 * (1182 + 2 * 22) + 3 * 8),
    "depthwise": Cost(25 * (3 * 8 + 9 * 8 + 8 * 5) + 20, 189, 4 * (189 + 16) + 8),
    # valid convolutions: 9 and then 1 positions; in the grouped one every output reads 4 of 8 channels
    "grouped": Cost(9 * 27 * 8 + 9 * 4 * 12 + 12 * 4, 720, 4 * 720),
    "tied": Cost(6 * 8 + 8 * 8 + 8 * 6, 128, 4 * 128),
    "tied_heads": Cost(6 * 8 + 2 * 8 * 3, 56 + 24 + 3 + 3, 4 * 86),
    "reused": Cost(6 * 8 + 2 * 8 * 8 + 8 * 3, 56 + 72 + 27, 4 * 155),
    "unused": Cost(6 * 8 + 8 * 3, 56 + 27 + 42 + 4, 4 * 129),
    # the head that only exists in training has parameters, but costs nothing in use
    "auxiliary": Cost(9 * 27 * 8 + 32, 224 + 16 + 2 * 36, 4 * (312 + 16) + 8),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    assert cost(capture(*build(name))) == BY_HAND[name]


def test_lenet() -> None:
    graph = capture(*build("lenet"))
    dense = cost(graph)
    assert (dense.macs, dense.params) == (281_640, 44_426)
    # half of the first convolution: 24² · 25 · 3, 8² · 25 · 3 · 16, and the linear layers as before
    half = cost(graph, {"conv1": 3})
    assert half == Cost(43_200 + 76_800 + 41_640, 78 + 1_216 + 41_854, 4 * 43_148)
    assert [half[name] for name in COSTS] == [half.macs, half.params, half.bytes]
    assert cost(graph, make_plan(graph, {"conv1": [0, 2, 5]})) == half


def test_resnet18(vision: ModuleType) -> None:
    with torch.device("meta"):
        model, images = vision.resnet18(), torch.empty(1, 3, 224, 224)
    dense = cost(capture(model, images))
    assert (dense.macs, dense.params) == (1_814_073_344, 11_689_512)


@pytest.mark.parametrize("batch", [1, 3])
def test_macs_are_per_sample(batch: int) -> None:
    assert cost(capture(*build("lenet", batch))).macs == 281_640


def test_products_between_activations_and_transposed_convolutions() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.up = nn.Linear(6, 4), nn.ConvTranspose2d(1, 6, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            q = self.q(x)
            return self.up((q @ q.mT).unsqueeze(1))

    graph = capture(Both().eval(), torch.randn(2, 5, 6))
    # 5 tokens: the projection, 5 × 5 scores of 4 values, and 25 positions spread over 9 · 6 outputs each
    assert cost(graph).macs == 5 * 6 * 4 + 25 * 4 + 25 * 9 * 6


def test_bytes_count_what_is_stored() -> None:
    model, x = build("residual")
    graph = capture(model.half(), x.half())
    assert cost(graph).bytes == sum(t.numel() * t.element_size() for t in model.state_dict().values())


@pytest.mark.parametrize("name", NETS)
def test_predicted_is_measured(name: str) -> None:
    model, inputs = build(name)
    graph = capture(model, inputs)
    chosen = random.Random(name)
    kept = {g.name: chosen.sample(range(g.width), chosen.randint(1, g.width)) for g in graph.groups}
    plan = make_plan(graph, kept)
    small = cut(model, plan)
    assert cost(graph, plan.widths) == cost(capture(small, inputs))
    assert cost(graph, plan.widths).params == sum(p.numel() for p in small.parameters())
