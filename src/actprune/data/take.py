"""Calibration data: the samples of a model's calls, and equal batches of them that fit a captured program."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from actprune.data.batches import batches as batches_of
from actprune.data.calls import Forward, as_call, as_captured_call, check_forward
from actprune.data.gather import gather
from actprune.data.samples import Calibration, PerBatch, Samples, form
from actprune.errors import DataError
from actprune.graph.program import Program
from actprune.graph.trace import check_ready

SIZE = 2048
"""Samples that are taken where nothing else is asked for."""


def take(
    model: nn.Module,
    calibration: Iterable[Any] | Samples,
    size: int,
    forward: Forward | None = None,
    labels: bool = False,
) -> Samples:
    """Take up to `size` samples from any iterable of batches.

    A batch is a tensor (the input), a tuple or list (its first element is the input, as in a loader of (x, y); see
    `parted` for a model that needs several), or a dict (keyword arguments; keys that the model doesn't take are
    dropped). NumPy arrays count as tensors, and one tensor in place of the iterable holds all samples, as does a dict
    of them or a table of pandas. `forward` overrides all that. `Samples` are given back as they are.

    Args:
        labels: take labels as well: what stands behind the inputs in a tuple or list, the entry "labels" of a dict.

    Raises:
        DataError: nothing to take, or batches that do not fit together.
        CaptureError: a model that can't be called as a Python class can: TorchScript, a lazy layer.
    """
    if isinstance(calibration, Samples):
        return calibration
    check_ready(model)
    if forward is not None:
        check_forward(forward)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return gather(calibration, size, lambda batch: as_call(model, batch, forward), device, labels, forward is None)


def first_batch(model: nn.Module, calibration: Iterable[Any]) -> Any:
    """The inputs that `capture` takes of the first calibration batch: all positional, or all by name."""
    for batch in batches_of(calibration, SIZE):
        return take(model, [batch], SIZE).inputs
    return take(model, [], SIZE)  # raises what is to be said of no data


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
        most = size or max(SIZE, program.batch_size)
        samples = gather(samples, most, lambda batch: as_captured_call(program, batch), device, labels, True)
    samples = _as_captured(program, samples)
    step = program.batch_size
    if samples.as_they_came and step != samples.batch_size:
        raise DataError(
            "The calibration batches can only be used as they came: an input differs from one to the next.",
            expected=f"batches of {step}, as the model was captured with",
            got=f"batches of {samples.batch_size}",
            where=f"calibration of {program.model_name}",
            hint="capture the model with the first of these batches",
        )
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
    rest = samples.count - step * len(batches)
    return Calibration(batches, step * len(batches), rest, held, samples.valued, samples.classes)


def _as_captured(program: Program, samples: Samples) -> Samples:
    """The samples with their inputs in the order of the capture, each checked against its example."""
    args, kwargs = pytree.tree_unflatten(list(samples.leaves), samples.spec)
    leaves = program.flatten(args, kwargs)
    args, kwargs = pytree.tree_unflatten(list(samples.batched), samples.spec)
    batched = program.flatten(args, kwargs)
    for i, (given, example) in enumerate(zip(leaves, program.example, strict=True)):
        known, found = (
            form(value[0] if of_samples else value.values[0] if isinstance(value, PerBatch) else value)
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
