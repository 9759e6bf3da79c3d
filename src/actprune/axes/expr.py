"""Axis expressions: what one dimension of one tensor consists of.

    Axis := Leaf(size)         an indivisible run of units
          | Product(Axis, …)   outer → inner, e.g. heads × head_dim, or C × H × W after a flatten
          | Concat(Axis, …)    e.g. [q | k | v], or the features of a DenseNet

Expressions are immutable values. Cutting a leaf down to some kept units determines the kept indices of
every dimension that contains it: that is `kept_indices`, and the whole of surgery rests on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Indices: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Leaf:
    """`size` units that are not divided further; `key` tells leaves of equal size apart."""

    size: int
    key: int


@dataclass(frozen=True, slots=True)
class Product:
    """Row-major product of its parts, outer → inner: index = (outer · inner size) + inner."""

    parts: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class Concat:
    """Its parts one after the other."""

    parts: tuple[Axis, ...]


Axis: TypeAlias = Leaf | Product | Concat

ONE = Leaf(1, 0)
"""The axis of size 1: it carries nothing, can't be cut, and is dropped from products."""


def product(parts: Iterable[Axis]) -> Axis:
    """The product in normal form: nested products flattened, factors of size 1 dropped."""
    flat: list[Axis] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, Product) else [part])
    flat = [part for part in flat if size(part) != 1]
    if not flat:
        return ONE
    return flat[0] if len(flat) == 1 else Product(tuple(flat))


def concat(parts: Iterable[Axis]) -> Axis:
    """The concatenation in normal form: nested ones flattened, empty parts dropped."""
    flat: list[Axis] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, Concat) else [part])
    kept = [part for part in flat if size(part) != 0]
    if not kept:
        return flat[0] if flat else ONE
    return kept[0] if len(kept) == 1 else Concat(tuple(kept))


def size(axis: Axis, widths: Mapping[int, int] | None = None) -> int:
    """Number of units of `axis`, with the leaves in `widths` (by key) at the width given there."""
    match axis:
        case Leaf():
            return axis.size if widths is None else widths.get(axis.key, axis.size)
        case Product(parts):
            return prod(size(part, widths) for part in parts)
        case Concat(parts):
            return sum(size(part, widths) for part in parts)


def blocks(axis: Axis, within: int, widths: Mapping[int, int]) -> int:
    """How many blocks of `within` units each are left of an axis that consists of such blocks."""
    if within == 1:
        return size(axis, widths)
    match axis:
        case Concat(parts) if all(size(part) % within == 0 for part in parts):
            return sum(blocks(part, within, widths) for part in parts)
        case Product(parts):
            inner = [prod(size(part) for part in parts[n:]) for n in range(len(parts))]
            if within in inner:
                return prod(size(part, widths) for part in parts[: inner.index(within)])
        case _:
            pass
    # one block, or blocks that no cut divides
    return size(axis) // within


def leaves(axis: Axis) -> Iterator[Leaf]:
    """Every leaf in order of appearance; one that occurs twice is given twice."""
    if isinstance(axis, Leaf):
        yield axis
    else:
        for part in axis.parts:
            yield from leaves(part)


def kept_indices(axis: Axis, kept: Mapping[int, Indices]) -> Indices:
    """The indices of `axis` that stay when the leaves in `kept` (by key) keep only the units given there."""
    match axis:
        case Leaf():
            return kept[axis.key] if axis.key in kept else np.arange(axis.size)
        case Product(parts):
            index = np.zeros(1, dtype=np.int64)
            for part in parts:
                index = (index[:, None] * size(part) + kept_indices(part, kept)[None, :]).reshape(-1)
            return index
        case Concat(parts):
            offsets = np.cumsum([0, *(size(part) for part in parts)])
            return np.concatenate([o + kept_indices(p, kept) for o, p in zip(offsets, parts, strict=False)])


def place_after(axis: Axis, place: int, kept: Mapping[int, Indices]) -> int:
    """Where a place between two units of `axis` is when the leaves in `kept` keep only the units given there.

    As a bound of a slice: counted from the end where it is negative, and what lies behind the end stays there.
    """
    if not any(leaf.key in kept for leaf in leaves(axis)):
        return place
    n, staying = size(axis), kept_indices(axis, kept)
    if place >= n:
        return place - n + len(staying)
    if place < 0:
        return -int(np.count_nonzero(staying >= n + place))
    return int(np.count_nonzero(staying < place))


def left_of(axis: Axis, kept: Mapping[int, Indices]) -> Indices | None:
    """`kept_indices`, or None where all stay."""
    return kept_indices(axis, kept) if any(leaf.key in kept for leaf in leaves(axis)) else None


def positions(axis: Axis, key: int) -> Indices:
    """Which unit of leaf `key` each index of `axis` belongs to; -1 where it belongs to none.

    Returns:
        (size,) one unit number per index of the dimension. A leaf that stands in several parts of a
        Concat appears in each of them.
    """
    match axis:
        case Leaf():
            return np.arange(axis.size) if axis.key == key else np.full(axis.size, -1)
        case Product(parts):
            units = np.full(1, -1, dtype=np.int64)
            for part in parts:
                # a leaf may be outer or inner here; at most one factor of a product holds it
                units = np.maximum(units[:, None], positions(part, key)[None, :]).reshape(-1)
            return units
        case Concat(parts):
            return np.concatenate([positions(part, key) for part in parts])
