"""Caches of functions that a call of a model may fill, left without what a tracer puts into them."""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

from actprune.graph.keep import held_values


@contextlib.contextmanager
def kept_caches(model: nn.Module) -> Iterator[None]:
    """Empty every `functools.cache` that a call of the model fills meanwhile, also after an error.

    A tracer leaves fake tensors in them, and the model would meet them again in its next call. Found are caches that
    have a name in an imported module, in a class or among the attributes of the model's modules, decorated or not; not
    those that only an object of another kind holds.
    """
    before = {cache: cache.cache_info().misses for cache in _caches(model)}
    try:
        yield
    finally:
        for cache in _caches(model):
            if cache.cache_info().misses != before.get(cache, 0):
                cache.cache_clear()


def _caches(model: nn.Module) -> list[Any]:
    """To ask the garbage collector for them would take a time that grows with all that the process holds."""
    modules = [module for module in tuple(sys.modules.values()) if issubclass(type(module), ModuleType)]
    known = list(map(_of_library, modules))
    others = [module for module, found in zip(modules, known, strict=True) if found is None]
    spaces = [*_own_spaces(model), *map(_names, others)]
    held = held_values(model)
    values = [value for space in _distinct(spaces) for value in tuple(space.values())]
    values += [*held, *(inner for value in held if isinstance(value, tuple) for inner in value)]
    found = [*_found_in(values), *(cache for found in known for cache in found or ())]
    return [cache for cache in _distinct(found) if _package(cache.__module__) not in _OWN]


def _own_spaces(model: nn.Module) -> list[dict[str, Any]]:
    """The names of the model's classes, and those that their methods see."""
    kinds = _distinct(kind for module in model.modules() for kind in type(module).__mro__)
    spaces = [_names(kind) for kind in kinds if kind is not object and _package(_module_of(kind)) not in _OWN]
    values = [value for space in spaces for value in tuple(space.values())]
    return [*spaces, *(value.__globals__ for value in values if type(value) is FunctionType)]


def _of_library(module: ModuleType) -> list[Any] | None:
    """The caches of a module of an installed package, which is looked through once; None of any other module."""
    if (found := _KNOWN.get(module)) is None:
        names = _names(module)
        left_out = _package(names.get("__name__")) in _LEFT_OUT
        if left_out or _is_installed(names):
            found = _KNOWN[module] = [] if left_out else _found_in(tuple(names.values()))
    return found


def _is_installed(names: dict[str, Any]) -> bool:
    file = names.get("__file__") if names.get("__name__") != "__main__" else None
    return isinstance(file, str) and ("site-packages" in file or "dist-packages" in file)


def _found_in(values: Iterable[Any]) -> list[Any]:
    """The caches among some values and in the classes among them, also within what wraps them."""
    values = list(values)
    classes = [value for value in values if issubclass(type(value), type)]
    foreign = [kind for kind in _distinct(classes) if _package(_module_of(kind)) not in _LEFT_OUT]
    layer = values + [value for kind in foreign for value in tuple(_names(kind).values())]
    found, seen = list[Any](), set[int]()
    while layer:
        found += [value for value in layer if type(value) is functools._lru_cache_wrapper]
        wrappers = [value for value in layer if type(value) in _WITHIN and id(value) not in seen]
        seen.update(map(id, wrappers))
        layer = [inner for wrapper in wrappers for inner in _WITHIN[type(wrapper)](wrapper)]
    return found


_WITHIN: dict[type, Callable[[Any], Iterable[Any]]] = {
    FunctionType: lambda function: gc.get_referents(*function.__closure__ or ()),
    MethodType: lambda method: (method.__func__,),
    staticmethod: lambda method: (method.__func__,),
    classmethod: lambda method: (method.__func__,),
    property: lambda own: (own.fget,),
    functools.partial: lambda partial: (partial.func,),
}
"""What may be around a cache → what is within."""


def _names(owner: Any) -> dict[str, Any]:
    """The names of a module or class, without asking its own `__getattribute__`."""
    reader = type if issubclass(type(owner), type) else object
    return reader.__getattribute__(owner, "__dict__")


def _module_of(kind: type) -> Any:
    return _names(kind).get("__module__")


def _package(module: Any) -> str:
    return module.partition(".")[0] if isinstance(module, str) else ""


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list({id(value): value for value in values}.values())


_KNOWN: dict[ModuleType, list[Any]] = {}
_OWN = {"torch", "sympy", "actprune"}
_LEFT_OUT = {*_OWN, *sys.stdlib_module_names}
"""Packages whose modules and classes are not looked through; the caches of `_OWN` stay as they are in any case."""
