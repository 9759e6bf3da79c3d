"""Frames of running code: which class, module and place in a source they belong to."""

from __future__ import annotations

import functools
import inspect
import os
import traceback
import types
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from torch import Tensor, nn

from actprune.graph.older import is_stand_in


def definer(frame: FrameType) -> FrameType:
    """A comprehension, or a function that is defined in place, is part of the function around it."""
    while frame.f_back and frame.f_code in frame.f_back.f_code.co_consts:
        frame = frame.f_back
    return frame


def holder_of(owner: nn.Module, frame: FrameType) -> str | None:
    """The attribute of a module that holds the function, or the plain object whose method, a frame runs."""
    for name, value in vars(owner).items():
        if isinstance(value, types.FunctionType) and inspect.unwrap(value).__code__ is frame.f_code:
            return name
    own = frame.f_locals.get(frame.f_code.co_varnames[0]) if frame.f_code.co_argcount else None
    if own is None or isinstance(own, nn.Module | Tensor | int | float | str | type) or not _is_method(own, frame):
        return None  # a plain function may be given a module's configuration first
    return next((name for name, value in vars(owner).items() if value is own), None)


def is_librarys(frame: FrameType) -> bool:
    """Whether it runs a function of torch's or Keras's own or what stands for one, and no layer of theirs; or what only
    hands calls on, as a mode does."""
    file, hands_on = frame.f_code.co_filename, frame.f_code.co_name == "__torch_function__"
    return is_stand_in(file) or hands_on or (("/torch/" in file or is_kerass(frame)) and owner_of(frame) is None)


def is_kerass(frame: FrameType) -> bool:
    return "/keras/src/" in frame.f_code.co_filename


def users_line(frame: FrameType | None) -> str | None:
    """The line of the user's own code that led to a frame, "net.py:12"; None where a network's own `forward` comes
    first: behind that is whoever asked for a capture."""
    while frame is not None and any(part in frame.f_code.co_filename for part in _LIBRARIES):
        if frame.f_code.co_name == "forward" and _OURS in frame.f_code.co_filename:
            return None
        frame = frame.f_back
    return None if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def raised_in(error: BaseException) -> str:
    """The user's own function and line that an error comes from, to be said behind it; nothing where there is none."""
    codes = ((frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__))
    own = [(code, line) for code, line in codes if not any(part in code.co_filename for part in _LIBRARIES)]
    if not own:
        return ""
    code, line = own[-1]
    return f", in {code.co_name}, {Path(code.co_filename).name}:{line}"


_OURS = str(Path(__file__).parents[1]) + os.sep
_LIBRARIES = ("/torch/", "/keras/src/", "/optree/", _OURS)


def owner_of(frame: FrameType) -> nn.Module | None:
    """The module whose method a frame runs, whatever the method calls it."""
    code = frame.f_code
    first = code.co_varnames[0] if code.co_argcount else ""
    owner = frame.f_locals.get("self" if "self" in frame.f_locals else first)
    if not isinstance(owner, nn.Module) or "self" in frame.f_locals:
        return owner if isinstance(owner, nn.Module) else None
    return owner if _is_method(owner, frame) else None  # a plain function may be given a module as well


def _is_method(owner: Any, frame: FrameType) -> bool:
    method = inspect.getattr_static(type(owner), frame.f_code.co_name, None)
    return getattr(inspect.unwrap(method), "__code__", None) is frame.f_code  # type: ignore[arg-type]


def span_of(frame: FrameType) -> tuple[int, int, int, int]:
    return _spans(frame.f_code)[frame.f_lasti // 2]


@functools.cache
def _spans(code: CodeType) -> list[tuple[int, int, int, int]]:
    """Where each instruction stands; a layer's forward asks for every call in it, once per layer."""
    known = ((p if p is not None else -1 for p in positions) for positions in code.co_positions())
    return [(line, column, end, end_column) for line, end, column, end_column in known]
