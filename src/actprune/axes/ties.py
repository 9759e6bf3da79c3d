"""Tying groups: two that the user's class knows by one number keep the same units, and are one group from then on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import lcm

from actprune.axes.capture import Graph
from actprune.axes.components import components
from actprune.axes.expr import Axis, Leaf, Product, concat, product
from actprune.axes.groups import Group
from actprune.axes.site import Dims, Term


def tied(graph: Graph, pairs: Iterable[tuple[int, int]]) -> Graph:
    """The graph in which the groups of each pair of leaf keys, of equal width, are one.

    It has the name of the earlier one, and the members, producers and consumers of both.
    """
    found = components([group.key for group in graph.groups], pairs)
    to = {key: first for first, *others in found for key in others}
    groups: dict[int, Group] = {}
    for group in graph.groups:
        key = to.get(group.key, group.key)
        groups[key] = _joined(groups[key], group) if key in groups else group
    return replace(
        graph,
        groups=tuple(groups.values()),
        tensor_axes={name: _all(dims, to) for name, dims in graph.tensor_axes.items()},
        node_axes={
            name: [_all(one, to) for one in dims] if isinstance(dims, list) else _all(dims, to)
            for name, dims in graph.node_axes.items()
        },
        terms=tuple(Term(_all(term.axes, to), term.factor) for term in graph.terms),
        masks={name: replace(mask, axis=_renamed(mask.axis, to)) for name, mask in graph.masks.items()},
        counted=tuple(tuple(to.get(key, key) for key in keys) for keys in graph.counted),
    )


def _joined(a: Group, b: Group) -> Group:
    return replace(
        a,
        members=tuple(dict.fromkeys((*a.members, *b.members))),
        producers=tuple(dict.fromkeys((*a.producers, *b.producers))),
        consumers=tuple(dict.fromkeys((*a.consumers, *b.consumers))),
        multiple=lcm(a.multiple, b.multiple),
    )


def _all(dims: Dims, to: dict[int, int]) -> Dims:
    return tuple(_renamed(axis, to) for axis in dims)


def _renamed(axis: Axis, to: dict[int, int]) -> Axis:
    if isinstance(axis, Leaf):
        return Leaf(axis.size, to[axis.key]) if axis.key in to else axis
    parts = [_renamed(part, to) for part in axis.parts]
    return product(parts) if isinstance(axis, Product) else concat(parts)
