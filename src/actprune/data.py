"""Calibration data: from whatever a user iterates over to equal batches that fit a captured program."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from actprune.errors import DataError
from actprune.graph.program import Batch, Program
from actprune.graph.trace import call_arguments

Forward = Callable[[Any, Any], Any]
"""`forward(model, batch)` calls the model on a batch; actprune notes what the model is called with."""


@dataclass(frozen=True, eq=False)
class Samples:
    """The calibration samples, taken once, before the model is captured.

    Attributes:
        leaves: the flat inputs; a batched one holds all samples in its first dimension.
        batched: which of them do.
        spec: pytree of `(args, kwargs)`.
        count: number of samples.
        batch_size: samples per batch as the user's data came.
    """

    leaves: tuple[Any, ...] = field(repr=False)
    batched: tuple[bool, ...]
    spec: pytree.TreeSpec = field(repr=False)
    count: int
    batch_size: int

    def batch(self, start: int, stop: int) -> tuple[Any, ...]:
        """The flat inputs of samples `start` to `stop`."""
        return tuple(x[start:stop] if b else x for x, b in zip(self.leaves, self.batched, strict=True))

    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`(args, kwargs)` of the first batch, to capture the model with."""
        return pytree.tree_unflatten(list(self.batch(0, self.batch_size)), self.spec)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration samples in batches of the captured size.

    Attributes:
        batches: flat inputs, see `Program.flatten`.
        samples: number of samples in them.
        left_over: samples that did not fill a batch and are not used.
    """

    batches: tuple[Batch, ...] = field(repr=False)
    samples: int
    left_over: int = 0

    def subset(self, samples: int) -> Calibration:
        """The first batches that hold about `samples` samples, at least one batch."""
        size = self.samples // len(self.batches)
        count = max(1, min(len(self.batches), samples // size))
        return Calibration(self.batches[:count], count * size)

    def holdout(self, share: float = 0.25) -> tuple[Calibration, Calibration]:
        """The batches in two parts, the second with about `share` of them; the same ones twice if there is one."""
        size, count = self.samples // len(self.batches), round(len(self.batches) * share)
        if count == 0 or count == len(self.batches):
            return self, self
        every = max(2, round(1 / share))
        held = tuple(b for i, b in enumerate(self.batches) if i % every == every - 1)
        rest = tuple(b for i, b in enumerate(self.batches) if i % every != every - 1)
        return Calibration(rest, len(rest) * size), Calibration(held, len(held) * size)


def take(
    model: nn.Module, calibration: Iterable[Any], size: int, forward: Forward | None = None
) -> Samples:
    """Take up to `size` samples from any iterable of batches.

    A batch is a tensor (the input), a tuple or list (its first element is the input, as in a loader of (x, y)),
    or a dict (keyword arguments; keys that the model doesn't take are dropped). `forward` overrides all that.

    Raises:
        DataError: nothing to take, or batches that do not fit together.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    pieces: list[list[Any]] = []
    spec: pytree.TreeSpec | None = None
    batched: tuple[bool, ...] = ()
    count = first_size = 0
    for batch in calibration:
        args, kwargs = _call(model, batch, forward)
        flat, found = pytree.tree_flatten((args, kwargs))
        n = next((int(v.shape[0]) for v in flat if isinstance(v, Tensor) and v.dim() > 0), 0)
        if spec is None:
            spec, first_size = found, n
            batched = tuple(isinstance(v, Tensor) and v.dim() > 0 and v.shape[0] == n for v in flat)
        if n == 0:
            continue
        _check_piece(found, spec, flat, pieces)
        pieces.append([v.detach().to(device) if isinstance(v, Tensor) else v for v in flat])
        count += n
        if count >= size:
            break
    if spec is None or count == 0:
        raise DataError(
            "The calibration data is empty.",
            expected="an iterable with at least one batch of at least one sample",
            got=f"{type(calibration).__name__} without a sample",
            where="calibration",
            hint="pass a list of batches or a data loader; a generator that was used up before gives nothing",
        )
    leaves = tuple(
        torch.cat([piece[i] for piece in pieces])[:size] if batched[i] else pieces[0][i] for i in range(len(batched))
    )
    count = min(count, size)
    return Samples(leaves, batched, spec, count, min(first_size, count))


def fit(program: Program, calibration: Iterable[Any] | Calibration | Samples, size: int | None = None) -> Calibration:
    """Calibration data in the batches that `program` takes.

    Raises:
        DataError: fewer samples than one batch, or another shape than at capture.
    """
    if isinstance(calibration, Calibration):
        return calibration
    samples = calibration
    if not isinstance(samples, Samples):
        samples = take(_Signature(program), samples, size or 2048)
    for position, (given, example) in enumerate(zip(samples.leaves, program.example, strict=True)):
        if isinstance(example, Tensor) and program.is_batched(position) and given.shape[1:] != example.shape[1:]:
            raise DataError(
                "The calibration batches do not have the captured shape.",
                expected=f"samples of shape {tuple(example.shape[1:])}",
                got=f"samples of shape {tuple(given.shape[1:])}",
                where=f"input {position} of {program.model_name}",
                hint="capture the model with a batch of this data, or make the data like the example",
            )
    step = program.batch_size
    batches = tuple(samples.batch(i, i + step) for i in range(0, samples.count - step + 1, step))
    if not batches:
        raise DataError(
            "There are fewer calibration samples than one captured batch.",
            expected=f"at least {step} samples",
            got=f"{samples.count}",
            where="calibration",
            hint="pass more data, or capture the model with a smaller batch",
        )
    return Calibration(batches, step * len(batches), samples.count - step * len(batches))


class _Signature(nn.Module):
    """Stands for the captured model where only the names of its keyword arguments are asked for."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self._buffers["device"] = next(iter(program.tensors.values()), torch.zeros(0))
        names = program.kwarg_names
        parameters = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in names]
        self.forward = lambda: None
        self.forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]


class _Recorder:
    """Called in the model's place by a user's `forward`, it notes with what."""

    def __init__(self) -> None:
        self.called: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.called = args, kwargs
        raise _Recorded


class _Recorded(Exception):  # noqa: N818  (a signal, not an error)
    pass


def _call(model: nn.Module, batch: Any, forward: Forward | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if forward is not None:
        recorder = _Recorder()
        try:
            forward(recorder, batch)
        except _Recorded:
            pass
        if recorder.called is None:
            raise DataError(
                "forward= did not call the model.",
                expected="a function forward(model, batch) that calls model(…) once",
                got="a return without that call",
                where="forward",
                hint="for example forward=lambda model, batch: model(batch['image'])",
            )
        return recorder.called
    if isinstance(batch, tuple | list) and not isinstance(batch, Mapping):
        if not batch:
            return (), {}
        batch = batch[0]
    if isinstance(batch, Tensor | Mapping | tuple | list):
        return call_arguments(model, batch)
    raise DataError(
        "A calibration batch is of no kind that actprune knows.",
        expected="a tensor, a tuple or list whose first element is the input, or a dict",
        got=type(batch).__name__,
        where="calibration",
        hint="say with forward= how to call the model on a batch",
    )


def _check_piece(found: pytree.TreeSpec, spec: pytree.TreeSpec, flat: list[Any], pieces: list[list[Any]]) -> None:
    shapes = [tuple(v.shape[1:]) for v in flat if isinstance(v, Tensor)]
    before = [tuple(v.shape[1:]) for v in pieces[0] if isinstance(v, Tensor)] if pieces else shapes
    if found != spec or shapes != before:
        raise DataError(
            "The calibration batches do not fit together.",
            expected=f"every batch like the first: {before if found == spec else spec}",
            got=str(shapes if found == spec else found),
            where="calibration",
            hint="resize or pad the samples to one shape",
        )
