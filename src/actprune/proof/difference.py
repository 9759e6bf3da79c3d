"""How far apart two results are, in one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from actprune.graph.values import is_float

TOLERANCE = 1e-9
"""Largest relative error in float64: max|a − b| / max|a| over all outputs."""


def relative_error(expected: Sequence[Any], found: Sequence[Any]) -> float:
    """max|a − b| / max|a| over all outputs; infinite where shapes, or values that aren't floats, differ, and for NaN
    on one side."""
    if len(expected) != len(found):
        return float("inf")
    return max((difference(a, b) for a, b in zip(expected, found, strict=True)), default=0.0)


def difference(a: Any, b: Any) -> float:
    """The relative error of one output, a tensor or not."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        alike = type(a) is type(b) and (a == b or type(a).__eq__ is object.__eq__)  # which says no more than "the same"
        return 0.0 if alike else float("inf")
    if a.shape != b.shape or is_float(a) != is_float(b):
        return float("inf")
    if not is_float(a):
        return 0.0 if torch.equal(a, b) else float("inf")
    wide = torch.promote_types(a.dtype, torch.float64)
    a, b = a.detach().to(wide), b.detach().to(wide)
    there = a.isfinite()  # moves that are masked out are infinite, and the same on both sides
    if not bool(there.all()):
        if not torch.equal(a[~there], b[~there]):
            return float("inf")
        a, b = a[there], b[there]
    if not a.numel():
        return 0.0
    error = float((a - b).abs().max()) / max(float(a.abs().max()), 1e-300)
    return error if error == error else float("inf")


def varies(value: Tensor) -> bool:
    """Whether what is finite of it is not all the same."""
    finite = value[value.isfinite()]
    return finite.numel() > 0 and bool((finite != finite[0]).any())
