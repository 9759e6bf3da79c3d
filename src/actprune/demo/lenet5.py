"""The seed's network and training: LeNet-5 on MNIST, initialised and trained as Keras does by default.

LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998, with the seed's
ReLU, max pooling and dropout. Nothing here draws from or changes the global random numbers of the CPU or of CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actprune.demo.dense_cache import cached, digest
from actprune.demo.mnist import Mnist
from actprune.errors import DataError
from actprune.recovery.modes import evaluating

RECIPE = "actprune.lenet5/1"
"""The version of network and training: another one makes cached checkpoints stale."""

REPORT_EVERY = 50
"""Training steps between two calls of `progress`."""

Progress = Callable[[int, int, str], None]
"""`progress(done, total, text)`: steps done, steps in all, what is going on."""


class LeNet5(nn.Module):
    """The seed's network: (batch, 1, 28, 28) pixels in [0, 1] → (batch, 10) logits; 44,426 parameters.

    Weights are Glorot uniform and biases zero, as in Keras (Glorot and Bengio 2010, eq. 16).
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 4 * 4, 120)
        self.dropout1 = nn.Dropout(0.5)
        self.fc2 = nn.Linear(120, 84)
        self.dropout2 = nn.Dropout(0.5)
        self.fc3 = nn.Linear(84, 10)
        for parameter in self.parameters():
            (nn.init.xavier_uniform_ if parameter.dim() > 1 else nn.init.zeros_)(parameter)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.flatten(1)
        x = self.dropout1(F.relu(self.fc1(x)))
        x = self.dropout2(F.relu(self.fc2(x)))
        return self.fc3(x)


class Labelled(NamedTuple):
    """Images (N, 1, 28 rows, 28 columns) as float32 in [0, 1], and labels (N,) as int64 from 0 to 9."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """MNIST as Keras divides it with `validation_split=0.2`: the last fifth of the training images validates.

    Attributes:
        train: the first 48,000 training images.
        validation: the last 12,000 training images.
        test: the 10,000 test images.
    """

    train: Labelled
    validation: Labelled
    test: Labelled


def tensors(mnist: Mnist) -> Split:
    """MNIST as tensors."""
    x, y = _images(mnist.x_train), _labels(mnist.y_train)
    first = len(x) * 4 // 5
    test = Labelled(_images(mnist.x_test), _labels(mnist.y_test))
    return Split(Labelled(x[:first], y[:first]), Labelled(x[first:], y[first:]), test)


def _images(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32)[:, None] / np.float32(255))


def _labels(labels: np.ndarray) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))


class Minibatches:
    """Batches of (images, labels) in a new random order on every pass; the last one may be smaller.

    A `DataLoader` does the same image by image, which takes longer than training this network.
    """

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, generator: torch.Generator) -> None:
        if not 0 < len(images) == len(labels) or batch_size < 1:
            raise DataError(
                "There is nothing to make batches of.",
                expected="as many labels as images, at least one, and a batch size of at least 1",
                got=f"{len(images)} images, {len(labels)} labels, batch size {batch_size}",
                where="minibatches",
                hint="pass the two tensors of one part of the split",
            )
        self.images, self.labels = images, labels
        self.batch_size = batch_size
        self.generator = generator

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.images), generator=self.generator, device=self.generator.device)
        for index in order.to(self.images.device).split(self.batch_size):
            yield self.images.index_select(0, index), self.labels.index_select(0, index.to(self.labels.device))


def minibatches(images: Tensor, labels: Tensor, batch_size: int, generator: torch.Generator) -> Minibatches:
    """A loader to train or fine-tune with; `generator` decides the order of every pass."""
    return Minibatches(images, labels, batch_size, generator)


def train_dense(
    split: Split,
    *,
    seed: int,
    epochs: int = 5,
    batch_size: int = 32,
    lr: float = 1e-3,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> LeNet5:
    """Train as `model.fit` of the seed does: Adam with Keras's ε, cross-entropy, no schedule, the last epoch's weights.

    Args:
        seed: decides initial weights, the order of the batches and dropout; on one kind of CPU, all of the result.

    Returns:
        The network in eval mode, on `device`.
    """
    place = torch.device(device)
    with _repeatable(seed, place):
        model = LeNet5().to(place)
        images, labels = split.train.images.to(place), split.train.labels.to(place)
        batches = minibatches(images, labels, batch_size, torch.Generator().manual_seed(seed))
        optimizer = torch.optim.Adam(model.parameters(), lr=lr, eps=1e-7, fused=place.type in ("cpu", "cuda"))
        total = epochs * len(batches)
        for epoch in range(epochs):
            for step, (x, y) in enumerate(batches, 1):
                loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if progress is not None and (step % REPORT_EVERY == 0 or step == len(batches)):
                    text = f"epoch {epoch + 1} of {epochs}, loss {loss.item():.3f}"
                    progress(epoch * len(batches) + step, total, text)
    return model.eval()


@contextmanager
def _repeatable(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers from `seed` within the block; the global ones go on afterwards as if nothing had been.

    And one thread: with more, sums and so the trained weights would depend on the number of cores, and batches as
    small as these gain little (measured on 2 cores: 7.4 → 4.7 s an epoch when idle, 8.7 → 17 s when others compute).
    """
    on_cuda, threads = device.type == "cuda", torch.get_num_threads()
    with torch.random.fork_rng(devices=[device] if on_cuda else [], device_type="cuda"):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds every device there is
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch: int = 1000) -> float:
    """The fraction of images whose largest logit is their label's, 0 to 1, in eval mode; modes are restored.

    Raises:
        DataError: no images, or not as many labels.
    """
    if not 0 < len(images) == len(labels):
        raise DataError(
            "There is nothing to measure the accuracy on.",
            expected="as many labels as images, at least one",
            got=f"{len(images)} images, {len(labels)} labels",
            where="accuracy",
            hint="pass the two tensors of one part of the split",
        )
    device = next((p.device for p in model.parameters()), images.device)
    with evaluating(model), torch.no_grad():
        right = sum(
            int((model(x.to(device)).argmax(1) == y.to(device)).sum())
            for x, y in zip(images.split(batch), labels.split(batch), strict=True)
        )
    return right / len(images)


def dense_checkpoint(
    split: Split,
    *,
    seed: int,
    epochs: int = 5,
    cache: Path | None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> tuple[LeNet5, bool]:
    """The trained network: from `cache` if a sound copy is there, else trained now and put there.

    Args:
        cache: a folder; None keeps nothing.

    Returns:
        The network in eval mode on `device`, and whether it was trained now.

    Warns:
        UserWarning: the copy is damaged, of other data or of another version (it is replaced), or can't be written.
    """
    path = None if cache is None else Path(cache) / f"lenet5-mnist-seed{seed}-epochs{epochs}.safetensors"
    about = {"schema": RECIPE, "seed": str(seed), "epochs": str(epochs), "data": digest(dict(split.train._asdict()))}

    def make() -> LeNet5:
        with _repeatable(0, torch.device("cpu")):
            return LeNet5()

    model, trained = cached(
        path, about, make, lambda: train_dense(split, seed=seed, epochs=epochs, device=device, progress=progress)
    )
    return model.eval().to(device), trained
