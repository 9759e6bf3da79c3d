"""The tensors of a model: where they are, and slices of them that may take their places."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from actprune.axes.expr import Indices
from actprune.graph.names import Slot, plain_slots
from actprune.mapped import alongside, let_go


def tensor_slots(model: nn.Module) -> Mapping[str, Slot]:
    """Name of a parameter, a buffer or a tensor in a plain attribute → where it is."""
    slots: dict[str, Slot] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        spaces: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for space in spaces:
            for attribute in (name for name, tensor in space.items() if tensor is not None):
                slots[f"{path}.{attribute}" if path else attribute] = space, attribute
    return {**plain_slots(model), **slots}


def held_in(slot: Slot) -> Tensor:
    """The tensor that lives there."""
    return slot[0][slot[1]]


def sliced(tensor: Tensor, indices: Iterable[Indices | None]) -> Tensor:
    """A copy of `tensor` that holds, in each dimension, the indices given there (all where None)."""
    result = tensor.detach()
    for dim, index in enumerate(indices):
        if index is not None:
            result = result.index_select(dim, torch.as_tensor(index, device=result.device))
    plain = result.layout == torch.strided
    return result.clone(memory_format=torch.contiguous_format) if plain else result.clone()


def replacement(old: Tensor, source: Tensor, indices: Iterable[Indices | None]) -> Tensor:
    """What takes the place of `old`: those entries of `source`, of the type, device and layout of `old`."""
    values = sliced(source, indices).to(old.device, old.dtype)
    if (layout := _channels_last(old)) is not None:
        values = values.contiguous(memory_format=layout)
    new = alongside(values, old)
    let_go([source, new])
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
        vars(new).update(vars(old))  # marks that an optimizer or a trainer has put on it
    return new


def _channels_last(tensor: Tensor) -> torch.memory_format | None:
    """The layout of a kernel whose channels lie last in memory; None of every other tensor."""
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    if layout is None or tensor.layout != torch.strided or tensor.is_contiguous():
        return None
    return layout if tensor.is_contiguous(memory_format=layout) else None


def held_as(old: Tensor, new: Tensor) -> Tensor:
    """What takes the place of `old`: the same memory without gradients for an alias such as `weight.detach()`."""
    return new.detach() if isinstance(new, nn.Parameter) and not isinstance(old, nn.Parameter) else new
