"""Whether a class has branches of its own for training, which no capture in eval mode has seen, and draws there."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from itertools import pairwise
from types import CodeType
from typing import Any

from torch import nn


def has_branches(model: nn.Module) -> bool:
    """Whether a method of a user's class decides something by `self.training`, other than what a function is given, as
    in `F.dropout(x, 0.1, self.training)`."""
    return any(map(_decides, own_codes(*model.modules())))


def draws(model: nn.Module) -> bool:
    """Whether such a method, or one that it calls, also draws random numbers: noise may be of a size that is written
    down."""
    codes = [*own_codes(*model.modules())]
    drawing = _DRAWS | {code.co_name for code in codes if not _DRAWS.isdisjoint(code.co_names)}
    return any(_decides(code) and not drawing.isdisjoint(code.co_names) for code in codes)


_DRAWS = frozenset(
    "rand randn rand_like randn_like normal normal_ uniform_ exponential_ bernoulli bernoulli_ sample rsample".split()
)


def own_codes(*modules: nn.Module) -> Iterator[CodeType]:
    """The code of all methods of these modules' classes that are a user's."""
    classes = {kind for module in modules for kind in type(module).__mro__}
    own = (kind for kind in classes if not kind.__module__.startswith(("torch.", "builtins")))
    methods = (value for kind in own for value in vars(kind).values())
    return (code for method in methods for code in _codes(_code_of(method)))


def _code_of(method: Any) -> CodeType | None:
    return inspect.unwrap(method).__code__ if inspect.isfunction(method) else None


def _codes(code: CodeType | None) -> Iterator[CodeType]:
    """A function's own, and that of the functions in it."""
    if code is not None:
        yield code
        for constant in code.co_consts:
            yield from _codes(constant if isinstance(constant, CodeType) else None)


def _decides(code: CodeType) -> bool:
    if "training" not in code.co_names:
        return False
    steps = pairwise(step for step in dis.get_instructions(code) if step.opname not in _BEFORE_A_JUMP)
    return any(one.argval == "training" and "JUMP" in then.opname for one, then in steps)


_BEFORE_A_JUMP = frozenset({"COPY", "TO_BOOL"})
"""What later Pythons do with a value by which they decide."""
