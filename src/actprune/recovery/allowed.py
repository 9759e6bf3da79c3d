"""What settings may be, as data: a test, and the words for it in a message."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isnan
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from actprune.data.calls import takes
from actprune.errors import DataError, shortly


@dataclass(frozen=True)
class Allowed:
    """Values of one setting.

    Attributes:
        words: what they are, for a message.
        problem, hint: what is wrong with any other value, and what to do, where that can be said better than of all.
    """

    holds: Callable[[Any], bool]
    words: str
    problem: str | None = None
    hint: str | None = None

    def told(self, problem: str, hint: str) -> Allowed:
        """The same values, with another message."""
        return replace(self, problem=problem, hint=hint)


def at_least(least: float, *kinds: type) -> Allowed:
    """Numbers of these kinds from `least` on."""
    whole = "whole " if kinds == (Integral,) else ""
    return Allowed(lambda value: _is_one(value, kinds) and bool(value >= least), f"a {whole}number ≥ {least:g}")


def above(least: float) -> Allowed:
    """Numbers larger than `least`."""
    return Allowed(lambda value: _is_one(value, (Real,)) and value > least, f"a number > {least:g}")


def between(least: float, most: float) -> Allowed:
    """Numbers from `least` to `most`."""
    words = f"a number from {least:g} to {most:g}"
    return Allowed(lambda value: _is_one(value, (Real,)) and least <= value <= most, words)


def one_of(*values: Any) -> Allowed:
    """These values."""
    return Allowed(lambda value: value in values, " or ".join(map(repr, values)))


def or_none(allowed: Allowed) -> Allowed:
    """The same, and None."""
    return Allowed(lambda value: value is None or allowed.holds(value), f"{allowed.words}, or None")


def function(arguments: int, words: str) -> Allowed:
    """Functions that can be called with so many arguments; a class would make an instance of them."""
    return Allowed(lambda value: not isinstance(value, type) and takes(value, arguments), f"a function {words}")


def either(first: Allowed, second: Allowed) -> Allowed:
    """The values of both."""
    return Allowed(lambda value: first.holds(value) or second.holds(value), f"{first.words}, or {second.words}")


def check_settings(settings: Any, allowed: Mapping[str, Allowed], call: str | None = None) -> None:
    """Raise a DataError for the first attribute that is none of its values.

    Args:
        call: what is called with them; None: the class of the settings.
    """
    call = call or type(settings).__name__
    for name, values in allowed.items():
        value = getattr(settings, name)
        if not values.holds(value):
            raise DataError(
                f"{name} {values.problem or f'is no setting of {call}'}.",
                expected=values.words,
                got=shortly(value),
                where=f"{call}({name}=…)",
                hint=values.hint or "see the docstring of the class",
            )


def _is_one(value: Any, kinds: tuple[type, ...]) -> bool:
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds == (Integral,)):
        return False
    if isinstance(value, Tensor):
        return value.numel() == 1 and not isnan(float(value))
    return not isnan(value)
