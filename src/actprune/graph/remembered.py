"""Statistics that training keeps in plain attributes: the moving means of a batch norm written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree

from actprune.graph.keep import apart, kept_buffers, kept_modes
from actprune.graph.names import plain_slots
from actprune.graph.quiet import quiet
from actprune.mapped import is_mapped


def remembered(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> frozenset[str]:
    """Names of the tensors in plain attributes whose numbers a forward pass of training computes from its inputs.

    It is run twice, on the inputs and on half of them: a table that is made or drawn anew is the same in both. None of
    a model that lies in files, which would have to be in memory as a whole.
    """
    if any(map(is_mapped, model.parameters())):
        return frozenset()
    one, other = (_after(model, *pytree.tree_map_only(Tensor, _by(scale), (args, kwargs))) for scale in (1, 0.5))
    return frozenset(name for name in one.keys() & other.keys() if _differ(one[name], other[name]))


def _by(scale: float) -> Any:
    """A tensor of the inputs times this; for 0.5 whole numbers become zeros, since some may be names of rows."""
    return lambda tensor: (tensor * scale).to(tensor.dtype)


def _after(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Tensor]:
    """The tensors in plain attributes after a forward pass of training; none where it fails."""
    with suppress(Exception), kept_buffers(model, parameters=True), kept_modes(model), apart(0), quiet():
        for module in model.modules():
            module.training = True
        with torch.enable_grad(), saved_tensors_hooks(lambda tensor: None, lambda kept: kept):  # nothing goes back
            model(*args, **kwargs)
        return {name: box[key].detach().clone() for name, (box, key) in plain_slots(model).items()}
    return {}


def _differ(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one != other).any())
