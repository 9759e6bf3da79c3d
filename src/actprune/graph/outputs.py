"""Outputs that keep their tensors in an object of a class of their own: the class is made known to torch's pytree."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from actprune.graph.traced import Refused


def register_containers(outputs: Any) -> bool:
    """Make the data classes and mappings among `outputs` known to pytree; whether some were not.

    The proof flattens what the model returns: a tensor in an object that pytree takes for a leaf would be neither
    compared nor frozen.

    Raises:
        Refused: a tensor hides in an object of another kind.
    """
    new = {type(leaf) for leaf in pytree.tree_leaves(outputs) if _is_container(leaf)}
    for kind in new:
        fields, make = (_items, _mapping) if issubclass(kind, Mapping) else (_fields, _dataclass)
        pytree.register_pytree_node(kind, fields, lambda values, context, make=make: make(values, context))
    if new:
        register_containers(outputs)  # they may hold others
    for leaf in pytree.tree_leaves(outputs):
        hidden = [name for name, value in getattr(leaf, "__dict__", {}).items() if _holds_tensor(value)]
        if hidden and not isinstance(leaf, Tensor):
            raise Refused(f"the outputs hold a {type(leaf).__name__}, whose tensors ({hidden[0]}) can't be compared")
    return bool(new)


def _is_container(leaf: Any) -> bool:
    return isinstance(leaf, Mapping) or (dataclasses.is_dataclass(leaf) and not isinstance(leaf, type))


def _holds_tensor(value: Any) -> bool:
    """Also within objects in lists, as the layers of a cache; what a model holds is no output."""
    waiting, seen = [value], set[int]()
    while waiting:
        for leaf in pytree.tree_leaves(waiting.pop()):
            if isinstance(leaf, Tensor):
                return True
            if not isinstance(leaf, type | nn.Module) and id(leaf) not in seen:
                seen.add(id(leaf))
                waiting += getattr(leaf, "__dict__", {}).values()
    return False


def _items(value: Any) -> tuple[list[Any], Any]:
    return list(value.values()), (type(value), list(value))


def _mapping(values: Any, context: Any) -> Any:
    kind, keys = context
    return kind(zip(keys, values, strict=True))


def _fields(value: Any) -> tuple[list[Any], Any]:
    names = [field.name for field in dataclasses.fields(value)]
    return [getattr(value, name) for name in names], (type(value), names)


def _dataclass(values: Any, context: Any) -> Any:
    kind, names = context
    made = object.__new__(kind)
    for name, value in zip(names, values, strict=True):
        object.__setattr__(made, name, value)  # past __init__, which may compute
    return made
