"""What a network of given widths costs: parameters, multiply-adds, bytes; exact, from the axes alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np

from actprune.axes.capture import Graph
from actprune.axes.expr import Axis, Concat, Leaf, Product
from actprune.plan import Plan

COSTS = ("macs", "params", "bytes")

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"


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


def cost(graph: Graph, widths: Mapping[str, int] | Plan | None = None) -> Cost:
    """The cost of the network in which each named group has the width given; the others are whole.

    Args:
        widths: group name → number of units; or a plan, for those that it keeps.
    """
    if isinstance(widths, Plan):
        widths = widths.widths
    table = _table(graph)
    sizes = table.sizes(widths or {})
    macs, params, held = (table.factors @ sizes[table.products].prod(1)).tolist()
    return Cost(macs=round(macs / graph.program.batch_size), params=round(params), bytes=round(held))


def costs_along(
    graph: Graph, widths: Mapping[str, int], names: Iterable[str], options: Sequence[int], name: str
) -> Array:
    """(options,) one cost, of the networks in which these groups have each of the widths and the others those given."""
    table = _table(graph)
    sizes = table.sizes(widths)
    varied = np.isin(table.products, [table.places[group] for group in names])
    others, degrees = np.where(varied, 1.0, sizes[table.products]).prod(1), varied.sum(1)
    weighed = table.factors[COSTS.index(name)] * others
    coefficients = np.bincount(degrees, weighed)  # of a polynomial in the width
    found = np.polynomial.polynomial.polyval(np.asarray(options, dtype=np.float64), coefficients)
    return np.rint(found / graph.program.batch_size if name == "macs" else found)


def costs_of_each(
    graph: Graph, widths: Mapping[str, int], changes: Mapping[str, tuple[Sequence[str], int]], name: str
) -> dict[str, float]:
    """One cost for each of some changes of a network, made alone: only what it concerns is counted anew.

    Args:
        changes: what a change is called → the groups that get a width, and that width.
    """
    table, row = _table(graph), COSTS.index(name)
    sizes, factors = table.sizes(widths), table.factors[row]
    terms = factors * sizes[table.products].prod(1)
    whole, found = terms.sum(), dict[str, float]()
    for change, (groups, width) in changes.items():
        places = [table.places[group] for group in groups]
        concerned = np.unique(np.concatenate([table.concerned[place] for place in places]))
        other = sizes.copy()
        other[places] = width
        again = factors[concerned] * other[table.products[concerned]].prod(1)
        found[change] = float(whole - terms[concerned].sum() + again.sum())
    return {change: round(one / graph.program.batch_size) if name == "macs" else one for change, one in found.items()}


Polynomial: TypeAlias = Counter[tuple[int, ...]]
"""Leaf keys whose widths are multiplied → factor."""


@dataclass(frozen=True, eq=False)
class _Table:
    """The three polynomials as arrays, for allocation asks for thousands of costs of hundreds of tensors.

    Float64 holds exactly what is counted, up to 2⁵³.

    Attributes:
        places: group name → where its width stands among the sizes.
        dense: (groups + 1,) all widths, and a 1.
        products: (terms, degree) places of the sizes that are multiplied, filled up with that of the 1.
        factors: (3, terms) what each product counts in MACs, parameters and bytes.
    """

    places: Mapping[str, int]
    dense: Array
    products: np.ndarray[Any, np.dtype[np.intp]]
    factors: Array

    @cached_property
    def concerned(self) -> list[np.ndarray[Any, np.dtype[np.intp]]]:
        """Group after group the terms in which its width counts."""
        return [np.flatnonzero((self.products == place).any(1)) for place in range(len(self.places))]

    def sizes(self, widths: Mapping[str, int]) -> Array:
        """(groups + 1,) the same with these widths."""
        found = self.dense.copy()
        for name, width in widths.items():
            if name in self.places:
                found[self.places[name]] = width
        return found


_TABLES: WeakKeyDictionary[Graph, _Table] = WeakKeyDictionary()


def _table(graph: Graph) -> _Table:
    """That of a graph, made when it is first asked for."""
    if graph not in _TABLES:
        _TABLES[graph] = _made(graph)
    return _TABLES[graph]


def _made(graph: Graph) -> _Table:
    polynomials = _polynomials(graph)
    terms = list(dict.fromkeys(chain.from_iterable(polynomials)))
    one, degree = len(graph.groups), max(map(len, terms), default=0)
    at = {group.key: place for place, group in enumerate(graph.groups)}
    products = [[*(at[key] for key in keys), *[one] * (degree - len(keys))] for keys in terms]
    return _Table(
        {group.name: place for place, group in enumerate(graph.groups)},
        np.array([*(group.width for group in graph.groups), 1], dtype=np.float64),
        np.array(products, dtype=np.intp).reshape(len(terms), degree),
        np.array([[polynomial[keys] for keys in terms] for polynomial in polynomials], dtype=np.float64),
    )


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
