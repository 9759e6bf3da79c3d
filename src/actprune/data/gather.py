"""From whatever a user iterates over to samples in one piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from actprune.data.batches import as_tensor, batches
from actprune.data.samples import PerBatch, Samples, form
from actprune.errors import DataError
from actprune.graph.arguments import Arguments
from actprune.graph.program import holds_samples
from actprune.graph.sparse import parts_of

WHOLE = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)

SHARES = 0.02
"""How far from 1 the sum of a sample's class probabilities may be: half precision rounds."""


@dataclass(frozen=True, eq=False)
class _Piece:
    """One batch, flattened, with what is told beside it: see `Samples`. `valued` is known of the first one alone."""

    leaves: list[Any]
    spec: pytree.TreeSpec
    names: tuple[str, ...]
    count: int
    labels: Tensor | None = None
    valued: tuple[int, ...] | None = None
    classes: set[int] | None = None

    def is_batched(self, position: int) -> bool:
        value = self.leaves[position]
        return holds_samples(value, self.count)

    def whole(self, size: int) -> int:
        """So many samples as whole batches, at least one, where an input may belong to all samples of a batch: the
        edges between them, say."""
        others = [x for i, x in enumerate(self.leaves) if isinstance(x, Tensor) and x.dim() and not self.is_batched(i)]
        return max(size - size % self.count, self.count) if others else size


def gather(
    calibration: Iterable[Any],
    size: int,
    call: Callable[[Any], tuple[Arguments, tuple[Any, ...]]],
    device: torch.device,
    labels: bool,
    beside: bool = False,
) -> Samples:
    """Up to `size` samples of the batches, on `device`.

    Args:
        call: of a batch, how the model is called, and what stands beside that, labels first.
        labels: take the labels as well.
        beside: what stands where labels do is none of the inputs: its form tells what they are.
    """
    if not isinstance(size, Integral) or size < 1:
        raise DataError(
            "This is no number of calibration samples.",
            expected="a whole number, at least 1",
            got=repr(size),
            where="calibration_size",
            hint="some hundred samples are a good start",
        )
    pieces = list(_pieces(calibration, size, call, device, labels, beside))
    if not pieces:
        raise DataError(
            "The calibration data is empty.",
            expected="an iterable with at least one batch of at least one sample",
            got=f"{type(calibration).__name__} without a sample",
            where="calibration",
            hint="pass a list of batches or a data loader; a generator that was used up before gives nothing",
        )
    first, size = pieces[0], pieces[0].whole(size)
    count = min(sum(piece.count for piece in pieces), size)
    batched = tuple(first.is_batched(i) for i in range(len(first.leaves)))
    leaves = tuple(
        torch.cat([piece.leaves[i] for piece in pieces])[:size] if b else _one_or_each([p.leaves[i] for p in pieces])
        for i, b in enumerate(batched)
    )
    if any(isinstance(leaf, PerBatch) for leaf in leaves) and any(p.count != first.count for p in pieces[:-1]):
        counts = ", ".join(str(piece.count) for piece in pieces[:8])
        raise _misfit(f"{first.count} samples, since an input differs from batch to batch", f"batches of {counts}")
    known = [piece.labels for piece in pieces if piece.labels is not None]
    seen = [piece.classes for piece in pieces if piece.classes is not None]
    return Samples(
        leaves, batched, first.spec, count, min(first.count, count), torch.cat(known)[:size] if known else None,
        first.valued, len(set[int]().union(*seen)) if len(seen) == len(pieces) else None,
    )  # fmt: skip


def _pieces(
    calibration: Iterable[Any],
    size: int,
    call: Callable[[Any], tuple[Arguments, tuple[Any, ...]]],
    device: torch.device,
    labels: bool,
    beside: bool,
) -> Iterator[_Piece]:
    """The batches with a sample, each of the form of the first, until there are so many samples; see `gather`."""
    first, count = None, 0
    for batch in batches(calibration, size):
        how, others = call(batch)
        found = others[0] if others else None
        piece = _piece(how, None if first is None else first.names, device)
        if piece.count == 0:
            continue
        if labels:
            piece = replace(piece, labels=_labels(found, piece.count, device))
        if beside:
            piece = replace(piece, classes=_classes(found, piece.count))
        if first is None:
            first = piece = replace(piece, valued=_valued(found, piece.count) if beside else None)
            size = first.whole(size)
        else:
            _check_same_form(piece, first)
        yield piece
        count += piece.count
        if count >= size:
            break


def _labels(found: Any, count: int, device: torch.device) -> Tensor:
    """(count, …) the labels of a batch."""
    found = as_tensor(found)
    if not isinstance(found, Tensor) or found.dim() == 0 or found.shape[0] != count:
        raise DataError(
            "A calibration batch holds no labels.",
            expected=f'(inputs, labels), or a dict with "labels", and {count} of them in this batch',
            got=form(found) if isinstance(found, Tensor) else "none" if found is None else type(found).__name__,
            where="calibration, with loss=",
            hint="leave out loss= to take the model's own predictions; a model that predicts its input gets (x, x)",
        )
    return found.detach().to(device)


def _valued(found: Any, count: int) -> tuple[int, ...] | None:
    """See `Samples.valued`. Labels may be of any kind: nothing is demanded of those that are not such numbers."""
    if isinstance(found, np.ndarray) and found.dtype.kind in "fiub":
        found = torch.tensor(found)
    if not isinstance(found, Tensor) or found.is_complex() or found.layout != torch.strided:
        return None
    if found.is_nested or found.dim() < 2 or found.shape[0] != count or not found.numel():
        return None
    rows = found.detach().double().flatten(0, -2)
    rows = rows[(rows != 0).any(1)]  # one that is all zero may stand for no class at all
    shares = bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() <= SHARES).all())
    return None if shares else tuple(found.shape[1:])


def _classes(found: Any, count: int) -> set[int] | None:
    """The labels beside the samples of a batch, where they are one whole number each."""
    if isinstance(found, Tensor):
        whole = found.dtype in WHOLE and found.layout == torch.strided and not found.is_nested
    else:
        whole = isinstance(found, np.ndarray) and found.dtype.kind in "iu"
    return set(found.reshape(-1).tolist()) if whole and math.prod(found.shape) == count else None


def _piece(call: Arguments, names: tuple[str, ...] | None, device: torch.device) -> _Piece:
    """A call flattened, its keyword arguments in the order of `names` where they are the same ones."""
    args, kwargs = call
    if names is not None and set(names) == set(kwargs):
        kwargs = {name: kwargs[name] for name in names}
    flat, spec = pytree.tree_flatten((args, kwargs))
    flat = [as_tensor(v) for v in flat]
    batched = [v for v in flat if isinstance(v, Tensor) and v.dim() > 0 and v.layout == torch.strided]
    if flat and not batched:
        raise DataError(
            "A calibration batch holds no tensor with a batch dimension.",
            expected="at least one tensor, samples first",
            got=", ".join(type(v).__name__ for v in flat),
            where="calibration",
            hint="make tensors of the inputs: the model has to be called with tensors, tuples or dicts of them, not "
            "with another object; say with forward= how, such as forward=lambda model, batch: model(batch.x). "
            "Rows of a data set are put together by a DataLoader",
        )
    leaves = [_plain(v, device) if isinstance(v, Tensor) else v for v in flat]
    return _Piece(leaves, spec, tuple(kwargs), int(batched[0].shape[0]) if batched else 0)


def _plain(value: Tensor, device: torch.device) -> Tensor:
    """One that gradients may be taken past: what was made in inference mode is copied."""
    return (value.clone() if value.is_inference() else value.detach()).to(device)


def _check_same_form(piece: _Piece, first: _Piece) -> None:
    """What is concatenated must have the same sample shape and type, what is not the same shape and type."""
    if piece.spec != first.spec:
        raise _misfit(str(first.spec), str(piece.spec))
    for i, (own, other) in enumerate(zip(piece.leaves, first.leaves, strict=True)):
        if first.is_batched(i):
            if not piece.is_batched(i):
                raise _misfit(f"{piece.count} samples in every input", f"{len(own)} in input {i}")
            if (own.shape[1:], own.dtype) != (other.shape[1:], other.dtype):
                raise _misfit(form(other[0]), form(own[0]))
        elif not isinstance(own, Tensor) or not isinstance(other, Tensor):
            if not _equal(own, other):  # the graph holds it as a constant
                raise _misfit(f"input {i}, which is no tensor, is {other!r}", repr(own))
        elif (own.shape, own.dtype) != (other.shape, other.dtype):
            raise _misfit(f"input {i}, which holds no samples, has {form(other)}", form(own))


def _one_or_each(values: list[Any]) -> Any:
    """An input that holds no samples: itself where it is the same in all batches."""
    same = all(_equal(value, values[0]) for value in values[1:])
    return values[0] if same else PerBatch(tuple(values))


def _misfit(first: str, found: str) -> DataError:
    return DataError(
        "The calibration batches do not fit together.",
        expected=f"every batch like the first: {first}",
        got=found,
        where="calibration",
        hint="resize or pad the samples to one shape, leave out a shorter last batch, pass what differs as a tensor",
    )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and all(map(_same, parts_of(a), parts_of(b)))
    return bool(a == b)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)
