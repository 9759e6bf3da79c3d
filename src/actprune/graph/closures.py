"""Functions that a model holds (hooks, lambdas in attributes) and that refer to the model: in a copy, to the copy.

`copy.deepcopy` takes a function for a constant. One that closes over a module (`self.mlp = lambda x: m.fc(x)`, a hook
that writes into `self.features`) would run the modules of the model that was copied, and write into its attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import CellType, FunctionType, MethodType
from typing import Any


class Rebound:
    """Functions and bound methods → the same, of the copies of what they close over or have as defaults.

    Args:
        copies: id of an object → its copy: the memo of the `copy.deepcopy` that made them, while the originals live.
    """

    def __init__(self, copies: Mapping[int, Any]) -> None:
        self.copies = copies
        self.cells: dict[int, CellType] = {}
        self.functions: dict[int, FunctionType] = {}

    def __call__(self, value: Any) -> Any:
        """The copy of `value`; `value` itself where it refers to nothing that was copied."""
        if isinstance(value, MethodType) and id(value.__self__) in self.copies:
            return MethodType(value.__func__, self.copies[id(value.__self__)])
        if isinstance(value, FunctionType):
            return self.function(value) if self.refers(value, set()) else value
        return self.copies.get(id(value), value)

    def refers(self, value: Any, seen: set[int]) -> bool:
        """Whether a function, or one that it refers to, closes over something that was copied."""
        if isinstance(value, MethodType):
            value = value.__self__
        if not isinstance(value, FunctionType):
            return id(value) in self.copies
        if id(value) in seen:
            return False
        seen.add(id(value))
        return any(self.refers(part, seen) for part in _parts(value))

    def function(self, value: FunctionType) -> FunctionType:
        if id(value) not in self.functions:
            cells = tuple(self.cells.setdefault(id(cell), CellType()) for cell in value.__closure__ or ())
            made = FunctionType(value.__code__, value.__globals__, value.__name__, None, cells or None)
            self.functions[id(value)] = made  # before its cells are filled: one of them may hold the function itself
            for new, old in zip(cells, value.__closure__ or (), strict=True):
                if not _is_empty(old):
                    new.cell_contents = self(old.cell_contents)
            defaults, named = value.__defaults__, value.__kwdefaults__
            made.__defaults__ = None if defaults is None else tuple(map(self, defaults))
            made.__kwdefaults__ = None if named is None else {name: self(default) for name, default in named.items()}
            made.__qualname__, made.__doc__, made.__module__ = value.__qualname__, value.__doc__, value.__module__
            made.__annotations__ = dict(value.__annotations__)
            vars(made).update(vars(value))
        return self.functions[id(value)]


def _parts(function: FunctionType) -> list[Any]:
    closed = [cell.cell_contents for cell in function.__closure__ or () if not _is_empty(cell)]
    return [*closed, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


def _is_empty(cell: CellType) -> bool:
    """Whether its variable has no value yet."""
    try:
        return cell.cell_contents is cell  # never: reading it is what may fail
    except ValueError:
        return True
