"""The rules, one file per family of ops. Importing this package fills `actprune.axes.inference.RULES`."""

from actprune.axes.rules import (
    attention,
    conv,
    create,
    einsum,
    elementwise,
    experts,
    index,
    linear,
    norm,
    opaque,
    parts,
    recurrent,
    reduce,
    shape,
    spectral,
    window,
)

__all__ = [
    "attention",
    "conv",
    "create",
    "einsum",
    "elementwise",
    "experts",
    "index",
    "linear",
    "norm",
    "opaque",
    "parts",
    "recurrent",
    "reduce",
    "shape",
    "spectral",
    "window",
]
