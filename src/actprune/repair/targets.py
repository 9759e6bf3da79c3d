"""What the axes say that each recorded size should be, once some units are gone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from actprune.axes.capture import Graph
from actprune.axes.expr import Axis, Concat, Indices, Leaf, blocks, leaves, place_after, positions, size
from actprune.axes.site import Dims
from actprune.graph.numbers import evaluate, variables, with_value
from actprune.graph.sizes import SizeUse


class Targets:
    """The sizes of a network of which the units `kept` (by leaf key) stay, and all of the other groups."""

    def __init__(self, graph: Graph, kept: Mapping[int, Indices]) -> None:
        self.graph, self.kept = graph, kept
        self.widths = {key: len(units) for key, units in kept.items()}

    def wanted(self, use: SizeUse) -> Any:
        """The number that a size should be; None where that isn't known."""
        kind, *where = use.role
        if kind in ("fixed", "equal"):
            return use.value
        if kind == "unknown":
            return None
        if kind == "times":
            name, source_name, dim = where
            source = self.axis(source_name, dim)
            result = self.axis(name, dim + len(self.dims(name)) - len(self.dims(source_name)))
            if source is None or result is None:
                return None
            return size(result, self.widths) // size(source, self.widths)
        axis = self.axis(where[0], where[1])
        if axis is None:
            return None
        if kind == "follows":
            return evaluate(with_value(use.expr, where[2], size(axis, self.widths)), lambda leaf: None)
        if kind == "groups":
            return blocks(axis, size(axis) // use.value, self.widths)
        if kind == "part":
            start, stop = (place_after(axis, place, self.kept) for place in where[2:])
            return stop - start
        return place_after(axis, use.value, self.kept) if kind == "bound" else size(axis, self.widths)

    def dims(self, name: str) -> Dims:
        """The axes of a node's result, or of the tensor whose name follows an "@"."""
        dims = self.graph.tensor_axes.get(name[1:]) if name.startswith("@") else self.graph.sizes(name)
        return dims if isinstance(dims, tuple) else ()

    def axis(self, name: str, dim: int) -> Axis | None:
        dims = self.dims(name)
        return dims[dim] if dim < len(dims) else None

    def lone(self, use: SizeUse) -> Leaf | None:
        """The one leaf that a size is the size of."""
        return self._cut(self.axis(use.role[1], use.role[2])) if use.role[0] == "size" else None

    def counted_by(self, use: SizeUse) -> Leaf | None:
        """The leaf whose units a number of the class counts: that of a size, or the first of those in front of a bound
        (`x[:, :n]` in every round of a loop)."""
        return self.lone(use) or next(iter(self.equal_parts(use)), None)

    def lone_read(self, use: SizeUse) -> Leaf | None:
        """The one leaf whose size a size is, with no arithmetic between: the `h.shape[2]` in `torch.zeros_like(h)`."""
        expr = use.expr
        return self._cut(self._read(expr)) if isinstance(expr, tuple) and expr[0] == "shape" else None

    def _cut(self, axis: Axis | None) -> Leaf | None:
        return axis if isinstance(axis, Leaf) and axis.key in self.kept else None

    def equal_parts(self, use: SizeUse) -> list[Leaf]:
        """The leaves in front of a bound, where all have one size: in `x[:, i * n : (i + 1) * n]`, n units each."""
        axis = self.axis(use.role[1], use.role[2]) if use.role[0] == "bound" else None
        if not isinstance(axis, Concat):
            return []
        ends = np.cumsum([size(part) for part in axis.parts])
        parts = [part for part, end in zip(axis.parts, ends, strict=True) if end <= use.value]
        found = [leaf for part in parts if (leaf := self._cut(part)) is not None and leaf.size == size(parts[0])]
        return found if len(found) == len(parts) else []

    def own_keys(self, use: SizeUse) -> set[int]:
        """Those of the dimension that a size speaks of, or of the shapes that a number is computed from."""
        places = [use.role[1:3]] if use.role[0] in ("size", "bound", "part", "groups", "follows") else []
        places += [use.role[2:4]] if use.role[0] == "times" else []
        if not places:
            places = [leaf[1:] for leaf in variables(use.expr) if leaf[0] == "shape" and leaf[1] is not None]
        axes = [axis for name, dim in places if (axis := self.axis(name, dim)) is not None]
        keys = {leaf.key for axis in axes for leaf in leaves(axis)}
        if use.role[0] == "part":
            keys = {key for key in keys if (positions(axes[0], key)[slice(*use.role[3:])] >= 0).any()}
        return keys

    def now(self, leaf: tuple[Any, ...]) -> int | None:
        """The size that a "shape" leaf of an expression reads after the cut; None where that isn't known."""
        axis = self._read(leaf)
        return None if axis is None else size(axis, self.widths)

    def before(self, leaf: tuple[Any, ...]) -> int | None:
        """What a leaf of an expression, an attribute or a shape, is in the dense network."""
        if leaf[0] == "attr":
            return self.graph.program.sizes.attributes[leaf]
        axis = self._read(leaf)
        return None if axis is None else size(axis)

    def _read(self, leaf: tuple[Any, ...]) -> Axis | None:
        return self.axis(leaf[1], leaf[2]) if leaf[1] is not None else None
