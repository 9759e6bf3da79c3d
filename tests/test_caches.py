"""Where caches of functions are found, so that no tracer leaves fake tensors in them (whole models: `test_real.py`)."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from torch import nn

from actprune.graph import caches


def _decorated(function: Any) -> Any:
    return functools.wraps(function)(lambda size: function(size))


class Unequal(type):
    """Classes that say nothing of their module, and can't be put into a set."""

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __eq__(cls, other: object) -> bool:
        raise RuntimeError

    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError if name == "__module__" else super().__getattribute__(name)


helper = sys.modules["helper_of_a_test"] = ModuleType("helper_of_a_test")

HOLDERS: dict[str, Callable[[Any, Any], Any]] = {
    "attribute": lambda model, cache: vars(model).update(own=cache),
    "partial": lambda model, cache: vars(model).update(own=functools.partial(cache, 1)),
    "dict": lambda model, cache: vars(model).update(own={"a": cache}),
    "property": lambda model, cache: setattr(type(model), "own", property(cache)),
    "two decorators": lambda model, cache: setattr(type(model), "own", _decorated(_decorated(cache))),
    "class without a module": lambda model, cache: (
        setattr(type(model), "own", cache), setattr(type(model), "__module__", None)
    ),
    "class of another kind": lambda model, cache: setattr(helper, "Kind", Unequal("Kind", (), {"own": cache})),
    "main module": lambda model, cache: vars(sys.modules["__main__"]).update(_a_cache_of_a_test=cache),
    "module that was looked through": lambda model, cache: (
        caches._caches(nn.Identity()), vars(helper).update(again=cache)
    ),
}  # fmt: skip


@pytest.mark.parametrize("where", HOLDERS)
def test_where_a_cache_is_found(where: str) -> None:
    model, cache = type("Own", (nn.Module,), {})(), functools.cache(lambda size: size)
    HOLDERS[where](model, cache)
    try:
        assert any(found is cache for found in caches._caches(model))
    finally:
        vars(sys.modules["__main__"]).pop("_a_cache_of_a_test", None)
