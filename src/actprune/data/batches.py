"""The batches of calibration data, in whatever form it comes: all samples in one piece, or an iterable of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from actprune.data.samples import form
from actprune.errors import DataError

CHUNK = 32
"""Samples per batch at most where all of them come in one tensor."""

COUNTS = {2: "two", 3: "three", 4: "four"}
"""How many tensors side by side may be the inputs and labels of all samples."""


def chunk(samples: int, most: int = CHUNK) -> int:
    """How many samples make a batch: more than half of `most`, so that as few as can be are left over.

    600 samples are 20 batches of 30; with 32 in each, 24 would be lost.
    """
    return min(range(most, most // 2, -1), key=lambda size: samples % size)


def batches(calibration: Iterable[Any], most: int) -> Iterator[Any]:
    """The batches, of which no more than `most` samples are needed.

    One tensor, array or table holds all samples, and so does a dict of them, such as a tokenizer gives: iterating over
    these would give samples without a batch, or names.
    """
    whole = _whole(calibration)
    if whole is not None:
        count = _count(whole)
        return _divided(whole, count, chunk(min(count, most)))
    _check_batches(calibration)
    if isinstance(calibration, str | Path):
        raise _no_batches(repr(str(calibration)), "load what lies there: torch.load(path), numpy.load(path)")
    try:
        return iter(calibration)
    except TypeError as error:
        hint = "pass what it returns" if callable(calibration) else "put a single batch into a list: [batch]"
        raise _no_batches(type(calibration).__name__, hint) from error


def _no_batches(got: str, hint: str) -> DataError:
    return DataError(
        "The calibration data can't be iterated over.",
        expected="an iterable of batches, such as a list or a data loader",
        got=got,
        where="calibration",
        hint=hint,
    )


def _whole(calibration: Any) -> dict[Any, Any] | None:
    """All samples, where they come in one piece, under the names of the inputs; a lone one has the name None."""
    if isinstance(calibration, Mapping):
        named = {name: as_tensor(value) for name, value in calibration.items()}
        if any(map(_holds, named.values())):
            return named
        if any(isinstance(value, tuple | list) for value in named.values()):
            raise _no_tensors(named)
        return None
    if hasattr(calibration, "to_numpy") and hasattr(calibration, "iloc"):  # a table of pandas
        calibration = calibration.to_numpy()
        if calibration.dtype == np.float64:  # what a table has without being asked
            calibration = calibration.astype(np.float32)
    found = as_tensor(calibration)
    return {None: found} if _holds(found) else None


def _no_tensors(named: Mapping[Any, Any]) -> DataError:
    return DataError(
        "A dict holds all calibration samples, as tensors, and this one has none.",
        expected="tensors with the samples in their first dimension",
        got=", ".join(f"{name}: {type(value).__name__}" for name, value in named.items()),
        where="calibration",
        hint="make tensors of its lists: tokenizer(…, padding=True, return_tensors='pt'), or torch.tensor(values)",
    )


def _count(whole: Mapping[Any, Any]) -> int:
    """How many samples there are, of which every tensor has to have as many."""
    sizes = {name: len(value) for name, value in whole.items() if _holds(value)}
    if len(set(sizes.values())) > 1:
        raise DataError(
            "A dict of tensors holds all calibration samples, and these are not of one number.",
            expected="tensors with the samples in their first dimension",
            got=", ".join(f"{name}: {size}" for name, size in sizes.items()),
            where="calibration",
            hint="put a single batch into a list, [batch]; several batches are a list of dicts",
        )
    return next(iter(sizes.values()))


def _holds(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _divided(whole: dict[Any, Any], count: int, size: int) -> Iterator[Any]:
    for start in range(0, max(count, 1), size):
        part = {name: value[start : start + size] if _holds(value) else value for name, value in whole.items()}
        yield part.get(None, part)


def check_gives_batches(data: Any, where: str) -> None:
    """Refuse a data set of single samples."""
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise DataError(
            "A Dataset gives samples, not batches.",
            expected="an iterable of batches",
            got=type(data).__name__,
            where=where,
            hint="wrap it: DataLoader(dataset, batch_size=32), or DataLoader(dataset, batch_size=None) where its items "
            "are batches",
        )


def _check_batches(calibration: Any) -> None:
    """Refuse what holds single samples, and inputs and labels that are whole."""
    check_gives_batches(calibration, "calibration")
    if isinstance(calibration, tuple | list) and len(calibration) in COUNTS:
        _check_is_no_batch([as_tensor(value) for value in calibration], type(calibration).__name__)


def _check_is_no_batch(parts: list[Any], kind: str) -> None:
    """Refuse what `fit` of Keras or scikit-learn takes: whole tensors of as many samples, but not of one form, side by
    side."""
    if not all(map(_holds, parts)) or len({len(part) for part in parts}) > 1 or len(parts[0]) == 1:
        return
    if len({(part.dim(), part.is_floating_point()) for part in parts}) > 1:
        raise DataError(
            f"Inputs and labels side by side in a {kind} would be taken for {COUNTS[len(parts)]} batches.",
            expected="an iterable of batches",
            got=" and ".join(form(part) for part in parts),
            where="calibration",
            hint="write [(x, y)] for one batch of inputs and labels, [(a, b, y)] where the model needs two inputs, or "
            "zip(x.split(32), y.split(32)); a dict of tensors, {'a': a, 'b': b}, holds all samples",
        )


def as_tensor(value: Any) -> Any:
    """An array as a tensor, anything else as it is."""
    return torch.tensor(value) if isinstance(value, np.ndarray) else value
