"""Dicts, lists and the like, and the attributes of objects, to be given back what they held."""

from __future__ import annotations

from collections import OrderedDict, deque
from operator import is_
from types import FunctionType, MethodType, ModuleType
from typing import Any
from weakref import ProxyTypes

from torch import Tensor

KINDS: tuple[Any, ...] = (OrderedDict, dict, list, deque, set)

MANY = 4096
"""Entries; there are caches for each layer and for each head, not more."""

LEVELS = 3
"""How far objects within objects are looked into: `self.agent.memory.layers[0]` is the fourth."""


def entries(box: Any) -> dict[Any, Any]:
    """Key, or place, → what stands there."""
    return dict(box) if isinstance(box, dict) else dict(enumerate(box))


def put_back(box: Any, held: dict[Any, Any]) -> None:
    """Make a box hold these entries again; one that still does isn't touched.

    A class of its own is passed by: Keras tracks what is put into its lists and dicts.
    """
    now = entries(box)
    same = len(now) == len(held) and all(map(is_, now.values(), held.values()))
    if same and (not isinstance(box, dict) or all(map(is_, now, held))):
        return
    kind: Any = next(kind for kind in KINDS if isinstance(box, kind))
    kind.clear(box)
    fill: Any = kind.extend if kind in (list, deque) else kind.update
    fill(box, held if issubclass(kind, dict) else held.values())


def attributes(value: Any) -> dict[str, Any] | None:
    """Those of an object of the user's, or of a module that is no submodule; none of a stand-in that doesn't tell."""
    if isinstance(value, (Tensor, type, ModuleType, FunctionType, MethodType, *ProxyTypes)):
        return None
    try:
        found = getattr(value, "__dict__", None)
    except Exception:  # whatever a `__getattr__` of the user's raises
        return None
    return found if isinstance(found, dict) else None
