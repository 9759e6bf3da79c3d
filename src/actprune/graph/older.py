"""Older ways to write a forward pass, in the words of today while it is recorded.

A function under `torch.jit.script` runs as the Python function that it was made of, so that the sizes in it are seen.
`torch.FloatTensor(1, batch, self.hidden)` and `torch.IntTensor([self.hidden])` are calls that no mode of torch's sees:
they become `torch.empty` and `torch.tensor`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def in_words_of_today() -> Iterator[None]:
    """Within it, scripted functions and typed constructors are calls like any others."""
    scripted: Any = torch.jit.ScriptFunction
    call, kinds = scripted.__call__, {name: getattr(torch, name) for name in _DTYPES}

    def in_python(self: Any, *args: Any, **kwargs: Any) -> Any:
        function = getattr(self, "_torchdynamo_inline", None)  # none of a function that was traced
        return call(self, *args, **kwargs) if function is None else function(*args, **kwargs)

    scripted.__call__ = in_python
    for name, kind in kinds.items():
        setattr(torch, name, _Typed(name, (), {"kind": kind}))
    try:
        yield
    finally:
        scripted.__call__ = call
        for name, kind in kinds.items():
            setattr(torch, name, kind)


class _Typed(type):
    """Stands for `torch.FloatTensor` and the like."""

    kind: Any

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        dtype = _DTYPES[cls.__name__]
        if len(args) == 1 and isinstance(args[0], torch.Size):  # `torch.FloatTensor(h.size())`
            args = tuple(args[0])
        if args and not kwargs and all(isinstance(n, int) for n in args):
            return torch.empty(*args, dtype=dtype)
        if len(args) == 1 and not kwargs and isinstance(args[0], list | tuple):
            return torch.tensor(args[0], dtype=dtype)
        return cls.kind(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls.kind)

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls.kind, name)


_DTYPES = {"FloatTensor": torch.float32, "IntTensor": torch.int32, "LongTensor": torch.int64}


def true_types(name: str, args: Any) -> Any:
    """The arguments of a call with torch's own types: `x.type(torch.FloatTensor)` takes no stand-in."""
    if name != "type":
        return args
    return tuple(arg.kind if isinstance(arg, _Typed) else arg for arg in args)


def is_stand_in(file: str) -> bool:
    """Whether a frame of this file is that of a stand-in, and no user's."""
    return file == __file__
