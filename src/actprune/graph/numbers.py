"""Numbers that remember where they came from.

While a model is captured, the sizes written down in its modules and the shapes that it reads are made `TracedInt`
integers. They are what they were, and carry an expression through arithmetic: `C // self.num_heads` arrives at a
reshape as ("//", ("shape", …), ("attr", …)). So it is known what every size would be once tensors and attributes have
changed, and which attribute has to change.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

Expr: TypeAlias = "int | float | tuple[Any, ...]"
"""A number; ("attr", holder, path); ("shape", tensor, dim); or (op, left, right)."""

_Operator: TypeAlias = Callable[[Any, Any], Any]

_OPS: dict[str, tuple[str, Any]] = {
    "add": ("+", operator.add),
    "sub": ("-", operator.sub),
    "mul": ("*", operator.mul),
    "floordiv": ("//", operator.floordiv),
    "mod": ("%", operator.mod),
    "truediv": ("/", operator.truediv),
    "pow": ("**", operator.pow),
}


class _Traced:
    """What a traced number has beside its value."""

    expr: Expr

    def __new__(cls, value: Any, expr: Expr) -> Any:
        made: Any = super().__new__(cls, value)  # type: ignore[call-arg]  # of int or float
        made.expr = expr
        return made

    def __neg__(self) -> Any:
        return 0 - self  # type: ignore[operator]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return plain(self)  # a copy of a module made in the meantime must not keep it

    def __reduce__(self) -> Any:
        return (type(plain(self)), (plain(self),))


class TracedInt(_Traced, int):
    """An int with the expression that it came from."""

    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        equal = int.__eq__(self, other)
        if equal is True and _listeners and isinstance(other, int):
            _listeners[-1](("-", self.expr, expression(other)))
        return equal

    def __ne__(self, other: object) -> bool:  # not by way of `==`: who listens looks at the frame that asks
        equal = int.__eq__(self, other)
        if equal is True and _listeners and isinstance(other, int):
            _listeners[-1](("-", self.expr, expression(other)))
        return NotImplemented if equal is NotImplemented else not equal


_listeners: list[Callable[[Expr], None]] = []


@contextlib.contextmanager
def compared(listener: Callable[[Expr], None]) -> Iterator[None]:
    """Tell `listener` the difference of two numbers whenever a traced one is found to equal another one."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.pop()


class TracedFloat(_Traced, float):
    """A float with the expression that it came from: a scale such as 1/√(head size)."""


def expression(value: Any) -> Expr:
    """What a number was computed from; itself where that isn't known."""
    if isinstance(value, _Traced):
        return value.expr
    return int(value) if isinstance(value, int) else float(value)


def plain(value: Any) -> Any:
    """A traced number as a plain one; any other value as it is."""
    if isinstance(value, TracedInt):
        return int(value)
    return float(value) if isinstance(value, TracedFloat) else value


def tracing_root(root: Callable[..., Any]) -> Callable[..., Any]:
    """The square root `root` that keeps the origin of a number."""

    def sqrt(x: Any, *args: Any, **kwargs: Any) -> Any:
        found = root(x, *args, **kwargs)
        return TracedFloat(found, ("**", x.expr, 0.5)) if isinstance(x, _Traced) else found

    return sqrt


def _forward(kind: type[TracedInt] | type[TracedFloat], name: str, symbol: str, compute: Any) -> None:
    """Give a class the operator `name`, of itself with a number, and reflected."""
    base = int if kind is TracedInt else float

    def made(left: Any, right: Any) -> Any:
        value = compute(plain(left), plain(right))
        origin = _origin(symbol, expression(left), expression(right))
        if isinstance(value, int):
            return TracedInt(value, origin)
        return TracedFloat(value, origin) if isinstance(value, float) else value

    def method(self: Any, other: Any) -> Any:
        return made(self, other) if isinstance(other, int | float) else getattr(base, f"__{name}__")(self, other)

    def reflected(self: Any, other: Any) -> Any:
        return made(other, self) if isinstance(other, int | float) else getattr(base, f"__r{name}__")(self, other)

    setattr(kind, f"__{name}__", method)
    setattr(kind, f"__r{name}__", reflected)


def _origin(symbol: str, left: Expr, right: Expr) -> Expr:
    """The expression of a result; a factor that is divided away is dropped: `numel / rows` is the columns."""
    rest = _without(left, right) if symbol in ("/", "//") and right != 0 else None
    return (symbol, left, right) if rest is None else rest


def _without(product: Expr, factor: Expr) -> Expr | None:
    """A product without one of its factors; None where that is none of them."""
    if product == factor:
        return 1
    if isinstance(product, int | float) or product[0] != "*":
        return None
    for kept, other in ((1, 2), (2, 1)):
        rest = _without(product[other], factor)
        if rest is not None:
            return product[kept] if rest == 1 else ("*", product[kept], rest)
    return None


for _name, (_symbol, _compute) in _OPS.items():
    for _kind in (TracedInt, TracedFloat):
        _forward(_kind, _name, _symbol, _compute)

_COMPUTE: dict[str, _Operator] = dict(_OPS.values())


def evaluate(expr: Expr, value_of: Callable[[tuple[Any, ...]], int | None]) -> Any:
    """The value of an expression; None where some part of it isn't known.

    Args:
        value_of: an ("attr", …) or ("shape", …) leaf → its value.
    """
    if isinstance(expr, int | float):
        return expr
    if expr[0] in ("attr", "shape"):
        return value_of(expr)
    left, right = evaluate(expr[1], value_of), evaluate(expr[2], value_of)
    if left is None or right is None or (right == 0 and expr[0] in ("//", "%", "/")):
        return None
    return _COMPUTE[expr[0]](left, right)


def variables(expr: Expr) -> set[tuple[Any, ...]]:
    """The ("attr", …) and ("shape", …) leaves of an expression."""
    if isinstance(expr, int | float):
        return set()
    if expr[0] in ("attr", "shape"):
        return {expr}
    return variables(expr[1]) | variables(expr[2])


def parts(expr: Expr) -> Iterator[tuple[Any, ...]]:
    """The expressions that an expression consists of, itself first."""
    if not isinstance(expr, int | float):
        yield expr
        if expr[0] not in ("attr", "shape"):
            yield from parts(expr[1])
            yield from parts(expr[2])


def with_value(expr: Expr, part: Expr, value: Expr) -> Expr:
    """The expression with `value` in the place of one of its parts."""
    if expr == part:
        return value
    if isinstance(expr, int | float) or expr[0] in ("attr", "shape"):
        return expr
    return (expr[0], with_value(expr[1], part, value), with_value(expr[2], part, value))
