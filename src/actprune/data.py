"""Calibration data: from whatever a user iterates over to equal batches that fit a captured program."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from actprune.errors import DataError
from actprune.graph.arguments import Arguments, by_name, call_arguments
from actprune.graph.program import Batch, Program
from actprune.graph.trace import check_ready

Forward = Callable[[Any, Any], Any]
"""`forward(model, batch)` calls the model on a batch; actprune notes what the model is called with."""

SIZE = 2048
"""Samples that are taken where nothing else is asked for."""

CHUNK = 32
"""Samples per batch where all of them come in one tensor."""


@dataclass(frozen=True, eq=False)
class Samples:
    """The calibration samples, taken once, before the model is captured.

    Attributes:
        leaves: the flat inputs; a batched one holds all samples in its first dimension.
        batched: which of them do.
        spec: pytree of `(args, kwargs)`.
        count: number of samples.
        batch_size: samples per batch as the user's data came.
        labels: (count, …) what the samples are labelled with, where it was asked for.
    """

    leaves: tuple[Any, ...] = field(repr=False)
    batched: tuple[bool, ...]
    spec: pytree.TreeSpec = field(repr=False)
    count: int
    batch_size: int
    labels: Tensor | None = field(default=None, repr=False)

    def batch(self, start: int, stop: int) -> tuple[Any, ...]:
        """The flat inputs of samples `start` to `stop`."""
        return tuple(x[start:stop] if b else x for x, b in zip(self.leaves, self.batched, strict=True))

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
        return _as_sent, (tree, self.leaves, self.batched, self.count, self.batch_size, self.labels)


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
    """

    batches: tuple[Batch, ...] = field(repr=False)
    samples: int
    left_over: int = 0
    labels: tuple[Tensor, ...] | None = field(default=None, repr=False)

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
        return Calibration(tuple(self.batches[i] for i in numbers), len(numbers) * size, labels=labels)


def evenly(total: int, count: int) -> list[int]:
    """`count` of the numbers below `total`, with even gaps."""
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def take(
    model: nn.Module,
    calibration: Iterable[Any] | Samples,
    size: int,
    forward: Forward | None = None,
    labels: bool = False,
) -> Samples:
    """Take up to `size` samples from any iterable of batches.

    A batch is a tensor (the input), a tuple or list (its first element is the input, as in a loader of (x, y)),
    or a dict (keyword arguments; keys that the model doesn't take are dropped). NumPy arrays count as tensors, and
    one tensor in place of the iterable holds all samples. `forward` overrides all that. `Samples` are given back as
    they are.

    Args:
        labels: take labels as well: the second element of a tuple or list, the entry "labels" of a dict.

    Raises:
        DataError: nothing to take, or batches that do not fit together.
        CaptureError: a model that can't be called as a Python class can: TorchScript, a lazy layer.
    """
    if isinstance(calibration, Samples):
        return calibration
    check_ready(model)

    def call(batch: Any) -> Arguments:
        return call_arguments(model, _input(batch)) if forward is None else _recorded(model, batch, forward)

    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return _gather(calibration, size, call, device, labels)


def first_batch(model: nn.Module, calibration: Iterable[Any], forward: Forward | None = None) -> Any:
    """The inputs that `capture` takes of the first calibration batch: all positional, or all by name."""
    for batch in calibration:
        return take(model, [batch], SIZE, forward, False).inputs
    return take(model, [], SIZE, forward, False)  # raises what is to be said of no data


def fit(
    program: Program,
    calibration: Iterable[Any] | Calibration | Samples,
    size: int | None = None,
    labels: bool = False,
) -> Calibration:
    """Calibration data in the batches that `program` takes.

    Args:
        size: how many samples to take at most where they are not taken yet; `SIZE` by default.
        labels: take labels as well where the samples are not taken yet, see `take`.

    Raises:
        DataError: fewer samples than one batch, or another form or shape than at capture.
    """
    if isinstance(calibration, Calibration):
        return calibration
    samples = calibration
    if not isinstance(samples, Samples):
        device = next((program.tensors[name].device for name in program.bindings.values()), torch.device("cpu"))
        samples = _gather(
            samples, size or SIZE, lambda batch: _program_arguments(program, _input(batch)), device, labels
        )
    samples = _as_captured(program, samples)
    step = program.batch_size
    starts = range(0, samples.count - step + 1, step)
    batches = tuple(samples.batch(i, i + step) for i in starts)
    if not batches:
        raise DataError(
            "There are fewer calibration samples than one captured batch.",
            expected=f"at least {step} samples",
            got=f"{samples.count}",
            where="calibration",
            hint="pass more data, or capture the model with a smaller batch",
        )
    held = None if samples.labels is None else tuple(samples.labels[i : i + step] for i in starts)
    return Calibration(batches, step * len(batches), samples.count - step * len(batches), held)


# -- from batches to samples -----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Piece:
    """One batch, flattened."""

    leaves: list[Any]
    spec: pytree.TreeSpec
    names: tuple[str, ...]
    count: int
    labels: Tensor | None = None

    def is_batched(self, position: int) -> bool:
        value = self.leaves[position]
        return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == self.count


def _gather(
    calibration: Iterable[Any], size: int, call: Callable[[Any], Arguments], device: torch.device, labels: bool
) -> Samples:
    if size < 1:
        raise DataError(
            "No calibration samples are asked for.",
            expected="at least 1",
            got=str(size),
            where="calibration_size",
            hint="some hundred samples are a good start",
        )
    pieces: list[_Piece] = []
    count = 0
    for batch in _iterate(calibration):
        piece = _piece(call(batch), pieces[0].names if pieces else None, device)
        if piece.count == 0:
            continue
        if labels:
            piece = replace(piece, labels=_labels(batch, piece.count, device))
        if pieces:
            _check_same_form(piece, pieces[0])
        pieces.append(piece)
        count += piece.count
        if count >= size:
            break
    if not pieces:
        raise DataError(
            "The calibration data is empty.",
            expected="an iterable with at least one batch of at least one sample",
            got=f"{type(calibration).__name__} without a sample",
            where="calibration",
            hint="pass a list of batches or a data loader; a generator that was used up before gives nothing",
        )
    first, count = pieces[0], min(count, size)
    batched = tuple(first.is_batched(i) for i in range(len(first.leaves)))
    leaves = tuple(
        torch.cat([piece.leaves[i] for piece in pieces])[:size] if b else first.leaves[i] for i, b in enumerate(batched)
    )
    known = [piece.labels for piece in pieces if piece.labels is not None]
    return Samples(
        leaves, batched, first.spec, count, min(first.count, count), torch.cat(known)[:size] if known else None
    )


def _labels(batch: Any, count: int, device: torch.device) -> Tensor:
    """(count, …) the labels of a batch."""
    found = None
    if isinstance(batch, Mapping):
        found = batch.get("labels")
    elif isinstance(batch, tuple | list) and len(batch) > 1:
        found = batch[1]
    found = _tensor(found)
    if not isinstance(found, Tensor) or found.dim() == 0 or found.shape[0] != count:
        raise DataError(
            "A calibration batch holds no labels.",
            expected=f'(inputs, labels), or a dict with "labels", and {count} of them in this batch',
            got=_form(found) if isinstance(found, Tensor) else type(batch).__name__,
            where="calibration, with loss=",
            hint="leave out loss= to take the model's own predictions; a model that predicts its input gets (x, x)",
        )
    return found.detach().to(device)


def _iterate(calibration: Iterable[Any]) -> Iterator[Any]:
    if isinstance(calibration, Tensor | np.ndarray):  # iterating over it would give samples without a batch
        return iter(_tensor(calibration).split(CHUNK))
    try:
        return iter(calibration)
    except TypeError as error:
        raise DataError(
            "The calibration data can't be iterated over.",
            expected="an iterable of batches, such as a list or a data loader",
            got=type(calibration).__name__,
            where="calibration",
            hint="put a single batch into a list: [batch]",
        ) from error


def _tensor(value: Any) -> Any:
    return torch.tensor(value) if isinstance(value, np.ndarray) else value


def _input(batch: Any) -> Any:
    """What a batch holds for the model."""
    if isinstance(batch, tuple | list):
        batch = batch[0] if batch else batch
    if isinstance(batch, Tensor | np.ndarray | Mapping | tuple | list):
        return batch
    raise DataError(
        "A calibration batch is of no kind that actprune knows.",
        expected="a tensor, a tuple or list whose first element is the input, or a dict",
        got=type(batch).__name__,
        where="calibration",
        hint="say with forward= how to call the model on a batch",
    )


def _piece(call: Arguments, names: tuple[str, ...] | None, device: torch.device) -> _Piece:
    """A call flattened, its keyword arguments in the order of `names` where they are the same ones."""
    args, kwargs = call
    if names is not None and set(names) == set(kwargs):
        kwargs = {name: kwargs[name] for name in names}
    flat, spec = pytree.tree_flatten((args, kwargs))
    flat = [_tensor(v) for v in flat]
    batched = [v for v in flat if isinstance(v, Tensor) and v.dim() > 0]
    if flat and not batched:
        raise DataError(
            "A calibration batch holds no tensor with a batch dimension.",
            expected="at least one tensor, samples first",
            got=", ".join(type(v).__name__ for v in flat),
            where="calibration",
            hint="make tensors of the inputs, or say with forward= how to call the model on a batch",
        )
    leaves = [v.detach().to(device) if isinstance(v, Tensor) else v for v in flat]
    return _Piece(leaves, spec, tuple(kwargs), int(batched[0].shape[0]) if batched else 0)


def _check_same_form(piece: _Piece, first: _Piece) -> None:
    """What is concatenated must have the same sample shape and type; what is not must be the same in every batch."""
    if piece.spec != first.spec:
        raise _misfit(str(first.spec), str(piece.spec))
    for i, (own, other) in enumerate(zip(piece.leaves, first.leaves, strict=True)):
        if first.is_batched(i):
            if not piece.is_batched(i):
                raise _misfit(f"{piece.count} samples in every input", f"{len(own)} in input {i}")
            if (own.shape[1:], own.dtype) != (other.shape[1:], other.dtype):
                raise _misfit(_form(other[0]), _form(own[0]))
        elif not _equal(own, other):
            raise _misfit(f"input {i} without a batch dimension to be the same in all of them", "different values")


def _misfit(first: str, found: str) -> DataError:
    return DataError(
        "The calibration batches do not fit together.",
        expected=f"every batch like the first: {first}",
        got=found,
        where="calibration",
        hint="resize or pad the samples to one shape, or give the inputs one by one with forward=",
    )


def _form(value: Any) -> str:
    """Shape and dtype of a sample, for messages."""
    if not isinstance(value, Tensor):
        return repr(value)
    return f"shape {tuple(value.shape)} and {str(value.dtype).removeprefix('torch.')}"


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return bool(a == b)


# -- how the model is called -----------------------------------------------------------------------


class _Recorder:
    """Called in the model's place by a user's `forward`, it notes with what; else it is like the model."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.called: Arguments | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.called = args, kwargs
        raise _Recorded

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class _Recorded(Exception):
    """A signal, not an error: `forward` has called the model, the rest of it is not needed."""


def _recorded(model: nn.Module, batch: Any, forward: Forward) -> Arguments:
    recorder = _Recorder(model)
    with contextlib.suppress(_Recorded):
        forward(recorder, batch)
    if recorder.called is None:
        raise DataError(
            "forward= did not call the model.",
            expected="a function forward(model, batch) that calls model(…) once",
            got="a return without that call",
            where="forward",
            hint="for example forward=lambda model, batch: model(batch['image'])",
        )
    args, kwargs = recorder.called
    return _by_keyword(model, args, kwargs) if args and kwargs else (args, kwargs)


def _by_keyword(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """A call with both kinds of arguments as one with keywords alone, which is how the model is then captured."""
    named = by_name(model, args)
    if named is None or named.keys() & kwargs.keys():
        raise DataError(
            f"forward= calls the model in a way that {type(model).__name__}.forward can't be captured with.",
            expected=f"each argument of forward{inspect.signature(model.forward)} once",
            got=f"{len(args)} arguments by position, and {', '.join(kwargs)}",
            where="forward",
            hint="pass all of them by position, or all of them by name",
        )
    return (), {**named, **kwargs}


def _program_arguments(program: Program, inputs: Any) -> Arguments:
    """As `call_arguments`, for a model that is captured already."""
    if isinstance(inputs, Mapping):
        names = program.kwarg_names
        kwargs = {name: inputs[name] for name in names if name in inputs}
        if not kwargs:
            raise DataError(
                f"No key of the batch is a keyword argument that {program.model_name} was captured with.",
                expected=f"keys among {', '.join(names)}" if names else "a tensor or a tuple, as at capture",
                got=", ".join(map(str, inputs)),
                where="calibration",
                hint="capture the model with a dict of these keys, or pass batches like the example inputs",
            )
        return (), {**program.added, **kwargs}
    args = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    if program.added and len(args) <= len(program.kwarg_names):  # then the capture has named them all
        return (), {**program.added, **dict(zip(program.kwarg_names, args, strict=False))}
    return args, {}


# -- against the capture ---------------------------------------------------------------------------


def _as_captured(program: Program, samples: Samples) -> Samples:
    """The samples with their inputs in the order of the capture, each checked against its example."""
    args, kwargs = pytree.tree_unflatten(list(samples.leaves), samples.spec)
    leaves = program.flatten(args, kwargs)
    args, kwargs = pytree.tree_unflatten(list(samples.batched), samples.spec)
    batched = program.flatten(args, kwargs)
    for i, (given, example) in enumerate(zip(leaves, program.example, strict=True)):
        known, found = (
            _form(value[0]) if of_samples else _form(value)
            for value, of_samples in ((example, program.is_batched(i)), (given, batched[i]))
        )
        if known != found or program.is_batched(i) != batched[i]:
            raise DataError(
                "The calibration batches do not have the captured shape.",
                expected=("samples of " if program.is_batched(i) else "") + known,
                got=("samples of " if batched[i] else "") + found,
                where=f"input {i} of {program.model_name}",
                hint="capture the model with a batch of this data, or make the data like the example",
            )
    return replace(samples, leaves=leaves, batched=batched, spec=program.in_spec)
