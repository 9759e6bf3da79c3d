"""The rules, one file per family of ops. Importing this package fills `actprune.axes.inference.RULES`."""

from actprune.axes.rules import attention, conv, einsum, elementwise, linear, norm, reduce, shape

__all__ = ["attention", "conv", "einsum", "elementwise", "linear", "norm", "reduce", "shape"]
