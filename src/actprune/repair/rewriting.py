"""A size that no attribute mends becomes a number in the source: where it stands, and what takes its place.

A function of torch's that insists on a size makes room for one that takes any.
"""

from __future__ import annotations

import ast
import inspect
from types import CodeType

from actprune.axes.expr import ONE, leaves
from actprune.graph.attending import OF_ANY_WIDTH
from actprune.graph.numbers import Expr, evaluate, variables
from actprune.graph.sizes import INSISTS, Place, SizeUse
from actprune.repair.edits import CallEdit, SourceEdit
from actprune.repair.source import calls_by_name, source_of, text_of
from actprune.repair.targets import Targets
from actprune.repair.written import argument


def source_edit(targets: Targets, use: SizeUse, target: int) -> SourceEdit | None:
    """The size as a number in the user's source; None where that is out of reach.

    Args:
        target: that number.
    """
    place = use.place
    if use.is_in_formula or place.module is None or "/torch/" in place.code.co_filename:
        return None
    source, found, names = source_of(place.code), argument(use), reached(place)
    if source is None or found is None or isinstance(found, ast.Starred) or names is None:
        return None
    part = _without_batch(targets, found, use.expr, use.value, target)
    if part is None:
        return None
    found, was, target = part
    text = text_of(found)
    return SourceEdit(place.module, names, found.lineno, found.col_offset, text, target, was, source.digest)


def call_edit(use: SizeUse) -> CallEdit | None:
    """Another function in the place of one that insists on a size; None where it is another size, or out of reach."""
    insists = next((function for function in OF_ANY_WIDTH if function.__name__ == use.op), None)
    if insists is None or use.slot != INSISTS or use.place.module is None:
        return None
    names = reached(use.place, inspect.unwrap(insists).__code__)
    return None if names is None else CallEdit(use.place.module, names)


def reached(place: Place, last: CodeType | None = None) -> tuple[str, ...] | None:
    """The names of the functions down to a place, and `last` of one that is called there; None where one of them is not
    found by its name, and a rebuilt one would not be called."""
    chain = [code for code in (*place.callers, place.code) if "/torch/" not in code.co_filename]  # of the tracer
    chain += [] if last is None else [last]
    if not all(map(calls_by_name, chain, chain[1:])):
        return None
    names = [code.co_name for code in chain]
    if place.holder is not None:
        names[0] = f"{place.holder}.{names[0]}"
    return tuple(names)


def _without_batch(
    targets: Targets, found: ast.expr, expr: Expr, was: int, target: int
) -> tuple[ast.expr, int, int] | None:
    """The part of a product that becomes a number where the other is the size of the batch, as in `b * 64`.

    Returns:
        The part, its value in the dense model, and the number; None where the batch would become a number.
    """
    if not _reads_batch(targets, expr):
        return found, was, target
    if isinstance(expr, tuple) and expr[0] == "*" and isinstance(found, ast.BinOp):
        for batch, part, inner in ((expr[1], expr[2], found.right), (expr[2], expr[1], found.left)):
            times = evaluate(batch, targets.before)
            if _reads_batch(targets, batch) and times and was % times == target % times == 0:
                return _without_batch(targets, inner, part, was // times, target // times)
    return None


def _reads_batch(targets: Targets, expr: Expr) -> bool:
    """Whether the size of the batch is part of an expression: as a number it would fit this batch only."""
    program = targets.graph.program
    batched = [name for i, name in enumerate(program.inputs) if program.is_batched(i)]
    keys = {leaf.key for name in batched for leaf in leaves(targets.dims(name)[0])} - {ONE.key}
    axes = [targets.axis(leaf[1], leaf[2]) for leaf in variables(expr) if leaf[0] == "shape" and leaf[1] is not None]
    return any(not keys.isdisjoint(leaf.key for leaf in leaves(axis)) for axis in axes if axis is not None)
