"""SPEC on the command line → a recipe: what `prune` and its kin need to know of a user's project.

    path/to/recipe.py          a file (or package.module) with these functions, the first two at least:
                               model(), calibration(), evaluate(model), finetune(model), example_inputs()
    package.module:factory     a model alone, or (model, example inputs)

A recipe is code, and running it is what these commands are for; the user is told before one runs that lies outside of
the working folder. No run folder ever says which code is to be run.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from actprune.cli.spec import Spec, load_module, load_spec, parse_spec, told
from actprune.errors import ActpruneError, CaptureError, DataError

NAMES = ("model", "calibration", "evaluate", "finetune", "example_inputs")

DEFAULT = "recipe.py"
"""What `actprune init` writes, and commands look for where no SPEC is given."""

KERAS = ".keras"
"""What a file that Keras saved ends in."""

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True, eq=False)
class Recipe:
    """The functions of a project; each call begins with the random state of the seed, if there is one."""

    text: str
    seed: int | None
    functions: dict[str, Callable[..., Any]]

    def model(self) -> Any:
        """The dense model.

        Raises:
            CaptureError: the function gives none.
        """
        from torch import nn

        from actprune.keras3.backend import is_keras, keras_on_torch

        made = self._call("model")
        if isinstance(made, nn.Module):
            return made
        if is_keras(made):
            keras_on_torch()  # says what its backend should be
        raise CaptureError(
            "The recipe's model() gives no model.",
            expected="a torch.nn.Module",
            got=type(made).__name__,
            where=self.text,
            hint="return the trained model",
        )

    def calibration(self) -> Any:
        """The calibration batches.

        Raises:
            DataError: there is no function for them.
        """
        if "calibration" in self.functions:
            return self._call("calibration")
        raise DataError(
            "There is no calibration data.",
            expected="a recipe with a function calibration()",
            got=f"one with {', '.join(self.functions)}",
            where=self.text,
            hint="`actprune init` writes a recipe to start from; for a .keras file: --data samples.npz",
        )

    def network(self) -> tuple[Any, Any]:
        """The dense model as the engine sees it, and the inputs of its first calibration batch."""
        from actprune.data.take import first_batch
        from actprune.keras3.bridge import as_batches, as_network

        model = self.model()
        network = as_network(model)
        return network, first_batch(network, as_batches(self.calibration(), model))

    def optional(self, name: str) -> Callable[..., Any] | None:
        """One of the functions, if there is one. An `SGD` is given as it is: the engine knows what to do with it."""
        from actprune.recovery.sgd import SGD

        own = self.functions.get(name)
        if own is not None:
            self._check_arguments(name)
        return own if own is None or isinstance(own, SGD) else lambda *args: self._call(name, *args)

    def _call(self, name: str, *args: Any) -> Any:
        from actprune.graph.keep import seed_all

        self._check_arguments(name)
        if self.seed is not None:
            seed_all(self.seed)
        if args:  # what trains or measures a network may fail late: the whole traceback is of use then
            return self.functions[name](*args)
        try:
            return self.functions[name]()
        except ActpruneError:
            raise
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            raise CaptureError(
                f"The recipe's {name}() fails.",
                expected="a function that runs to its end",
                got=told(error),
                where=_line(error, self.text),
                hint=f"call {name}() in Python, where the traceback shows all lines",
            ) from error

    def _check_arguments(self, name: str) -> None:
        """That a function can be called as those of recipes are."""
        function, given = self.functions[name], ("model",) if name in ("evaluate", "finetune") else ()
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # a function without one
            return
        try:
            signature.bind(*given)
        except TypeError as error:
            raise CaptureError(
                f"The recipe's {name}() takes other arguments.",
                expected=f"{name}({', '.join(given)})",
                got=f"{name}{signature}: {error}",
                where=self.text,
                hint="give further arguments defaults",
            ) from error


def load_recipe(text: str, seed: int = 0, data: Path | None = None) -> Recipe:
    """The recipe of a SPEC.

    Args:
        data: an `.npz` of calibration samples, for a `.keras` file.

    Raises:
        CaptureError: there is no such file or module, it can't be run, or it has no function model().
        typer.BadParameter: `text` has another form.
    """
    if text.endswith(KERAS):
        return _keras_recipe(text, seed, data)
    if data is not None:
        raise typer.BadParameter("a recipe has calibration() for that", param_hint="--data")
    if not text.endswith(".py") and _MODULE.fullmatch(text) is None:
        spec = parse_spec(text)
        _tell(spec)
        model, example = load_spec(spec)
        found: dict[str, Callable[..., Any]] = {"model": lambda: model}
        return Recipe(text, seed, found if example is None else {**found, "example_inputs": lambda: example})
    spec = Spec(text, text, "")
    _tell(spec)
    module = load_module(spec)
    functions = {name: getattr(module, name) for name in NAMES if callable(getattr(module, name, None))}
    given = {name: getattr(module, name) for name in ("calibration", "example_inputs") if hasattr(module, name)}
    functions |= {name: lambda data=data: data for name, data in given.items() if not callable(data)}  # the data itself
    if hasattr(functions.get("model"), "state_dict") and not isinstance(functions["model"], type):
        made = functions["model"]  # the model itself
        functions["model"] = lambda: made
    if "model" not in functions:
        others = [name for name in vars(module) if not name.startswith("_")]
        near = difflib.get_close_matches("model", others, 1)
        raise CaptureError(
            "The recipe has no function model().",
            expected=f"functions named {', '.join(NAMES)}, the first at least",
            got=", ".join(others[:20]) or "nothing",
            where=text,
            hint=f"did you mean {near[0]!r}?" if near else f"name one model in it: {text}:name",
        )
    return Recipe(text, seed, functions)


def _line(error: BaseException, text: str) -> str:
    """The last line of the recipe's own that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = Path(frames[1].filename) if len(frames) > 1 else None  # the first frame is the call of the recipe
    line = next((frame.lineno for frame in reversed(frames) if Path(frame.filename) == own), None)
    return text if own is None else f"{own.name}, line {line}"


def _keras_recipe(text: str, seed: int, data: Path | None) -> Recipe:
    """Of a file that Keras saved: it is read, never run."""
    os.environ.setdefault("KERAS_BACKEND", "torch")  # this process is ours
    from actprune.keras3.files import load_keras, load_npz

    functions: dict[str, Callable[..., Any]] = {"model": lambda: load_keras(text)}
    if data is not None:
        functions["calibration"] = lambda: load_npz(data)
    return Recipe(text, seed, functions)


def _tell(spec: Spec) -> None:
    """That a file from elsewhere is run."""
    if spec.home.endswith(".py") and not Path(spec.home).resolve().is_relative_to(Path.cwd().resolve()):
        typer.echo(f"note: {spec.home} is code from outside the working folder, and is run now", err=True)
