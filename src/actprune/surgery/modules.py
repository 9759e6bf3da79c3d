"""The torch.nn modules whose attributes repeat the sizes of their tensors: what each must say after a cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from actprune.axes.expr import Axis, leaves, size
from actprune.plan import Plan

Attributes = dict[str, Any]


def attributes(module: nn.Module) -> Attributes:
    """The size attributes that `module` must have, given the shapes of its tensors (and its `groups`)."""
    for kind, read in _TABLE:
        if isinstance(module, kind):
            return read(module)
    return {}


def update(module: nn.Module, prefix: str, plan: Plan) -> None:
    """Set the size attributes of a module whose tensors were just sliced.

    Args:
        prefix: the module's path followed by a dot, as in the names of its tensors.
    """
    for name, weight_dim in (("groups", 0), ("num_groups", 0)):
        count = getattr(module, name, 1)
        weight = _canonical(plan, f"{prefix}weight")
        if count != 1 and weight is not None and isinstance(module, _ConvNd | nn.GroupNorm):
            setattr(module, name, _leading(plan.dims[weight][weight_dim], count, plan))
    for name, value in attributes(module).items():
        setattr(module, name, value)


def _canonical(plan: Plan, alias: str) -> str | None:
    return next((name for name, names in plan.aliases.items() if alias in names), None)


def _leading(axis: Axis, count: int, plan: Plan) -> int:
    """What remains of the outermost `count` of an axis: the groups of a grouped convolution or norm."""
    widths: Mapping[int, int] = {group.key: len(group.kept) for group in plan.groups.values()}
    parts = axis.parts if not isinstance(axis, tuple) and hasattr(axis, "parts") else (axis,)  # type: ignore[union-attr]
    for n in range(1, len(parts) + 1):
        if prod(size(part) for part in parts[:n]) == count:
            return prod(size(part, widths) for part in parts[:n])
    if not any(leaf.key in widths and widths[leaf.key] < leaf.size for leaf in leaves(axis)):
        return count
    return size(axis, widths) * count // size(axis)


def _linear(module: Any) -> Attributes:
    return {"out_features": module.weight.shape[0], "in_features": module.weight.shape[1]}


def _bilinear(module: Any) -> Attributes:
    out, first, second = module.weight.shape
    return {"out_features": out, "in1_features": first, "in2_features": second}


def _conv(module: Any) -> Attributes:
    out, within = module.weight.shape[:2]
    return {"out_channels": out, "in_channels": within * module.groups}


def _conv_transpose(module: Any) -> Attributes:
    into, within = module.weight.shape[:2]
    return {"in_channels": into, "out_channels": within * module.groups}


def _per_channel(module: Any) -> Attributes:
    tensors = (getattr(module, name, None) for name in ("weight", "running_mean"))
    return next(({"num_features": tensor.shape[0]} for tensor in tensors if tensor is not None), {})


def _layer_norm(module: Any) -> Attributes:
    return {} if module.weight is None else {"normalized_shape": tuple(module.weight.shape)}


def _group_norm(module: Any) -> Attributes:
    return {} if module.weight is None else {"num_channels": module.weight.shape[0]}


def _embedding(module: Any) -> Attributes:
    return {"num_embeddings": module.weight.shape[0], "embedding_dim": module.weight.shape[1]}


def _prelu(module: Any) -> Attributes:
    return {"num_parameters": module.weight.shape[0]}


_TABLE: tuple[tuple[type[nn.Module], Callable[[Any], Attributes]], ...] = (
    (_ConvTransposeNd, _conv_transpose),
    (_ConvNd, _conv),
    (nn.Linear, _linear),
    (nn.Bilinear, _bilinear),
    (_NormBase, _per_channel),
    (nn.LayerNorm, _layer_norm),
    (nn.RMSNorm, _layer_norm),
    (nn.GroupNorm, _group_norm),
    (nn.Embedding, _embedding),
    (nn.PReLU, _prelu),
)
