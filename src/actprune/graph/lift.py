"""Lifting a call to float64, so that two networks which should be equal can be compared to 1e-9.

Values are lifted one by one as nodes use them, never the model: `ep.module().double()` would turn the
caller's own parameters to float64, and a whole lifted copy would double the memory.
"""

from __future__ import annotations

from collections.abc import Callable
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


def grouped_mm(
    rows: Tensor, weight: Tensor, offs: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """rows (M, K), weight (experts, K, N), ends of the experts' rows (experts,) → (M, N)."""
    blocks = rows.tensor_split(offs.tolist())  # what lies behind the last end belongs to no expert
    parts = [block @ own for block, own in zip(blocks, weight, strict=False)]
    made = torch.cat([*parts, rows.new_zeros(len(blocks[-1]), weight.shape[2])])
    return made if bias is None else made + bias


IN_FLOAT64: dict[Any, Callable[..., Any]] = {torch.ops.aten._grouped_mm.default: grouped_mm}
"""Ops whose kernels know no float64 → what computes the same of lifted arguments."""


def _lift_one(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return value.to(_WIDER.get(value.dtype, value.dtype))
    if isinstance(value, torch.dtype):
        return _WIDER.get(value, value)
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value
