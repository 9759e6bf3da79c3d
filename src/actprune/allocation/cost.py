"""What a network of given widths costs: parameters, multiply-adds, bytes; exact, from the axes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from actprune.axes.capture import Graph
from actprune.axes.expr import size

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
    widths = widths or {}
    by_key = {group.key: widths[group.name] for group in graph.groups if group.name in widths}
    program = graph.program
    numel = {name: prod(size(axis, by_key) for axis in axes) for name, axes in graph.tensor_axes.items()}
    macs = sum(term.factor * prod(size(axis, by_key) for axis in term.axes) for term in graph.terms)
    return Cost(
        macs=round(macs / program.batch_size),
        params=sum(n for name, n in numel.items() if name in program.parameters),
        bytes=sum(n * program.tensors[name].element_size() for name, n in numel.items() if name in program.persistent),
    )
