"""Numbers in a captured program that are a batch size: told by two more captures with other ones.

The axes tell most of them. What they cannot tell is a size that no tensor of samples gave: `torch.arange(batch)` for
an index, a mask that is expanded to the batch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakKeyDictionary

from torch import nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from actprune.errors import CaptureError
from actprune.graph.program import Program
from actprune.graph.trace import trace

TIMES = (2, 3)
"""The other captures have so many times the samples: two, so that a square of the size is not taken for a line."""


@dataclass(frozen=True, eq=False)
class BatchSizes:
    """The calls of the other captures.

    Attributes:
        size: samples of the first one.
        others: name of a call → the same call in each of them.
    """

    size: int
    others: Mapping[str, tuple[Node, ...]] = field(default_factory=dict[str, "tuple[Node, ...]"], repr=False)

    def followed(self, made: Any, first: Any, others: tuple[Any, ...], batch: Any, compute: Callable[..., Any]) -> Any:
        """Arguments of a call, with what depends on the batch size computed from it.

        Args:
            made: for the new graph: whole numbers, and tuples, lists and dicts of them; anything else stays.
            first, others: the same arguments in all captures. What is no longer `first` in `made` stays as well.
            batch: the node that is the batch size.
            compute: (function, arguments) → node.
        """

        def go(value: Any, *seen: Any) -> Any:
            if isinstance(value, dict):
                named = cast("dict[str, Any]", value)
                return {k: go(v, *(one[k] for one in seen)) if _in_all(k, seen) else v for k, v in named.items()}
            if isinstance(value, list | tuple):
                sides = [cast("list[Any]", side) for side in (value, *seen) if isinstance(side, list | tuple)]
                same = len(sides) == 1 + len(seen) and len(set(map(len, sides))) == 1
                return type(value)(map(go, *sides)) if same else value
            return self._computed(value, seen, batch, compute) if all(map(_whole, (value, *seen))) else value

        return go(made, first, *others)

    def _computed(self, value: int, seen: tuple[int, ...], batch: Any, compute: Callable[..., Any]) -> Any:
        """A number as slope · batch + rest, where all captures say so."""
        one, second, third = seen
        slope, left = divmod(second - one, self.size)
        if value != one or one == second or left or third - second != second - one:
            return value
        scaled = batch if slope == 1 else compute(operator.mul, (batch, slope))
        rest = one - slope * self.size
        return compute(operator.add, (scaled, rest)) if rest else scaled


_KNOWN: WeakKeyDictionary[Program, BatchSizes] = WeakKeyDictionary()


def batch_sizes(model: nn.Module, program: Program) -> BatchSizes:
    """Capture the model twice more, the first time that it is asked for. Where the calls are not the same ones then, no
    number is told to be a batch size."""
    if program not in _KNOWN:
        _KNOWN[program] = _captured_again(model, program)
    return _KNOWN[program]


def _captured_again(model: nn.Module, program: Program) -> BatchSizes:
    own = {node.name: node for node in program.nodes if node.op == "call_function"}
    found: list[dict[str, Node]] = []
    for times in TIMES:
        args, kwargs = pytree.tree_unflatten(list(program.resized(times * program.batch_size)), program.in_spec)
        try:
            other = trace(model, kwargs or args, like=program)
        except CaptureError:
            return BatchSizes(program.batch_size)
        found.append({node.name: node for node in other.nodes if node.op == "call_function"})
        if any(name not in own or own[name].target is not node.target for name, node in found[-1].items()):
            return BatchSizes(program.batch_size)
    names = [name for name in found[0] if name in found[1]]
    return BatchSizes(program.batch_size, {name: tuple(one[name] for one in found) for name in names})


def _in_all(key: str, sides: tuple[Any, ...]) -> bool:
    return all(key in side for side in sides)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
