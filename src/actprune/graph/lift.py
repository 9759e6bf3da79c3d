"""Lifting a call to float64, so that two networks which should be equal can be compared to 1e-9.

Values are lifted one by one as nodes use them, never the model: `ep.module().double()` would turn the
caller's own parameters to float64, and a whole lifted copy would double the memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

_WIDER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


def lift(value: Any) -> Any:
    """`value` with every float tensor and every float dtype in it raised to float64, on the CPU."""
    return map_aggregate(value, _lift_one)


def _lift_one(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return value.to(_WIDER.get(value.dtype, value.dtype))
    if isinstance(value, torch.dtype):
        return _WIDER.get(value, value)
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value
