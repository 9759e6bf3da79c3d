"""Tiny named networks, one per hazard. `NETS` holds each with a function that makes its inputs (batch first)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Chain(nn.Module):
    """The plain case: Linear, ReLU, Linear, ReLU, Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


class LeNet(nn.Module):
    """LeNet-5 for 28 × 28 digits, as the seed has it: a flatten of (C, H, W) between convolution and linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(256, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = F.max_pool2d(torch.relu(self.conv2(x)), 2).flatten(1)
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


class Residual(nn.Module):
    """Two convolutions write the same stream, so they keep the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv1, self.conv2 = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(6), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.relu(x + y).mean((2, 3)))


class ZeroGain(Residual):
    """The last BatchNorm of the block has zero gain, as many recipes initialise it: it hides what lies before it."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.bn2.weight)


class InPlace(nn.Module):
    """ReLU and addition in place, as most published residual networks write them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.conv2, self.fc = nn.Conv2d(6, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.stem(x))
        y = self.conv2(F.relu_(self.conv1(x)))
        y += x
        return self.fc(F.relu_(y).mean((2, 3)))


class Dense(nn.Module):
    """DenseNet-like: later layers read the concatenation of all earlier ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
        self.bn, self.conv3, self.fc = nn.BatchNorm2d(9), nn.Conv2d(9, 6, 1), nn.Linear(15, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv1(x)
        b = self.conv2(torch.relu(a))
        ab = torch.cat([a, b], 1)
        c = self.conv3(torch.relu(self.bn(ab)))
        return self.fc(torch.cat([ab, c], 1).mean((2, 3)))


class Depthwise(nn.Module):
    """MobileNet-like: expand, depthwise, project; the depthwise layer keeps what its input keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.bn, self.project, self.fc = nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.bn(self.depthwise(F.relu6(self.expand(x)))))
        return self.fc(F.adaptive_avg_pool2d(self.project(x), 1).flatten(1))


class Grouped(nn.Module):
    """A convolution in two groups: whole groups go, or the same channels of every group."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, groups=2)
        self.conv3 = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(torch.relu(self.conv2(torch.relu(self.conv1(x))))).mean((2, 3))


class Tied(nn.Module):
    """An autoencoder whose decoder is the encoder's weight, transposed; one parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.middle = nn.Linear(6, 8), nn.Linear(8, 8)
        self.decoder_weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.middle(torch.relu(self.encoder(x)))), self.decoder_weight.t())


class TiedHeads(nn.Module):
    """Two Linear modules that hold one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.right.weight = self.left.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.left(x) - 2 * self.right(torch.tanh(x))


class Reused(nn.Module):
    """One module called twice, and known under two names: its input and its output are the same stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.again = self.block

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(self.again(torch.relu(self.block(x)))))


class ReusedDepthwise(nn.Module):
    """A depthwise convolution under two names: its `groups` must be updated once, not twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.again, self.head = self.block, nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.again(torch.relu(self.block(self.stem(x))))))


class Unused(nn.Module):
    """A layer and a parameter that the forward pass never reads."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.spare = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(5, 7)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(x)))


class ChannelFastest(nn.Module):
    """A permuted flatten: the linear layer's columns run over (H, W, C), so every C-th of them goes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(36, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).permute(0, 2, 3, 1).flatten(1))


class ChannelSlowest(nn.Module):
    """The usual flatten: the columns run over (C, H, W), so runs of H · W of them go."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(36, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).flatten(1))


class Auxiliary(nn.Module):
    """A second head that only exists in training mode, and reads the channels that the first one reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.head, self.aux = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = torch.relu(self.bn(self.stem(x))).mean((2, 3))
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


class Keywords(nn.Module):
    """Called by keywords, with a number, a flag and an absent input; returns a dict with a list in it."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.sizes, self.head = nn.Linear(6, 8), nn.Linear(2, 8), nn.Linear(8, 3)

    def forward(
        self, words: Tensor, sizes: Tensor, mask: Tensor | None = None, gain: float = 1.0, square: bool = False
    ) -> dict[str, Any]:
        x = torch.relu(self.words(words) + gain * self.sizes(sizes))
        x = x * x if square else x
        x = x if mask is None else x * mask
        return {"logits": self.head(x), "rest": [x.shape[0], None, torch.sigmoid(self.head(x))]}


class TwoInputs(nn.Module):
    """Two inputs whose features are concatenated; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 5), nn.Linear(3, 4), nn.Linear(9, 2)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([torch.relu(self.left(a)), torch.tanh(self.right(b))], 1)
        return self.head(x), self.head(-x)


@dataclass(frozen=True)
class Net:
    """A network to be made, and inputs of a given batch size for it."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int], Any]


def _rows(n: int) -> Tensor:
    return torch.randn(n, 6)


def _images(n: int) -> Tensor:
    return torch.randn(n, 3, 5, 5)


NETS: dict[str, Net] = {
    "chain": Net(Chain, _rows),
    "lenet": Net(LeNet, lambda n: torch.randn(n, 1, 28, 28)),
    "residual": Net(Residual, _images),
    "zero_gain": Net(ZeroGain, _images),
    "in_place": Net(InPlace, _images),
    "dense": Net(Dense, _images),
    "depthwise": Net(Depthwise, _images),
    "grouped": Net(Grouped, _images),
    "tied": Net(Tied, _rows),
    "tied_heads": Net(TiedHeads, _rows),
    "reused": Net(Reused, _rows),
    "reused_depthwise": Net(ReusedDepthwise, _images),
    "unused": Net(Unused, _rows),
    "channel_fastest": Net(ChannelFastest, _images),
    "channel_slowest": Net(ChannelSlowest, _images),
    "auxiliary": Net(Auxiliary, _images),
    "keywords": Net(
        Keywords,
        # in another order than the signature's, with a key that the model doesn't take
        lambda n: {"gain": 2.0, "sizes": torch.randn(n, 2), "label": 1, "square": True, "words": _rows(n)},
    ),
    "two_inputs": Net(TwoInputs, lambda n: (_rows(n), torch.randn(n, 3))),
}
"""Name → network."""


def build(name: str, batch: int = 4) -> tuple[Any, Any]:
    """The network of that name in eval mode and a batch for it, the same ones on every call."""
    torch.manual_seed(0)
    net = NETS[name]
    model = net.make()
    for module in model.modules():  # statistics as after some training, so that no norm is the identity
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model.eval(), net.inputs(batch)
