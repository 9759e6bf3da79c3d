"""Norms over the units that stay: what a class computes by itself once an axis that it normalises is smaller.

Zero columns can't stand for that, since zeros still count in a mean. So in the dense graph the op is replaced by its
twin here, which is given the mask; with a mask of ones it is the op itself. The network with fewer of them is another
function of its input, even before anything is lost: `actprune.axes.normed` says which are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

ATEN = torch.ops.aten


def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
    *,
    masks: Sequence[Tensor],
) -> Tensor:
    """x (…, D), masks of some of the last dimensions: mean and variance of the entries that stay (Ba et al. 2016)."""
    if _are_ones(masks):
        return ATEN.layer_norm.default(x, normalized_shape, weight, bias, eps, cudnn_enable)
    y = _standardised(x, range(-len(normalized_shape), 0), eps, masks)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
    *,
    masks: Sequence[Tensor],
) -> Tensor:
    """x (N, C, …) in one group, mask (C, 1, …): mean and variance of the channels that stay (Wu & He 2018)."""
    if _are_ones(masks):
        return ATEN.group_norm.default(x, num_groups, weight, bias, eps, cudnn_enabled)
    return _per_channel(_standardised(x, range(1, x.dim()), eps, masks), weight, bias)


def rms_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    masks: Sequence[Tensor],
) -> Tensor:
    """x (…, D), masks of some of the last dimensions: root mean square of what stays (Zhang & Sennrich 2019)."""
    if _are_ones(masks):
        return ATEN.rms_norm.default(x, normalized_shape, weight, eps)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    y = x * (_mean(x * x, range(-len(normalized_shape), 0), True, masks) + eps).rsqrt()
    return y if weight is None else y * weight


def mean(
    x: Tensor,
    dim: Sequence[int] | None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
    masks: Sequence[Tensor],
) -> Tensor:
    """The mean over `dim`, or over everything where none is given, of the entries that stay."""
    x = x if dtype is None else x.to(dtype)
    return _mean(x, dim, keepdim, masks)


def variance(
    x: Tensor,
    dim: Sequence[int] | None = None,
    *,
    correction: float | None = 1,
    keepdim: bool = False,
    masks: Sequence[Tensor],
) -> Tensor:
    """The variance over `dim`, or over everything where none is given, of the entries that stay."""
    centred = x - _mean(x, dim, True, masks)
    count = _count(x, dim, masks)
    return _mean(centred * centred, dim, keepdim, masks) * count / (count - (1 if correction is None else correction))


def deviation(x: Tensor, dim: Sequence[int] | None = None, **settings: Any) -> Tensor:
    """The standard deviation over `dim` of the entries that stay."""
    return variance(x, dim, **settings).sqrt()


def plain_variance(
    x: Tensor, dim: Sequence[int] | None, unbiased: bool = True, keepdim: bool = False, *, masks: Sequence[Tensor]
) -> Tensor:
    """`variance` by its older signature."""
    return variance(x, dim, correction=int(unbiased), keepdim=keepdim, masks=masks)


def plain_deviation(
    x: Tensor, dim: Sequence[int] | None, unbiased: bool = True, keepdim: bool = False, *, masks: Sequence[Tensor]
) -> Tensor:
    """`deviation` by its older signature."""
    return plain_variance(x, dim, unbiased, keepdim, masks=masks).sqrt()


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
    *,
    masks: Sequence[Tensor],
) -> Tensor:
    """x (N, C, …), masks of the dimensions behind C: statistics per channel of the entries that stay.

    A convolution standardises its weight so (Qiao et al. 2019, Weight Standardization).
    """
    y = _standardised(x, [d for d in range(x.dim()) if d != 1], eps, masks)
    return _per_channel(y, weight, bias)


def amax(x: Tensor, dim: Sequence[int] = (), keepdim: bool = False, *, masks: Sequence[Tensor]) -> Tensor:
    """The largest of the entries that stay."""
    return ATEN.amax.default(_without(x, masks, -torch.inf), dim, keepdim)


def amin(x: Tensor, dim: Sequence[int] = (), keepdim: bool = False, *, masks: Sequence[Tensor]) -> Tensor:
    """The smallest of the entries that stay."""
    return ATEN.amin.default(_without(x, masks, torch.inf), dim, keepdim)


def largest(x: Tensor, dim: int, keepdim: bool = False, *, masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """`amax` by another signature; the places are those among all entries."""
    return ATEN.max.dim(_without(x, masks, -torch.inf), dim, keepdim)


def smallest(x: Tensor, dim: int, keepdim: bool = False, *, masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """`amin` by another signature; the places are those among all entries."""
    return ATEN.min.dim(_without(x, masks, torch.inf), dim, keepdim)


TWINS: dict[str, Callable[..., Any]] = {
    "aten.layer_norm.default": layer_norm,
    "aten.rms_norm.default": rms_norm,
    "aten.group_norm.default": group_norm,
    "aten.batch_norm.default": batch_norm,
    "aten.mean.dim": mean,
    "aten.var.correction": variance,
    "aten.std.correction": deviation,
    "aten.var.dim": plain_variance,
    "aten.std.dim": plain_deviation,
    "aten.amax.default": amax,
    "aten.amin.default": amin,
    "aten.max.dim": largest,
    "aten.min.dim": smallest,
}
"""Op → its twin; the twin goes by the op's name in messages."""

OPS: dict[Any, Any] = {}
"""Twin → the op itself."""

for _name, _twin in TWINS.items():
    _twin.__name__ = _name
    _, _packet, _overload = _name.split(".")
    OPS[_twin] = getattr(getattr(ATEN, _packet), _overload)


def _are_ones(masks: Sequence[Tensor]) -> bool:
    return all(bool((mask != 0).all()) for mask in masks)


def _standardised(x: Tensor, dim: Sequence[int], eps: float, masks: Sequence[Tensor]) -> Tensor:
    """With mean 0 and variance 1 over `dim` of the entries that stay."""
    centred = x - _mean(x, dim, True, masks)
    return centred / (_mean(centred * centred, dim, True, masks) + eps).sqrt()


def _per_channel(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """y (N, C, …) times weight (C,) plus bias (C,)."""
    shape = [1, -1, *[1] * (y.dim() - 2)]
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


def _mean(x: Tensor, dim: Sequence[int] | None, keepdim: bool, masks: Sequence[Tensor]) -> Tensor:
    count = _count(x, dim, masks)
    for mask in masks:
        x = x * mask
    return x.sum(list(dim or ()), keepdim) / count


def _without(x: Tensor, masks: Sequence[Tensor], instead: float) -> Tensor:
    for mask in masks:
        x = x.masked_fill(mask == 0, instead)
    return x


def _count(x: Tensor, dim: Sequence[int] | None, masks: Sequence[Tensor]) -> float:
    """How many entries a mean is taken of: over everything where no `dim` is given."""
    count = 1.0
    for d in dim or range(x.dim()):
        count *= x.shape[d]
    for mask in masks:
        count *= float((mask != 0).sum()) / mask.shape[0]
    return count
