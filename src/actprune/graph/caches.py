"""Caches of functions that a call of a model may fill, left without what a tracer puts into them."""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
from collections.abc import Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn


@contextlib.contextmanager
def kept_caches(model: nn.Module) -> Iterator[None]:
    """Empty every `functools.cache` that a call of the model fills meanwhile, also after an error.

    A tracer leaves fake tensors in them, and the model would meet them again in its next call.
    """
    before = {id(cache): cache.cache_info().misses for cache in _caches(model)}
    try:
        yield
    finally:
        for cache in _caches(model):
            if cache.cache_info().misses != before.get(id(cache), 0):
                cache.cache_clear()


def _caches(model: nn.Module) -> list[Any]:
    """The caches among what the model and its classes hold, and among the names and classes of imported modules.

    The packages that the model's classes come from are looked through anew, for a notebook defines its functions
    again; other modules once. (To ask the garbage collector would take a time that grows with all there is.)
    """
    kinds = {kind for module in model.modules() for kind in type(module).__mro__ if not _is_left_out(kind)}
    own = {_package(kind.__module__) for kind in kinds}
    methods = [value for kind in kinds for value in vars(kind).values() if type(value) is FunctionType]
    modules = [(name, module) for name, module in tuple(sys.modules.items()) if type(module) is ModuleType]
    spaces = [vars(module) for name, module in modules if _package(name) in own]
    spaces += [*map(vars, model.modules()), *map(vars, kinds), *(method.__globals__ for method in methods)]
    others = [module for name, module in modules if _package(name) not in own | _LEFT_OUT]
    return _distinct([*_held(_distinct(spaces)), *(cache for module in others for cache in _of(module))])


def _of(module: ModuleType) -> list[Any]:
    if module not in _KNOWN:
        _KNOWN[module] = _held([vars(module)])
    return _KNOWN[module]


def _held(spaces: Iterable[Any]) -> list[Any]:
    """The caches among the names in `spaces`, in the classes that are among them, and around functions of both."""
    named = [value for space in spaces for value in tuple(space.values())]
    classes = [value for value in named if issubclass(type(value), type) and not _is_left_out(value)]
    values = named + [value for kind in _distinct(classes) for value in tuple(vars(kind).values())]
    values += [value.__func__ for value in values if type(value) in (staticmethod, classmethod)]
    cells = [cell for value in values if type(value) is FunctionType for cell in value.__closure__ or ()]
    kind = functools._lru_cache_wrapper
    return [value for value in (*values, *gc.get_referents(*cells)) if type(value) is kind]


def _is_left_out(kind: type) -> bool:
    """Whether a class is of a package whose caches hold no tensor of a model's."""
    return _package(str(getattr(kind, "__module__", ""))) in _LEFT_OUT


def _package(module: str) -> str:
    return module.partition(".")[0]


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list({id(value): value for value in values}.values())


_KNOWN: WeakKeyDictionary[ModuleType, list[Any]] = WeakKeyDictionary()
_LEFT_OUT = {"torch", "sympy", "actprune", *sys.stdlib_module_names}
