"""The captured graph as a module: proved, trainable, for any batch size; on every tiny network."""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import actprune as ap
from actprune.axes.capture import capture
from actprune.plan import make_plan
from actprune.proof.check import verify
from actprune.repair.adapt import trial_units
from actprune.surgery.graph_form import as_graph
from nets import NETS, build
from test_repair import NETS as CLASSES


def graph_of(model: nn.Module, inputs: Any, seed: int = 0) -> Any:
    """The cut graph, proved."""
    graph = capture(model, inputs)
    plan = make_plan(graph, trial_units(graph, [group.name for group in graph.groups], seed))
    small = as_graph(model, graph, plan)
    verify(model, small, plan, inputs, graph=replace(graph, training=None))  # which has no auxiliary heads
    return small


@pytest.mark.parametrize("name", NETS)
def test_tiny_networks(name: str) -> None:
    model, inputs = build(name)
    small = graph_of(model.eval(), inputs)
    assert set(small.state_dict()) <= set(model.state_dict())  # a tensor with several names has one


@pytest.mark.parametrize("name", CLASSES)
def test_classes_that_write_down_sizes(name: str) -> None:
    make, inputs = CLASSES[name]
    model, x = make().eval(), inputs()
    small = graph_of(model, x)
    copy.deepcopy(small)(x)
    if name != "cross":  # its batch is not in front
        assert small(torch.cat([x, x, x])).shape[0] == 3 * len(x)
    out = small.train()(x)
    (out[0] if isinstance(out, tuple) else out).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


class Convolutional(nn.Module):
    """Norms, groups and a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.gn = nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.GroupNorm(4, 8)
        self.fc = nn.Linear(8 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.a(x)))
        return self.fc(torch.relu(self.gn(self.b(x))).view(x.shape[0], -1))


def test_batch_norms_follow_the_mode() -> None:
    small = graph_of(Convolutional().eval(), torch.randn(2, 3, 6, 6))
    before = small.bn.running_mean.clone()
    small.eval()(torch.randn(5, 3, 6, 6))
    assert torch.equal(small.bn.running_mean, before)
    small.train()(torch.randn(5, 3, 6, 6))
    assert not torch.equal(small.bn.running_mean, before)


class Decoder(nn.Module):
    """Takes an argument that the capture adds by itself, and has one that it is not given between two that it is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, bias: Tensor | None = None, mask: Any = None, use_cache: bool = True) -> Any:
        out = self.b(torch.relu(self.a(x)))
        if mask is not None:
            out = out * mask[:, None]
        return {"out": out, "cache": object()} if use_cache else {"out": out}


def test_it_is_called_like_the_class() -> None:
    model, x = Decoder().eval(), torch.randn(2, 6)
    small = graph_of(model, {"mask": torch.ones(2), "x": x})
    assert str(inspect.signature(small.forward)) == "(x, *, mask, use_cache=False)"
    assert not small(x, mask=torch.zeros(2))["out"].any()
    assert str(inspect.signature(graph_of(model, x).forward)) == "(x, *, use_cache=False)"


class Indexed(nn.Module):
    """Sizes that are the batch's, though no tensor of samples gave them: an index of all samples, a mask for each."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.table = nn.Buffer(torch.randn(1, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        masks = self.table.expand(n, -1, -1)[torch.arange(n), 2]
        return self.b(torch.relu(self.a(x))) * masks.sum(1, keepdim=True) + torch.arange(2 * n + 1).sum() / n


def test_batch_sizes_that_no_axis_tells() -> None:
    model, x = Indexed().eval(), torch.randn(4, 6)
    small = graph_of(model, x)
    graph = capture(model, x)
    whole = as_graph(model, graph, make_plan(graph, {group.name: tuple(range(group.width)) for group in graph.groups}))
    for size in (1, 4, 9):
        more = torch.randn(size, 6)
        torch.testing.assert_close(whole(more), model(more))
        assert small(more).shape == (size, 3)


class Named(nn.Module):
    """A block under a name of the user's."""

    def __init__(self, name: str) -> None:
        super().__init__()
        setattr(self, name, nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU()))
        self.name, self.last = name, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(getattr(self, self.name)(x))


@pytest.mark.parametrize("name", ["in", "class", "None"])
def test_names_that_are_words_of_python(name: str, tmp_path: Path) -> None:
    """torch.fx writes `self.in.weight`, which ends in a SyntaxError."""
    x = torch.randn(8, 4)
    model = Named(name).eval()
    result = ap.prune(model, [x, x], keep="units=50%", method="l2", form="graph")
    assert set(result.model.state_dict()) <= set(model.state_dict())
    copied = copy.deepcopy(result.model).train()
    copied(x).sum().backward()
    again = ap.load(result.save(tmp_path / "run"), Named(name), x)
    assert torch.equal(again.eval()(x), result.model.eval()(x))


@pytest.mark.parametrize("name", ["graph", "meta"])
def test_a_name_that_every_graph_has(name: str) -> None:
    x = torch.randn(8, 4)
    with pytest.raises(ap.UnsupportedModelError) as caught:
        ap.prune(Named(name), [x, x], keep="units=50%", method="l2", form="graph")
    assert caught.value.got == repr(name)
    assert caught.value.where == f"{name}.0.bias"
    assert "rename it in the class" in str(caught.value.hint)
    recover = ap.Distill(steps=2)  # looks inside a class by such a graph
    result = ap.prune(Named(name), [x, x], keep="units=50%", method="l2", form="auto", recover=recover)
    assert result.plan.note["form"] == "class"


class Pairs(nn.Module):
    """Images and texts meet in a table of all pairs alone: each have a batch axis of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(4, 6), nn.Embedding(5, 8)
        self.q, self.v = nn.Linear(8, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        heads = self.q(self.text(ids)).unflatten(-1, (2, 4)).transpose(1, 2)
        pooled = heads.reshape(len(ids) * 2, 3, 4).tanh().mean(1)
        return self.image(x) @ self.v(pooled.view(len(ids), 8)).T


def test_inputs_whose_samples_only_meet_in_a_table() -> None:
    x, ids = torch.randn(4, 4), torch.randint(0, 5, (4, 3))
    small = graph_of(Pairs().eval(), (x, ids))
    assert small(torch.randn(7, 4), torch.randint(0, 5, (7, 3))).shape == (7, 7)
    assert small(x, ids[:2]).shape == (4, 2)


class Read(nn.Module):
    """Reads a size from a tensor, as converters from ONNX do, so that its run is recorded: that has no counter of
    BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 2)
        self.register_buffer("shape", torch.tensor([-1, 6]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu().mean((2, 3))
        return self.last(torch.reshape(x, torch.Size(self.shape)))


def test_what_no_call_of_a_recorded_run_reads_is_in_the_state(tmp_path: Path) -> None:
    x = torch.randn(8, 2, 4, 4)
    result = ap.prune(Read().eval(), [x, x], keep="units=50%", method="l2", form="graph")
    assert result.plan.widths == {"first": 3}
    assert set(result.model.state_dict()) == set(Read().state_dict())
    again = ap.load(result.save(tmp_path / "run"), Read(), x)
    assert torch.equal(again.eval()(x), result.model.eval()(x))
