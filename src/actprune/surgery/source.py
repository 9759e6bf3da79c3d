"""Source edits: one instance gets a subclass of its class, in which a size argument of a method is a number.

Only a number is ever put in, at a place whose text and whose function's digest agree with the plan, and for functions
of torch's only those of a table; so a plan stays data. The class keeps its name, the instance its tensors, and no other
instance notices.
"""

from __future__ import annotations

import ast
import copy
import copyreg
import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from types import FunctionType, ModuleType
from typing import Any, TypeAlias, cast
from weakref import WeakValueDictionary

from torch import nn

from actprune.errors import PlanError
from actprune.graph.attending import OF_ANY_WIDTH
from actprune.graph.size_arguments import LIKE
from actprune.repair.edits import CallEdit, SourceEdit
from actprune.repair.source import Source, note_edited, source_of
from actprune.repair.written import shape_given
from actprune.surgery.modules import submodule

Edit: TypeAlias = SourceEdit | CallEdit


def edit_sources(model: nn.Module, edits: Sequence[Edit]) -> None:
    """Make the edits in `model`.

    Raises:
        PlanError: a function's source isn't the one that the plan was made for.
    """
    for path in dict.fromkeys(edit.module for edit in edits):
        module = submodule(model, path)
        own = [edit for edit in edits if edit.module == path]
        in_objects = [edit for edit in own if "." in edit.functions[0]]
        for name in dict.fromkeys(edit.functions[0].partition(".")[0] for edit in in_objects):
            inner = [_within(edit) for edit in in_objects if _of(edit, name)]
            vars(module)[name] = _edited(vars(module)[name], inner)
        if rest := [edit for edit in own if edit not in in_objects]:
            module.__class__ = subclass(type(module), tuple(rest))


def _edited(held: Any, edits: Sequence[Edit]) -> Any:
    """A function, or an object with its methods, as a copy: other modules may hold the same one."""
    if isinstance(held, FunctionType):
        return _rebuilt(inspect.unwrap(held), [(edit.functions[1:], edit) for edit in edits])
    held = copy.copy(held)
    held.__class__ = subclass(type(held), tuple(edits))
    return held


def _of(edit: Edit, name: str) -> bool:
    return edit.functions[0].partition(".")[0] == name


def _within(edit: Edit) -> Edit:
    """The edit as the object's own class has it."""
    first, *rest = edit.functions
    return replace(edit, functions=(first.partition(".")[2], *rest))


def _reached(cls: type, edit: Edit) -> Edit:
    """The edit without the callers of a static method, which the class itself holds."""
    for i in range(len(edit.functions) - 1, 0, -1):
        if isinstance(inspect.getattr_static(cls, edit.functions[i], None), staticmethod | classmethod):
            return replace(edit, functions=edit.functions[i:])
    return edit


def subclass(cls: type, asked: tuple[Edit, ...]) -> type:
    """A class derived from this one whose methods have these edits.

    Raises:
        PlanError: a function's source isn't the one that the plan was made for.
    """
    methods: dict[str, Any] = {}
    edits = [_reached(cls, edit) for edit in asked]
    for name in dict.fromkeys(edit.functions[0] for edit in edits):
        held = inspect.getattr_static(cls, name, None)
        inner = held.__func__ if isinstance(held, staticmethod | classmethod) else held
        function = inspect.unwrap(inner) if callable(inner) else None
        if not isinstance(function, FunctionType):
            raise _changed(cls, name, "no plain method of that name")
        own = [(edit.functions[1:], edit) for edit in edits if edit.functions[0] == name]
        made = _rebuilt(function, own)
        wrapped = isinstance(held, staticmethod | classmethod) and isinstance(made, FunctionType)
        methods[name] = type(held)(made) if wrapped else made

    first, before = vars(cls).get(_MADE_OF, (cls, ()))
    steps = *before, asked

    def __reduce_ex__(own: Any, protocol: Any) -> Any:
        how, given, *rest = super(made, own).__reduce_ex__(max(protocol, 2))
        if how is _made_again:  # of a class that was edited before
            return (_made_again, (first, steps, given[-1]), *rest)
        plain = how is getattr(copyreg, "__newobj__")  # noqa: B009  # a name that a class would mangle
        return (_made_again, (first, steps, given[1:]), *rest) if plain else (how, given, *rest)

    space = {
        "__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__,
        _MADE_OF: (first, steps), "__reduce_ex__": __reduce_ex__,
    }  # fmt: skip
    made: Any = type(cls)(cls.__name__, (cls,), {**space, **methods})
    _MADE[first, steps] = made
    return made


_MADE_OF = "_actprune_made_of"
"""The class that has a name of its own, and what was edited in it, step by step."""

_MADE: WeakValueDictionary[Any, type] = WeakValueDictionary()
"""The same → the class that was made of it last."""


def _made_again(cls: Any, steps: tuple[tuple[Edit, ...], ...], given: tuple[Any, ...]) -> Any:
    """For pickle, which finds classes by their names, and for copies, which keep their class."""
    made = _MADE.get((cls, steps))
    if made is None:
        made = reduce(subclass, steps, cls)
    return made.__new__(made, *given)


def _rebuilt(function: FunctionType, edits: Sequence[tuple[tuple[str, ...], Edit]]) -> Any:
    """The function with its own edits made, calling rebuilt versions of the functions that have further ones."""
    overlay = dict(function.__globals__)
    for name in dict.fromkeys(below[0] for below, _ in edits if below):
        spaces = list(_spaces(function, overlay, name))
        called = inspect.unwrap(spaces[0][name]) if spaces and callable(spaces[0][name]) else None
        if not isinstance(called, FunctionType):
            raise _changed(function, name, "no plain function of that name among its globals")
        inner = [(below[1:], edit) for below, edit in edits if below[:1] == (name,)]
        made = OF_ANY_WIDTH[called] if called in OF_ANY_WIDTH else _rebuilt(called, inner)
        for space in spaces:
            space[name] = made
    own = [edit for below, edit in edits if not below and isinstance(edit, SourceEdit)]
    if own:
        return _recompiled(function, own, overlay)
    made = FunctionType(function.__code__, overlay, function.__name__, function.__defaults__, function.__closure__)
    return _dressed(made, function)


def _spaces(function: FunctionType, overlay: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """Where a function finds another one by its name: its globals, and libraries that they name, as copies."""
    known: Any = overlay.get(name)
    if name in overlay:
        yield overlay
    for alias in function.__code__.co_names:
        library = overlay.get(alias)
        if isinstance(library, ModuleType) and hasattr(library, name):
            known = known or getattr(library, name)
            if getattr(library, name) is known:
                overlay[alias] = own = ModuleType(library.__name__)
                vars(own).update(vars(library))
                yield vars(own)


def _recompiled(function: FunctionType, edits: Sequence[SourceEdit], overlay: dict[str, Any]) -> Any:
    source = source_of(function.__code__)
    if source is None or any(edit.digest != source.digest for edit in edits):
        raise _changed(function, function.__name__, "another source than the plan was made for")
    tree = _Replace(edits).visit(_bare(source))
    edited = replace(source, tree=copy.deepcopy(tree), indent=0, digest=_edited_digest(source, edits))
    ast.increment_lineno(tree, source.first - 1)
    free = function.__code__.co_freevars
    if free:  # `super()` needs the cell of its class: the definition is put into a function that has these variables
        whole, name = ast.parse(f"def _outer({', '.join(free)}):\n  return {tree.name}"), "_outer"
        cast("ast.FunctionDef", whole.body[0]).body.insert(0, tree)
    else:
        whole, name = ast.Module([tree], []), tree.name
    module = ast.fix_missing_locations(whole)
    code = compile(module, function.__code__.co_filename, "exec", flags=0, dont_inherit=True)
    exec(code, overlay)  # the user's own function, with numbers for some of its sizes
    made = overlay.pop(name)
    if free:
        made = made(*(cell.cell_contents for cell in function.__closure__ or ()))
    inner = made.__func__ if isinstance(made, staticmethod | classmethod) else made
    plain = inspect.unwrap(inner)
    note_edited(plain.__code__, edited, of=function.__code__)  # or it could not be edited again
    _dressed(plain, function)
    return made


def _edited_digest(source: Source, edits: Sequence[SourceEdit]) -> str:
    """Tells a source that was edited from every other one, by what was done to it."""
    done = sorted((edit.line, edit.column, edit.text, edit.value, edit.was) for edit in edits)
    return hashlib.sha256(f"{source.digest}{done}".encode()).hexdigest()


def _bare(source: Source) -> ast.FunctionDef:
    """The definition without annotations and defaults, which are taken from the function as it is."""
    tree = copy.deepcopy(source.tree)
    arguments = tree.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
        if argument is not None:
            argument.annotation = None
    arguments.defaults = [ast.Constant(None) for _ in arguments.defaults]
    arguments.kw_defaults = [None if default is None else ast.Constant(None) for default in arguments.kw_defaults]
    tree.returns = None
    return tree


def _dressed(made: Any, like: FunctionType) -> Any:
    made.__defaults__, made.__kwdefaults__ = like.__defaults__, like.__kwdefaults__
    made.__qualname__, made.__doc__, made.__module__ = like.__qualname__, like.__doc__, like.__module__
    made.__annotations__ = dict(like.__annotations__)
    return made


class _Replace(ast.NodeTransformer):
    """Expressions → numbers: those at the given places, and items of those that stand for a tuple.

    `C // num_heads` in a reshape often stands again in a scale. There the same arithmetic keeps the value that it had,
    whatever becomes of its parts. A bare name may mean something else elsewhere.
    """

    def __init__(self, edits: Sequence[SourceEdit]) -> None:
        self.at = {(edit.line, edit.column, edit.text): edit.value for edit in edits}
        self.kept = {edit.text: edit.was for edit in edits}
        self.items: dict[tuple[int, int, str], dict[int, int]] = {}
        for edit in edits:
            whole = ast.parse(edit.text, mode="eval").body
            if isinstance(whole, ast.Subscript) and ast.unparse(whole.slice).lstrip("-").isdigit():
                place = edit.line, edit.column, ast.unparse(whole.value)
                self.items.setdefault(place, {})[ast.literal_eval(whole.slice)] = edit.value

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.expr) and hasattr(node, "lineno"):
            text = ast.unparse(node)
            place = node.lineno, node.col_offset, text
            value = self.at.get(place)
            if value is None and isinstance(node, ast.BinOp):
                value = self.kept.get(text)
            if isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
                if value is not None:
                    return ast.copy_location(ast.Constant(value), node)
                if place in self.items:
                    return ast.copy_location(_with_items(text, self.items[place]), node)
            self._spell_out(cast("ast.Call", node), shape_given(node))
        return super().visit(node)

    def _spell_out(self, call: ast.Call, shape: ast.expr | None) -> None:
        """`x.view(y.shape)` for an `x.view_as(y)` of which an item becomes a number."""
        if shape is not None and (shape.lineno, shape.col_offset, ast.unparse(shape)) in self.items:
            method = cast("ast.Attribute", call.func)
            method.attr, call.args = LIKE[method.attr].__name__, [shape]


def _with_items(text: str, items: Mapping[int, int]) -> ast.expr:
    """`x.shape` with some of its items as numbers: `(*x.shape[:1], 12, *x.shape[2:])`, or `(*x.shape[:-1], 12)`."""
    parts, start = list[str](), "0"
    for item in sorted(items, key=lambda item: (item < 0, item)):
        parts += [f"*({text})[{start}:{item}]", str(items[item])]
        start = f"{item + 1}" if item != -1 else ""
    rest = [f"*({text})[{start}:]"] if start else []
    return ast.parse(f"({', '.join(parts + rest)},)", mode="eval").body


def _changed(owner: Any, name: str, got: str) -> PlanError:
    return PlanError(
        "A size in the source can't be rewritten.",
        expected=f"{name} as it was when the plan was made",
        got=got,
        where=getattr(owner, "__qualname__", str(owner)),
        hint="use the version of the code that the plan was made with, or plan again",
    )
