"""The source of the functions that the user wrote, and of those that were edited before."""

from __future__ import annotations

import ast
import hashlib
import inspect
import linecache
import textwrap
from dataclasses import dataclass
from functools import cache
from types import CodeType, ModuleType
from typing import cast


@dataclass(frozen=True)
class Source:
    """The source of one function.

    Attributes:
        text: dedented.
        tree: its definition.
        first: line number of its first line in the file.
        indent: columns that the dedent took away.
        digest: SHA-256 of the text.
    """

    text: str
    tree: ast.FunctionDef
    first: int
    indent: int
    digest: str


_EDITED: dict[CodeType, tuple[Source, CodeType]] = {}
"""Of a function that was edited before, in no file: its source, and the code that it was made of."""


def note_edited(code: CodeType, source: Source, of: CodeType) -> None:
    """`code` was compiled from `source`, which is that of `of` with numbers in some places."""
    _EDITED[code] = source, _written(of)


def _written(code: CodeType) -> CodeType:
    """The code that stands in a file."""
    return _EDITED[code][1] if code in _EDITED else code


text_of = cache(ast.unparse)
"""The text of an expression: the same one is asked for by every plan."""


@cache
def source_of(code: CodeType) -> Source | None:
    """None where the source isn't available, or is not a plain function's or a lambda's."""
    if code in _EDITED:
        return _EDITED[code][0]
    if code.co_name == "<lambda>":
        return _source_of_lambda(code)
    try:
        lines, first = inspect.getsourcelines(code)
    except (OSError, TypeError):
        return None
    text = textwrap.dedent("".join(lines))
    try:
        body = ast.parse(text).body
    except SyntaxError:
        return None
    if len(body) != 1 or not isinstance(body[0], ast.FunctionDef):
        return None
    indent = len(lines[0]) - len(lines[0].lstrip())
    return Source(text, body[0], first, indent, hashlib.sha256(text.encode()).hexdigest())


def _source_of_lambda(code: CodeType) -> Source | None:
    """As a function that returns its body; its file is read, for a lambda may start in the middle of a statement."""
    text = "".join(linecache.getlines(code.co_filename))
    spans = [(end, column) for _, end, _, column in code.co_positions() if end is not None and column is not None]
    try:
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Lambda)]
    except SyntaxError:
        return None
    ends = [n for n in nodes if (n.body.end_lineno, n.body.end_col_offset) == max(spans, default=None)]
    found = [node for node in ends if node.lineno == code.co_firstlineno]
    if len(found) != 1:
        return None
    (node,) = found
    digest = hashlib.sha256((ast.get_source_segment(text, node) or "").encode()).hexdigest()
    first = node.lineno
    body: list[ast.stmt] = [ast.copy_location(ast.Return(node.body), node.body)]
    tree = ast.copy_location(ast.FunctionDef("lambda_", node.args, body, decorator_list=[]), node)
    return Source(text, cast("ast.FunctionDef", ast.increment_lineno(tree, 1 - first)), first, 0, digest)


@cache
def calls_by_name(caller: CodeType, callee: CodeType) -> bool:
    """Whether a function finds another one by its name: among its globals, or in a library that these name.

    One that was edited stands in the other's place among the globals of a copy, which no module shows.
    """
    callee, names = _written(callee), _names(caller)
    if callee.co_name not in names:  # it was handed over, or has another name there
        return False
    space = vars(inspect.getmodule(caller) or object)
    libraries = [space[name] for name in names if isinstance(space.get(name), ModuleType)]
    held = [space.get(callee.co_name), *(getattr(library, callee.co_name, None) for library in libraries)]
    # equal, not the same: a file may have been imported twice, as pytest does
    return any(callable(f) and getattr(inspect.unwrap(f), "__code__", None) == callee for f in held)


def _names(code: CodeType) -> set[str]:
    """Those that a function looks up, the comprehensions and functions in it included."""
    inner = [part for part in code.co_consts if isinstance(part, CodeType)]
    return {*code.co_names}.union(*map(_names, inner))


@cache
def comparison(code: CodeType, end: tuple[int, int]) -> tuple[ast.expr, ast.expr] | None:
    """Both sides of the `==` or `!=` that ends there, line and column of the file; None where there is no such one."""
    source = source_of(code)
    if source is None:
        return None
    nodes = [n for n in ast.walk(source.tree) if isinstance(n, ast.Compare) and ends(n, source, end)]
    plain = [n for n in nodes if len(n.ops) == 1 and isinstance(n.ops[0], ast.Eq | ast.NotEq)]
    return (plain[0].left, plain[0].comparators[0]) if plain else None


def ends(node: ast.expr, source: Source, end: tuple[int, int]) -> bool:
    """Whether an expression ends at a line and a column of the file."""
    return (node.end_lineno, node.end_col_offset) == (end[0] - source.first + 1, end[1] - source.indent)
