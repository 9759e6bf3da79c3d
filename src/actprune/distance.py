"""How far apart the outputs of two networks are; 0 for equal ones.

`"auto"`: Kullback-Leibler divergence at temperature 4 where the output is a matrix of logits or probabilities, or has
one logit for every row of a table of embeddings, as a language model's, step by step or at once (Hinton et al. 2015; at
T = 1 easy calibration samples saturate and the distance says little), else the squared error of the outputs as a share
of the dense outputs' variance.

The last op of a regressor or an embedding may be that of a classifier; its values count, not their softmax. So where
there is data, a matrix without a softmax has to be as sure of a class as logits are, and samples that come with labels
must not have values of its shape (`resolve`). Where nothing is sure squares say the same as the divergence, but for
what all classes have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import log
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from actprune.data.samples import Calibration, evenly
from actprune.errors import DataError, PlanError
from actprune.graph.output_kinds import compared, output_kind, tensor_outputs
from actprune.graph.program import Program, shape
from actprune.graph.run import run
from actprune.graph.values import as_real, is_float
from actprune.methods import known

DISTANCES = ("auto", "kl", "mse")
"""The distances that have a name."""

TEMPERATURE = 4.0

CHUNK = 2**22
"""Logits that are compared at once."""

LOOKED_AT = 64
"""Samples whose outputs tell whether they are logits, and of unlike scale."""

_LEAST = -1e30
"""Of logits: that of a class which is masked out is −∞, and the same in both networks."""

UNSURE = 0.7
"""Mean entropy of a softmax, as a share of the largest there is, above which its inputs are taken for values."""

Outputs: TypeAlias = tuple[Any, ...]
"""The flat outputs of one batch."""

Distance: TypeAlias = Callable[[Sequence[Outputs], Sequence[Outputs]], float]
"""(outputs of the dense network per batch, of the candidate) → distance ≥ 0."""

Objective: TypeAlias = Callable[[Outputs, Outputs], Tensor]
"""(outputs of the dense network on one batch, of a network in training) → the same as a scalar with a gradient."""


def resolve(program: Program, distance: str | Distance, data: Calibration) -> str | Distance:
    """What "auto" is for a program on these samples: "kl" or "mse"; any other distance as it is."""
    if distance != "auto":
        return distance
    kind = output_kind(program)
    if kind == "logits" and data.valued is not None and data.valued == shape(tensor_outputs(program)[0])[1:]:
        return "mse"
    if kind != "logits" or len(shape(tensor_outputs(program)[0])) > 2:
        return "mse" if kind == "values" else "kl"
    rows = torch.cat(list(map(_rows, some_outputs(program, data)))).double()
    logs = torch.log_softmax(rows, -1)
    return "mse" if float(-(logs.exp() * logs).sum(-1).mean()) > UNSURE * log(rows.shape[-1]) else "kl"


def some_outputs(program: Program, data: Calibration) -> list[Outputs]:
    """Per batch, of about `LOOKED_AT` samples from all over the data, what they tell of the outputs."""
    wanted = min(len(data.batches), -(-LOOKED_AT // program.batch_size))
    return [run(program, data.batches[i]) for i in evenly(len(data.batches), wanted)]


def choose(program: Program, distance: str | Distance = "auto") -> Distance:
    """The distance for a program: "kl", "mse", "auto", or a callable, which is returned as it is.

    "auto" goes by the last op alone here; where there is data, `resolve` it first.

    Raises:
        PlanError: an unknown name, or "kl" for outputs without two or more classes in their last dimension.
    """
    if callable(distance):
        return distance
    known(distance, DISTANCES, "distance")
    kind = output_kind(program)
    if _compares_values(kind, distance):
        return normalised_error
    _check_classes(program)
    return lambda dense, cut: divergence(dense, cut, kind)


def judge(program: Program, distance: str | Distance = "auto") -> Distance:
    """`choose` for outputs in which padding is NaN; a function of the user's own gets zeros there, in both alike."""
    chosen = choose(program, distance)
    return partial(_blank, chosen) if callable(distance) else chosen


def objective(program: Program, distance: str | Distance = "auto") -> Objective:
    """What to train by so that `choose(program, distance)` falls; for a callable, what "auto" compares.

    The divergence is times the squared temperature, so that its gradient does not depend on that (Hinton et al. 2015).

    Raises:
        DataError: outputs without a floating-point number, which have no gradient.
    """
    _check_slopes(program)
    kind = output_kind(program)
    if _compares_values(kind, "auto" if callable(distance) else distance):
        return batch_error
    return lambda dense, cut: TEMPERATURE**2 * _divergences(dense, cut, kind, torch.float32).mean()


def unit(program: Program, distance: str | Distance, dense: Outputs) -> float:
    """What the objective says of a network that gives the mean of these outputs for every sample: 1 for values."""
    kind = output_kind(program)
    if _compares_values(kind, "auto" if callable(distance) else distance):
        return 1.0
    rows = _told(dense, dense)[0]
    return float(objective(program, distance)((rows,), (rows.mean(0, keepdim=True).expand_as(rows),)))


def _compares_values(kind: str, distance: str) -> bool:
    return distance == "mse" or (distance == "auto" and kind == "values")


def divergence(dense: Sequence[Outputs], cut: Sequence[Outputs], kind: str = "logits") -> float:
    """Mean KL(dense ‖ cut) in nats at temperature 4, from logits, or from probabilities through their logarithm."""
    _check_alike(dense, cut)
    total, count = 0.0, 0
    for pair in zip(dense, cut, strict=True):
        rows = _told(*pair)
        some = max(CHUNK // max(rows[0].shape[-1], 1), 1)  # a vocabulary times a text, in float64, is large
        for a, b in zip(*(r.split(some) for r in rows), strict=True):
            total += float(_divergences((a,), (b,), kind).sum())
        count += len(rows[0])
    return max(total, 0.0) / max(count, 1)


def normalised_error(dense: Sequence[Outputs], cut: Sequence[Outputs]) -> float:
    """Σ (a − b)² / Σ (a − mean a)² over all float outputs of all batches, the outputs weighing alike.

    Of outputs that don't vary, such as those of a single sample, Σ a² is taken instead. Where all outputs are whole
    numbers, the share of them that differ.
    """
    _check_alike(dense, cut)
    tensors = compared(dense[0])
    floats = [i for i in tensors if is_float(dense[0][i])]
    errors: list[float] = []
    for position in floats or tensors:
        a, b = (torch.cat([_by_sample(out[position]) for out in outputs]) for outputs in (dense, cut))
        if not floats:
            errors.append(float((a != b).double().mean()))
            continue
        a, b = _bounded(a, b)
        errors.append(float(((a - b) ** 2).sum()) / _scale(a))
    return sum(errors) / max(len(errors), 1)


def _check_alike(dense: Sequence[Outputs], cut: Sequence[Outputs]) -> None:
    """Which rows come out may be decided by values; a cut that changes those leaves nothing to compare row by row."""
    for number, pair in enumerate(zip(dense, cut, strict=True)):
        wanted, found = ([tuple(out.shape) for out in outputs if isinstance(out, Tensor)] for outputs in pair)
        if wanted != found:
            raise DataError(
                "The outputs of a cut network can't be compared with those of the dense one.",
                expected=f"the same shapes: {wanted}",
                got=f"{found}; how many rows come out depends on values that a cut changes",
                where=f"calibration batch {number + 1}",
                hint="prune the part of the model in front of that selection, or give a distance=callable that "
                'compares such outputs; method="l2" with allocation="uniform" compares nothing',
            )


def batch_error(dense: Outputs, cut: Outputs) -> Tensor:
    """The normalised error of one batch."""
    pairs = [
        _bounded(as_real(dense[i].detach()).float(), as_real(cut[i]).float())
        for i in compared(dense)
        if is_float(dense[i])
    ]
    return torch.stack([((a - b) ** 2).sum() / _scale(a) for a, b in pairs]).mean()


def _check_slopes(program: Program) -> None:
    """For a gradient there have to be floats: whole numbers, such as classes, have none."""
    dtypes = {out.meta["val"].dtype for out in tensor_outputs(program)}
    if any(dtype.is_floating_point or dtype.is_complex for dtype in dtypes):
        return
    kinds = sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)
    raise DataError(
        "The outputs have no slope to go by.",
        expected="an output of floating-point numbers",
        got=", ".join(kinds) or "no tensor",
        where="recover",
        hint="prune the network up to its scores, in front of what makes classes of them, or leave out recover=",
    )


def _bounded(dense: Tensor, cut: Tensor) -> tuple[Tensor, Tensor]:
    """Both without the places where the dense one is infinite (moves that are masked out) or NaN (padding)."""
    there = dense.isfinite()
    return (dense, cut) if bool(there.all()) else (dense.where(there, 0.0), cut.where(there, 0.0))


def _scale(values: Tensor) -> float:
    """Σ (a − mean a)², or Σ a² of what doesn't vary from sample to sample."""
    variation, size = float(((values - values.mean(0)) ** 2).sum()), float((values**2).sum())
    return max(variation if variation > 1e-12 * size else size, 1e-30)


def _divergences(dense: Outputs, cut: Outputs, kind: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """(rows,) KL(dense ‖ cut) in nats at temperature 4."""
    p, q = (F.log_softmax(_logits(rows, kind, dtype) / TEMPERATURE, -1) for rows in _told(dense, cut))
    return (p.exp() * (p - q)).sum(-1)


def _check_classes(program: Program) -> None:
    """The divergence between distributions over one class would be 0 whatever the outputs."""
    first = next(iter(tensor_outputs(program)), None)
    shape = tuple(first.meta["val"].shape) if first is not None else ()
    if len(shape) < 2 or shape[-1] < 2:
        raise PlanError(
            f"The outputs of {program.model_name} are no distributions.",
            expected="a first output of shape (N, …, classes), with two classes or more",
            got=f"shape {shape}",
            where='distance="kl"',
            hint='choose distance="mse", or pass a function of the dense and the other outputs',
        )


def _logits(rows: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """(rows, classes) of rows of outputs."""
    values = rows.to(dtype).clamp_min(_LEAST)
    return values.clamp_min(1e-12).log() if kind == "probabilities" else values


def _blank(distance: Distance, dense: Sequence[Outputs], cut: Sequence[Outputs]) -> float:
    padded = [[isinstance(a, Tensor) and is_float(a) and bool(a.isnan().any()) for a in outputs] for outputs in dense]
    if not any(map(any, padded)):
        return _own(distance, dense, cut)
    blanked = (
        [
            tuple(x.where(~a.isnan(), 0) if blank else x for x, a, blank in zip(*each, strict=True))
            for each in zip(outputs, dense, padded, strict=True)
        ]
        for outputs in (dense, cut)
    )
    return _own(distance, *blanked)


def _own(distance: Distance, dense: Sequence[Outputs], cut: Sequence[Outputs]) -> float:
    """What a function of the user's own says. Most are written for two tensors first."""
    try:
        return float(distance(dense, cut))
    except Exception as error:  # whatever that function raises
        raise DataError(
            "distance= can't be taken of the outputs.",
            expected="a function of two lists, the outputs of the dense network and of another one: a tuple of tensors "
            "for each batch → a number ≥ 0",
            got=f"{type(error).__name__}: {str(error)[:300]}",
            where="distance",
            hint="for example lambda dense, other: sum(far(a[0], b[0]) for a, b in zip(dense, other)) / len(dense)",
        ) from error


def _told(dense: Outputs, cut: Outputs) -> list[Tensor]:
    """(rows, classes) of both, but for padding: it is NaN in the dense ones."""
    rows = [_rows(out) for out in (dense, cut)]
    padded = rows[0][:, 0].isnan()
    return [own[~padded] for own in rows] if bool(padded.any()) else rows


def _rows(outputs: Outputs) -> Tensor:
    """(rows, classes): the first tensor output."""
    return outputs[compared(outputs)[0]].flatten(0, -2)


def _by_sample(value: Tensor) -> Tensor:
    """(samples, values)"""
    samples, flat = value.shape[0] if value.dim() else 1, as_real(value).double()
    return flat.reshape(samples, flat.numel() // max(samples, 1))  # there may be none
