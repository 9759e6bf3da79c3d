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


def fake_quantized(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, low: int, high: int) -> Tensor:
    """x rounded to multiples of a scale, of its own for each entry along `axis` if there is one."""
    sizes = [-1 if d == axis else 1 for d in range(x.dim())]
    scale, zero_point = scale.view(sizes), zero_point.view(sizes)
    return ((torch.round(x / scale) + zero_point).clamp(low, high) - zero_point) * scale


def observed_fake_quantized(
    x: Tensor, observer_on: Tensor, fake_quant_on: Tensor, low: Tensor, high: Tensor, scale: Tensor,
    zero_point: Tensor, averaging: float, quant_min: int, quant_max: int, ch_axis: int, *how: bool,
) -> Tensor:  # fmt: skip
    """The same, with the scale as the observer left it; one that is on goes on in its own precision."""
    if bool(observer_on.any()):
        given = (
            v.float() if v.dtype == torch.float64 else v for v in (x, observer_on, fake_quant_on, low, high, scale)
        )
        ranges = averaging, quant_min, quant_max, ch_axis
        return torch.ops.aten.fused_moving_avg_obs_fake_quant.default(*given, zero_point.clone(), *ranges, *how)
    axis = ch_axis if how[:1] == (True,) else None
    return fake_quantized(x, scale, zero_point, axis, quant_min, quant_max) if bool(fake_quant_on.any()) else x


IN_FLOAT64: dict[Any, Callable[..., Any]] = {
    torch.ops.aten._grouped_mm.default: grouped_mm,
    torch.ops.aten.fake_quantize_per_channel_affine.default: fake_quantized,
    torch.ops.aten.fused_moving_avg_obs_fake_quant.default: observed_fake_quantized,
}
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
