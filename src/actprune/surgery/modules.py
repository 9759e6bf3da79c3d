"""The modules whose attributes repeat the sizes of their tensors: what each must say after a cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from actprune.axes.expr import Axis, blocks, size
from actprune.plan import Plan

Attributes = dict[str, Any]


def attributes(module: nn.Module) -> Attributes:
    """The size attributes that `module` must have, given the shapes of its tensors (and its `groups`).

    None for a subclass that stores its tensors in another form than its torch.nn ancestor.
    """
    for kind, read in _TABLE:
        if isinstance(module, kind):
            try:
                with _still(module):
                    return read(module)
            except (AttributeError, IndexError, ValueError):
                return {}
    return {}


@contextmanager
def _still(module: nn.Module) -> Iterator[None]:
    """Parametrisations in eval mode: a weight with spectral norm that is read in training goes a step further."""
    parts = [part for part in getattr(module, "parametrizations", nn.Module()).modules() if part.training]
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part in parts:
            part.training = True


def submodule(model: nn.Module, path: str) -> nn.Module:
    """The module at a path, also where an attribute of its parent's class has the same name.

    Raises:
        KeyError: there is none.
    """
    for name in filter(None, path.split(".")):
        model = model._modules[name]  # type: ignore[assignment]
    return model


def stated(module: nn.Module) -> tuple[str, ...]:
    """The names of the size attributes that agree with the module's tensors now, so that they must afterwards."""
    return tuple(name for name, value in attributes(module).items() if getattr(module, name, None) == value)


def group_count(module: nn.Module) -> int | None:
    """How many groups a convolution or a group norm says that it has."""
    return getattr(module, name) if (name := _counted(module)) is not None else None


def update(module: nn.Module, prefix: str, plan: Plan, names: Iterable[str], groups: int | None) -> None:
    """Set the size attributes of a module whose tensors were just sliced; once, even if it has several paths.

    Args:
        prefix: the module's path followed by a dot, as in the names of its tensors.
        names: the attributes to set, those that `stated` gave before the cut.
        groups: what `group_count` gave then.
    """
    _recompute(module)
    weight, counted = _made_of(plan, prefix), _counted(module)
    if weight is not None and counted is not None and groups is not None:
        setattr(module, counted, remaining_groups(plan.dims[weight][0], groups, plan))
    restate(module, names)


def restate(module: nn.Module, names: Iterable[str]) -> None:
    """Set those of a module's size attributes to what its tensors are now."""
    for name, value in attributes(module).items():
        if name in names:
            setattr(module, name, value)
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()  # it calls the weights from a list of its own


def _counted(module: nn.Module) -> str | None:
    return "groups" if isinstance(module, _ConvNd) else "num_groups" if isinstance(module, nn.GroupNorm) else None


@torch.no_grad()
def _recompute(module: nn.Module) -> None:
    """What torch's older weight norm and spectral norm left as the weight in the last call has the dense sizes."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            setattr(module, hook.name, hook.compute_weight(module))
        elif isinstance(hook, SpectralNorm):
            setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))


def _made_of(plan: Plan, prefix: str) -> str | None:
    """The tensor that has the first dimension of a module's weight: the weight itself, or what it is computed from."""
    aliases = {alias: name for name, names in plan.aliases.items() for alias in names}
    return next((aliases[f"{prefix}{own}"] for own in _WEIGHTS if f"{prefix}{own}" in aliases), None)


_WEIGHTS = (
    "weight", "weight_orig", "weight_v", "parametrizations.weight.original", "parametrizations.weight.original1",
)  # fmt: skip
"""The weight, and what spectral norm and weight norm compute it from (a `weight_v` may be a vector of the former)."""


def remaining_groups(axis: Axis, count: int, plan: Plan) -> int:
    """How many of the outermost `count` groups that `axis` (of a grouped convolution or norm) consists of remain."""
    widths = {group.key: len(group.kept) for group in plan.groups.values()}
    return blocks(axis, size(axis) // count, widths)


def _linear(module: Any) -> Attributes:
    return {"out_features": module.weight.shape[0], "in_features": module.weight.shape[1]}


def _bilinear(module: Any) -> Attributes:
    out, first, second = module.weight.shape
    return {"out_features": out, "in1_features": first, "in2_features": second}


def _conv(module: Any) -> Attributes:
    out, within = module.weight.shape[:2]
    sizes = {"out_channels": out, "in_channels": within * module.groups}
    return {**sizes, "kernel_size": tuple(module.weight.shape[2:])}  # it may cover a dimension that is cut


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


def _recurrent(module: Any) -> Attributes:
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    rows, inputs = module.weight_ih_l0.shape
    projection = getattr(module, "weight_hr_l0", None)
    sizes = {"input_size": inputs, "hidden_size": rows // gates}
    return sizes if projection is None else {**sizes, "proj_size": projection.shape[0]}


def _recurrent_cell(module: Any) -> Attributes:
    return {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}


def _of_the_users(module: nn.Module) -> Attributes:
    """A layer of the user's own that says its sizes under torch's names: methods that no capture sees (`reset_noise` of
    a noisy layer) may read them. Of a square weight only a bias tells which dimension is which."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    shapes = {tuple(tensor.shape[:2]) for tensor in own if tensor.dim() > 1}
    biases = {tensor.shape[0] for tensor in own if tensor.dim() == 1}
    out, into = next(iter(shapes)) if len(shapes) == 1 else (0, 0)
    if biases == {into}:
        out, into = into, out
    elif out == into:
        return {}
    sizes = {"out_features": out, "in_features": into, "out_channels": out, "in_channels": into}
    return {name: size for name, size in sizes.items() if name in vars(module)}  # some are computed


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
    (nn.RNNBase, _recurrent),
    (nn.RNNCellBase, _recurrent_cell),
    (nn.Module, _of_the_users),
)
