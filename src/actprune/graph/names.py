"""The tensors of a model under their names, found again by their storage."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from actprune.graph.boxes import LEVELS, MANY, attributes, entries
from actprune.graph.rebuilt import Rebuilt

Slot: TypeAlias = "tuple[Any, Any]"
"""Where a tensor lives: a dict of a module (its parameters, buffers, attributes), or one in there; and its key."""


class Names:
    """The model's tensors under all their names, one of them canonical for each storage.

    Attributes:
        tensors: every name → parameter or buffer, or tensor in a plain attribute of a module (a cache, a table).
        plain: the names of the latter.
        persistent: the names that the state dict holds.

    Args:
        like: the names of the tensors of a program of the same class, of which this may be a smaller one.
    """

    def __init__(self, model: nn.Module, like: Container[str] = ()) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self.tensors: dict[str, Tensor] = {**parameters, **dict(model.named_buffers(remove_duplicate=False))}
        self.persistent = set(model.state_dict(keep_vars=True)) | set(parameters)
        known = {id(tensor) for tensor in self.tensors.values()}
        slots = {} if isinstance(model, Rebuilt) else plain_slots(model)
        held: dict[str, Tensor] = {name: box[key] for name, (box, key) in slots.items()}
        # one number alone holds no units, and may be a scale that follows a size; unless it is all that a cut has left
        own = {name: tensor for name, tensor in held.items() if tensor.numel() > 1 or name in like}
        self.plain = {name: tensor for name, tensor in own.items() if id(tensor) not in known}
        self.tensors |= self.plain
        self._groups: dict[tuple[Any, ...], list[str]] = {}
        for name, tensor in self.tensors.items():
            self._groups.setdefault(identity(tensor), []).append(name)

    def canonical(self, name: str, tensor: Any) -> str:
        """The first name of the model's tensor that `tensor` is; `name` for any other value."""
        group = self._groups.get(identity(tensor)) if isinstance(tensor, Tensor) else None
        return group[0] if group else name

    def all_names(self, name: str) -> tuple[str, ...]:
        tensor = self.tensors.get(name)
        return (name,) if tensor is None else tuple(self._groups[identity(tensor)])

    def is_fixed(self, name: str, written: bool) -> bool:
        """Whether the tensor in a plain attribute is to keep its units: numbers that no file holds, if the forward pass
        has not `written` them, and memory that other tensors see otherwise, which slices of each would not share."""
        own, others = self.plain[name], self.tensors.values()
        if own.is_meta or own.layout != torch.strided:
            return True
        known = not written and not _is_one_number(own)
        return known or any(_overlap(own, other) for other in others if identity(other) != identity(own))

    def every(self, read: Container[str]) -> dict[str, Tensor]:
        """Every storage once, under its canonical name; of tensors in plain attributes only those that are `read`."""
        found = {name: tensor for name, tensor in self.tensors.items() if self.canonical(name, tensor) == name}
        return {name: tensor for name, tensor in found.items() if name not in self.plain or name in read}


def plain_slots(model: nn.Module) -> dict[str, Slot]:
    """The tensors in plain attributes of modules, and in dicts, lists and objects there, `LEVELS` within each other:
    "cache_k", "cache.k", "caches.0.k"."""
    found: dict[str, Slot] = {}
    known: dict[tuple[int, int], list[tuple[str, Any]]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        own = {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}
        for start, box in [("", vars(module)), *_within(own, LEVELS, known)]:
            for key, value in _entries(box):
                if isinstance(value, Tensor):
                    found[f"{path}.{start}{key}" if path else f"{start}{key}"] = box, key
    return found


def _within(values: Any, levels: int, known: dict[tuple[int, int], list[tuple[str, Any]]]) -> list[tuple[str, Any]]:
    """What holds tensors among these values, and in there, under the start of their names: dicts, lists, and the
    attributes of objects.

    Args:
        levels: how far to go; objects may lead back to where one came from.
        known: id of a box, levels → what it holds. A thousand modules may lead to one configuration.
    """
    found: list[tuple[str, Any]] = []
    for key, value in _entries(values):
        box = value if isinstance(value, dict | list) else None if isinstance(value, nn.Module) else attributes(value)
        if box is None:
            continue
        if (id(box), levels) not in known:
            here = [("", box)] if any(isinstance(inner, Tensor) for _, inner in _entries(box)) else []
            known[id(box), levels] = here + (_within(box, levels - 1, known) if levels > 1 else [])
        found += [(f"{key}.{start}", inner) for start, inner in known[id(box), levels]]
    return found


def _entries(box: Any) -> list[tuple[Any, Any]]:
    """Those that have a name: the state of an optimizer has weights for keys."""
    if len(box) > (MANY if isinstance(box, dict) else _LONGEST):
        return []
    return [(key, value) for key, value in entries(box).items() if isinstance(key, str | int)]


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))

_LONGEST = 64
"""Longer lists among the attributes are data."""


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


def _is_one_number(tensor: Tensor) -> bool:
    """Zeros, ones and the like: a class that makes such a tensor anew makes the same of fewer units."""
    return bool((tensor == tensor.flatten()[0]).all())


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors lie in the same memory, in part at least."""
    (a, b), (c, d) = _stretch(one), _stretch(other)
    return a < d and c < b


def _stretch(tensor: Tensor) -> tuple[int, int]:
    """Where its memory begins and ends; nowhere without any of its own."""
    if len(identity(tensor)) == 1:
        return 0, 0
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def identity(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two tensors that are the same memory seen the same way; meta tensors only equal themselves."""
    if tensor.device.type == "meta" or tensor.numel() == 0 or tensor.layout != torch.strided:
        return (id(tensor),)
    try:
        return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
    except RuntimeError:  # a wrapper around another tensor
        return (id(tensor),)
