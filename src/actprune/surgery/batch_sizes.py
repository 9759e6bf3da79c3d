"""Numbers in a captured program that are a batch size: told by a second capture with another one.

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

TIMES = 2
"""The second capture has so many times the samples."""


@dataclass(frozen=True, eq=False)
class BatchSizes:
    """The calls of the second capture.

    Attributes:
        size: samples of the first one.
        others: name of a call → the same call in the second one.
    """

    size: int
    others: Mapping[str, Node] = field(default_factory=dict[str, Node], repr=False)

    def followed(self, made: Any, first: Any, second: Any, batch: Any, compute: Callable[..., Any]) -> Any:
        """Arguments of a call, with what depends on the batch size computed from it.

        Args:
            made: for the new graph: whole numbers, and tuples, lists and dicts of them; anything else stays.
            first, second: the same arguments in both captures. What is no longer `first` in `made` stays as well.
            batch: the node that is the batch size.
            compute: (function, arguments) → node.
        """

        def go(value: Any, one: Any, other: Any) -> Any:
            if isinstance(value, dict):
                named = cast("dict[str, Any]", value)
                return {k: go(v, one[k], other[k]) if k in one and k in other else v for k, v in named.items()}
            if isinstance(value, list | tuple):
                sides = [cast("list[Any]", side) for side in (value, one, other) if isinstance(side, list | tuple)]
                same = len(sides) == 3 and len(set(map(len, sides))) == 1
                return type(value)(map(go, *sides)) if same else value
            if not all(map(_whole, (value, one, other))) or value != one or one == other:
                return value
            slope, rest = divmod(other - one, (TIMES - 1) * self.size)
            if rest:
                return value
            scaled = batch if slope == 1 else compute(operator.mul, (batch, slope))
            fixed = one - slope * self.size
            return compute(operator.add, (scaled, fixed)) if fixed else scaled

        return go(made, first, second)


_KNOWN: WeakKeyDictionary[Program, BatchSizes] = WeakKeyDictionary()


def batch_sizes(model: nn.Module, program: Program) -> BatchSizes:
    """Capture the model once more, the first time that it is asked for. Where the calls are not the same ones then, no
    number is told to be a batch size."""
    if program not in _KNOWN:
        _KNOWN[program] = _captured_again(model, program)
    return _KNOWN[program]


def _captured_again(model: nn.Module, program: Program) -> BatchSizes:
    args, kwargs = pytree.tree_unflatten(list(program.resized(TIMES * program.batch_size)), program.in_spec)
    try:
        second = trace(model, kwargs or args)
    except CaptureError:
        return BatchSizes(program.batch_size)
    own = {node.name: node for node in program.nodes if node.op == "call_function"}
    others = {node.name: node for node in second.nodes if node.op == "call_function"}
    same = all(name in own and own[name].target is other.target for name, other in others.items())
    return BatchSizes(program.batch_size, others if same else {})


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
