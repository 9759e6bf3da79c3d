"""Attribute edits: numbers in a module's attributes, in its lists, and in its own copy of a shared configuration.

Only a number ever takes the place of a number, so that a plan from elsewhere reaches no tensor, hook or mode.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from numbers import Real
from typing import Any

from torch import nn

from actprune.repair.edits import AttributeEdit
from actprune.surgery.modules import submodule


def edit_attributes(model: nn.Module, edits: Sequence[AttributeEdit]) -> None:
    """Make the edits in `model`.

    Raises:
        AttributeError, KeyError, IndexError: the model has no such attribute, or it is no number.
    """
    copied: set[tuple[str, str]] = set()
    for edit in edits:
        module = submodule(model, edit.module)
        name = str(edit.path[0])
        if edit.shared and (edit.module, name) not in copied:
            vars(module)[name] = copy.copy(vars(module)[name])
            copied.add((edit.module, name))
        vars(module)[name] = _edited(vars(module)[name], edit.path[1:], edit.value)


def _edited(value: Any, path: Sequence[str | int], new: int) -> Any:
    """`value` with the number at `path` replaced; containers are made anew, the object of a configuration is kept."""
    if not path:
        if not isinstance(value, Real) or isinstance(value, bool):
            raise AttributeError(f"a {type(value).__name__} where the plan has a number")
        return new
    step, rest = path[0], path[1:]
    if isinstance(value, dict):
        return {**value, step: _edited(value[step], rest, new)}
    if isinstance(value, list | tuple):
        if step not in range(len(value)):
            raise IndexError(f"no entry {step!r} among {len(value)}")
        items = [_edited(v, rest, new) if i == step else v for i, v in enumerate(value)]
        return type(value)(items)
    fields = vars(value)
    fields[str(step)] = _edited(fields[str(step)], rest, new)
    return value
