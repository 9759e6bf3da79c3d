"""How a model is called: from a batch to `(args, kwargs)`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from actprune.errors import DataError
from actprune.graph.rebuilt import name_of

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""`(args, kwargs)` of a call."""


def call_arguments(model: nn.Module, inputs: Any) -> Arguments:
    """What to call `model` with: `(args, kwargs)`.

    A tensor is the one argument, a tuple or list are the positional ones, a mapping the keyword ones; of a
    mapping only the keys that `forward` takes are used (a batch of a data loader often carries labels too).
    A decoder is told not to return its cache, unless the inputs say otherwise (see `added`); it is then called
    with names alone.
    """
    parameters = inspect.signature(model.forward).parameters
    if isinstance(inputs, Mapping):
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            kwargs = dict(inputs)
        else:
            kwargs = {name: value for name, value in inputs.items() if name in parameters}
        if not kwargs:
            raise DataError(
                f"No key of the batch is an argument of {name_of(model)}.forward.",
                expected=f"keys among {', '.join(parameters)}",
                got=", ".join(map(str, inputs)),
                where="batch",
                hint="say with forward= how to call the model on a batch: forward=lambda model, batch: "
                f"model(batch[{str(next(iter(inputs), 'image'))!r}]), or model(batch) if it takes the dict itself",
            )
        return (), {**kwargs, **added(model), **kwargs}
    args = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    extra = added(model)
    named = by_name(model, args) if extra else None
    return (args, {}) if named is None else ((), {**named, **extra, **named})


def by_name(model: nn.Module, args: tuple[Any, ...]) -> dict[str, Any] | None:
    """Positional arguments under their names; None where some have none."""
    parameters = list(inspect.signature(model.forward).parameters.values())[: len(args)]
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return dict(zip(names, args, strict=True)) if len(names) == len(args) else None


def added(model: nn.Module) -> dict[str, Any]:
    """The keyword arguments that a capture adds by itself: `use_cache=False` for the decoders that take it.

    Their cache of keys and values is an object that grows from call to call: no output to be compared.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    known = any(p.name == "use_cache" for p in parameters)
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    return {"use_cache": False} if known or (anything and _caches(model)) else {}


def _caches(model: nn.Module) -> bool:
    """Whether the configuration of a decoder, which may be a part of the model, asks for a cache."""
    configurations = (getattr(module, "config", None) for module in model.modules())
    return any(getattr(configuration, "use_cache", None) is True for configuration in configurations)
