"""Attribute edits: numbers in a module's attributes, in its lists, and in its own copy of a shared configuration.

Only a number ever takes the place of a number, so that a plan from elsewhere reaches no tensor, hook or mode.

A class may make its copies anew, from other attributes than those that its `forward` reads (the layers of einops, by
`__getstate__`): the number goes there as well, or a deep copy and a pickle would have the dense size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import reduce
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
        was = _at(module, edit.path)
        vars(module)[name] = _edited(vars(module)[name], edit.path[1:], edit.value)
        if was != edit.value and _lost_in_copy(module, edit.path, was):
            _edit_source_of_copies(module, edit, was)


def _edit_source_of_copies(module: nn.Module, edit: AttributeEdit, was: Any) -> None:
    """Find the other number `was` in the module's attributes that copies are made from, and give it the new value."""
    for path in [p for name, value in vars(module).items() for p in _places(value, was, (name,)) if p != edit.path]:
        before = vars(module)[path[0]]
        vars(module)[path[0]] = _edited(before, path[1:], edit.value)
        if not _lost_in_copy(module, edit.path, was):
            return
        vars(module)[path[0]] = before


def _lost_in_copy(module: nn.Module, path: Sequence[str | int], was: Any) -> bool:
    """Whether a copy of the module still has the number `was` at `path`."""
    try:
        return _at(copy.copy(module), path) == was
    except Exception:  # whatever a class's own way to copy it raises, which is nothing that an edit can mend
        return False


def _places(value: Any, number: int, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Where in dicts, lists and tuples a number stands."""
    if type(value) is int and value == number:
        yield path
    elif isinstance(value, dict):
        for step, item in value.items():
            yield from _places(item, number, (*path, step))
    elif isinstance(value, list | tuple):
        for step, item in enumerate(value):
            yield from _places(item, number, (*path, step))


def _at(module: nn.Module, path: Sequence[str | int]) -> Any:
    """The value at the path of an edit."""
    return reduce(_entry, path, module)


def _entry(value: Any, step: str | int) -> Any:
    """What a container, or an object among its attributes, holds at one step of a path."""
    if isinstance(value, dict):
        return value[step]
    if isinstance(value, list | tuple):
        if not isinstance(step, int) or step not in range(len(value)):
            raise IndexError(f"no entry {step!r} among {len(value)}")
        return value[step]
    return vars(value)[str(step)]


def _edited(value: Any, path: Sequence[str | int], new: int) -> Any:
    """`value` with the number at `path` replaced; containers are made anew, the object of a configuration is kept."""
    if not path:
        if not isinstance(value, Real) or isinstance(value, bool):
            raise AttributeError(f"a {type(value).__name__} where the plan has a number")
        return new
    step = path[0]
    entry = _edited(_entry(value, step), path[1:], new)
    if isinstance(value, dict):
        return {**value, step: entry}
    if isinstance(value, list | tuple):
        return type(value)([entry if i == step else v for i, v in enumerate(value)])
    vars(value)[str(step)] = entry
    return value
