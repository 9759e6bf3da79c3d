"""Attribute edits: numbers in a module's attributes, in its lists, and in its own copy of a shared configuration.

Only a number ever takes the place of a number, so that a plan from elsewhere reaches no tensor, hook or mode.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
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
        before = _entry(vars(module), edit.path)
        vars(module)[name] = _edited(vars(module)[name], edit.path[1:], edit.value)
        if type(module).__getstate__ is not nn.Module.__getstate__:
            _keep_in_copies(module, edit, before)


def _keep_in_copies(module: nn.Module, edit: AttributeEdit, before: Any) -> None:
    """A class that says itself what a copy is made from (layers of einops keep the arguments they were made with) would
    make one with the dense size: of that state, the number that brings the new one into copies is changed too."""
    state: Any = module.__getstate__()
    held = {name: value for name, value in state.items() if name in vars(module)} if isinstance(state, dict) else {}
    for path in _numbers(held):
        name = str(path[0])
        if _survives(module, edit):
            return
        if path != edit.path and _entry(held, path) == before:
            vars(module)[name] = _edited(held[name], path[1:], edit.value)
            if not _survives(module, edit):
                vars(module)[name] = held[name]


def _survives(module: nn.Module, edit: AttributeEdit) -> bool:
    """Whether a copy has the number of an edit."""
    try:
        return _entry(vars(copy.copy(module)), edit.path) == edit.value
    except Exception:  # whatever the class does with a state that fits no more
        return False


def _numbers(value: Any) -> Iterator[tuple[str | int, ...]]:
    """The paths of all numbers in containers."""
    box: Any = value if isinstance(value, dict | list | tuple) else ()
    for step, entry in box.items() if isinstance(box, dict) else enumerate(box):
        if isinstance(entry, int) and not isinstance(entry, bool):
            yield (step,)
        yield from ((step, *rest) for rest in _numbers(entry))


def _entry(value: Any, path: Sequence[str | int]) -> Any:
    """What stands at a path."""
    for step in path:
        held: Any = value if isinstance(value, dict | list | tuple) else vars(value)
        value = held[step]
    return value


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
