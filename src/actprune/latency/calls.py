"""The calls of a captured model whose time depends on the widths, and their arguments at any width."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from math import ceil, lcm, prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from actprune.axes.capture import Graph
from actprune.axes.expr import Axis, Leaf, blocks, leaves, size
from actprune.graph.program import named_arguments
from actprune.latency.bench import Bench

MOST_COORDINATES = 3
"""A call that more sizes vary in (a concatenation of many layers) is scaled by the entries it reads."""

POINTS = 8
"""Measured widths of one axis, about."""

Sizes = Mapping[int, int]
"""Leaf key → its size, where it is not the dense one."""


@dataclass(frozen=True)
class Operand:
    """A tensor argument.

    Attributes:
        axes: of its dimensions.
    """

    axes: tuple[Axis, ...]
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class TimedCall:
    """One call of the model.

    Attributes:
        args, kwargs: as in the graph, with an `Operand` for every tensor.
        keys: the leaves of groups that its operands contain.
        coordinates: the sizes that its time is a function of.
        step: of what a width below the dense one is a multiple.
        grouped: the position of `groups` among the arguments of a grouped convolution.
        sizes: of leaves that have not the size of the capture: the batch.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    operands: tuple[Operand, ...] = field(repr=False)
    keys: tuple[int, ...]
    coordinates: tuple[Axis, ...]
    step: int
    grouped: int | None
    sizes: Sizes

    def exact(self, bench: Bench, widths: Sizes) -> float | None:
        """Milliseconds at these widths of leaves."""
        return self._measured(bench, lambda axis: size(axis, {**self.sizes, **widths}), widths)

    def interpolated(self, bench: Bench, widths: Sizes) -> float:
        """Milliseconds at these widths, linear between measured ones; needs a dense call that runs."""
        if len(self.coordinates) <= MOST_COORDINATES:
            found = 0.0
            for share, corner in self._corners(widths):
                ms = self._at(bench, corner)
                if ms is None:
                    break
                found += share * ms
            else:
                return found
        return (self.exact(bench, {}) or 0.0) * self._entries(widths) / self._entries({})

    def _corners(self, widths: Sizes) -> Iterator[tuple[float, dict[Axis, int]]]:
        """The measured points around some widths, and their shares."""
        sides = [_around(size(axis, widths), grid(size(axis), self.step)) for axis in self.coordinates]
        for corner in product(*sides):
            if share := prod(part for _, part in corner):
                yield share, {axis: n for axis, (n, _) in zip(self.coordinates, corner, strict=True)}

    def _at(self, bench: Bench, point: Mapping[Axis, int]) -> float | None:
        own = {axis.key: n for axis, n in point.items() if isinstance(axis, Leaf)}
        return self._measured(bench, lambda axis: point.get(axis) or size(axis, {**self.sizes, **own}), own)

    def _measured(self, bench: Bench, of: Callable[[Axis], int], widths: Sizes) -> float | None:
        shapes = tuple(tuple(of(axis) for axis in operand.axes) for operand in self.operands)
        args = self.args
        if self.grouped is not None:
            out = self.operands[1].axes[0]
            groups = blocks(out, size(out) // args[self.grouped], {**self.sizes, **widths})
            args = (*args[: self.grouped], groups, *args[self.grouped + 1 :])
        dtypes = tuple(operand.dtype for operand in self.operands)
        plain = _filled((args, dict(self.kwargs)), iter(["tensor"] * len(shapes)))
        key = (str(self.target), shapes, dtypes, repr(plain))
        return bench.op(key, partial(_call, self.target, args, dict(self.kwargs), shapes, bench))

    def _entries(self, widths: Sizes) -> int:
        """Numbers that it reads."""
        own = {**self.sizes, **widths}
        return sum(prod(size(axis, own) for axis in operand.axes) for operand in self.operands)


def timed_calls(graph: Graph, batch: int) -> Iterator[TimedCall]:
    """The calls that compute something from what groups hold; views take no time, and masks are in no cut network."""
    keys = {group.key: group.multiple for group in graph.groups}
    masks = {name for name, held in graph.program.bindings.items() if held in graph.masks}
    sizes = {axis.key: batch for _, axis in graph.batches}
    for node in graph.program.nodes:
        if not isinstance(node.target, torch._ops.OpOverload) or any(a.name in masks for a in node.all_input_nodes):
            continue
        if any(result.alias_info is not None for result in node.target._schema.returns):
            continue
        operands: list[Operand] = []
        note: Any = partial(_operand, graph, operands)
        args: Any = map_arg(node.args, note)
        kwargs: Any = map_arg(dict(node.kwargs), note)
        mine = {leaf.key for operand in operands for axis in operand.axes for leaf in leaves(axis)} & keys.keys()
        if mine:
            grouped = _grouped(node)
            varying = _coordinates(operands, mine, grouped is not None)
            step = lcm(*(keys[key] for key in mine))
            yield TimedCall(
                node.target, tuple(args), kwargs, tuple(operands), tuple(sorted(mine)), varying, step, grouped, sizes
            )


def grid(n: int, step: int = 1) -> tuple[int, ...]:
    """The widths at which an axis of `n` units is measured: multiples of 8, the dense one, and what lies below 8."""
    coarse = lcm(8 * ceil(n / (8 * POINTS)), step)
    fine = (1, 4) if step == 1 else (step,)
    return tuple(sorted({*(k for k in fine if k < n), *range(coarse, n, coarse), n}))


def _around(n: int, points: tuple[int, ...]) -> list[tuple[int, float]]:
    """The grid points below and above, each with its share; beyond the ends the nearest."""
    below = max((p for p in points if p <= n), default=points[0])
    above = min((p for p in points if p >= n), default=points[-1])
    share = (n - below) / (above - below) if above > below else 0.0
    return [(below, 1 - share), (above, share)]


def _operand(graph: Graph, operands: list[Operand], node: Node) -> Operand:
    dims, value = graph.sizes(node.name), node.meta.get("val")
    if isinstance(dims, tuple) and isinstance(value, Tensor):
        operands.append(Operand(dims, value.dtype))
    else:  # a number, or several tensors at once: the call will not run on what stands for it, and be left out
        operands.append(Operand((), torch.float32))
    return operands[-1]


def _coordinates(operands: Iterable[Operand], keys: set[int], grouped: bool) -> tuple[Axis, ...]:
    """Whole axes where they have no leaf in common, as a convolution over a concatenation has; else the leaves."""
    axes = list(dict.fromkeys(axis for operand in operands for axis in operand.axes))
    mine = [axis for axis in axes if any(leaf.key in keys for leaf in leaves(axis))]
    held = [leaf for axis in mine for leaf in dict.fromkeys(leaves(axis)) if leaf.key in keys]
    return tuple(dict.fromkeys(held)) if grouped or len(set(held)) < len(held) else tuple(mine)


def _grouped(node: Node) -> int | None:
    given = list(named_arguments(node))
    groups = named_arguments(node).get("groups", 1)
    return given.index("groups") if groups != 1 and len(node.args) > given.index("groups") else None


def _call(target: Any, args: Any, kwargs: Any, shapes: Iterable[tuple[int, ...]], bench: Bench) -> Callable[[], Any]:
    """The call on tensors of these shapes, of positive numbers below 1 (variances among them), or of zeros."""
    made, named = _filled((args, kwargs), iter(shapes), partial(_tensor, bench))
    return partial(target, *made, **named)


def _tensor(bench: Bench, operand: Operand, shape: tuple[int, ...]) -> Tensor:
    if operand.dtype.is_floating_point:
        return bench.setting.laid_out(torch.rand(shape, device=bench.device).to(operand.dtype))
    return torch.zeros(shape, dtype=operand.dtype, device=bench.device)


def _filled(value: Any, given: Iterator[Any], make: Callable[[Operand, Any], Any] = lambda _, one: one) -> Any:
    """Arguments with each `Operand`, in order, replaced by what is made of the next of `given`."""
    if isinstance(value, Operand):
        return make(value, next(given))
    if isinstance(value, list | tuple):
        filled = [_filled(one, given, make) for one in value]
        return filled if isinstance(value, list) else tuple(filled)
    if isinstance(value, dict):
        return {name: _filled(one, given, make) for name, one in value.items()}
    return value
