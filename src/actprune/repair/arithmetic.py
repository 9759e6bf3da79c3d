"""Arithmetic with the expressions of sizes: what a part of one has to be, and parts that became numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from actprune.graph.numbers import Expr, variables


def inverted(expr: Expr, leaf: Expr, target: int, value: Callable[[Expr], Any]) -> Iterator[int]:
    """What `leaf` may have to be so that `expr` gives the target; where it stands twice, in one of its places.

    Args:
        value: of any part of the expression; None where it isn't known.
    """
    if expr == leaf:
        yield target
    elif isinstance(expr, tuple) and expr[0] not in ("attr", "shape"):
        op, left, right = expr
        for part, other, first in ((left, right, True), (right, left, False)):
            known = value(other) if leaf in variables(part) else None
            if known is not None:
                for wanted in _operand(op, known, target, first):
                    yield from inverted(part, leaf, wanted, value)


def _operand(op: str, known: int, target: int, first: bool) -> Iterable[int]:
    """What the other operand of `op` may be so that the result is `target`; `first` if it is the left one."""
    match op, first:
        case "+", _:
            return [target - known]
        case "-", True:
            return [target + known]
        case "-", False:
            return [known - target]
        case "*", _:
            return [target // known] if known and target % known == 0 else []
        case "//", True:
            return [target * known]
        case "//", False:
            return [known // target] if target else []
        case _:
            return []


def with_values(expr: Expr, values: Mapping[Any, int]) -> Expr:
    """The expression with the given arithmetic replaced by numbers."""
    if isinstance(expr, int | float) or expr[0] in ("attr", "shape"):
        return expr
    if expr in values:
        return values[expr]
    return (expr[0], with_values(expr[1], values), with_values(expr[2], values))
