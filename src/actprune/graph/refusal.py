"""What is said where a model can't be captured with these inputs, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset

from actprune.errors import CaptureError
from actprune.graph.rebuilt import name_of
from actprune.graph.traced import Refused


def refusal(model: nn.Module, tensors: list[Tensor], reasons: Mapping[str, Exception]) -> CaptureError:
    """The error of a model that no tracer captured: tracer → what it raised, the run last."""
    said = [first_line(error) for error in reasons.values()]
    also = [f"{name}: {line}" for name, line in zip(reasons, said, strict=True) if line != said[-1]]
    return CaptureError(
        f"{name_of(model)} could not be captured.",
        expected="a forward pass that runs on these inputs",
        got="; ".join([said[-1], *also]),  # the run comes first: its error is the model's own, if it has one
        where=f"forward with inputs of shape {', '.join(str(tuple(t.shape)) for t in tensors)}",
        hint=_hint(_given(tensors, said), float_types(model.parameters()), said),
    )


def one_batch(given: Any) -> str:
    """What to pass in place of example inputs that hold no tensor."""
    if any(isinstance(leaf, np.ndarray) for leaf in pytree.tree_leaves(given)):
        return "convert arrays: torch.as_tensor(x)"
    if isinstance(given, Iterable | Dataset) and not isinstance(given, str | tuple | list | Mapping):
        return "pass the inputs of one batch, of a loader of (x, y): x, _ = next(iter(loader))"
    if isinstance(given, tuple | list) and all(isinstance(size, int) for size in given) and given:
        return f"pass a tensor of that shape: torch.randn({', '.join(map(str, given))})"
    return "pass one batch of inputs, as the model gets them in use"


def _hint(given: set[torch.dtype], held: set[torch.dtype], said: list[str]) -> str:
    """What to do where inputs of some types did not run through weights of others, and this was said."""
    if any("missing" in line and "argument" in line for line in said):
        return _MORE_INPUTS
    if any("positional argument" in line and ("were given" in line or "too many" in line) for line in said):
        return _FEWER_INPUTS
    if len(held) == 1 and given - held:
        given_as, held_as = (str(next(iter(types))).removeprefix("torch.") for types in (given - held, held))
        return (
            f"the inputs are {given_as} and the weights {held_as}: convert the inputs first, as in "
            f"x.to(torch.{held_as}) or, for NumPy, x.astype('{held_as}')"
        )
    return _OTHER_INPUTS


def _given(tensors: list[Tensor], said: list[str]) -> set[torch.dtype]:
    """The types of the inputs. Whole numbers may be tokens: they count where a layer asks for the type of weights."""
    if any("same" in line and "type" in line for line in said):
        return float_types(tensors) or {tensor.dtype for tensor in tensors}
    return float_types(tensors)


def float_types(tensors: Iterable[Tensor]) -> set[torch.dtype]:
    """Those of the numbers with a point."""
    return {tensor.dtype for tensor in tensors if tensor.is_floating_point()}


_MORE_INPUTS = (
    "give every input: a batch (a, b, labels) of tensors, a tuple in the first place, ((a, b), labels), a dict of "
    "arguments, or forward=lambda model, batch: model(*batch)"
)
_FEWER_INPUTS = (
    "a tuple or list holds the arguments of one call: pass the inputs of one batch without what stands beside them, "
    "such as labels, and a lone input as it is"
)
_OTHER_INPUTS = (
    "check that the model runs on these inputs, samples in the first dimension, of the type that its weights have; "
    "if it does, capture the part of it that computes on tensors"
)

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""Of a terminal, which Keras puts into its messages."""


def first_line(error: Exception) -> str:
    """What an error says first, and not in which layer: Keras puts that before it."""
    lines = [line for line in _COLOURS.sub("", str(error)).splitlines() if line.strip()] or [""]
    line = lines[1].strip() if lines[0].startswith("Exception encountered when calling") and lines[1:] else lines[0]
    return line[:300] if isinstance(error, Refused) else f"{type(error).__name__}: {line[:300]}"
