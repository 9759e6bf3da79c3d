"""Numbers with a size to compare: real ones and complex ones."""

from __future__ import annotations

import torch
from torch import Tensor


def is_float(value: Tensor) -> bool:
    """Whether it holds real or complex numbers, no whole ones."""
    return value.is_floating_point() or value.is_complex()


def as_real(value: Tensor) -> Tensor:
    """A complex number as two real ones, in a last dimension of its own."""
    return torch.view_as_real(value) if value.is_complex() else value
