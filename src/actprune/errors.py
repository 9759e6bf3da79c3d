"""Every error actprune raises on purpose.

Each one says what was expected, what was received, where, and what to do next, in that order,
because the message is the part of the interface that people read when they most need it.
"""

from __future__ import annotations

import inspect


class ActpruneError(Exception):
    """Base class: catch this to catch everything actprune raises on purpose.

    Args:
        problem: one sentence that says what went wrong.
        expected: what a correct value or state would have been.
        got: what was there instead.
        where: the place, as a module path, node, file or argument name.
        hint: what to do next.
    """

    def __init__(
        self,
        problem: str,
        *,
        expected: str | None = None,
        got: str | None = None,
        where: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.problem = problem
        self.expected = expected
        self.got = got
        self.where = where
        self.hint = hint
        parts = (("expected", expected), ("got", got), ("where", where), ("next", hint))
        lines = [problem, *(f"  {label}: {text}" for label, text in parts if text is not None)]
        super().__init__("\n".join(lines))


class CaptureError(ActpruneError):
    """The model could not be turned into a graph (it does not run on its inputs, or no tracer can follow it)."""


class UnsupportedModelError(ActpruneError):
    """The model was captured, but nothing in it can be cut, or the eager class cannot follow the cut."""


class BudgetError(ActpruneError):
    """A budget that is malformed, out of range, or that no allowed set of widths reaches."""


class PlanError(ActpruneError):
    """A plan that does not fit the model, or names methods, groups or patterns that do not exist."""


class EquivalenceError(ActpruneError):
    """The proof failed: the cut network does not compute what the plan promises."""


class ArtifactError(ActpruneError):
    """A file or folder that cannot be written, or that is truncated, tampered with or foreign."""


class DataError(ActpruneError):
    """Calibration or evaluation data that is empty, of the wrong shape, or not finite."""


class DistributedError(ActpruneError):
    """A run of several processes that can't go on: one has failed or is gone, or they do not do the same thing."""


def shortly(value: object) -> str:
    """What was given, in a line: of a function what it takes, of what fills more lines the first one."""
    if inspect.isroutine(value):
        try:
            return f"{getattr(value, '__name__', type(value).__name__)}{inspect.signature(value)}"
        except ValueError:  # of what is written in C, Python may know no signature
            pass
    text = repr(value)
    first = text.partition("\n")[0][:200]
    return text if first == text else f"{type(value).__name__}: {first} …"
