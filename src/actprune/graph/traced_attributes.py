"""The numbers that a model brings into its forward pass, traced while it is captured: attributes and roots."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from actprune.graph.numbers import TracedInt, tracing_root
from actprune.graph.rebuilt import running

Attributes: TypeAlias = dict[tuple[Any, ...], int]
"""("attr", holder, path) → its value in the dense model."""

Owners: TypeAlias = dict[int, tuple[tuple[str, str], ...]]
"""Number of a shared object → (module path, attribute) of every module that holds it."""


@contextlib.contextmanager
def traced_attributes(model: nn.Module, found: Attributes, owners: Owners) -> Iterator[None]:
    """Traced integers in the place of the sizes in every module's attributes, and in the objects that they share.

    Args:
        found: gets every such attribute and its value.
        owners: gets the modules that hold each shared object.
    """
    undo: list[tuple[dict[str, Any], str, Any]] = []
    shared: dict[int, list[tuple[str, str]]] = {}
    objects: dict[int, Any] = {}

    def trace(space: dict[str, Any], holder: Any) -> None:
        for name, value in list(space.items()):
            new = _traced(value, holder, (name,), found)
            if new is not value:
                undo.append((space, name, value))
                space[name] = new

    for path, module in running(model).items():
        if is_builtin(module):
            continue
        for name, value in list(vars(module).items()):
            if not name.startswith("_") and _is_record(value):
                shared.setdefault(id(value), []).append((path, name))
                objects[id(value)] = value
        trace(vars(module), path)
    for number, (key, value) in enumerate(objects.items()):
        trace(vars(value), number)
        owners[number] = tuple(shared[key])
    try:
        yield
    finally:
        for space, name, value in reversed(undo):
            space[name] = value


def _traced(value: Any, holder: Any, path: tuple[Any, ...], found: Attributes) -> Any:
    """`value` with traced integers in it; the very same where it holds no size."""
    if type(value) is int and value > 1:
        leaf = ("attr", holder, path)
        found[leaf] = value
        return TracedInt(value, leaf)
    kind = _plain_kind(value)
    if kind is None or len(path) > 2:
        return value
    box = cast("Any", value)
    if len(box) > _LONGEST:
        return value
    held: dict[Any, Any] = dict(box) if kind is dict else dict(enumerate(box))
    new = {key: _traced(item, holder, (*path, key), found) for key, item in held.items()}
    if all(new[key] is item for key, item in held.items()):
        return value
    return new if kind is dict else kind(new.values())


def _plain_kind(value: Any) -> Any:
    """`list`, `tuple` or `dict` for one of those, or for what Keras makes of those that a layer is given; else None."""
    kind = next((kind for kind in (list, tuple, dict) if isinstance(value, kind)), None)
    return kind if type(value) is kind or type(value).__module__ == "keras.src.utils.tracking" else None


_LONGEST = 64
"""Longer lists among the attributes are data, not sizes."""


def is_builtin(module: nn.Module) -> bool:
    """A layer of torch itself: what its attributes must say is known from its tensors."""
    own = next(module.parameters(recurse=False), None) is not None
    return own and type(module).__module__.startswith("torch.nn.")


def _is_record(value: Any) -> bool:
    """A plain object of the user's with fields, such as a configuration."""
    simple = isinstance(value, nn.Module | Tensor | type | torch.dtype | torch.device) or callable(value)
    return (
        not simple
        and hasattr(value, "__dict__")
        and type(value).__module__.partition(".")[0] not in ("torch", "builtins")
    )


@contextlib.contextmanager
def traced_roots() -> Iterator[None]:
    """`math.sqrt` and `numpy.sqrt` of a size remember it, in modules that hold one (`from math import sqrt`) too."""
    plain = [sys.modules[name].sqrt for name in ("math", "numpy") if name in sys.modules]
    traced = {id(root): tracing_root(root) for root in plain}
    spaces = [getattr(module, "__dict__", {}) for module in list(sys.modules.values())]
    held = [(names, names["sqrt"]) for names in spaces if "sqrt" in names and id(names["sqrt"]) in traced]
    for names, root in held:
        names["sqrt"] = traced[id(root)]
    try:
        yield
    finally:
        for names, root in held:
            names["sqrt"] = root


@contextlib.contextmanager
def uncached_einops() -> Iterator[None]:
    """einops keeps the shapes of earlier calls; a number found there would name another module as its origin."""
    library: Any = sys.modules.get("einops.einops")
    plain = getattr(library, "_reconstruct_from_shape_uncached", None)
    if plain is None:
        yield
        return
    held = library._reconstruct_from_shape
    library._reconstruct_from_shape = plain
    try:
        yield
    finally:
        library._reconstruct_from_shape = held
