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
    modules = tuple(sys.modules.values())
    by_id = dict(zip(map(id, modules), modules, strict=True))
    new = [by_id[key] for key in by_id.keys() - _KNOWN.keys()]
    others = [module for module in new if issubclass(type(module), ModuleType) and not _is_known(module)]
    spaces = [*_own_spaces(model), *map(_names, others)]
    held = held_values(model)
    values = [value for space in _distinct(spaces) for value in tuple(space.values())]
    values += [*held, *(inner for value in held if isinstance(value, tuple) for inner in value)]
    found = [*_found_in(values), *_OF_LIBRARIES]
    return [cache for cache in _distinct(found) if _package(cache.__module__) not in _OWN]


def _own_spaces(model: nn.Module) -> list[dict[str, Any]]:
    """The names of the model's classes, and those that their methods see."""
    kinds = _distinct(kind for module in model.modules() for kind in type(module).__mro__)
    spaces = [_names(kind) for kind in kinds if kind is not object and _package(_module_of(kind)) not in _OWN]
    values = [value for space in spaces for value in tuple(space.values())]
    return [*spaces, *(value.__globals__ for value in values if type(value) is FunctionType)]


def _is_known(module: ModuleType) -> bool:
    """Whether it belongs to an installed package: those are looked through once, any other module every time."""
    names = _names(module)
    left_out = _package(names.get("__name__")) in _LEFT_OUT
    if left_out or _is_installed(names):
        _KNOWN[id(module)] = module
        _OF_LIBRARIES.extend([] if left_out else _found_in(tuple(names.values())))
    return id(module) in _KNOWN


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
        wrappers = [value for value in layer if type(value) in _WITHIN and not _is_plain(value)]
        wrappers = [value for value in wrappers if id(value) not in seen]
        seen.update(map(id, wrappers))
        layer = [inner for wrapper in wrappers for inner in _WITHIN[type(wrapper)](wrapper)]
    return found


def _is_plain(value: Any) -> bool:
    """Whether it is a function that is around nothing: most of the names of a module are."""
    return type(value) is FunctionType and value.__closure__ is None


_WITHIN: dict[type, Callable[[Any], Iterable[Any]]] = {
    FunctionType: lambda function: gc.get_referents(*function.__closure__),
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


_KNOWN: dict[int, ModuleType] = {}
"""Modules of installed packages that were looked through, by identity: held, so that no other takes their place."""

_OF_LIBRARIES: list[Any] = []
"""The caches that were found in them."""

_OWN = {"torch", "sympy", "actprune"}
_LEFT_OUT = {*_OWN, *sys.stdlib_module_names}
"""Packages whose modules and classes are not looked through; the caches of `_OWN` stay as they are in any case."""
