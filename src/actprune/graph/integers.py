"""Integers that remember where they came from.

While a model is captured, the sizes written down in its modules and the shapes that it reads are made `TracedInt`
integers. They are what they were, and carry an expression through arithmetic: `C // self.num_heads` arrives at a
reshape as ("//", ("shape", …), ("attr", …)). So it is known what every size would be once tensors and attributes have
changed, and which attribute has to change.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeAlias

Expr: TypeAlias = "int | tuple[Any, ...]"
"""A number; ("attr", holder, path); ("shape", tensor, dim); or (op, left, right)."""

_Operator: TypeAlias = Callable[[int, int], int]

_OPS: dict[str, tuple[str, Any]] = {
    "add": ("+", operator.add),
    "sub": ("-", operator.sub),
    "mul": ("*", operator.mul),
    "floordiv": ("//", operator.floordiv),
    "mod": ("%", operator.mod),
}


class TracedInt(int):
    """An int with the expression that it came from."""

    expr: Expr

    def __new__(cls, value: int, expr: Expr) -> TracedInt:
        made = int.__new__(cls, value)
        made.expr = expr
        return made

    def __neg__(self) -> TracedInt:
        return TracedInt(-int(self), ("-", 0, self.expr))

    def __deepcopy__(self, memo: dict[int, Any]) -> int:
        return int(self)  # a copy of a module made in the meantime must not keep it

    def __reduce__(self) -> Any:
        return (int, (int(self),))


def expression(value: Any) -> Expr:
    """What a size was computed from; itself where that isn't known."""
    return value.expr if isinstance(value, TracedInt) else int(value)


def _forward(name: str, symbol: str, compute: _Operator) -> None:
    def method(self: TracedInt, other: Any) -> Any:
        if not isinstance(other, int):
            return getattr(int, f"__{name}__")(self, other)
        return TracedInt(compute(int(self), int(other)), (symbol, self.expr, expression(other)))

    def reflected(self: TracedInt, other: Any) -> Any:
        if not isinstance(other, int):
            return getattr(int, f"__r{name}__")(self, other)
        return TracedInt(compute(int(other), int(self)), (symbol, expression(other), self.expr))

    setattr(TracedInt, f"__{name}__", method)
    setattr(TracedInt, f"__r{name}__", reflected)


for _name, (_symbol, _compute) in _OPS.items():
    _forward(_name, _symbol, _compute)

_COMPUTE: dict[str, _Operator] = dict(_OPS.values())


def evaluate(expr: Expr, value_of: Callable[[tuple[Any, ...]], int | None]) -> int | None:
    """The value of an expression; None where some part of it isn't known.

    Args:
        value_of: an ("attr", …) or ("shape", …) leaf → its value.
    """
    if isinstance(expr, int):
        return expr
    if expr[0] in ("attr", "shape"):
        return value_of(expr)
    left, right = evaluate(expr[1], value_of), evaluate(expr[2], value_of)
    if left is None or right is None or (right == 0 and expr[0] in ("//", "%")):
        return None
    return _COMPUTE[expr[0]](left, right)


def variables(expr: Expr) -> set[tuple[Any, ...]]:
    """The ("attr", …) and ("shape", …) leaves of an expression."""
    if isinstance(expr, int):
        return set()
    if expr[0] in ("attr", "shape"):
        return {expr}
    return variables(expr[1]) | variables(expr[2])
