"""Calibration samples: as they were taken, and in the batches that a captured program takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from actprune.graph.program import Batch


@dataclass(frozen=True, eq=False)
class PerBatch:
    """An input without a batch dimension that is another one in every batch: the edges of a graph, a time step.

    Batches are then used as they came.
    """

    values: tuple[Tensor, ...] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Samples:
    """The calibration samples, taken once, before the model is captured.

    Attributes:
        leaves: the flat inputs; a batched one holds all samples in its first dimension, any other one is the same
            for all, or a `PerBatch`.
        batched: which of them do.
        spec: pytree of `(args, kwargs)`.
        count: number of samples.
        batch_size: samples per batch as the user's data came.
        labels: (count, …) what the samples are labelled with, where it was asked for.
        valued: shape of the label beside a sample, where it is several numbers and no probabilities: those of a
            regression, or of several classes at a time.
        classes: how many labels there are, where each sample has a whole number beside it.
    """

    leaves: tuple[Any, ...] = field(repr=False)
    batched: tuple[bool, ...]
    spec: pytree.TreeSpec = field(repr=False)
    count: int
    batch_size: int
    labels: Tensor | None = field(default=None, repr=False)
    valued: tuple[int, ...] | None = None
    classes: int | None = None

    def batch(self, start: int, stop: int) -> tuple[Any, ...]:
        """The flat inputs of samples `start` to `stop`."""
        whole = (x.values[start // self.batch_size] if isinstance(x, PerBatch) else x for x in self.leaves)
        return tuple(x[start:stop] if b else x for x, b in zip(whole, self.batched, strict=True))

    @property
    def as_they_came(self) -> bool:
        """Whether the batches can be no others than the user's."""
        return any(isinstance(x, PerBatch) for x in self.leaves)

    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`(args, kwargs)` of the first batch, to capture the model with."""
        return pytree.tree_unflatten(list(self.batch(0, self.batch_size)), self.spec)

    @property
    def inputs(self) -> Any:
        """The first batch as `capture` takes it: all positional, or all by name."""
        args, kwargs = self.example()
        return kwargs or args

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: the containers themselves, since reading a `TreeSpec` back warns."""
        tree = pytree.tree_unflatten(list(range(len(self.leaves))), self.spec)
        rest = self.count, self.batch_size, self.labels, self.valued, self.classes
        return _as_sent, (tree, self.leaves, self.batched, *rest)


def _as_sent(tree: Any, leaves: tuple[Any, ...], batched: tuple[bool, ...], *rest: Any) -> Samples:
    return Samples(leaves, batched, pytree.tree_structure(tree), *rest)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration samples in batches of the captured size.

    Attributes:
        batches: flat inputs, see `Program.flatten`.
        samples: number of samples in them.
        left_over: samples that did not fill a batch and are not used.
        labels: one tensor per batch, samples first; None where labels were not asked for.
        valued, classes: see `Samples`.
    """

    batches: tuple[Batch, ...] = field(repr=False)
    samples: int
    left_over: int = 0
    labels: tuple[Tensor, ...] | None = field(default=None, repr=False)
    valued: tuple[int, ...] | None = None
    classes: int | None = None

    def subset(self, samples: int) -> Calibration:
        """The first batches that hold about `samples` samples, at least one batch."""
        size = self.samples // len(self.batches)
        count = max(1, min(len(self.batches), samples // size))
        return self.part(range(count))

    def holdout(self, share: float = 0.25) -> tuple[Calibration, Calibration]:
        """The batches in two parts, the second with about `share` of them; the same one twice if there is one."""
        total = len(self.batches)
        if total == 1:
            return self, self
        count = min(max(1, round(total * share)), total - 1)
        chosen = evenly(total, count)
        rest, held = ([i for i in range(total) if (i in chosen) is wanted] for wanted in (False, True))
        return self.part(rest), self.part(held)

    def part(self, numbers: Sequence[int]) -> Calibration:
        """Some of the batches; none at all, if there are no numbers."""
        size = self.samples // len(self.batches)
        labels = None if self.labels is None else tuple(self.labels[i] for i in numbers)
        batches = tuple(self.batches[i] for i in numbers)
        return Calibration(batches, len(numbers) * size, labels=labels, valued=self.valued)

    def joined(self, other: Calibration) -> Calibration:
        """The batches of both, of one size."""
        labels = None if self.labels is None or other.labels is None else (*self.labels, *other.labels)
        count = self.samples + other.samples
        return Calibration((*self.batches, *other.batches), count, labels=labels, valued=self.valued)


def evenly(total: int, count: int) -> list[int]:
    """`count` of the numbers below `total`, with even gaps."""
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def form(value: Any) -> str:
    """Shape and dtype of a sample, for messages."""
    if not isinstance(value, Tensor):
        return repr(value)
    return f"shape {tuple(value.shape)} and {str(value.dtype).removeprefix('torch.')}"
