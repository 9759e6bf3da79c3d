"""The names of tensors in a graph form: which it can have, and how its source writes them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from keyword import kwlist

from torch import nn
from torch.fx import Graph, GraphModule

from actprune.errors import UnsupportedModelError

_KEYWORD = re.compile(rf"(\w+ = )((?:getattr\()*self\b.*?)\.({'|'.join(kwlist)})\b")


def check_names(names: Iterable[str], model_name: str) -> None:
    """Whether a graph form can have tensors of these names.

    Raises:
        UnsupportedModelError: one is that of an attribute of its own.
    """
    for name in names:
        if (part := taken(name)) is not None:
            raise UnsupportedModelError(
                f"{model_name} can't become a captured graph: it has a name that is taken there.",
                expected="names that torch.fx.GraphModule has no attribute of, and that hold no quotes",
                got=repr(part),
                where=name,
                hint='rename it in the class, and in the state dict that it loads, or prune with form="class"',
            )


def taken(name: str) -> str | None:
    """The part of a tensor's name that no graph form can have."""
    first, *others = name.split(".")
    if first in _own(GraphModule):
        return first
    return next(
        (p for p in (first, *others) if '"' in p or "\\" in p or (p is not first and p in _own(nn.Module))), None
    )


@cache
def _own(kind: type[nn.Module]) -> frozenset[str]:
    """The attributes of an empty module."""
    return frozenset(dir(GraphModule(nn.Module(), Graph()) if kind is GraphModule else nn.Module()))


def with_keywords(lines: list[str]) -> list[str]:
    """The lines of a source, with modules such as `in` read by `getattr`: torch.fx writes `self.in`."""
    return list(map(_written, lines))


def _written(line: str) -> str:
    while found := _KEYWORD.match(line):
        line = f'{found[1]}getattr({found[2]}, "{found[3]}"){line[found.end() :]}'
    return line
