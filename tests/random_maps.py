"""What random networks are made of, second part: blocks on maps (N, C, space…) of one to three dimensions."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from random_blocks import Here, Make, Op, parameter


def _of_rank(here: Here, *kinds: Any) -> Any:
    return kinds[len(here.space) - 1]


def _batch_norm(here: Here, channels: int, **more: Any) -> Any:
    return _of_rank(here, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)(channels, **more)


def grouped(here: Here, width: int, count: int) -> nn.Module:
    """A convolution in groups behind one that makes them even."""
    inner = count * max(width // 2, 1)
    second = here.layer(count * 2, inner, 3, groups=count)
    return nn.Sequential(here.layer(inner, bias=False), _batch_norm(here, inner), nn.ReLU(inplace=True), second)


def depthwise(here: Here, width: int, count: int) -> nn.Module:
    """As in MobileNet; with `count` channels for each."""
    channels = here.channels
    own = here.layer(channels * (1 + count % 2), channels, 3, groups=channels, bias=False)
    return nn.Sequential(own, _batch_norm(here, channels * (1 + count % 2)), nn.ReLU6())


def inverted(here: Here, width: int, count: int) -> nn.Module:
    """Expand, depthwise, squeeze-and-excite, project."""
    parts = (here.layer(width, bias=False), here.layer(width, width, 3, groups=width), here.layer(count, width))
    return nn.Sequential(parts[0], nn.Hardswish(), parts[1], _excite(here, width, 2), parts[2])


def _excite(here: Here, channels: int, inner: int) -> nn.Module:
    return Op(_excited, down=here.layer(inner, channels), up=here.layer(channels, inner))


def _excited(m: Any, x: Tensor) -> Tensor:
    pooled = x.mean(tuple(range(2, x.dim())), keepdim=True)
    return x * torch.sigmoid(m.up(F.relu_(m.down(pooled))))


def excite_rows(here: Here, width: int, count: int) -> nn.Module:
    """Squeeze and excite with Linear layers and views, as the first implementations had it."""

    def function(m: Any, x: Tensor) -> Tensor:
        b, c = x.shape[:2]
        gate = m.up(torch.relu(m.down(x.flatten(2).mean(2)))).sigmoid()
        return x * gate.view(b, c, *[1] * (x.dim() - 2))

    return Op(function, down=nn.Linear(here.channels, width), up=nn.Linear(width, here.channels))


def channels_last(here: Here, width: int, count: int) -> nn.Module:
    """As in ConvNeXt: a norm and a perceptron channels last, a scale, and back."""
    norm = nn.LayerNorm(here.channels) if count % 2 else nn.RMSNorm(here.channels)
    layers = {"up": nn.Linear(here.channels, width), "down": nn.Linear(width, here.channels)}
    return Op(_channels_last, norm=norm, gain=parameter(here.channels), **layers)


def _channels_last(m: Any, x: Tensor) -> Tensor:
    order = (0, *range(2, x.dim()), 1)
    y = m.gain * m.down(F.gelu(m.up(m.norm(x.permute(order)))))
    return x + y.permute(0, x.dim() - 1, *range(1, x.dim() - 1))


def space_attention(here: Here, width: int, count: int) -> nn.Module:
    """Every place attends to every other one, with convolutions for q, k and v (SAGAN, ViT-like hybrids)."""
    layers = {name: here.layer(width) for name in "qkv"}
    return Op(_space_attention, out=here.layer(here.channels, width), gamma=parameter(1), **layers)


def _space_attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = (layer(x).flatten(2) for layer in (m.q, m.k, m.v))
    mixed = v @ torch.bmm(q.transpose(1, 2), k).softmax(-1).transpose(1, 2)
    return x + m.gamma * m.out(mixed.view(x.shape[0], -1, *x.shape[2:]))


def _group_shuffle(here: Here, width: int, count: int) -> nn.Module:
    """As in ShuffleNet: grouped, shuffled, grouped, with the number of channels written down."""
    channels = 2 * count

    def function(m: Any, x: Tensor) -> Tensor:
        x = m.second(torch.relu(m.first(x)))
        shuffled = x.view(x.shape[0], count, channels // count, *x.shape[2:]).transpose(1, 2)
        return m.third(shuffled.reshape(x.shape[0], -1, *x.shape[2:]))

    layers = {
        "first": here.layer(channels),
        "second": here.layer(channels, channels, groups=count),
        "third": here.layer(channels, channels, groups=count),
    }
    return Op(function, **layers)


def _norm(here: Here, width: int, count: int) -> nn.Module:
    c = here.channels
    if prod(here.space) == 1:  # statistics of a single value
        return nn.GroupNorm(1, c)
    instance = _of_rank(here, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
    makers: tuple[Callable[[], nn.Module], ...] = (
        lambda: nn.GroupNorm(here.shared(count), c),
        lambda: nn.GroupNorm(c, c),
        lambda: instance(c, affine=True),
        lambda: instance(c, track_running_stats=True),
        lambda: nn.LayerNorm([c, *here.space]),
        lambda: _batch_norm(here, c, affine=False),
        lambda: _batch_norm(here, c, track_running_stats=False),
    )
    return makers[(width + count) % len(makers)]()


def _fourier(here: Here, width: int, count: int) -> nn.Module:
    return Op(lambda m, x: m.layer(x) + torch.fft.fft(x, dim=-1).real.mean(1, keepdim=True), layer=here.layer(width))


def _position(here: Here, width: int, count: int) -> nn.Module:
    return Op(lambda m, x: m.layer(x) + m.position, layer=here.layer(width), position=parameter(1, width, *here.space))


MAPS: dict[str, Make] = {
    "conv": lambda here, width, count: nn.Sequential(here.layer(width, kernel=3), nn.ReLU()),
    "batch_norm": lambda here, width, count: _batch_norm(here, here.channels),
    "conv_norm": lambda here, width, count: nn.Sequential(
        here.layer(width, kernel=3, bias=False), _batch_norm(here, width), nn.ReLU(inplace=True)
    ),
    "norm": _norm,
    "prelu": lambda here, width, count: nn.PReLU(here.channels),
    "even_groups": lambda here, width, count: here.layer(
        width * here.shared(count), kernel=3, groups=here.shared(count)
    ),
    "grouped": grouped,
    "depthwise": depthwise,
    "inverted": inverted,
    "excite": lambda here, width, count: _excite(here, here.channels, width),
    "excite_rows": excite_rows,
    "channels_last": channels_last,
    "space_attention": space_attention,
    "group_shuffle": _group_shuffle,
    "position": _position,
    "fourier": _fourier,
    "roll": lambda here, width, count: Op(lambda m, x: m.layer(x.roll(1, -1)), layer=here.layer(width)),
    "same_transposed": lambda here, width, count: _transposed(here, width, count, 1),
}
"""Blocks that keep the space."""


def _transposed(here: Here, width: int, count: int, stride: int) -> nn.Module:
    kind = _of_rank(here, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    groups = here.shared(count)
    kernel, padding = (3, 1) if stride == 1 else (2, 0)
    return kind(here.channels, width * groups, kernel, stride=stride, padding=padding, groups=groups)


def _pool(here: Here, width: int, count: int) -> nn.Module:
    if min(here.space) < 2:
        return nn.Identity()
    makers: tuple[Callable[[], nn.Module], ...] = (
        lambda: _of_rank(here, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)(2),
        lambda: _of_rank(here, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)(2),
        lambda: _of_rank(here, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)(2),
        lambda: _of_rank(here, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)(2),
    )
    return makers[(width + count) % len(makers)]()


def _grow(here: Here, width: int, count: int) -> nn.Module:
    if max(here.space) > 4:
        return nn.Identity()
    modes = ("nearest", _of_rank(here, "linear", "bilinear", "trilinear"))
    return nn.Upsample(scale_factor=2, mode=modes[count % 2])


def _pixels(here: Here, width: int, count: int) -> nn.Module:
    """Sub-pixel convolution, or its opposite where the space is even."""
    if len(here.space) != 2:
        return _pool(here, width, count)
    if count % 2 or any(n % 2 for n in here.space):
        return nn.Sequential(here.layer(4 * width), nn.PixelShuffle(2)) if max(here.space) <= 4 else nn.Identity()
    return nn.Sequential(here.layer(width), nn.PixelUnshuffle(2), here.layer(count, 4 * width))


RESIZE: dict[str, Make] = {
    "pool": _pool,
    "strided": lambda here, width, count: here.layer(width, kernel=3, stride=2),
    "grow": _grow,
    "transposed": lambda here, width, count: (
        _transposed(here, width, count, 2) if max(here.space) <= 4 else nn.Identity()
    ),
    "pixels": _pixels,
}
"""Blocks that change the space."""
