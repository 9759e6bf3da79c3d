"""The tensors of a model under their names, found again by their storage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Names:
    """The model's tensors under all their names, one of them canonical for each storage.

    Attributes:
        tensors: every name → parameter or buffer.
        persistent: the names that the state dict holds.
    """

    def __init__(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self.tensors: dict[str, Tensor] = {**parameters, **dict(model.named_buffers(remove_duplicate=False))}
        self.persistent = set(model.state_dict(keep_vars=True)) | set(parameters)
        self._groups: dict[tuple[Any, ...], list[str]] = {}
        for name, tensor in self.tensors.items():
            self._groups.setdefault(_identity(tensor), []).append(name)

    def canonical(self, name: str, tensor: Any) -> str:
        """The first name of the model's tensor that `tensor` is; `name` for any other value."""
        group = self._groups.get(_identity(tensor)) if isinstance(tensor, Tensor) else None
        return group[0] if group else name

    def all_names(self, name: str) -> tuple[str, ...]:
        tensor = self.tensors.get(name)
        return (name,) if tensor is None else tuple(self._groups[_identity(tensor)])

    def every(self) -> dict[str, Tensor]:
        """Every storage once, under its canonical name."""
        return {name: tensor for name, tensor in self.tensors.items() if self.canonical(name, tensor) == name}


def unsliced(path: str, model: nn.Module) -> str:
    """A path in the model for one through slices of it: `net.slice(1, 3, None).0` is `net.1` in a `ModuleList`.

    Export writes such paths where one module has several names. A slice of a `Sequential` keeps the names of its
    modules, one of a `ModuleList` counts them anew.
    """
    if "slice(" not in path:
        return path
    found: list[str] = []
    names: dict[str, str] = {}  # in the last slice → in the module that was sliced
    for part in path.split("."):
        if part.startswith("slice("):
            bounds = (None if bound == "None" else int(bound) for bound in part[6:-1].split(", "))
            within = model.get_submodule(".".join(found))
            names = names or {name: name for name in within._modules}
            taken = list(names.values())[slice(*bounds)]
            names = {str(i) if isinstance(within, nn.ModuleList) else name: name for i, name in enumerate(taken)}
        else:
            found.append(names.get(part, part))
            names = {}
    return ".".join(found)


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two tensors that are the same memory seen the same way; meta tensors only equal themselves."""
    if tensor.device.type == "meta" or tensor.numel() == 0 or tensor.layout != torch.strided:
        return (id(tensor),)
    try:
        return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
    except RuntimeError:  # a wrapper around another tensor
        return (id(tensor),)
