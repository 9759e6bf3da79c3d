"""Finding the argument of a call in the user's source, and replacing it by a number."""

from __future__ import annotations

import ast
import hashlib
import inspect
import linecache
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import CodeType, ModuleType
from typing import Any, cast

from actprune.graph.size_arguments import FULL, GROUPS
from actprune.graph.sizes import SizeUse


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


@dataclass(frozen=True)
class _Size:
    """What of a `SizeUse` says where its argument stands: the same for every layer of one class."""

    op: str
    slot: int
    count: int
    end: tuple[int, int]


def argument(use: SizeUse) -> ast.expr | None:
    """The expression of a size in the source of the call that took it; None where it can't be told."""
    return _found(use.place.code, _Size(use.op, use.slot, use.count, use.place.span[2:]))


@cache
def comparison(code: CodeType, end: tuple[int, int]) -> tuple[ast.expr, ast.expr] | None:
    """Both sides of the `==` or `!=` that ends there, line and column of the file; None where there is no such one."""
    source = source_of(code)
    if source is None:
        return None
    nodes = [n for n in ast.walk(source.tree) if isinstance(n, ast.Compare) and _ends(n, source, end)]
    plain = [n for n in nodes if len(n.ops) == 1 and isinstance(n.ops[0], ast.Eq | ast.NotEq)]
    return (plain[0].left, plain[0].comparators[0]) if plain else None


def _ends(node: ast.expr, source: Source, end: tuple[int, int]) -> bool:
    """Whether an expression ends at a line and a column of the file."""
    return (node.end_lineno, node.end_col_offset) == (end[0] - source.first + 1, end[1] - source.indent)


@cache
def _found(code: CodeType, use: _Size) -> ast.expr | None:
    source = source_of(code)
    if source is None:
        return None
    for node in ast.walk(source.tree):
        # no two calls end at one place; where one in a chain starts, Python and its syntax tree disagree
        if isinstance(node, ast.Call | ast.Subscript) and _ends(node, source, use.end):
            if isinstance(node, ast.Subscript):
                return _slice_bound(node, use)
            return _size_argument(node, use, source, _is_function(node, vars(inspect.getmodule(code) or object)))
    return None


def _slice_bound(node: ast.Subscript, use: _Size) -> ast.expr | None:
    items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    position, side = divmod(use.slot, 2)
    if len(items) * 2 != use.count or not isinstance(item := items[position], ast.Slice):
        return None
    return item.upper if side else item.lower


def _size_argument(node: ast.Call, use: _Size, source: Source, function: bool) -> ast.expr | None:
    """Of `x.view(a, b)`, `x.view((a, b))`, `torch.zeros(a, b)`, `torch.split(x, a)` and the like.

    Args:
        function: it is one of a library's, which has the tensor in front, and no method.
    """
    given: list[ast.expr] = list(node.args)
    if use.op in GROUPS:
        return _argument(node, GROUPS[use.op], "groups", "num_groups")
    if use.op in ("layer_norm", "rms_norm"):
        shape = _argument(node, 1, "normalized_shape")
        return None if shape is None else _item(shape, use.slot, use.count, source)
    named = [
        k.value
        for k in node.keywords
        if k.arg in ("size", "shape", "newshape", "sizes", "split_size_or_sections", "split_size")
    ]
    if use.op in ("split", "split_with_sizes", "unflatten", "narrow"):
        # a call of the function, not of the method, has the tensor in front; only a list or a number is a size
        skip = function + (use.op == "unflatten")
        given = named or given[skip:]
        if use.op == "narrow":
            by_name = {keyword.arg: keyword.value for keyword in node.keywords}
            given += [by_name[name] for name in ("dim", "start", "length")[len(given) :] if name in by_name]
            return given[use.slot] if len(given) == use.count else None
        if use.count == 1 and given and not isinstance(given[0], ast.Tuple | ast.List):
            return given[0]
        return _item(given[0], use.slot, use.count, source) if given else None
    given = named or (given[:1] if use.op in FULL else given)  # behind the sizes stands what they are filled with
    if use.op == "pad":
        given = [k.value for k in node.keywords if k.arg == "pad"] or given[1:2]
    if len(given) > 1 and use.op in ("reshape", "tile", "broadcast_to"):
        # all sizes of a method are in one tuple, or in none: behind something else it is that of a function
        given = given[1:] if function or isinstance(given[1], ast.Tuple | ast.List) else given
    if len(given) == 1 and (use.count > 1 or isinstance(given[0], ast.Tuple | ast.List)):
        return _item(given[0], use.slot, use.count, source)
    return _among(given, use.slot, use.count, source)


def _argument(node: ast.Call, place: int, *names: str) -> ast.expr | None:
    """The argument of a call at a place, or under one of its names."""
    named = [keyword.value for keyword in node.keywords if keyword.arg in names]
    if named or any(isinstance(given, ast.Starred) for given in node.args):
        return next(iter(named), None)
    return node.args[place] if len(node.args) > place else None


def _is_function(node: ast.Call, names: Mapping[str, Any]) -> bool:
    """`torch.split(x, …)` or `keras.ops.reshape(x, …)` rather than `x.split(…)`.

    Args:
        names: the globals of the code.
    """
    if isinstance(node.func, ast.Name):
        return True
    whole = node.func.value if isinstance(node.func, ast.Attribute) else None
    while isinstance(whole, ast.Attribute):
        whole = whole.value
    return isinstance(whole, ast.Name) and (whole.id == "torch" or isinstance(names.get(whole.id), ModuleType))


def _item(expr: ast.expr, slot: int, count: int, source: Source) -> ast.expr | None:
    """Item `slot` of `count` of an expression that gives a tuple."""
    match expr:
        case ast.Tuple(elts) | ast.List(elts):
            return _among(elts, slot, count, source)
        case ast.BinOp(_, ast.Add(), ast.Tuple(elts)) if slot >= count - len(elts):
            return _among(elts, slot - (count - len(elts)), len(elts), source)
        case ast.BinOp(ast.Tuple(elts), ast.Add(), _) if slot < len(elts):
            return _among(elts, slot, len(elts), source)
        case ast.Starred(value) | ast.Call(ast.Name("tuple" | "list"), [value]):
            return _item(value, slot, count, source)
        case ast.Name(name):
            values = [
                node.value
                for node in ast.walk(source.tree)
                if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)
            ]
            shown = len(values) == 1 and isinstance(values[0], ast.Tuple | ast.List | ast.BinOp)
            return (_item(values[0], slot, count, source) if shown else None) or _item_of(expr, slot, count)
        case _:
            return _item_of(expr, slot, count) if _is_pure(expr) else None


def _item_of(expr: ast.expr, slot: int, count: int) -> ast.Subscript:
    """`x.shape[1]` for the item of an `x.shape` that stands for a tuple of sizes, `x.shape[-1]` for the last."""
    item = ast.parse(str(-1 if slot == count - 1 else slot), mode="eval").body
    return ast.copy_location(ast.Subscript(expr, item, ast.Load()), expr)


def _is_pure(expr: ast.expr) -> bool:
    """Whether an expression may be evaluated once for every item: parts of shapes and sums of such."""
    calls = [node for node in ast.walk(expr) if isinstance(node, ast.Call)]
    sizes = all(isinstance(call.func, ast.Attribute) and call.func.attr == "size" and not call.args for call in calls)
    return sizes and all(isinstance(node, _PURE) for node in ast.walk(expr))


_PURE = (
    ast.Name, ast.Attribute, ast.Subscript, ast.Slice, ast.Constant, ast.UnaryOp, ast.unaryop, ast.BinOp, ast.operator,
    ast.Tuple, ast.List, ast.Starred, ast.Call, ast.expr_context,
)  # fmt: skip


def _among(items: Sequence[ast.expr], slot: int, count: int, source: Source) -> ast.expr | None:
    """Item `slot` where one item may be starred and stand for several."""
    stars = [i for i, item in enumerate(items) if isinstance(item, ast.Starred)]
    if not stars:
        return items[slot] if items and len(items) == count else None  # a call by keywords alone has none
    if len(stars) > 1:
        return None
    star, behind = stars[0], len(items) - stars[0] - 1
    if slot < star:
        return items[slot]
    if slot >= count - behind:
        return items[slot - count]
    return _item(items[star], slot - star, count - star - behind, source)
