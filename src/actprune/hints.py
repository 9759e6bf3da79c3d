"""Hints: what a user's class needs after a cut, said by the user where actprune can't find it out.

    @actprune.hint(MyAttention)
    def resize(module):
        module.heads = module.query.weight.shape[0] // module.head_size

The function gets every instance that holds tensors that were cut, with the new ones in their place, and sets what
follows from them. Sizes that such a class writes down are then left to it; whether it is right, the proof says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import nn

Resize: TypeAlias = Callable[[Any], None]

_HINTS: dict[type[nn.Module], Resize] = {}


def hint(cls: type[nn.Module]) -> Callable[[Resize], Resize]:
    """Register a function for `cls` and its subclasses; a later one takes the place of an earlier one.

    Raises:
        TypeError: `cls` is no class of modules.
    """
    if not isinstance(cls, type) or not issubclass(cls, nn.Module):
        raise TypeError(f"hint() takes a class of modules, as in @hint(MyAttention), not {cls!r}")

    def register(function: Resize) -> Resize:
        _HINTS[cls] = function
        return function

    return register


def hint_for(module: nn.Module) -> Resize | None:
    """The hint for the nearest class of a module, if there is one."""
    return next((_HINTS[cls] for cls in type(module).__mro__ if cls in _HINTS), None)
