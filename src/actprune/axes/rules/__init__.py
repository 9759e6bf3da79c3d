"""The rules, one file per family of ops. Importing this package fills `actprune.axes.inference.RULES`."""

from actprune.axes.rules import attention, conv, elementwise, linear, norm, reduce, shape

__all__ = ["attention", "conv", "elementwise", "linear", "norm", "reduce", "shape"]
