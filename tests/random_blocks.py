"""What random networks are made of, first part: blocks that work on rows, tokens and maps alike.

A block is made by a function `(here, width, count) → nn.Module` that sees the value the block will get; so every size
follows from what stands before, and a step can be dropped without breaking those after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations


@dataclass(frozen=True)
class Here:
    """The place of a block: rows (N, C), tokens (N, T, C) or maps (N, C, space…), and an example of them."""

    domain: str
    value: Tensor

    @property
    def dim(self) -> int:
        """The dimension of the channels."""
        return 1 if self.domain == "maps" else self.value.dim() - 1

    @property
    def channels(self) -> int:
        return self.value.shape[self.dim]

    @property
    def space(self) -> tuple[int, ...]:
        return tuple(self.value.shape[2:])

    def layer(self, width: int, into: int | None = None, kernel: int = 1, **more: Any) -> Any:
        """A Linear or a convolution from `into` channels (those of the value) to `width`."""
        into = self.channels if into is None else into
        if self.domain != "maps":
            return nn.Linear(into, width, **more)
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(self.space) - 1]
        return kind(into, width, kernel, padding=kernel // 2, **more)

    def along(self, vector: Tensor) -> Tensor:
        """(C,) → (C, 1, …), so that it meets the channels."""
        return vector.view(-1, *[1] * (self.value.dim() - self.dim - 1))

    def shared(self, count: int) -> int:
        """As many groups as `count` where they divide the channels evenly, else fewer."""
        return gcd(self.channels, count)


Make = Callable[[Here, int, int], nn.Module]
"""(where it stands, a width, a small number) → the block."""


class Op(nn.Module):
    """A plain function of its parts and one value, as the forward pass of a user's class would be."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


# -- widths that change hands ------------------------------------------------------------------------


def halves(here: Here, width: int, count: int) -> nn.Module:
    """Two equal halves change places; one goes through a layer."""
    return Op(_halves, dim=here.dim, first=here.layer(2 * width), second=here.layer(width, width))


def _halves(m: Any, x: Tensor) -> Tensor:
    a, b = torch.chunk(m.first(x), 2, m.dim)
    return torch.cat([torch.relu(m.second(b)), a], m.dim)


def unequal(here: Here, width: int, count: int) -> nn.Module:
    """Three unequal parts; the last is dropped, the others meet again."""
    sizes = [width, count, 3]
    parts = {"first": here.layer(sum(sizes)), "second": here.layer(count + 1, count)}
    return Op(_unequal, dim=here.dim, sizes=sizes, **parts)


def _unequal(m: Any, x: Tensor) -> Tensor:
    a, b, _ = torch.split(m.first(x), m.sizes, m.dim)
    return torch.cat([m.second(torch.tanh(b)), a, b], m.dim)


def gate(here: Here, width: int, count: int) -> nn.Module:
    """A gated linear unit: by F.glu, by chunk and SiLU, or with two layers."""
    ways: tuple[Callable[[Any, Tensor], Tensor], ...] = (
        lambda m, x: F.glu(m.both(x), m.dim),
        lambda m, x: F.silu(m.both(x).chunk(2, m.dim)[0]) * m.both(x).chunk(2, m.dim)[1],
        lambda m, x: F.silu(m.up(x)) * m.gate(x),
    )
    layers = {"up": here.layer(width), "gate": here.layer(width)}
    parts = layers if count % 3 == 2 else {"both": here.layer(2 * width)}
    return Op(ways[count % 3], dim=here.dim, **parts)


def part_of(here: Here, width: int, count: int) -> nn.Module:
    """The first channels of a layer, by a slice with the size written down."""
    layer = here.layer(width + count)
    return Op(lambda m, x: torch.relu(m.layer(x)).narrow(m.dim, 0, width), dim=here.dim, layer=layer)


def padded(here: Here, width: int, count: int) -> nn.Module:
    """Zero channels are appended, as by the parameter-free shortcut of residual networks."""
    pads = [0, 0] * (here.value.dim() - 1 - here.dim) + [0, count]
    return Op(lambda m, x: F.pad(m.layer(x), pads), layer=here.layer(width))


def shuffle(here: Here, width: int, count: int) -> nn.Module:
    """A channel shuffle by view and transpose; the groups are an attribute, the rest comes from the shape."""
    return Op(_shuffle, dim=here.dim, groups=count, layer=here.layer(width * count))


def _shuffle(m: Any, x: Tensor) -> Tensor:
    x = m.layer(x)
    shape = x.shape
    x = x.view(*shape[: m.dim], m.groups, shape[m.dim] // m.groups, *shape[m.dim + 1 :])
    return x.transpose(m.dim, m.dim + 1).contiguous().view(shape)


# -- sharing ---------------------------------------------------------------------------------------------


def tied(here: Here, width: int, count: int) -> nn.Module:
    """Two layers that hold one parameter."""
    a, b = here.layer(width), here.layer(width)
    b.weight = a.weight
    return Op(lambda m, x: torch.relu(m.a(x)) - 2 * m.b(torch.tanh(x)), a=a, b=b)


def two_names(here: Here, width: int, count: int) -> nn.Module:
    """One layer under two names, called through both."""
    layer = here.layer(here.channels)
    return Op(lambda m, x: torch.relu(m.again(torch.relu(m.layer(x)))), layer=layer, again=layer)


def autoencoder(here: Here, width: int, count: int) -> nn.Module:
    """A decoder with the encoder's weight, transposed; on maps channels last."""
    encoder = nn.Linear(here.channels, width)

    def function(m: Any, x: Tensor) -> Tensor:
        x = x.movedim(m.dim, -1)
        return F.linear(torch.relu(m.encoder(x)), m.encoder.weight.t()).movedim(-1, m.dim)

    return Op(function, encoder=encoder, dim=here.dim)


def unused(here: Here, width: int, count: int) -> nn.Module:
    """A layer and a parameter that nothing reads."""
    return Op(lambda m, x: m.layer(x), layer=here.layer(width), spare=nn.Linear(5, count), scale=parameter(count))


def containers(here: Here, width: int, count: int) -> nn.Module:
    """Layers in a ModuleDict of a ModuleList of a Sequential."""
    inner = nn.Sequential(here.layer(width), nn.ReLU())
    listed = nn.ModuleList([inner, here.layer(count, width)])
    return Op(_containers, layers=nn.ModuleDict({"list": listed, "last": here.layer(width, count)}))


def _containers(m: Any, x: Tensor) -> Tensor:
    for block in m.layers["list"]:
        x = torch.relu(block(x))
    return m.layers["last"](x)


# -- weights that are computed -----------------------------------------------------------------------------


def weight_norm(here: Here, width: int, count: int) -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(here.layer(width)), nn.ReLU(), here.layer(count, width))


def standardised(here: Here, width: int, count: int) -> nn.Module:
    """A layer whose weight has its mean taken away: zero columns of it would not stay zero."""
    first, second = here.layer(width), here.layer(count, width)

    def function(m: Any, x: Tensor) -> Tensor:
        weight = m.second.weight
        weight = weight - weight.mean(1, keepdim=True)
        x = torch.relu(m.first(x))
        return F.linear(x, weight) if x.dim() == m.dim + 1 else _convolve(x, weight)

    return Op(function, dim=here.dim, first=first, second=second)


def _convolve(x: Tensor, weight: Tensor) -> Tensor:
    return (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3](x, weight)


def factors(here: Here, width: int, count: int) -> nn.Module:
    """A weight that is the product of two parameters."""

    def function(m: Any, x: Tensor) -> Tensor:
        return F.linear(x.movedim(m.dim, -1), m.left @ m.right).movedim(-1, m.dim)

    return Op(function, dim=here.dim, left=parameter(width, count), right=parameter(count, here.channels))


def bare(here: Here, width: int, count: int) -> nn.Module:
    """A layer that is written out: a product with a bare parameter, and a bias added to it."""

    def function(m: Any, x: Tensor) -> Tensor:
        return torch.relu((x.movedim(m.dim, -1) @ m.weight + m.bias).movedim(-1, m.dim))

    return Op(function, dim=here.dim, weight=parameter(here.channels, width), bias=parameter(width))


def einsum(here: Here, width: int, count: int) -> nn.Module:
    equation = "nc...,dc->nd..." if here.domain == "maps" else "n...c,dc->n...d"
    weight = parameter(width, here.channels)
    return Op(lambda m, x: torch.einsum(equation, x, m.weight), weight=weight)


# -- the table -----------------------------------------------------------------------------------------------


def _scaled(here: Here, as_buffer: bool) -> nn.Module:
    vector = here.along(torch.randn(here.channels))
    return Op(lambda m, x: x * m.scale, scale=vector if as_buffer else nn.Parameter(vector))


def _mixed(here: Here, width: int, count: int) -> nn.Module:
    """Softmax over the channels, their norm, their mean, a cumulative sum: what is mixed has to freeze."""
    ways: tuple[Callable[[Any, Tensor], Tensor], ...] = (
        lambda m, x: x * x.softmax(m.dim),
        lambda m, x: F.normalize(x, dim=m.dim),
        lambda m, x: x - x.mean(m.dim, keepdim=True),
        lambda m, x: x.cumsum(m.dim),
        lambda m, x: x * x.amax(m.dim, keepdim=True),
        lambda m, x: x.flip(m.dim),
    )
    return Op(ways[(width + count) % len(ways)], dim=here.dim)


def _activation(here: Here, width: int, count: int) -> nn.Module:
    kinds = (nn.ReLU(), nn.GELU(), nn.SiLU(inplace=True), nn.Hardswish(), nn.ELU(), nn.Tanh(), nn.LeakyReLU(0.1, True))
    return kinds[(width + count) % len(kinds)]


def _several(here: Here, width: int, count: int) -> nn.Module:
    """Layers of one width, put together by a stack and a sum, a maximum, or the product of them."""
    ways: tuple[Callable[[Any, Tensor], Tensor], ...] = (
        lambda m, x: torch.stack([one(x) for one in m.layers]).sum(0),
        lambda m, x: torch.maximum(m.layers[0](x), m.layers[1](x)),
        lambda m, x: m.layers[0](x) * torch.sigmoid(m.layers[1](x)),
        lambda m, x: torch.stack([one(x) for one in m.layers], 1).unbind(1)[1],
    )
    return Op(ways[count % len(ways)], layers=nn.ModuleList(here.layer(width) for _ in range(2)))


ANYWHERE: dict[str, Make] = {
    "layer": lambda here, width, count: nn.Sequential(here.layer(width), nn.ReLU()),
    "bare_layer": lambda here, width, count: here.layer(width, bias=False),
    "activation": _activation,
    "in_place": lambda here, width, count: Op(
        lambda m, x: F.relu_(m.layer(x)).mul_(0.5).add_(1), layer=here.layer(width)
    ),
    "in_place_input": lambda here, width, count: nn.ReLU(inplace=True),
    "dropout": lambda here, width, count: nn.Dropout(0.2),
    "scale": lambda here, width, count: _scaled(here, False),
    "buffer_scale": lambda here, width, count: _scaled(here, True),
    "halves": halves,
    "unequal": unequal,
    "gate": gate,
    "part_of": part_of,
    "padded": padded,
    "shuffle": shuffle,
    "several": _several,
    "tied": tied,
    "two_names": two_names,
    "autoencoder": autoencoder,
    "unused": unused,
    "containers": containers,
    "weight_norm": weight_norm,
    "standardised": standardised,
    "factors": factors,
    "bare": bare,
    "einsum": einsum,
    "mixed": _mixed,
}
"""Name → maker of a block that keeps the space or the number of tokens."""

ROWS: dict[str, Make] = {
    "batch_norm": lambda here, width, count: nn.BatchNorm1d(here.channels, affine=count != 3),
    "layer_norm": lambda here, width, count: nn.LayerNorm(here.channels),
    "group_norm": lambda here, width, count: nn.GroupNorm(2 - here.channels % 2, here.channels),
    "prelu": lambda here, width, count: nn.PReLU(here.channels),
    "bilinear": lambda here, width, count: Op(
        lambda m, x: m.mix(x, torch.tanh(x)), mix=nn.Bilinear(here.channels, here.channels, count)
    ),
    "outer": lambda here, width, count: Op(
        lambda m, x: (m.a(x)[:, :, None] * m.b(x)[:, None, :]).flatten(1), a=here.layer(width), b=here.layer(count)
    ),
}
