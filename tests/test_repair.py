"""Classes that write down sizes in every way: what `repair` changes in each, and that the cut class is proved."""

from __future__ import annotations

import copy
import importlib
import math
import pickle
import warnings
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actprune.errors import PlanError
from actprune.graph import traced_int
from actprune.graph.in_training import draws, has_branches
from actprune.graph.older import in_words_of_today
from actprune.hints import hint
from actprune.plan import Plan, make_plan
from actprune.proof.check import verify
from actprune.proof.trial import at_fault, cannot_follow
from actprune.repair.adapt import capture, trial_units
from actprune.repair.edits import AttributeEdit
from actprune.surgery.attention import PrunedMHA
from actprune.surgery.attributes import edit_attributes
from actprune.surgery.graph_form import as_graph
from actprune.surgery.slicing import cut

WIDTH, HEADS = 16, 4


class Attention(nn.Module):
    """Self-attention whose forward is one of the functions below."""

    def __init__(self, attend: Callable[[Any, Tensor], Tensor], **extra: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)
        self.num_heads, self.head_dim = HEADS, WIDTH // HEADS
        self.all_head_size = WIDTH
        self.scale = self.head_dim**-0.5
        self.attend = attend
        for name, value in extra.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attend(self, x).mean(1))


class FromShape(Attention):
    """The last reshape takes the width of the stream from the input's shape."""

    def __init__(self) -> None:
        super().__init__(lambda m, x: x)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q * (c // self.num_heads) ** -0.5) @ k.transpose(-2, -1)).softmax(-1)
        out = (weights @ v).transpose(1, 2).reshape(n, t, c)
        return self.head(self.proj(out).mean(1))


class Chained(Attention):
    """A chain of calls over several lines, and a function of torch's own."""

    def __init__(self) -> None:
        super().__init__(lambda m, x: x)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        parts = torch.split(self.qkv(x), [16, 16, 16], dim=-1)
        q, k, v = (
            part
            .reshape(n, t, 4, 4)
            .transpose(1, 2)
            for part in parts
        )  # fmt: skip
        out = F.scaled_dot_product_attention(q, k, v, scale=0.4)
        out = (
            out
            .transpose(1, 2)
            .reshape(n, t, c)
        )  # fmt: skip
        return self.head(self.proj(out).mean(1))


class Literal(Attention):
    """Every size is a literal."""

    def __init__(self) -> None:
        super().__init__(lambda m, x: x)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.view(x.shape[0], -1, 4, 4).transpose(1, 2) for y in self.qkv(x).split([16, 16, 16], -1))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, x.shape[1], 16)
        return self.head(self.proj(out).mean(1))


class Configured(nn.Module):
    """Two layers share one configuration."""

    def __init__(self) -> None:
        super().__init__()
        config = SimpleNamespace(heads=HEADS, size=WIDTH // HEADS)
        self.layers = nn.ModuleList(ConfiguredLayer(config) for _ in range(2))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x.mean(1))


class ConfiguredLayer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], self.config.heads, self.config.size)
        q, k, v = (part(x).view(shape).transpose(1, 2) for part in (self.q, self.k, self.v))
        out = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        return self.o(out.transpose(1, 2).flatten(2))


def heads_of(qkv: Tensor, heads: int, size: int) -> Tensor:
    """A free function with the sizes of its caller."""
    return qkv.reshape(qkv.shape[0], qkv.shape[1], 3, heads, size).permute(2, 0, 3, 1, 4)


class FreeFunction(Attention):
    def __init__(self) -> None:
        super().__init__(lambda m, x: x)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = heads_of(self.qkv(x), 4, 4)
        out = F.scaled_dot_product_attention(q, k, v, scale=0.4)
        return self.head(self.proj(out.transpose(1, 2).flatten(2)).mean(1))


class Processor:
    """An object that computes for the module which holds it, as diffusers' attention has one."""

    def __call__(self, attention: Any, x: Tensor) -> Tensor:
        q, k, v = heads_of(attention.qkv(x), 4, 4)
        out = F.scaled_dot_product_attention(q, k, v, scale=0.4)
        return attention.proj(out.transpose(1, 2).reshape(x.shape[0], x.shape[1], 16)).mean(1)


class Delegating(Attention):
    def __init__(self, processor: Any) -> None:
        super().__init__(lambda m, x: x)
        self.processor = processor

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.processor(self, x))


class Static(Attention):
    """A static method, called in a generator, another name for `self`, and a function defined in place."""

    def __init__(self) -> None:
        super().__init__(lambda m, x: x)

    @staticmethod
    def in_heads(y: Tensor) -> Tensor:
        return y.view(y.shape[0], -1, 4, 4).transpose(1, 2)

    def forward(this, x: Tensor) -> Tensor:  # pyright: ignore[reportSelfClsParameterName]
        def joined(y: Tensor) -> Tensor:
            return y.transpose(1, 2).reshape(-1, x.shape[1], 16)

        q, k, v = (this.in_heads(y) for y in this.qkv(x).split([16, 16, 16], -1))
        return this.head(this.proj(joined(F.scaled_dot_product_attention(q, k, v))).mean(1))


class InLibrary(Attention):
    """A function of a module that is called by the module's name."""

    def __init__(self) -> None:
        super().__init__(lambda m, x: x)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = LIBRARY.heads_of(self.qkv(x), 4, 4)
        out = F.scaled_dot_product_attention(q, k, v, scale=0.4)
        return self.head(self.proj(out.transpose(1, 2).flatten(2)).mean(1))


LIBRARY: Any = ModuleType("library")
LIBRARY.heads_of = heads_of


class Checked(nn.Module):
    """A class that compares a size with its attribute."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.channels = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), 8

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        if x.shape[1] != self.channels:
            raise ValueError("other channels than I was made for")
        return self.second(x)


class Compared(nn.Module):
    """Sizes that are compared with numbers, and with each other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 4, 1)
        self.wide, self.times, self.all = 4, 3, 12

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        if x.shape[1] == 8:
            x = self.second(x).relu()
        b, c, h, w = x.shape
        assert c == self.wide * self.times and self.wide * self.times == self.all, "other channels"
        x = self.third(x.view(b, self.wide, 3, h, w).flatten(1, 2))
        return -x if 12 != c else x  # noqa: SIM300


class Unpooled(nn.Module):
    """SegNet: maps get the size back that they had."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.pool, self.unpool = nn.MaxPool2d(2, 2, return_indices=True), nn.MaxUnpool2d(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(self.unpool(*self.pool(x), output_size=x.size()).relu())


class Grouped(nn.Module):
    """Numbers of groups, written down in calls of functions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(12, 4, 1)
        self.deep, self.wide = nn.Parameter(torch.randn(8, 1, 3, 3)), nn.Parameter(torch.randn(12, 2, 1, 1))
        self.gain = nn.Parameter(torch.randn(12))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(self.first(x), self.deep, None, 1, 1, 1, 8)
        return self.second(F.group_norm(F.conv2d(x, self.wide, groups=4), 4, self.gain, self.gain).relu())


class WithSuper(FromShape):
    """`super()` in the method that is rewritten."""

    def forward(self, x: Tensor) -> Tensor:
        assert super().extra_repr() == ""
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 4, 4).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, scale=0.4)
        return self.head(self.proj(out.transpose(1, 2).flatten(2)).mean(1))


class Stock(nn.Module):
    """torch's own attention, in its own encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, batch_first=True, dropout=0.0)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


class Cross(nn.Module):
    """torch's own attention with another source of keys, a mask, and weights that are returned."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, kdim=8, vdim=8, add_bias_kv=True, add_zero_attn=True)
        self.source, self.head = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        other = self.source(x)
        mask = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        out, weights = self.attention(x, other, other, attn_mask=mask)
        return self.head(out.mean(0)), weights


class Unflattened(nn.Module):
    """A decoder: the sizes stand in an nn.Unflatten and in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.unflatten = nn.Linear(6, 32), nn.Unflatten(1, (8, 2, 2))
        self.parts = [6, 2]
        self.a, self.b = nn.Conv2d(6, 3, 1), nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.unflatten(self.fc(x)).split(self.parts, 1)
        return self.a(a).flatten(1) + self.b(b).flatten(1)


class Remade(nn.Conv2d):
    """A convolution that makes its weight on every call, and reads how many groups it has."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.view(1, self.out_channels, -1).tanh().view_as(self.weight)
        return F.conv2d(x, weight, self.bias, groups=self.groups)


class Shortcut(nn.Module):
    """Option A of He et al. (2016): every second pixel, and zeros for the channels that the next stage has more."""

    def __init__(self, literal: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(16, 2, 1)
        self.down, self.block = nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.literal, self.missing = literal, 8

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        few = x[:, :, ::2, ::2]
        half = self.missing // 2
        few = F.pad(few, (0, 0, 0, 0, 3, 5)) if self.literal else F.pad(few, pad=(0, 0, 0, 0, half, half))
        x = torch.relu(self.down(x) + few)
        return self.head(torch.relu(self.block(x) + x))


class Lambda(nn.Module):
    """The function of another module: its numbers are variables of that one's constructor."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class LambdaShortcut(nn.Module):
    """Option A as many ResNets for CIFAR write it."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(width, 2, 1)
        self.down = nn.Conv2d(8, width, 3, 2, 1)
        self.shortcut = Lambda(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, width // 4, width // 4), "constant", 0))

        def doubled(x: Tensor) -> Tensor:
            return x.view(x.shape[0], 8, -1).mul(2).view(x.shape)

        self.doubled = doubled

    def forward(self, x: Tensor) -> Tensor:
        x = self.doubled(torch.relu(self.stem(x)))
        return self.head(torch.relu(self.down(x) + self.shortcut(x)))


class Repeated(nn.Module):
    """The input image is added to every channel of a layer, as MONAI's VNet does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.out_channels = 8
        self.stem, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.stem(x) + x.repeat([1, self.out_channels // x.shape[1], 1, 1])))


def tokens() -> Tensor:
    return torch.randn(2, 5, WIDTH)


def maps() -> Tensor:
    return torch.randn(2, 3, 4, 4)


class Split(nn.Module):
    """Splits heads; a copy of it is made anew from its arguments, as one of an einops layer is."""

    def __init__(self, **lengths: int) -> None:
        super().__init__()
        self.lengths = lengths
        self._lengths = tuple(lengths.items())

    def __getstate__(self) -> dict[str, Any]:
        return {"lengths": self.lengths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).__init__(self, **state["lengths"])

    def forward(self, x: Tensor) -> Tensor:
        (_, heads), (_, qkv) = self._lengths
        return x.reshape(len(x), x.shape[1], qkv, heads, -1).permute(2, 0, 3, 1, 4)


class CopiedAnew(Attention):
    """The heads are counted in a module that doesn't copy what its forward reads."""

    def __init__(self) -> None:
        super().__init__(lambda m, x: x)
        self.split = Split(heads=HEADS, qkv=3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.qkv(x)).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.proj(out).mean(1))


class NoHeads(Attention):
    """The heads are split into none and all of them: a reshape of no entries tells nothing of what it merges."""

    def __init__(self) -> None:
        super().__init__(lambda m, x: x)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        none, every = (part.reshape(n * part.shape[1], *part.shape[2:]) for part in (out[:, :0], out[:, 0:]))
        assert not none.numel()
        return self.head(self.proj(every.view(n, -1, t, every.shape[-1]).transpose(1, 2).flatten(2)).mean(1))


class Mapped(nn.Module):
    """A tensor is tiled within `vmap`, where the class sees one dimension less than the captured call has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 12), nn.Linear(12, 3)
        self.rate = nn.Parameter(torch.rand(12))

    def forward(self, x: Tensor) -> Tensor:
        def one(row: Tensor, scale: Tensor) -> Tensor:
            return row * (scale * self.rate).tile(row.shape[0], 1)

        return self.fc2(torch.vmap(one)(self.fc1(x), x[:, 0, 0]))


class Ends(nn.Module):
    """Parts of a length that a tensor of their ends says, beside a mean that is as wide as another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, y = self.fc1(x), self.fc2(x)
        n = h.shape[1]
        both = torch.cat([h, h + h.mean(1, keepdim=True).expand_as(y)], 1).relu()
        return sum((self.fc3(both[:, i - n : i]) for i in torch.arange(n, n * 3, n).tolist()), self.fc3(y))


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "ends": (Ends, lambda: torch.randn(3, 6)),
    "mapped": (Mapped, tokens),
    "no heads": (NoHeads, tokens),
    "copied anew": (CopiedAnew, tokens),
    "from shape": (FromShape, tokens),
    "chained": (Chained, tokens),
    "literal": (Literal, tokens),
    "configured": (Configured, tokens),
    "free function": (FreeFunction, tokens),
    "in a library": (InLibrary, tokens),
    "static": (Static, tokens),
    "delegated": (lambda: Delegating(Processor()), tokens),
    "checked": (Checked, maps),
    "compared": (Compared, maps),
    "super": (WithSuper, tokens),
    "unpooled": (Unpooled, maps),
    "stock": (Stock, tokens),
    "cross": (Cross, tokens),
    "grouped": (lambda: nn.Sequential(Remade(3, 24, 1), Remade(24, 12, 1, groups=3), Remade(12, 4, 1)), maps),
    "unflattened": (Unflattened, lambda: torch.randn(3, 6)),
    "padded": (lambda: Shortcut(False), maps),
    "padded by numbers": (lambda: Shortcut(True), maps),
    "padded by a lambda": (LambdaShortcut, maps),
    "repeated input": (Repeated, lambda: torch.randn(2, 1, 4, 4)),
}


def less(model: nn.Module, x: Tensor, kind: str | None = None, seed: int = 0) -> tuple[nn.Module, Plan]:
    """Some units of every group of a kind are cut, and the cut is proved."""
    graph = capture(model, x)
    names = [group.name for group in graph.groups if kind in (None, group.kind)]
    assert names, graph.frozen
    plan = make_plan(graph, trial_units(graph, names, seed))
    small = cut(model, plan)
    verify(model, small, plan, x, graph=graph)
    return small, plan


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", range(3))
def test_every_group_is_cut_and_proved(name: str, seed: int) -> None:
    build, inputs = NETS[name]
    model = build().eval()
    small, plan = less(model, inputs(), seed=seed)
    assert type(small).__name__ == type(model).__name__
    assert list(small.state_dict()) == list(model.state_dict())
    assert verify(model, small, plan, inputs()).passed  # and by a capture of its own, with the same ties and scales
    again = Plan.from_json(plan.to_json())
    assert again.edits == plan.edits
    assert {n: t.shape for n, t in cut(model, again).state_dict().items()} == {
        n: t.shape for n, t in small.state_dict().items()
    }


@pytest.mark.parametrize("name", NETS)
def test_a_cut_class_is_cut_again(name: str) -> None:
    """Sizes in the source that became numbers can become smaller numbers."""
    build, inputs = NETS[name]
    model, x = build().eval(), inputs()
    graph = capture(model, x)
    plan = make_plan(
        graph, {g.name: range([n for n in [*g.widths, g.width] if n < g.width or n == 1][-1]) for g in graph.groups}
    )
    small = cut(model, plan)
    left = {group.name for group in capture(small, x).groups}
    if plan.edits.sources:
        assert left >= {name for name, group in plan.groups.items() if len(group.kept) > 1}
    smaller, _ = less(small, x, seed=1)
    assert type(copy.deepcopy(smaller)) is type(smaller)


@pytest.mark.parametrize("name", NETS)
def test_the_cut_class_is_a_class_as_before(name: str) -> None:
    """Other batch sizes, training, deep copies; and the dense model is what it was."""
    build, inputs = NETS[name]
    model, x = build().eval(), inputs()
    before = model(x)
    small, _ = less(model, x)
    torch.testing.assert_close(model(x), before)
    wide = torch.cat([x, x, x], 1 if name == "cross" else 0)
    if name != "cross":
        small(wide)
    out = copy.deepcopy(small).train()(x)
    (out[0] if isinstance(out, tuple) else out).sum().backward()


@pytest.mark.parametrize("literal", [False, True])
def test_channels_of_a_shortcut_that_are_padded_are_groups_of_their_own(literal: bool) -> None:
    model, x = Shortcut(literal).eval(), maps()
    _, plan = less(model, x)
    assert {name: group.width for name, group in plan.groups.items()} == {
        "stem": 8,
        "down#1": 3 if literal else 4,
        "down#2": 5 if literal else 4,
    }
    graph = capture(model, x)
    torch.testing.assert_close(as_graph(model, graph, plan)(x), cut(model, plan)(x))


def test_functions_in_attributes_are_rewritten_for_one_module() -> None:
    model, x = LambdaShortcut().eval(), maps()
    dense = model.shortcut.function
    small, plan = less(model, x)
    assert {name: group.width for name, group in plan.groups.items()} == {"stem": 8, "down#1": 4, "down#2": 4}
    assert {edit.functions for edit in plan.edits.sources} == {("function.<lambda>",), ("doubled.doubled",)}
    assert small.shortcut.function is not dense is model.shortcut.function


def test_heads_become_an_attribute() -> None:
    model = Attention(
        lambda m, x: m.proj(
            F.scaled_dot_product_attention(
                *m.qkv(x).unflatten(-1, (3, m.num_heads, m.head_dim)).permute(2, 0, 3, 1, 4), scale=m.scale
            )
            .transpose(1, 2)
            .flatten(2)
        )
    ).eval()
    small, plan = less(model, tokens(), "heads")
    edits = {edit.path: edit.value for edit in plan.edits.attributes}
    heads = edits[("num_heads",)]
    assert not plan.edits.sources
    assert edits == {("num_heads",): heads, ("all_head_size",): 4 * heads}  # the latter is stale otherwise
    assert (small.num_heads, model.num_heads) == (heads, HEADS)


def test_the_width_of_the_stream_becomes_a_number() -> None:
    _, plan = less(FromShape().eval(), tokens(), "heads")
    kept = next(n for name, n in plan.widths.items() if n < plan.groups[name].width)
    assert {(edit.text, edit.value) for edit in plan.edits.sources} >= {("c", 4 * kept)}


def test_a_layer_gets_its_own_configuration() -> None:
    model = Configured().eval()
    small, _ = less(model, tokens(), "heads")
    assert model.layers[0].config is model.layers[1].config
    assert small.layers[0].config is not small.layers[1].config
    assert model.layers[0].config.heads == HEADS


def test_stock_attention_gets_a_class_that_carries_fewer_heads() -> None:
    small, _ = less(Stock().eval(), tokens(), "heads")
    attention: Any = small.layer.self_attn
    assert type(attention) is PrunedMHA
    assert attention.num_heads < HEADS
    assert attention.head_dim == WIDTH // HEADS


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("unbatched", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_pruned_attention_is_stock_attention_when_nothing_is_cut(
    average: bool, padded: bool, unbatched: bool, weighted: bool
) -> None:
    torch.manual_seed(0)
    stock = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).double().eval()
    pruned = copy.deepcopy(stock)
    pruned.__class__ = PrunedMHA
    pruned.scale = stock.head_dim**-0.5
    x = torch.randn(5, WIDTH).double() if unbatched else torch.randn(2, 5, WIDTH).double()
    padding = torch.zeros(x.shape[:-1], dtype=torch.bool)
    padding[..., -1] = padded
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
    settings = {
        "key_padding_mask": padding, "attn_mask": mask, "average_attn_weights": average, "need_weights": weighted,
    }  # fmt: skip
    torch.testing.assert_close(pruned(x, x, x, **settings), stock(x, x, x, **settings))


class Causal(nn.Module):
    """A decoder as torch builds it: its causal mask is a buffer, which the stock attention does not read."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, dropout=0.0, batch_first=True)
        self.decoder, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(WIDTH, 3)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.decoder(x, mask=self.mask))


def test_a_cut_attention_reads_a_causal_mask_no_more_than_the_stock_class() -> None:
    less(Causal().eval(), tokens(), "heads")  # the proof redraws the mask as well


class GroupedQueries(nn.Module):
    """Two numbers in the class, and sizes made of both: a change of either alone breaks as much as it mends."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.num_heads, self.num_key_heads = 8, 4
        self.q, self.k, self.v = nn.Linear(WIDTH, 32), nn.Linear(WIDTH, 16), nn.Linear(WIDTH, 16)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = (layer(x).unflatten(-1, (self.num_key_heads, -1)).transpose(1, 2) for layer in (self.k, self.v))
        k, v = (y.repeat_interleave(self.num_heads // self.num_key_heads, dim=1) for y in (k, v))
        return self.head(F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_two_attributes_that_only_change_together(kept: int) -> None:
    model, x = GroupedQueries().eval(), tokens()
    graph = capture(model, x)
    heads, queries = (group.name for group in graph.groups if group.kind == "heads")
    assert graph[queries].width == 2  # of each key-value head
    plan = make_plan(graph, {heads: range(kept)})
    assert {edit.path: edit.value for edit in plan.edits.attributes} == {
        ("num_heads",): 2 * kept,
        ("num_key_heads",): kept,
    }
    assert verify(model, cut(model, plan), plan, x, graph=graph).passed


class Interleaved(GroupedQueries):
    """Says in another way how often its keys and values are repeated."""

    def __init__(self, copies: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.copies = copies

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (-1, 4)).transpose(1, 2)
        k, v = (self.copies(layer(x).unflatten(-1, (-1, 4)).transpose(1, 2)) for layer in (self.k, self.v))
        return self.head(F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).flatten(2))


COPIES: dict[str, Callable[[Tensor], Tensor]] = {
    "a number": lambda y: y.repeat_interleave(2, 1),
    "of a function": lambda y: torch.repeat_interleave(y, repeats=2, dim=-3),
    "with what it makes": lambda y: torch.repeat_interleave(y, 2, dim=1, output_size=8),
}


@pytest.mark.parametrize("how", COPIES)
def test_queries_of_each_key_are_cut_where_keys_are_repeated(how: str) -> None:
    """As states of Mamba-2 are for its heads."""
    model, x = Interleaved(COPIES[how]).eval(), tokens()
    graph = capture(model, x)
    keys, queries = (group.name for group in graph.groups if group.kind == "heads")
    plan = make_plan(graph, {keys: [0, 2, 3], queries: [1]})
    small: Any = cut(model, plan)
    assert small.q.out_features == 12 and verify(model, small, plan, x, graph=graph).passed
    assert verify(model, as_graph(model, graph, plan), plan, x, graph=graph).passed


def test_values_and_queries_with_one_number_have_one_width() -> None:
    """`size` is the head size of q, k and v alike: of the values as many units stay, but others."""
    graph = capture(Configured().eval(), tokens())
    dims = [group for group in graph.groups if group.kind == "head dims"]
    parts = {name: {member.tensor.split(".")[-2] for member in graph[name].members} for name in graph.peers}
    assert [[parts[peer] for peer in graph.peers[group.name]] for group in dims] == [[{"q", "k"}, {"v", "o"}]] * 4


_shaped: Callable[..., Tensor] = eval("lambda x, sizes: x.reshape(sizes)")
"""As of a library: nothing in it is a size of the class, and it has no source."""


class Turned(nn.Module):
    """Queries and keys are turned in pairs of dimensions, and one number says how many those and the values have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads, self.size = 4, 8
        self.q, self.k, self.v, self.o = (nn.Linear(a, b) for a, b in [(WIDTH, 32)] * 3 + [(32, WIDTH)])

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, _ = x.shape
        q, k, v = (_shaped(f(x), [batch, steps, self.heads, self.size]) for f in (self.q, self.k, self.v))
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        q, k = (torch.cat([-y[..., y.shape[-1] // 2 :], y[..., : y.shape[-1] // 2]], -1) + y for y in (q, k))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.o(_shaped(y, [batch, steps, self.heads * self.size]))


def test_heads_are_cut_where_their_dimensions_are_out_of_reach() -> None:
    model, x = Turned().eval(), tokens()
    graph = capture(model, x)
    assert [(group.kind, group.width) for group in graph.groups] == [("heads", 4)]
    small = cut(model, plan := make_plan(graph, {graph.groups[0].name: [0, 2, 3]}))
    assert small.heads == 3 and verify(model, small, plan, x, graph=graph).passed


SHAPED: dict[str, Callable[[Tensor], Tensor]] = {
    "h.shape": lambda h: torch.zeros(h.shape),
    "h.size()": lambda h: h.new_zeros(h.size()),
    "h.detach().shape": lambda h: torch.zeros(1).broadcast_to(h.detach().shape),
    "zeros_like": torch.zeros_like,
}


class Chunked(nn.Module):
    """Heads that each take a slice of the stream, as many entries as one attribute says (RetNet, for example)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.size = 4
        self.embed = nn.Linear(5, 12)
        self.heads = nn.ModuleList(nn.Linear(4, 6) for _ in range(3))
        self.out, self.head = nn.Linear(18, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.embed(x))
        y = [head(x[:, i * self.size : (i + 1) * self.size]) for i, head in enumerate(self.heads)]
        return self.head(x + self.out(torch.cat(y, 1).relu()))


def test_slices_of_one_length_have_one_width() -> None:
    model, x = Chunked().eval(), torch.randn(6, 5)
    graph = capture(model, x)
    assert graph.peers["embed#1"] == ("embed#1", "embed#2", "embed#3")
    assert sorted(g.width for g in graph.groups) == [4, 4, 4, 6, 6, 6]
    plan = make_plan(graph, {g.name: range(1, g.width) for g in graph.groups})
    small = cut(model, plan)
    assert (small.size, small.embed.out_features, small.heads[0].in_features) == (3, 9, 3)
    verify(model, small, plan, x, graph=graph)


class Gathering(nn.Module):
    """Messages are summed into zeros of the shape of the nodes' own state."""

    def __init__(self, zeros: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.message = nn.Linear(5, 12), nn.Linear(12, 12)
        self.update, self.head = nn.Linear(24, 8), nn.Linear(8, 3)
        self.zeros = zeros

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x).relu()
        found = self.zeros(h).index_add(1, torch.tensor([1, 0, 3, 2, 2]), self.message(h).relu())
        return self.head(self.update(torch.cat([h, found], -1)).relu()).mean(1)


@pytest.mark.parametrize("shaped", SHAPED)
def test_a_shape_taken_from_another_tensor_is_one_number_for_both_unless_the_source_says_it(shaped: str) -> None:
    """Without an argument in its source, the class has one number for both."""
    model, x = Gathering(SHAPED[shaped]).eval(), torch.randn(2, 5, 5)
    graph = capture(model, x)
    assert {group.name: group.width for group in graph.groups} == {"embed": 12, "message": 12, "update": 8}
    plan = make_plan(graph, trial_units(graph, ["embed", "update"]))
    small = cut(model, plan)
    written = [(edit.text, edit.value) for edit in plan.edits.sources]
    if shaped in ("h.shape", "h.size()"):
        assert graph.peers["embed"] == ("embed",)
        assert written == [(f"{shaped}[-1]", 12)]
        assert plan.widths["embed"] < small.message.weight.shape[0] == 12
    else:  # nothing is evaluated twice that may be more than a shape
        assert graph.peers["embed"] == ("embed", "message")
        assert written == []
        assert small.message.weight.shape[0] == plan.widths["embed"] < 12
    assert verify(model, small, plan, x, graph=graph).passed


@pytest.mark.parametrize("step", [-1, 2])
def test_an_edit_of_an_entry_that_is_not_there_says_so(step: int) -> None:
    layer = nn.Identity()
    layer.sizes = [4, 4]
    with pytest.raises(IndexError, match=f"no entry {step} among 2"):
        edit_attributes(layer, [AttributeEdit("", ("sizes", step), 3)])


@pytest.mark.parametrize(
    ("source", "alone"),
    [
        ("def f(x: int) -> int:\n    return int(x) if isinstance(x, (int, float)) else 0", True),
        ("def f(x):\n    return x.astype(int).reshape(int(3))", False),
        ("def f(x):\n    return torch.zeros(int(x), dtype=int).sum()", False),
        ("def f(x):\n    return int.from_bytes(x) + int(2)", False),
    ],
)
def test_int_remembers_sizes_only_in_files_that_do_no_more_than_call_it(
    source: str, alone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"calls_int_{len(source)}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module(name)
    assert traced_int._only_called(name) is alone


SCALED: dict[str, Callable[[Any, Tensor, Tensor, Tensor], Tensor]] = {
    "of a tensor": lambda m, q, k, v: (q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))).softmax(-1) @ v,
    "by a name of one's own": lambda m, q, k, v: (q @ k.transpose(-2, -1) / sqrt(q.size(-1))).softmax(-1) @ v,
    "by numpy": lambda m, q, k, v: (q @ k.transpose(-2, -1) / np.sqrt(m.size)).softmax(-1) @ v,
    "of an attribute": lambda m, q, k, v: (q @ k.transpose(-2, -1) * m.size**-0.5).softmax(-1) @ v,
    "of a size made an int": lambda m, q, k, v: (q @ k.transpose(-2, -1) * int(q.size(-1)) ** (-0.5)).softmax(-1) @ v,
    "in front": lambda m, q, k, v: (q * m.size**-0.5 @ k.transpose(-2, -1) / 2).softmax(-1) @ v,
    "in place": lambda m, q, k, v: (q.mul_(m.size**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v,
    "as an argument": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, scale=2 / k.size(-1)),
    "of a product": lambda m, q, k, v: torch.baddbmm(
        torch.zeros(()), q.flatten(0, 1), k.flatten(0, 1).mT, alpha=m.size**-0.5
    ).softmax(-1).unflatten(0, q.shape[:2]) @ v,
}  # fmt: skip


@pytest.mark.parametrize("scale", SCALED)
def test_a_scale_follows_the_head_size(scale: str) -> None:
    """The class that is left computes another scale: so does the graph that it is proved against, and its own form."""

    def attend(m: Any, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(*x.shape[:2], -1, m.size).transpose(1, 2) for layer in (m.q, m.k, m.v))
        return m.proj(SCALED[scale](m, q, k, v).transpose(1, 2).flatten(2))

    layers = {name: nn.Linear(WIDTH, WIDTH) for name in "qkv"}
    model, x = Attention(attend, size=WIDTH // HEADS, **layers).eval(), tokens()
    small, plan = less(model, x, "head dims")
    assert len(plan.groups["q#2"].kept) < WIDTH // HEADS
    graph = capture(model, x)
    torch.testing.assert_close(as_graph(model, graph, plan)(x), small(x))


class Rooted(nn.Module):
    """Attention whose scale is the root of a tensor that holds the head size."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.size, self.how = WIDTH // HEADS, how
        self.q, self.k, self.v, self.proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(*x.shape[:2], -1, self.size).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.how == "of a tensor":
            root = torch.as_tensor(q.size(-1), dtype=q.dtype, device=q.device).sqrt()
        elif self.how == "of an attribute":
            root = torch.sqrt(torch.tensor(self.size, dtype=torch.float32))
        else:
            root = torch.sqrt(torch.tensor(data=q.shape[-1]).float())
        weights = (q @ k.transpose(-2, -1) / root).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("how", ["of a tensor", "of an attribute", "made a float"])
def test_a_size_that_a_tensor_is_made_of_stays_as_a_number_in_the_source(how: str) -> None:
    torch.manual_seed(0)
    small, plan = less(Rooted(how).eval(), tokens(), "head dims")
    assert len(plan.groups["q#2"].kept) < WIDTH // HEADS
    assert small(tokens()[:1]).shape == tokens()[:1].shape


def test_a_scale_of_several_numbers_follows_the_size_that_they_give() -> None:
    """`dim // heads` is nobody's attribute: the view with the same arithmetic says which size it is."""

    def attend(m: Any, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(*x.shape[:2], m.heads, m.dim // m.heads).transpose(1, 2) for layer in (m.q, m.k, m.v))
        weights = (q @ k.transpose(-2, -1) / math.sqrt(m.dim // m.heads)).softmax(-1)
        return m.proj((weights @ v).transpose(1, 2).reshape(*x.shape[:2], m.dim))

    layers = {name: nn.Linear(WIDTH, WIDTH) for name in "qkv"}
    model, x = Attention(attend, dim=WIDTH, heads=HEADS, **layers).eval(), tokens()
    small, plan = less(model, x)
    assert small.heads == len(plan.groups["q#1"].kept) < HEADS
    assert small.dim // small.heads == len(plan.groups["q#2"].kept) < WIDTH // HEADS


@pytest.mark.parametrize("scale", SCALED)
def test_a_scale_of_the_head_size_that_values_and_the_joined_heads_are_written_with_too(scale: str) -> None:
    """A number in a formula has to hold, a size can be a number in the source too: the attribute serves the former."""

    def attend(m: Any, x: Tensor) -> Tensor:
        q = m.q(x).view(*x.shape[:2], m.heads, m.size).transpose(1, 2)
        k = m.k(x).view(*x.shape[:2], m.heads, m.size).transpose(1, 2)
        v = m.v(x).view(*x.shape[:2], m.heads, m.size).transpose(1, 2)
        return m.proj(SCALED[scale](m, q, k, v).transpose(1, 2).reshape(*x.shape[:2], m.heads * m.size))

    layers = {name: nn.Linear(WIDTH, WIDTH) for name in "qkv"}
    model, x = Attention(attend, heads=HEADS, size=WIDTH // HEADS, **layers).eval(), tokens()
    graph = capture(model, x)
    assert [group.name for group in graph.groups][:3] == ["q#1", "q#2", "v"]
    plan = make_plan(graph, {"q#1": [0, 2], "q#2": [1, 2, 3], "v": [0, 3]})
    small = cut(model, plan)
    assert small.heads == 2
    assert verify(model, small, plan, x, graph=graph).passed


class Unit(nn.Linear):
    """Weights whose rows are normed in each call, and scaled by as many as there are: all entries by all rows."""

    def forward(self, x: Tensor) -> Tensor:
        rows = F.normalize(self.weight, dim=1) * math.sqrt(self.weight.numel() / self.weight.shape[0])
        return F.linear(x, rows, self.bias)


def test_a_scale_of_the_number_of_entries_follows_the_columns() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Unit(6, 8), nn.ReLU(), Unit(8, 8), nn.ReLU(), Unit(8, 3)).eval(), torch.randn(5, 6)
    graph = capture(model, x)
    plan = make_plan(graph, {group.name: range(group.width - 3) for group in graph.groups})
    assert plan.widths == {"0": 5, "2": 5}
    assert verify(model, cut(model, plan), plan, x, graph=graph).passed


class Stepped(nn.Module):
    """A recurrent layer that makes its own initial state, of a size that its class writes down."""

    def __init__(self, kind: type[nn.RNNBase], **how: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(WIDTH, 6)
        self.steps = kind(6, 8, batch_first=True, **how)
        self.head = nn.Linear(16 if how.get("bidirectional") else 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.steps(self.up(x))[0][:, -1])


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
@pytest.mark.parametrize("how", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_hidden_units_of_a_layer_that_makes_its_own_state(kind: Any, how: dict[str, Any]) -> None:
    model, x = Stepped(kind, **how).eval(), torch.randn(4, 3, WIDTH)
    graph = capture(model, x)
    _, *steps = [group.name for group in graph.groups]
    assert len(steps) == (4 if how else 1)
    kept = {name: [i, *range(4, 8)] for i, name in enumerate(steps)}
    plan = make_plan(graph, {"up": range(4), **kept})
    small = cut(model, plan)
    assert (small.steps.input_size, small.steps.hidden_size) == (4, 5)
    assert verify(model, small, plan, x, graph=graph).passed


def test_a_scale_that_would_change_freezes() -> None:
    """1/√d out of sight: the class would compute something else, and the proof would say so."""

    def attend(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).view(*x.shape[:2], 3, m.num_heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / torch.full([], float(q.size(-1))).sqrt()
        return m.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    model, x = Attention(attend).eval(), tokens()
    graph = capture(model, x)
    plan = make_plan(graph, trial_units(graph, [group.name for group in graph.groups]))
    culprits = at_fault(model, graph, plan, x, cut)
    assert {graph[name].kind for name in culprits} == {"head dims"}
    assert math.isclose(model.scale, 0.5)


def test_a_size_out_of_reach_freezes_with_its_place() -> None:
    """They come as a whole from somewhere else."""

    def attend(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).view(torch.Size([2, 5, 3, 4, 4])).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, scale=0.4)
        return m.proj(out.transpose(1, 2).flatten(2))

    graph = capture(Attention(attend).eval(), tokens())
    assert all(group.kind not in ("heads", "head dims") for group in graph.groups)
    assert any("test_repair.py:" in reason and "can't be changed" in reason for reason in graph.frozen.values())


def test_another_source_is_refused() -> None:
    model, x = FreeFunction().eval(), tokens()
    _, plan = less(model, x, "heads")
    text = plan.to_json().replace(plan.edits.sources[0].digest, "0" * 64)
    with pytest.raises(PlanError, match="can't be rewritten"):
        cut(model, Plan.from_json(text))


class Table(nn.Module):
    """Its sizes come from a table that it fills itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.fill()

    def fill(self) -> None:
        self.table = "x" * self.first.out_features

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).view(torch.Size([-1, len(self.table)])))


def test_a_hint_says_what_follows_from_the_tensors() -> None:
    x = torch.randn(4, 6)
    assert capture(Table().eval(), x).groups == ()

    class Hinted(Table):
        pass

    @hint(Hinted)
    def resize(module: Hinted) -> None:
        module.table = "x" * module.first.out_features

    assert less(Hinted().eval(), x)


class SameConv(nn.Conv2d):
    """Its forward hands its own count of groups to the convolution, so that the cut edits that attribute as well."""

    def forward(self, x: Tensor) -> Tensor:
        rest = (-x.shape[-1]) % self.stride[0]
        return F.conv2d(F.pad(x, (0, rest, 0, rest)), self.weight, self.bias, self.stride, 1, 1, self.groups)


@pytest.mark.parametrize("groups", [8, 4])
def test_an_edited_attribute_does_not_hide_what_the_module_said(groups: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), SameConv(8, 8, 3, 2, groups=groups), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten()
    ).eval()
    x = torch.randn(2, 3, 7, 7)
    graph = capture(model, x)
    plan = make_plan(graph, trial_units(graph, [group.name for group in graph.groups]))
    small = cut(model, plan)
    layer = small[2]
    assert layer.in_channels == layer.weight.shape[1] * layer.groups < 8
    assert layer.groups < groups
    assert verify(model, small, plan, x, graph=graph, check=False).passed


class Auxiliary(nn.Module):
    """A branch of training mode alone, whose views write down sizes: one as an attribute, one as a literal."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, 2, 1)
        self.head, self.channels = nn.Conv2d(8, 2, 1), 4
        self.encode, self.decode = nn.Linear(4 * 9, 5), nn.Linear(5, 4 * 9)
        self.up = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.stem(x))
        if not self.training:
            return self.head(x), None
        code = self.encode(self.down(x).reshape(-1, 4 * 9))
        return self.head(x), self.up(self.decode(code).view([-1, self.channels, 3, 3]))


def test_sizes_in_a_branch_of_training_mode_are_repaired() -> None:
    model, x = Auxiliary(), torch.randn(2, 3, 6, 6)
    graph = capture(model, x)
    assert [(group.name, group.width) for group in graph.groups] == [
        ("stem", 8),
        ("down", 4),
        ("encode", 5),
        ("decode", 4),
    ]
    small, plan = less(model, x)
    assert verify(model, small, plan, x, graph=graph).passed
    assert small.channels == len(plan.groups["decode"].kept) < 4
    sum(out.sum() for out in small.train()(x)).backward()


class Dynamic(nn.Module):
    """A mixture of kernels for every sample (Yang et al. 2019, CondConv), with the batch folded into the channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.route, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6, 4), nn.Conv2d(8, 2, 1)
        self.kernels = nn.Parameter(torch.randn(4, 8, 6, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        n, c, h, w = x.shape
        kernels = torch.sigmoid(self.route(x.mean((2, 3)))) @ self.kernels.view(4, -1)
        x = F.conv2d(x.reshape(1, n * c, h, w), kernels.view(n * 8, 6, 3, 3), padding=1, groups=n)
        return self.head(x.view(n, 8, h, w))


def test_a_product_with_the_batch_keeps_the_batch() -> None:
    model, x = Dynamic().eval(), torch.randn(2, 3, 5, 5)
    small, plan = less(model, x)
    assert {name: group.width for name, group in plan.groups.items()} == {"stem": 6, "route": 4, "kernels": 8}
    assert small(x[[0, 1, 1]]).shape == (3, 2, 5, 5)


class Written(nn.Module):
    """Its size stands in the source."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 32), nn.Conv2d(8, 4, 1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(F.relu(self.a(x)).view(-1, 8, 2, 2)).flatten(1))


class Shaped(dict[str, float]):
    """Content, and a method with a size in it."""

    def shape(self, x: Tensor) -> Tensor:
        return x.view(-1, 8, 2, 2) * self["gain"]


class Holding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.held = nn.Linear(6, 32), nn.Conv2d(8, 4, 1), Shaped(gain=GAIN)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.held.shape(F.relu(self.a(x)))).flatten(1) * GAIN


def split_heads(config: Any, x: Tensor) -> Tensor:
    x.new_zeros(1, 3).expand(x.shape[0], -1)  # nobody reads it: a tracer of runs leaves it out
    return x.view(*x.shape[:2], 4, -1)


class GivenConfiguration(nn.Module):
    """Heads by a plain function that is given the configuration, of a model that only a run can capture."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(causal=False)
        self.q, self.k, self.v, self.proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        if float(x.mean()) > 100:  # export would have to know
            return x
        q, k, v = (split_heads(self.config, layer(x)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.proj(F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).flatten(2))


def test_a_function_given_the_configuration_is_no_method_of_it() -> None:
    model, x = GivenConfiguration().eval(), torch.randn(2, 5, WIDTH)
    graph = capture(model, x)
    assert graph.program.source == "real"
    heads = next(group for group in graph.groups if group.kind == "heads")
    plan = make_plan(graph, {heads.name: range(1, heads.width)})
    assert {edit.functions for edit in plan.edits.sources} == {("forward", "split_heads")}
    small = cut(model, plan)
    assert verify(model, small, plan, x, graph=graph).passed
    assert small(torch.randn(3, 5, WIDTH)).shape == (3, 5, WIDTH)


class Starting(nn.Module):
    """Three states made at one place of the source, of which nothing reads the last."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.width = WIDTH
        self.cell, self.out = nn.Linear(2 * WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        state, total, _ = (x.new_zeros(len(x), self.width) for _ in range(3))
        for t in range(x.shape[1]):
            state = torch.tanh(self.cell(torch.cat([x[:, t], state], 1)))
            total = total + state
        return self.out(total)


def test_a_state_that_nothing_reads_may_have_any_size() -> None:
    model, x = Starting().eval(), torch.randn(2, 3, WIDTH)
    graph = capture(model, x)
    (group,) = graph.groups
    plan = make_plan(graph, {group.name: range(1, group.width)})
    small = cut(model, plan)
    assert verify(model, small, plan, x, graph=graph).passed
    assert small.width == WIDTH - 1


GAIN = 1.0


def test_edited_objects_keep_their_content_and_see_what_is_global(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(8, 6)
    for gain in (1.0, 3.0):
        monkeypatch.setitem(globals(), "GAIN", gain)
        model = Holding().eval()
        graph = capture(model, x)
        plan = make_plan(graph, {graph.groups[0].name: range(graph.groups[0].width // 2)})
        small = cut(model, plan)
        assert verify(model, small, plan, x, graph=graph).passed
        for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
            assert other.held == {"gain": gain}
            assert torch.equal(other(x), small(x))


class Heads(nn.Module):
    """Makes its copies from the arguments it was made with, as layers of einops do; it runs on another number."""

    def __init__(self, before: int, heads: int) -> None:
        super().__init__()
        self.made_with = {"before": before, "heads": heads}
        self._lengths = ((before, "before"), (heads, "heads"))

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self._lengths[1][0], -1)).transpose(1, 2)

    def __getstate__(self) -> dict[str, Any]:
        return {"made_with": self.made_with}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["made_with"])


def test_copies_of_a_layer_that_makes_them_from_its_arguments_are_cut_too() -> None:
    def attend(m: Any, x: Tensor) -> Tensor:
        q, k, v = (m.heads(layer(x)) for layer in (m.q, m.k, m.v))
        return m.proj(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2))

    layers: dict[str, Any] = {name: nn.Linear(WIDTH, WIDTH) for name in "qkv"}
    model, x = Attention(attend, **layers).eval(), tokens()
    model.heads = Heads(HEADS, HEADS)  # two numbers that are the same at first
    graph = capture(model, x)
    plan = make_plan(graph, {"q#1": range(HEADS - 1)})
    small = cut(model, plan)
    assert verify(model, small, plan, x, graph=graph).passed
    for other in (copy.deepcopy(small), copy.deepcopy(copy.copy(small))):
        assert torch.equal(other(x), small(x))
    assert small.heads.made_with == {"before": HEADS, "heads": HEADS - 1}


def test_an_edited_class_can_be_pickled_and_cut_again() -> None:
    torch.manual_seed(0)
    model, x = Written().eval(), torch.randn(8, 6)
    for kept in (6, 3):
        graph = capture(model, x)
        group = next(group for group in graph.groups if group.width > kept)
        model = cut(model, make_plan(graph, {group.name: range(kept)}))
        other = pickle.loads(pickle.dumps(model))
        assert type(other) is type(model) is type(copy.deepcopy(model)) is not Written
        assert torch.equal(other(x), model(x))


def test_a_size_in_the_source_is_edited_twice() -> None:
    torch.manual_seed(0)
    model, x = Written().eval(), torch.randn(8, 6)
    for count, written in ((6, "8"), (3, "6")):
        graph = capture(model, x)
        plan = make_plan(graph, {graph.groups[0].name: range(count)})
        assert [(edit.text, edit.value) for edit in plan.edits.sources] == [(written, count)]
        small = cut(model, Plan.from_json(plan.to_json()))
        assert verify(model, small, plan, x, graph=graph).passed
        other = pickle.loads(pickle.dumps(small))
        assert type(other) is type(small) and torch.equal(other(x), small(x))
        model = small


def joined(out: Tensor, sizes: Any) -> Tensor:
    return out.reshape(sizes)


def of_one_name(out: Tensor, x: Tensor) -> Tensor:
    shape = x.shape
    return torch.reshape(out, shape)


LIKE: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "shape": (lambda out, x: out.reshape(x.shape), "x.shape[-1]"),
    "size": (lambda out, x: out.contiguous().view(*x.size()), "x.size()[-1]"),
    "one name": (of_one_name, "shape[-1]"),
    "argument": (lambda out, x: joined(out, x.shape), "sizes[-1]"),
    "sum": (lambda out, x: out.reshape(x.shape[:1] + x.shape[1:]), "(x.shape[:1] + x.shape[1:])[-1]"),
    "in the middle": (lambda out, x: out.reshape(x[..., None].shape).squeeze(-1), "x[..., None].shape[2]"),
    "view_as": (lambda out, x: out.contiguous().view_as(x), "x.shape[-1]"),
    "reshape_as": (lambda out, x: out.reshape_as(x), "x.shape[-1]"),
    "tuple": (lambda out, x: out.reshape(tuple([len(x), -1, 16])), "16"),  # noqa: C409
    "narrow": (lambda out, x: out.flatten(2).narrow(dim=2, start=0, length=16), "16"),
}


class Like(Attention):
    """The heads are joined to the shape of the stream, which is another tensor's."""

    def __init__(self, back: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(lambda m, x: x, back=back)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, scale=0.4).transpose(1, 2)
        return self.head(self.proj(self.back(out, x)).mean(1))


@pytest.mark.parametrize("like", LIKE)
def test_an_item_of_a_shape_becomes_a_number(like: str) -> None:
    model, x = Like(LIKE[like][0]).eval(), torch.randn(2, 5, WIDTH)
    for size in (3, 2):
        graph = capture(model, x)
        plan = make_plan(graph, {group.name: range(size) for group in graph.groups})
        assert set(plan.widths.values()) == {size}
        edit = next(edit for edit in plan.edits.sources if edit.value == size**2)
        assert edit.text == (LIKE[like][1] if size == 3 else "9")
        small = cut(model, Plan.from_json(plan.to_json()))
        assert verify(model, small, plan, x, graph=graph).passed
        model = small


class Heuristic(nn.Module):
    """Puts sizes into a tensor: for a decision (as torch_geometric's `RGCNConv` does), and perhaps for a scale."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.hidden, self.head, self.use = nn.Linear(6, 8), nn.Linear(8, 3), use

    def forward(self, x: Tensor) -> Tensor:
        h = self.hidden(x).relu()
        sizes = (torch.tensor([self.hidden.weight.size(0), self.hidden.weight.size(1)]) - torch.tensor([4.0, 2.0])) / 3
        if bool(sizes @ torch.tensor([0.5, 0.5]) >= 1000):
            h = -h
        if self.use == "number":
            h = h * sizes[0].item()
        if self.use == "tensor":
            h = h * sizes[0]
        return self.head(h)


@pytest.mark.parametrize("use", ["decision", "number", "tensor"])
def test_sizes_that_only_decide_forbid_no_cut(use: str) -> None:
    torch.manual_seed(0)
    model, x = Heuristic(use).eval(), torch.randn(5, 6)
    graph = capture(model, x)
    if use != "decision":
        assert not graph.groups, "a factor that changes with a size is still a fault"
        return
    plan = make_plan(graph, {"hidden": [0, 2, 5]})
    assert verify(model, cut(model, plan), plan, x, graph=graph).passed


class Timed(nn.Module):
    """The state of an ODE with the time as one more channel, of the size of its first one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(9, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(torch.cat([torch.ones_like(x[:, :1, :, :]) * 0.3, x], 1))


def test_a_slice_that_is_read_for_its_size_stays_as_it_is() -> None:
    model, x = Timed().eval(), torch.randn(2, 3, 8, 8)
    graph = capture(model, x)
    plan = make_plan(graph, {"first": [2, 5]})  # the unit that the class takes the size of goes as well
    assert verify(model, cut(model, plan), plan, x, graph=graph).passed
    assert not plan.edits.sources


class Shifted(nn.Module):
    """A shift of a written size, in training alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.first(x).relu(), 0.5, self.training)
        if self.training:
            self.calls += 1
            x = x + torch.tensor([0.1] * 8)
        return self.third(self.second(x).relu())


def test_a_cut_network_can_be_trained_where_the_dense_one_can() -> None:
    model, x = Shifted().eval(), torch.randn(4, 6)
    graph, before = capture(model, x), torch.get_rng_state()
    found = cannot_follow(model, graph, x)
    assert [*found] == ["first"] and "in training mode" in found["first"]
    assert "dimension 1, in forward, test_repair.py:" in found["first"], "the line"
    assert not model.training and model.calls == 0 and torch.equal(before, torch.get_rng_state())


def test_only_branches_of_training_ask_for_a_look_at_it() -> None:
    assert has_branches(Shifted()) and not draws(Shifted())
    assert not has_branches(nn.Sequential(nn.Dropout(), Timed()))


class Noisy(nn.Module):
    """Noise of training alone."""

    def __init__(self, noise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.noise = noise
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        if self.training:
            x = x + self.noise(x) * (torch.rand(len(x), 1) < 0.8)
        return self.second(x)


NOISE: dict[str, Callable[[Tensor], Tensor]] = {
    "randn": lambda x: torch.randn(len(x), 8),
    "rand": lambda x: torch.rand(8) * x,
    "normal": lambda x: torch.normal(0.5, 0.1, (8,)) + torch.normal(0.5, 0.1, size=(8,)),
    "normal of a mean": lambda x: torch.normal(x, 0.1) + torch.normal(x, x.abs()),
    "bernoulli": lambda x: torch.bernoulli(torch.full(x.shape, 0.5)) + torch.bernoulli(x, 0.5),
    "in place": lambda x: x.new_empty(8).normal_() + torch.empty(8).uniform_(1, 2) + torch.empty(8).bernoulli_(0.5),
    "like": lambda x: torch.randn_like(x) + torch.rand_like(x),
    "of a generator": lambda x: torch.rand(8, generator=SOURCE) + x.new_empty(8).normal_(generator=SOURCE),
    "exponential": lambda x: torch.empty(8).exponential_(0.5),
    "of a distribution": lambda x: torch.distributions.Normal(0.0, 1.0).sample((len(x), 8)),
}

SOURCE = torch.Generator()


@pytest.mark.parametrize("noise", NOISE)
def test_noise_of_training_alone_follows_a_cut(noise: str) -> None:
    model, x = Noisy(NOISE[noise]).eval(), torch.randn(4, 6)
    assert has_branches(model) and draws(model)
    small, _ = less(model, x)
    assert small.train()(x).shape == (4, 3) and small.get_submodule("first").out_features < 8


class Drawing(nn.Module):
    """Noise of a generator of the class, in eval mode too."""

    def __init__(self, begins_anew: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.source, self.begins_anew = torch.Generator().manual_seed(1), begins_anew

    def forward(self, x: Tensor) -> Tensor:
        if self.begins_anew:
            self.source.manual_seed(0)
        x = self.first(x).relu() + torch.rand(8, generator=self.source)
        return self.third(self.second(x).relu())


@pytest.mark.parametrize("begins_anew", [False, True])
def test_a_generator_of_the_class_stays_where_it_is(begins_anew: bool) -> None:
    model, x = Drawing(begins_anew).eval(), torch.randn(4, 6)
    state = model.source.get_state()
    graph = capture(model, x)
    plan = make_plan(graph, {"second": [0, 3, 5]})
    assert verify(model, cut(model, plan), plan, x, graph=graph).passed
    assert torch.equal(model.source.get_state(), state)  # as it was
    assert {group.name for group in graph.groups} == {"second"}


class NoisyElsewhere(Noisy):
    """A method of its own draws the noise."""

    def drawn(self, x: Tensor) -> Tensor:
        return x + torch.randn(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.second(self.drawn(x) if self.training else x)


def test_noise_of_a_method_that_training_alone_calls_follows_a_cut() -> None:
    model, x = NoisyElsewhere(NOISE["rand"]).eval(), torch.randn(4, 6)
    assert draws(model)
    assert less(model, x)[0].train()(x).shape == (4, 3)


class ByParts(nn.Module):
    """A convolution for every part of the channels, in a loop over where the parts begin."""

    def __init__(self, starts: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 12, 1), nn.Linear(15, 2)
        self.parts = nn.ModuleList(nn.Conv2d(4, 5, 1) for _ in range(3))
        self.starts, self.width, self.step = starts, 12, 4

    def forward(self, x: Tensor) -> Tensor:
        x, step = self.first(x), self.step
        parts = [part(x[:, i : i + step]) for part, i in zip(self.parts, self.starts(self, x), strict=True)]
        return self.last(torch.cat(parts, 1).mean((2, 3)))


PARTS: dict[str, Callable[[Any, Tensor], Any]] = {
    "of a shape": lambda net, x: range(0, x.shape[1], net.step),
    "of attributes": lambda net, x: range(0, net.width, net.step),
}


@pytest.mark.parametrize("starts", PARTS)
def test_a_loop_over_parts_follows_a_cut(starts: str) -> None:
    small, _ = less(ByParts(PARTS[starts]).eval(), torch.randn(2, 3, 4, 4))
    assert small.step < 4 and small.first.out_channels == 3 * small.step
    assert small.width == (12 if starts == "of a shape" else 3 * small.step)


class Weighed(nn.Module):
    """The plain call of torch's attention, which also gives the mean of its weights over the heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attn, self.head = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.attn(x, x, x)
        return self.head(x)


def test_what_nobody_reads_keeps_no_heads() -> None:
    model, x = Weighed().eval(), torch.randn(2, 5, WIDTH)
    graph = capture(model, x)
    heads = next(group for group in graph.groups if group.kind == "heads")
    plan = make_plan(graph, {heads.name: [0, 3]})
    assert verify(model, cut(model, plan), plan, x, graph=graph).passed


STARTS: dict[str, Callable[[Any, int], Tensor]] = {
    "new": lambda net, n: net.out.weight.data.new(1, n, net.hidden).zero_(),
    "variable": lambda net, n: torch.autograd.Variable(torch.zeros(1, n, net.hidden)),
    "typed": lambda net, n: torch.FloatTensor(1, n, net.hidden).zero_().type(torch.FloatTensor),
}


class Started(nn.Module):
    """A recurrent layer with a first state as older tutorials make it."""

    def __init__(self, start: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.steps, self.out, self.start, self.hidden = nn.GRU(5, 12, batch_first=True), nn.Linear(12, 3), start, 12

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.steps(x, STARTS[self.start](self, len(x)))[0])


@pytest.mark.parametrize("start", STARTS)
def test_a_first_state_of_an_older_kind_follows(start: str) -> None:
    model, x = Started(start).eval(), torch.randn(2, 4, 5)
    graph = capture(model, x)
    plan = make_plan(graph, {"steps": range(0, 12, 2)})
    small = cut(model, plan)
    assert verify(model, small, plan, x, graph=graph).passed and small.hidden == 6


def gate_of(a: Tensor, b: Tensor, n: Tensor) -> Tensor:
    half = n[0]
    both = a + b
    return torch.tanh(both[:, :half]) * torch.sigmoid(both[:, half:])


with warnings.catch_warnings():  # people still write it
    warnings.simplefilter("ignore", DeprecationWarning)
    gate = torch.jit.script(gate_of)


class Gated(nn.Module):
    """The layers of a WaveNet as WaveGlow and VITS write them: a scripted gate is given its size in a tensor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden = 6
        self.pre, self.cond, self.post = nn.Conv1d(3, 6, 1), nn.Conv1d(2, 24, 1), nn.Conv1d(6, 3, 1)
        self.layers = nn.ModuleList(nn.Conv1d(6, 12, 3, padding=1) for _ in range(2))
        self.skips = nn.ModuleList(nn.Conv1d(6, 12 - 6 * i, 1) for i in range(2))

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        x, g, size = self.pre(x), self.cond(g), torch.IntTensor([self.hidden])
        out = torch.zeros_like(x)
        for i, (layer, skip) in enumerate(zip(self.layers, self.skips, strict=True)):
            start = i * 2 * self.hidden
            y = skip(gate(layer(x), g[:, start : start + 2 * self.hidden], size))
            if i < 1:
                x, out = x + y[:, : self.hidden], out + y[:, self.hidden :]
            else:
                out = out + y
        return self.post(out)


def test_the_size_in_a_tensor_that_a_scripted_function_is_given_follows() -> None:
    model, inputs = Gated().eval(), (torch.randn(2, 3, 7), torch.randn(2, 2, 1))
    graph = capture(model, inputs)
    assert [group.width for group in graph.groups] == [6] * 4  # the stream, two gates, what is summed up
    plan = make_plan(graph, {group.name: [*range(6)][i % 3 : i % 3 + 4] for i, group in enumerate(graph.groups)})
    small = cut(model, plan)
    assert small.hidden == 4
    assert verify(model, small, plan, inputs, graph=graph).passed
    assert torch.IntTensor([1]).dtype == torch.int32  # the types are torch's own again


class ByInt(nn.Module):
    """Makes a number again of the size in a tensor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.up, self.down = 6, nn.Linear(4, 12), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        size, h = int(torch.IntTensor([self.hidden])[0]), self.up(x)
        return self.down(torch.tanh(h[:, :size]) * torch.sigmoid(h[:, size:]))


def test_a_number_made_of_the_size_in_a_tensor_follows() -> None:
    model, x = ByInt().eval(), torch.randn(2, 4)
    graph = capture(model, x)
    plan = make_plan(graph, {group.name: [0, 3] for group in graph.groups})
    small = cut(model, plan)
    assert small.hidden == 2 and verify(model, small, plan, x, graph=graph).passed


class ScaledInTraining(nn.Module):
    """One head of attention, scaled by its size, and a second output that only training mode has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.size = 6
        self.query, self.key, self.value = (nn.Linear(4, 6) for _ in range(3))
        self.out, self.aux = nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        q, k = (layer(x).view(*x.shape[:2], self.size) for layer in (self.query, self.key))
        mixed = torch.softmax(q @ k.transpose(1, 2) * self.size**-0.5, -1) @ self.value(x)
        return (self.out(mixed), self.aux(mixed)) if self.training else self.out(mixed)


def test_a_scale_follows_the_size_of_a_head_in_training_mode_too() -> None:
    model, x = ScaledInTraining().eval(), torch.randn(2, 5, 4)
    graph = capture(model, x)
    assert graph.training is not None
    plan = make_plan(graph, {group.name: [0, 3, 4, 5] for group in graph.groups})
    small = cut(model, plan)
    assert small.size == 4 and verify(model, small, plan, x, graph=graph).passed
    torch.testing.assert_close(small.train()(x)[0], small.eval()(x))


class SummedBySegment(nn.Module):
    """Sums the rows of each segment as `keras.ops.segment_sum` does: a row has its number for each entry."""

    def __init__(self, written_down: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.written_down = 6, written_down
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, segments: Tensor) -> Tensor:
        h = self.up(x)
        sizes = torch.tensor([self.hidden] if self.written_down else h.shape[1:])
        places = segments.repeat_interleave(sizes.prod().long()).view(h.shape)
        return self.down(torch.zeros(h.shape).scatter_add(0, places, h))


@pytest.mark.parametrize("written_down", [False, True])
def test_the_product_of_sizes_in_a_tensor_follows(written_down: bool) -> None:
    model, inputs = SummedBySegment(written_down).eval(), (torch.randn(5, 4), torch.tensor([0, 2, 1, 0, 2]))
    graph = capture(model, inputs)
    plan = make_plan(graph, {group.name: [0, 3, 4] for group in graph.groups})
    small = cut(model, plan)
    assert small.up.out_features == 3 and verify(model, small, plan, inputs, graph=graph).passed


def test_typed_constructors_are_what_they_were_in_all_else() -> None:
    with in_words_of_today():
        assert isinstance(torch.zeros(2), torch.FloatTensor) and not isinstance(torch.zeros(2), torch.LongTensor)
        assert torch.equal(torch.LongTensor([[1, 2]]), torch.tensor([[1, 2]]))
        assert torch.IntTensor(2, 3).shape == (2, 3) and torch.FloatTensor().shape == (0,)
        assert torch.FloatTensor.dtype == torch.float32
        assert torch.FloatTensor(torch.Size([2, 3])).shape == (2, 3)  # of a size, and not what stands in it
        assert torch.equal(torch.FloatTensor((2, 3)), torch.tensor([2.0, 3.0]))


class Counting(nn.Module):
    """Puts its width into tensors: one of them is written to, one is of floats, one is True."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden = 12
        self.up, self.down = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        more, given = torch.tensor([self.hidden, 2]), [self.hidden, 2]
        more += 1
        more[1] = 7
        numbers = torch.tensor(given)
        numbers.tolist().append(1)
        given.append(1)
        ends = [*more.tolist(), torch.tensor(self.hidden, dtype=torch.bool).item(), len(numbers.tolist())]
        half = torch.tensor(self.hidden, dtype=torch.float64).item()
        assert half.hex() == float(self.hidden).hex()  # an int has none
        h = h + torch.FloatTensor(h.size()).zero_()
        return self.down(h) * ends[0] + ends[1] * ends[2] + ends[3]


def test_a_tensor_that_is_written_to_no_longer_holds_the_number_that_was_put_in() -> None:
    model, x = Counting().eval(), torch.randn(2, 4)
    graph = capture(model, x)
    assert [group.width for group in graph.groups] == [12]
    plan = make_plan(graph, {"up": [0, 3, 7]})
    assert verify(model, cut(model, plan), plan, x, graph=graph).passed


@pytest.mark.parametrize("seed", range(3))
def test_numbers_of_groups_in_calls_of_functions_become_others(seed: int) -> None:
    model, x = Grouped().eval(), maps()
    small, plan = less(model, x, seed=seed)
    assert {(edit.text, edit.was) for edit in plan.edits.sources} >= {("8", 8)}
    assert verify(model, small, plan, x).passed
    assert small(x[:1]).shape == model(x[:1]).shape


@pytest.mark.parametrize("norm", [F.layer_norm, F.rms_norm])
def test_a_shape_that_is_written_down_for_a_norm_becomes_another(norm: Callable[..., Tensor]) -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(WIDTH, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(
                F.layer_norm(self.first(x), (8,)) if norm is F.layer_norm else F.rms_norm(self.first(x), (8,))
            )

    torch.manual_seed(0)
    model, x = Normed().eval(), tokens()
    graph = capture(model, x, norms=True)
    plan = make_plan(graph, {"first": [0, 2, 3, 5, 7]})
    assert [(edit.text, edit.value) for edit in plan.edits.sources] == [("8", 5)]
    assert verify(model, cut(model, plan), plan, x, graph=graph).passed


class Filled(nn.Module):
    """A state that is as wide as the input, and filled with a number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, width = x.shape
        h, most = self.up(x), torch.full((batch, width), -1e38)
        for step in range(steps):
            most = torch.maximum(most, h[:, step])
        return self.down(most + x.new_full((batch, width), 0.5))


def test_what_a_tensor_is_filled_with_is_no_size() -> None:
    model, x = Filled().eval(), torch.randn(4, 3, 8)
    graph = capture(model, x)
    plan = make_plan(graph, {"up": [0, 3, 7]})
    assert {(edit.text, edit.value) for edit in plan.edits.sources} == {("width", 3)}
    small = cut(model, plan)
    assert verify(model, small, plan, x, graph=graph).passed and small(x[:2]).shape == (2, 3)
