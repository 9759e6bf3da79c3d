"""Real data and weights: from the folder that a benchmark is given, or from what the demo can fetch."""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.method.networks import ResNet56
from safetensors.torch import load_file
from torch import Tensor, nn

from actprune.demo.lenet5 import minibatches

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Images:
    """(N, C, H, W) images, normalised, and (N,) class numbers."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def drawn(self, count: int, seed: int) -> Tensor:
        """`count` of the images, drawn without replacement."""
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count]
        return self.images[chosen]


def cifar10(folder: Path, split: str) -> Images:
    """CIFAR-10 from `load_cifar10.py` in the folder."""
    spec = importlib.util.spec_from_file_location("load_cifar10", folder / "load_cifar10.py")
    assert spec is not None and spec.loader is not None
    reader: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    pixels, labels = reader.cifar10(split)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float().div_(255).sub_(mean).div_(std)
    return Images(images, torch.from_numpy(labels.astype("int64")))


def resnet56(folder: Path) -> nn.Module:
    model = ResNet56()
    model.load_state_dict(load_file(folder / "resnet56_cifar10.safetensors"), strict=False)  # without batch counters
    return model.eval()


class Batches:
    """Batches of (images, labels) for a training, in another order in every epoch.

    Args:
        change: what is done to the images of a batch, such as `flipped_and_shifted`.
    """

    def __init__(
        self, data: Images, batch: int, seed: int, change: Callable[[Tensor], Tensor] = lambda images: images
    ) -> None:
        self.batches = minibatches(data.images, data.labels, batch, torch.Generator().manual_seed(seed))
        self.change = change

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((self.change(images), labels) for images, labels in self.batches)


def flipped_and_shifted(images: Tensor) -> Tensor:
    """The usual augmentation of CIFAR-10: half of them mirrored, all moved by up to 4 pixels over zeros."""
    return shifted(torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images), 4)


def shifted(images: Tensor, most: int) -> Tensor:
    """Each image (C, H, W) moved by up to `most` pixels over zeros."""
    n, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (most,) * 4)
    rows, columns = (torch.randint(0, 2 * most + 1, (n, 1)) + torch.arange(size) for size in (height, width))
    own = torch.arange(n)[:, None, None]
    return padded[own, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def accuracy(model: nn.Module, data: Images, batch: int = 500) -> float:
    model.eval()
    right = [
        (model(x).argmax(1) == y).sum().item()
        for x, y in zip(data.images.split(batch), data.labels.split(batch), strict=True)
    ]
    return sum(right) / len(data)


@torch.no_grad()
def logits(model: nn.Module, images: Tensor, batch: int = 500) -> Tensor:
    """(N, classes) what the model says of the images, in eval mode."""
    return torch.cat([model.eval()(x) for x in images.split(batch)])


def agreement(found: Tensor, dense: Tensor) -> tuple[float, float]:
    """Of two networks' logits (N, classes): the share of samples that both put into one class, and the mean
    KL(dense ‖ found) in nats."""
    p, q = torch.log_softmax(dense, -1), torch.log_softmax(found, -1)
    return float((p.argmax(1) == q.argmax(1)).float().mean()), float((p.exp() * (p - q)).sum(1).mean())


def idx(path: Path) -> Tensor:
    """The array of an IDX file of bytes, plain or gzip."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(content[3])]
    return torch.frombuffer(bytearray(content[4 + 4 * len(shape) :]), dtype=torch.uint8).view(shape)


def fashion_mnist(folder: Path, part: str) -> Images:
    """(N, 784) images of Fashion-MNIST, normalised, from its IDX files; `part` is "train" or "t10k"."""
    images, labels = (next(folder.glob(f"{part}-{kind}-idx*")) for kind in ("images", "labels"))
    return Images((idx(images).flatten(1).float() / 255 - 0.2860) / 0.3530, idx(labels).long())
