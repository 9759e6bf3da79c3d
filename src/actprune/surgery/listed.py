"""Tensors that a class keeps in lists of its own too, beside their names: `self.scales = [self.scale_0, …]`.

A deep copy has the same objects in both places, and so has the cut model: else its `forward` would read dense ones. The
list may be one of modules that are no submodules, whose parameters the class has registered (N-BEATS).
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import is_not
from typing import Any, cast

from torch import Tensor, nn

from actprune.surgery.modules import restate, stated

_BY_NAME = ("_parameters", "_buffers", "_modules")


def follow(model: nn.Module, replaced: Mapping[int, Tensor]) -> None:
    """Put the new tensors into the attributes, lists, tuples and dicts of `model` that hold the old ones, as keys too:
    `{weight: optimizer}`, where every weight has one of its own.

    Args:
        replaced: id of a tensor that is still alive → what has taken its place.
    """
    made: dict[int, Any] = {id(module): module for module in model.modules()}
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if name not in _BY_NAME:
                vars(module)[name] = _followed(value, replaced, made)


def _followed(value: Any, replaced: Mapping[int, Tensor], made: dict[int, Any]) -> Any:
    """`value` itself where it holds none of them; containers are made anew, one that modules share once for all."""
    if isinstance(value, Tensor):
        return replaced.get(id(value), value)
    if isinstance(value, nn.Module) and id(value) not in made:
        _follow_within(value, replaced, made)
    if type(value) not in (list, tuple, dict):
        return value
    if id(value) not in made:
        box = cast("Any", value)
        items: list[Any] = list(box.values() if isinstance(value, dict) else box)
        made[id(value)] = value  # also for a list that holds itself
        new = [_followed(item, replaced, made) for item in items]
        keys: list[Any] = [replaced.get(id(key), key) for key in box] if isinstance(value, dict) else []
        if any(map(is_not, items, new)) or any(map(is_not, box, keys)):
            made[id(value)] = dict(zip(keys, new, strict=True)) if isinstance(value, dict) else type(value)(new)
    return made[id(value)]


def _follow_within(hidden: nn.Module, replaced: Mapping[int, Tensor], made: dict[int, Any]) -> None:
    """A module that has no path, and those in it."""
    for module in hidden.modules():
        made[id(module)] = module
        names = stated(module)
        for space in (module._parameters, module._buffers):
            space.update({n: replaced[id(t)] for n, t in space.items() if id(t) in replaced})  # type: ignore[misc]
        restate(module, names)
    for module in hidden.modules():
        for name, value in list(vars(module).items()):
            if name not in _BY_NAME:
                vars(module)[name] = _followed(value, replaced, made)
