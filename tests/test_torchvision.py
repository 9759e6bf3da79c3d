"""Published networks, at a small input: 70 % of every group is kept at random, proved, trained a step, and run."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from actprune.axes.capture import capture
from actprune.plan import make_plan
from actprune.proof.check import verify
from actprune.surgery.slicing import cut

SETTINGS: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "vgg11_bn": {},
    "densenet121": {},
    "DenseNet": {"growth_rate": 16, "block_config": (2, 3, 4, 2), "num_init_features": 32},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "squeezenet1_1": {},
    "shufflenet_v2_x0_5": {},
    "googlenet": {"init_weights": False},
}

SHORT = ("resnet18", "DenseNet", "squeezenet1_1")


def build(vision: ModuleType, name: str) -> nn.Module:
    torch.manual_seed(0)
    model = getattr(vision, name)(num_classes=10, **SETTINGS[name])
    if name == "vgg11_bn":  # its own classifier has 120 million parameters, of the same kind as these
        model.classifier = nn.Sequential(nn.Linear(512 * 7 * 7, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10))
    return model.eval()


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SHORT else pytest.mark.long) for name in SETTINGS]
)
def test_cut_prove_and_train(vision: ModuleType, name: str) -> None:
    model, images = build(vision, name), torch.randn(2, 3, 32, 32)
    graph = capture(model, images)
    assert graph.unknown_ops == ()
    chosen = random.Random(0)
    kept = {g.name: chosen.sample(range(g.width), max(1, round(0.7 * g.width))) for g in graph.groups}
    plan = make_plan(graph, kept)
    small = cut(model, plan)
    proof = verify(model, small, plan, images, graph=graph)
    assert proof.passed
    assert proof.params == parameters(small) <= 0.75 * parameters(model)
    assert type(small) is type(model)

    with torch.no_grad():
        assert small(torch.randn(3, 3, 48, 48)).shape == (3, 10)
    outputs = [out for out in pytree.tree_leaves(small.train()(torch.randn(4, 3, 32, 32))) if isinstance(out, Tensor)]
    torch.stack([out.square().sum() for out in outputs]).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())
    # GoogLeNet's auxiliary heads, which exist in training only, were cut along
    assert len(outputs) == (3 if name == "googlenet" else 1)
