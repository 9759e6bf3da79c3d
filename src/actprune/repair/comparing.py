"""Comparisons that a cut would decide otherwise: `assert x.shape[1] == 64`, where no attribute can change."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from actprune.graph.numbers import Expr
from actprune.graph.sizes import SizeUse
from actprune.repair.edits import SourceEdit
from actprune.repair.rewriting import reached
from actprune.repair.source import comparison, source_of

Value: TypeAlias = "Callable[[SizeUse, Expr], Any]"
"""What a part of a use's expression is; None where that isn't known."""


def comparisons(uses: Iterable[SizeUse], now: Value, before: Value) -> list[SourceEdit]:
    """The numbers that keep the answers of comparisons.

    None where two rounds of a loop would need different ones, or where it is out of reach: the class may do as well
    without, and trial and proof see what it does then.

    Args:
        uses: two numbers that were equal, each, and will not be.
        now, before: values after the cut, and in the dense network.
    """
    found: dict[tuple[Any, ...], set[SourceEdit]] = {}
    for edit in filter(None, (_edit(use, now, before) for use in uses)):
        found.setdefault((edit.module, edit.functions, edit.line, edit.column), set()).add(edit)
    return [edit for edit, *others in found.values() if not others]


def _edit(use: SizeUse, now: Value, before: Value) -> SourceEdit | None:
    """Of two numbers that the class found to be equal, and that a cut makes different, one becomes the other in the
    source: the 64 in `x.shape[1] == 64`. None where that is out of reach."""
    place = use.place
    source, names = source_of(place.code), reached(place)
    if source is None or names is None or place.module is None or not isinstance(use.expr, tuple):
        return None
    sides = comparison(place.code, place.span[2:])
    if sides is None:
        return None
    _, first, second = use.expr
    if isinstance(first, int) or isinstance(second, int):  # a number that is written down, on either side
        written = [side for side in sides if isinstance(side, ast.Constant)]
        found, other = written[:1], second if isinstance(first, int) else first
    else:  # the left one was asked first
        named = [(side, its) for side, its in zip(sides, (second, first), strict=True) if _is_name(side)]
        found, other = [side for side, _ in named[-1:]], named[-1][1] if named else first
    value, was = now(use, other), before(use, other)
    if not found or not isinstance(value, int) or not isinstance(was, int):
        return None
    text = ast.unparse(found[0])
    return SourceEdit(place.module, names, found[0].lineno, found[0].col_offset, text, value, was, source.digest)


def _is_name(side: ast.expr) -> bool:
    return isinstance(side, ast.Name | ast.Attribute)
