"""`int(size)` that remembers the size: some attentions make an int of what is one for their scale, `int(c) ** -0.5`."""

from __future__ import annotations

import ast
import contextlib
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import Tensor, nn

from actprune.graph.numbers import TracedInt
from actprune.graph.rebuilt import running


class _Int(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> int:
        if len(args) == 1 and isinstance(args[0], Tensor):
            args = (args[0].item(),)  # which may be a number of the class: see `number_tensors`
        kept = len(args) == 1 and not kwargs and isinstance(args[0], TracedInt)
        return args[0] if kept else int(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, int)


class _TracingInt(metaclass=_Int):
    """Stands for `int` among the globals of the files that the model's classes are from."""


def traced_int(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Where a file does no more with `int` than to call it: as a dtype, say, only the true one will do."""
    return standing_for("int", _TracingInt, model)


@contextlib.contextmanager
def standing_for(builtin: str, own: Any, model: nn.Module) -> Iterator[None]:
    """`own` in the place of a builtin in the files that the model's classes are from, where they only call it."""
    names = {type(module).__module__ for module in running(model).values()}
    files = [name for name in names if name.partition(".")[0] != "torch" and name in sys.modules]
    theirs = [vars(sys.modules[name]) for name in files if _only_called(name, builtin)]
    spaces = [space for space in theirs if builtin not in space]
    for space in spaces:
        space[builtin] = own
    try:
        yield
    finally:
        for space in spaces:
            del space[builtin]


@cache
def _only_called(name: str, builtin: str = "int") -> bool:
    """Whether a file calls `int`, say, and beyond that asks for no more than whether something is one."""
    try:
        source = inspect.getsource(sys.modules[name])
        nodes = [*ast.walk(ast.parse(source))] if f"{builtin}(" in source else []
    except (OSError, TypeError, SyntaxError):
        return False
    allowed = {id(inner) for node in nodes for part in _harmless(node) for inner in ast.walk(part)}
    named = [node for node in nodes if isinstance(node, ast.Name) and node.id == builtin]
    return bool(named) and all(id(node) in allowed for node in named)


def _harmless(node: ast.AST) -> list[ast.AST]:
    """The parts of a node in which `int` is called, compared with a class, or an annotation."""
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name):  # `int.from_bytes(…)`, and a dtype in `zeros(n, dtype=int).sum()`
            return []
        return [node.func, *(node.args[1:] if node.func.id == "isinstance" else ())]
    found = [getattr(node, name, None) for name in ("annotation", "returns")]
    return [part for part in found if isinstance(part, ast.AST)]
