"""Tensors that hold numbers of the class, such as `torch.IntTensor([self.hidden])`, whose entries bound slices.

Their product stays one (`torch.tensor(x.shape[1:]).prod()`), which says how often something is repeated.

An entry that is read from one is the number that was put in, with what it was computed from; one of floats, or one that
has been written to since, holds others.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from actprune.graph.numbers import TracedInt


class NumberTensors:
    """Those of one recording.

    Args:
        note_read: told of every tensor of which a number is read.
    """

    def __init__(self, note_read: Callable[[Tensor], None]) -> None:
        self._note_read = note_read
        self._held: dict[int, tuple[weakref.ref[Tensor], int, Any]] = {}

    def note(self, name: str, args: Any, result: Any) -> None:
        """After a call: its result may be such a tensor, or an entry of one."""
        numbers: Any = None
        if name in ("tensor", "as_tensor") and args:
            traced = any(isinstance(n, TracedInt) for n in pytree.tree_leaves(args[0]))
            numbers = args[0] if traced else None
        elif name == "arange" and len(args) == 3 and isinstance(args[2], TracedInt):  # the ends of parts of one size
            numbers = [args[0] + i * args[2] for i in range(len(result))]
        elif name == "__getitem__" and isinstance(args[1], int):
            held = self._of(args[0])
            numbers = held[args[1]] if isinstance(held, list | tuple) else None
        elif name in _SAME and args:
            numbers = self._of(args[0])
        elif name == "prod" and (held := self._of(args[0])) is not None and result.dim() == 0:
            numbers = math.prod(pytree.tree_leaves(held))
        if numbers is not None and isinstance(result, Tensor) and result.dtype in _WHOLE:
            self._held[id(result)] = weakref.ref(result), result._version, _own(numbers)

    def read(self, tensor: Any) -> Any:
        """The number in a tensor, or the list of them; None where these are no numbers of the class."""
        numbers = self._of(tensor)
        if numbers is not None:
            self._note_read(tensor)
        return _own(numbers)

    def times(self, args: Any) -> Any:
        """The arguments of `repeat_interleave`, with a number in the place of a tensor of one."""
        return (args[0], self._number(args[1]), *args[2:]) if len(args) > 1 else args

    def within(self, index: Any) -> Any:
        """An index with numbers as the bounds of its slices, where they were entries of such tensors."""
        if isinstance(index, tuple):
            return tuple(map(self.within, cast("tuple[Any, ...]", index)))
        if not isinstance(index, slice):
            return index
        return slice(*map(self._number, (index.start, index.stop, index.step)))

    def _number(self, value: Any) -> Any:
        return self.read(value) if isinstance(self._of(value), TracedInt) else value

    def _of(self, tensor: Any) -> Any:
        known = self._held.get(id(tensor))
        if known is None or known[0]() is not tensor or known[1] != tensor._version:
            return None
        return known[2]


def _own(numbers: Any) -> Any:
    """Lists, as `tolist` gives them, that nobody else can change."""
    return [_own(one) for one in cast("Any", numbers)] if isinstance(numbers, list | tuple) else numbers


_SAME = {"long", "int", "to", "type"}

_WHOLE = (torch.int32, torch.int64)
