"""Finding the argument of a call in the source that is a size: one small reading for every way to write it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import CodeType, ModuleType
from typing import Any

from actprune.graph.size_arguments import FULL, GROUPS, LIKE, NUMBER
from actprune.graph.sizes import SizeUse
from actprune.repair.source import Source, ends, source_of


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
def _found(code: CodeType, use: _Size) -> ast.expr | None:
    source = source_of(code)
    if source is None:
        return None
    for node in ast.walk(source.tree):
        # no two calls end at one place; where one in a chain starts, Python and its syntax tree disagree
        if isinstance(node, ast.Call | ast.Subscript) and ends(node, source, use.end):
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
    if (like := shape_given(node)) is not None:
        return _item_of(like, use.slot, use.count)
    if use.op in NUMBER:
        return _argument(node, 0, "data")
    if use.op in GROUPS:
        return _argument(node, GROUPS[use.op], "groups", "num_groups")
    if use.op == "repeat_interleave":  # slot -1 is of an input: no argument is a size of it
        return (_argument(node, function, "repeats"), _named(node, "output_size"), None)[use.slot]
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
    if use.op == "normal":
        given = named or given[2:]
    if use.op == "pad":
        given = [k.value for k in node.keywords if k.arg == "pad"] or given[1:2]
    if len(given) > 1 and use.op in ("reshape", "tile", "broadcast_to"):
        # all sizes of a method are in one tuple, or in none: behind something else it is that of a function
        given = given[1:] if function or isinstance(given[1], ast.Tuple | ast.List) else given
    if len(given) == 1 and (use.count > 1 or isinstance(given[0], ast.Tuple | ast.List)):
        return _item(given[0], use.slot, use.count, source)
    return _among(given, use.slot, use.count, source)


def shape_given(node: ast.AST) -> ast.expr | None:
    """The `y.shape` that `x.view_as(y)` stands for, where `y` stands; None for other calls."""
    match node:
        case ast.Call(ast.Attribute(_, name), [like], []) if name in LIKE:
            return ast.copy_location(ast.Attribute(like, "shape", ast.Load()), like)
        case _:
            return None


def _argument(node: ast.Call, place: int, *names: str) -> ast.expr | None:
    """The argument of a call at a place, or under one of its names."""
    named = _named(node, *names)
    if named is not None or any(isinstance(given, ast.Starred) for given in node.args):
        return named
    return node.args[place] if len(node.args) > place else None


def _named(node: ast.Call, *names: str) -> ast.expr | None:
    return next((keyword.value for keyword in node.keywords if keyword.arg in names), None)


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
    read = ("size", "tolist")
    sizes = all(isinstance(call.func, ast.Attribute) and call.func.attr in read and not call.args for call in calls)
    return sizes and all(isinstance(node, _PURE) for node in ast.walk(expr))


_PURE = (
    ast.Name, ast.Attribute, ast.Subscript, ast.Slice, ast.Constant, ast.UnaryOp, ast.unaryop, ast.BinOp, ast.operator,
    ast.Tuple, ast.List, ast.Starred, ast.Call, ast.expr_context,
)  # fmt: skip


def _among(items: Sequence[ast.expr], slot: int, count: int, source: Source) -> ast.expr | None:
    """Item `slot` where one item may be starred and stand for several, and others for as many as they say."""
    lengths = [_length(item) for item in items]
    if lengths.count(None) > 1:
        return None
    known = sum(filter(None, lengths))
    if not items or (known > count if None in lengths else known != count):
        return None  # a call by keywords alone has none
    for item, length in zip(items, lengths, strict=True):
        n = count - known if length is None else length
        if slot < n:
            return _item(item, slot, n, source) if isinstance(item, ast.Starred) else item
        slot -= n
    return None


def _length(item: ast.expr) -> int | None:
    """How many items one of a tuple stands for: the first two of an edited shape, `*x.shape[0:2]`, are two."""
    match item:
        case ast.Starred(ast.Subscript(_, ast.Slice(ast.Constant(int(start)), ast.Constant(int(stop))))):
            return stop - start
        case ast.Starred():
            return None
        case _:
            return 1
