"""SPEC on the command line → a model.

    package.module:name             a model, or a class or function that makes one
    path/to/file.py:name            the same, from a file
    package.module:name(classes=10) called with these arguments: Python literals, never code

A function may also return the pair (model, example inputs).
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from actprune.errors import CaptureError

if TYPE_CHECKING:
    from torch import nn

FORM = "package.module:name or path/to/file.py:name, with literals as arguments if need be: models:net(classes=10)"

_FORM = re.compile(r"\s*(?P<home>[^()]+):(?P<name>\w+(?:\.\w+)*)\s*(?P<arguments>\(.*\))?\s*", re.DOTALL)


@dataclass(frozen=True)
class Spec:
    """A SPEC as it was read.

    Attributes:
        text: as it was given.
        home: module or path of a file.
        name: what to take from it, dotted where it is inside of something.
        args, kwargs: what to call it with; None where it has no brackets.
    """

    text: str
    home: str
    name: str
    args: tuple[Any, ...] | None = None
    kwargs: dict[str, Any] | None = None


def parse_spec(text: str) -> Spec:
    """Read a SPEC; nothing is imported yet.

    Raises:
        CaptureError: it is a file that is no Python.
        typer.BadParameter: it has another form.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        _check_python(text)
        if Path(text).is_file():
            raise typer.BadParameter(f"{text} is a file; expected {text}:name, for a recipe {text}:model")
        raise typer.BadParameter(f"{text!r} can't be read; expected {FORM}")
    if found["arguments"] is None:
        return Spec(text, found["home"], found["name"])
    try:
        call = cast(ast.Call, ast.parse(f"f{found['arguments']}", mode="eval").body)
        args = tuple(ast.literal_eval(value) for value in call.args)
        kwargs = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg is not None}
        if not isinstance(call.func, ast.Name) or len(kwargs) < len(call.keywords):
            raise ValueError("calls of calls and ** are not taken")
    except (SyntaxError, ValueError, TypeError) as error:
        raise typer.BadParameter(f"the arguments in {text!r} are no Python literals, such as 10 or 'relu'") from error
    return Spec(text, found["home"], found["name"], args, kwargs)


def load_spec(spec: Spec) -> tuple[nn.Module, Any]:
    """The model that `spec` stands for, and the example inputs that came with it, or None.

    Raises:
        CaptureError: there is no such module or name, importing or calling it fails, or it gives no model.
    """
    from torch import nn

    found = _attribute(load_module(spec), spec)
    if isinstance(found, nn.Module):
        if spec.args is not None:
            raise _problem(spec, "is a model already", "no arguments", "brackets", "leave them out")
        return found, None
    made = _called(found, spec)
    several = cast("tuple[Any, ...]", made) if isinstance(made, tuple) else (made, None)
    if len(several) != 2 or not isinstance(several[0], nn.Module):
        kinds = ", ".join(type(one).__name__ for one in several) if isinstance(made, tuple) else type(made).__name__
        raise _problem(
            spec,
            "gives no model",
            "a torch.nn.Module, or the pair (model, example inputs)",
            kinds,
            "name a function without arguments that makes the model, in a file of your own if need be",
        )
    return several[0], several[1]


def _called(found: Any, spec: Spec) -> Any:
    if not callable(found):
        expected = "a model, or a class or function that makes one"
        raise _problem(spec, "is no model", expected, type(found).__name__, "name another object of that module")
    args, kwargs = spec.args or (), spec.kwargs or {}
    try:
        inspect.signature(found).bind(*args, **kwargs)
    except TypeError as error:
        hint = f"give them as literals: {spec.home}:{spec.name}(name=value), or write a function that needs none"
        raise _problem(spec, "was called with wrong arguments", "those it needs", str(error), hint) from error
    except ValueError:  # a callable without a signature, written in C
        pass
    try:
        return found(*args, **kwargs)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        hint = "call it in Python first, where the traceback shows the line"
        raise _problem(spec, "could not be called", "a model", told(error), hint) from error


# -- where it is -----------------------------------------------------------------------------------


def load_module(spec: Spec) -> Any:
    """Import the home of `spec`, with the working folder (or the file's own) on the path, as Python has it."""
    if spec.home.endswith(".py"):
        return _file(spec)
    _check_python(spec.home)
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(spec.home)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if spec.home != missing and not spec.home.startswith(f"{missing}."):
            raise _unimportable(spec, error) from error  # it is there, something that it imports is not
        raise _missing(spec, missing) from error
    except (Exception, SystemExit) as error:
        raise _unimportable(spec, error) from error


def _check_python(home: str) -> None:
    """`model.pth` would be looked up as the module pth of a package, and code of that package run on the way."""
    path = Path(home)
    if path.suffix not in ("", ".py") and path.is_file():
        raise CaptureError(
            f"{home} is no Python file.",
            expected="a recipe, the path of a file that ends in .py, or a file of Keras's that ends in .keras",
            got=f"a file that ends in {path.suffix}",
            where=home,
            hint="load weights in the function model() of a recipe: `actprune init` writes one to start from",
        )


def _missing(spec: Spec, missing: str) -> CaptureError:
    package, _, last = missing.rpartition(".")
    if package:
        names = [part.name for part in pkgutil.iter_modules(getattr(sys.modules.get(package), "__path__", []))]
        hint = f"look up the modules of {package}"
    else:
        names = list(importlib.metadata.packages_distributions())
        hint = f"install the package that has {missing}, or start in the folder that holds it"
    near = [f"{package}.{name}" if package else name for name in difflib.get_close_matches(last, names, 1)]
    return CaptureError(
        f"There is no module named {missing!r}.",
        expected="a module that Python can import, or the path of a file that ends in .py",
        got=repr(spec.home),
        where=spec.text,
        hint=f"did you mean {near[0]!r}? Else {hint}" if near else hint,
    )


def _file(spec: Spec) -> Any:
    path = Path(spec.home)
    if not path.is_file():
        raise CaptureError(
            f"There is no file {spec.home}.",
            expected="a Python file",
            got="a folder" if path.is_dir() else "nothing of that name",
            where=spec.text,
            hint=f"the working folder is {Path.cwd()}",
        )
    check_imports_others(path, path.read_text("utf-8", errors="replace"))
    sys.path.insert(0, str(path.resolve().parent))
    try:
        name = path.stem if path.stem not in sys.stdlib_module_names else f"{path.stem}_of_the_user"
        found = importlib.util.spec_from_file_location(name, path.resolve())
        if found is None or found.loader is None:
            raise ImportError(f"no loader for {path.name}")
        module = importlib.util.module_from_spec(found)
        sys.modules[name] = module  # dataclasses and pickle look a class's module up
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _unimportable(spec, error) from error
    return module


def check_imports_others(path: Path, text: str) -> None:
    """Refuse a `timm.py` that imports timm: its folder comes first, so that it would find itself."""
    name = path.stem
    if name in sys.stdlib_module_names or name not in text or (path.parent / name).is_dir():
        return
    with contextlib.suppress(SyntaxError, ValueError):  # that is told when the file is run
        nodes = list(ast.walk(ast.parse(text)))
        homes = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        homes += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
        if name in {home.partition(".")[0] for home in homes}:
            raise CaptureError(
                f"{path.name} would import itself in place of the package {name}.",
                expected="a file with another name than the packages that it imports",
                got=f"import {name}",
                where=str(path),
                hint=f"call it {name}_recipe.py",
            )


def _unimportable(spec: Spec, error: BaseException) -> CaptureError:
    return CaptureError(
        f"{spec.home} could not be imported.",
        expected="a module that runs to its end",
        got=told(error),
        where=spec.text,
        hint="import it in Python, where the traceback shows the line",
    )


def _attribute(module: Any, spec: Spec) -> Any:
    found = module
    for name in spec.name.split("."):
        if not hasattr(found, name):
            near = difflib.get_close_matches(name, _names(found), 3)
            raise CaptureError(
                f"{getattr(found, '__name__', type(found).__name__)} has no {name!r}.",
                expected="a model, or a class or function that makes one",
                got=repr(spec.name),
                where=spec.text,
                hint=f"did you mean {' or '.join(map(repr, near))}?" if near else "look up the names of that module",
            )
        found = getattr(found, name)
    return found


def _names(found: Any) -> Iterable[str]:
    return [name for name in dir(found) if not name.startswith("_")]


def told(error: BaseException) -> str:
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:300]}"


def _problem(spec: Spec, problem: str, expected: str, got: str, hint: str) -> CaptureError:
    return CaptureError(f"{spec.name} {problem}.", expected=expected, got=got, where=spec.text, hint=hint)
