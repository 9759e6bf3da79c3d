"""From one batch to the call of the model that it stands for."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from actprune.data.parts import needed, parted
from actprune.errors import DataError
from actprune.graph.arguments import Arguments, by_name, call_arguments
from actprune.graph.program import Program
from actprune.graph.rebuilt import name_of

Forward = Callable[[Any, Any], Any]
"""`forward(model, batch)` calls the model on a batch; actprune notes what the model is called with."""


def as_call(model: nn.Module, batch: Any, forward: Forward | None) -> tuple[Arguments, tuple[Any, ...]]:
    """What `model` is to be called with, by what kind of thing the batch is, or as `forward` does it; and what stands
    beside that in the batch, see `parted`."""
    if forward is not None:
        return _recorded(model, batch, forward), parted(batch)[1]
    inputs, beside = parted(batch, needed(model))
    return call_arguments(model, (inputs,) if is_one(model, inputs) else _known(inputs)), beside


def as_captured_call(program: Program, batch: Any) -> tuple[Arguments, tuple[Any, ...]]:
    """As `as_call`, for a model that is captured already."""
    inputs, beside = parted(batch, program.positional)
    return _captured_arguments(program, _known(inputs)), beside


def _captured_arguments(program: Program, inputs: Any) -> Arguments:
    if isinstance(inputs, Mapping):
        names = program.kwarg_names
        kwargs = {name: inputs[name] for name in names if name in inputs}
        if not kwargs:
            raise DataError(
                f"No key of the batch is a keyword argument that {program.model_name} was captured with.",
                expected=f"keys among {', '.join(names)}" if names else "a tensor or a tuple, as at capture",
                got=", ".join(map(str, inputs)),
                where="calibration",
                hint="capture the model with a dict of these keys, or pass batches like the example inputs",
            )
        return (), {**program.added, **kwargs}
    listed = isinstance(inputs, tuple | list) and not (program.takes_several_as_one and len(inputs) > 1)
    args = tuple(inputs) if listed else (inputs,)
    if program.added and len(args) <= len(program.kwarg_names):  # then the capture has named them all
        return (), {**program.added, **dict(zip(program.kwarg_names, args, strict=False))}
    return args, {}


def _known(inputs: Any) -> Any:
    """What a batch holds for the model, if it is of a kind that a model is called with."""
    if isinstance(inputs, Tensor | np.ndarray | Mapping | tuple | list):
        return inputs
    raise DataError(
        "A calibration batch is of no kind that actprune knows.",
        expected="a tensor, a tuple or list whose first element is the input, or a dict",
        got=type(inputs).__name__,
        where="calibration",
        hint="say with forward= how to call the model on a batch",
    )


class _Recorder:
    """Called in the model's place by a user's `forward`, it notes with what; else it is like the model."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.called: Arguments | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.called = args, kwargs
        raise _Recorded

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class _Recorded(Exception):
    """A signal, not an error: `forward` has called the model, the rest of it is not needed."""


def _recorded(model: nn.Module, batch: Any, forward: Forward) -> Arguments:
    recorder = _Recorder(model)
    with contextlib.suppress(_Recorded):
        forward(recorder, batch)
    if recorder.called is None:
        raise _no_call("forward= did not call the model.", "a return without that call")
    args, kwargs = recorder.called
    if args and kwargs:
        kwargs = _by_keyword(model, args, kwargs)
    return call_arguments(model, kwargs or args)  # as the capture calls it: a decoder without its cache


def check_forward(forward: Any) -> None:
    """What can't be called with a model and a batch would end in a TypeError that doesn't name `forward=`."""
    if not takes(forward, 2):
        got = type(forward).__name__
        if callable(forward):
            got = f"{getattr(forward, '__name__', got)}{inspect.signature(forward)}"
        raise _no_call("forward= is no function of a model and a batch.", got)


def takes(function: Any, arguments: int) -> bool:
    """Whether it can be called with so many arguments, as far as Python knows."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(*range(arguments))
    except TypeError:
        return False
    except ValueError:  # of what is written in C, Python may know no signature
        pass
    return True


def is_one(model: nn.Module, inputs: Any) -> bool:
    """Whether several inputs can only be the one argument that `forward` takes: a list of images or maps."""
    several = isinstance(inputs, tuple | list) and len(cast("tuple[Any, ...]", inputs)) > 1
    return several and takes(model.forward, 1) and not takes(model.forward, len(inputs))


def _no_call(problem: str, got: str) -> DataError:
    return DataError(
        problem,
        expected="a function forward(model, batch) that calls model(…) once",
        got=got,
        where="forward",
        hint="for example forward=lambda model, batch: model(batch['image'])",
    )


def _by_keyword(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call with both kinds of arguments as one with keywords alone, which is how the model is then captured."""
    named = by_name(model, args)
    if named is None or named.keys() & kwargs.keys():
        raise DataError(
            f"forward= calls the model in a way that {name_of(model)}.forward can't be captured with.",
            expected=f"each argument of forward{inspect.signature(model.forward)} once",
            got=f"{len(args)} arguments by position, and {', '.join(kwargs)}",
            where="forward",
            hint="pass all of them by position, or all of them by name",
        )
    return {**named, **kwargs}
