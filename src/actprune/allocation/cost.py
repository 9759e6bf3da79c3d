"""What a network of given widths costs: parameters, multiply-adds, bytes; exact, from the axes alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TypeAlias

from actprune.axes.capture import Graph
from actprune.axes.expr import Axis, Concat, Leaf, Product

COSTS = ("macs", "params", "bytes")


@dataclass(frozen=True)
class Cost:
    """Costs of one network.

    Attributes:
        macs: multiply-adds of the linear layers, convolutions and matrix products, per sample.
        params: parameters, tied ones once.
        bytes: bytes of parameters and persistent buffers, tied ones once.
    """

    macs: int
    params: int
    bytes: int

    def __getitem__(self, name: str) -> int:
        return getattr(self, name)


def cost(graph: Graph, widths: Mapping[str, int] | None = None) -> Cost:
    """The cost of the network in which each named group has the width given; the others are whole.

    Args:
        widths: group name → number of units.
    """
    given = widths or {}
    by_key = {group.key: given.get(group.name, group.width) for group in graph.groups}
    macs, params, held = (
        sum(factor * prod(by_key[key] for key in keys) for keys, factor in polynomial.items())
        for polynomial in _polynomials(graph)
    )
    return Cost(macs=round(macs / graph.program.batch_size), params=round(params), bytes=round(held))


Polynomial: TypeAlias = Counter[tuple[int, ...]]
"""Leaf keys whose widths are multiplied → factor. Allocation asks for thousands of costs of hundreds of tensors."""


@lru_cache(maxsize=4)
def _polynomials(graph: Graph) -> tuple[Polynomial, Polynomial, Polynomial]:
    """MACs of a batch, parameters and bytes in the widths of the groups."""
    keys, program = frozenset(group.key for group in graph.groups), graph.program
    macs, params, held = Polynomial(), Polynomial(), Polynomial()
    for term in graph.terms:
        _add(macs, _expanded(term.axes, keys), term.factor)
    for name, axes in graph.tensor_axes.items():
        own = _expanded(axes, keys)
        if name in program.parameters:
            _add(params, own, 1)
        if name in program.persistent:
            _add(held, own, program.tensors[name].element_size())
    return macs, params, held


def _add(total: Polynomial, own: Polynomial, times: float) -> None:
    for keys, factor in own.items():
        total[keys] += factor * times  # type: ignore[assignment]  # a Counter of floats


def _expanded(axes: Iterable[Axis], keys: frozenset[int]) -> Polynomial:
    """The product of the sizes of axes."""
    result = Polynomial({(): 1})
    for axis in axes:
        factors = _size(axis, keys)
        result, before = Polynomial(), result
        for a, x in before.items():
            for b, y in factors.items():
                result[tuple(sorted((*a, *b)))] += x * y
    return result


def _size(axis: Axis, keys: frozenset[int]) -> Polynomial:
    match axis:
        case Leaf():
            return Polynomial({(axis.key,): 1} if axis.key in keys else {(): axis.size})
        case Product(parts):
            return _expanded(parts, keys)
        case Concat(parts):
            total = Polynomial()
            for part in parts:
                _add(total, _size(part, keys), 1)
            return total
