"""What a refit multiplies and what it aims at, as rows: the inputs of a consumer, and results of calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.site import Site
from actprune.compensation.streams import Streams
from actprune.graph.program import named_arguments
from actprune.stats.moments import Centred, centred
from actprune.stats.padding import Padding, counted
from actprune.stats.patches import EVERYWHERE, input_rows, output_rows

HELD = 64_000_000
"""Input rows are kept for the rounds of a rectified fit up to so many numbers, else made again."""

CONSTANT = 1e-5
"""Values that vary by a smaller share of their size do so by rounding."""


class InputRows:
    """Input columns of a consumer, batch by batch, as often as they are asked for.

    Args:
        inputs: what the consumer is given, per batch.
        units: the input channels whose columns are wanted.
        stride: every how many-th position of a map is wanted.
        group: which group of a grouped convolution.
        there: (n, positions) of every batch, which of these count; None: all.
    """

    def __init__(
        self,
        inputs: list[Tensor],
        site: Site,
        node: Node,
        weight: Tensor,
        units: Tensor,
        stride: int,
        group: int,
        there: Sequence[Tensor | None],
    ) -> None:
        self.site, self.node, self.weight = site, node, weight
        self.units, self.stride, self.there = units, stride, there
        self.inputs = inputs if site.groups == 1 else [x.chunk(site.groups, 1)[group] for x in inputs]
        self.held: list[Centred] = []

    def __call__(self) -> Iterator[Centred]:
        """(rows, columns) of every batch: those that count."""
        if self.held:
            yield from self.held
            return
        keep = False
        for i, x in enumerate(self.inputs):
            rows = input_rows(self.site, self.node, x, self.weight, places_of(i, self.stride), self.units)
            found = centred(counted(rows, self.there[i]))
            keep = rows.numel() * len(self.inputs) <= HELD if i == 0 else keep
            if keep:
                self.held.append(found)
            yield found


def columns_of(units: Tensor, each: int) -> Tensor:
    """The columns of the weight matrix that belong to these inputs, `each` of them to one."""
    return (units[:, None] * each + torch.arange(each, device=units.device)).reshape(-1)


def thinned(site: Site, values: Iterable[Tensor], stride: int) -> list[Tensor]:
    """Per batch (n, positions, outputs) of a call's results, every stride-th position."""
    return [output_rows(site, value, places_of(i, stride)) for i, value in enumerate(values)]


def stride_of(site: Site, value: Tensor, there: Sequence[Tensor | None], wanted: int) -> int:
    """Every how many-th position of a map gives so many rows as are wanted.

    Args:
        value: a call's result on one of the batches.
        there: see `rows_there`.
    """
    samples, positions = output_rows(site, value).shape[:2]
    rows = sum(samples * positions if own is None else int(own.sum()) for own in there)
    return max(1, min(rows // wanted, positions))


def rows_there(padding: Padding, streams: Streams, site: Site, node: Node) -> list[Tensor | None]:
    """Per batch (n, positions) which rows of a call's results count; None: all."""
    return [padding.rows(site, node, batch) for batch in streams.batches]


def thinned_there(there: Iterable[Tensor | None], stride: int) -> list[Tensor | None]:
    """The same for every stride-th position."""
    return [None if own is None else own[:, places_of(i, stride)] for i, own in enumerate(there)]


def places_of(i: int, stride: int) -> slice:
    """Every stride-th position of batch i, each batch starting elsewhere."""
    return slice(i % stride, None, stride) if stride > 1 else EVERYWHERE


def beyond_rounding(away: Tensor, squares: Tensor) -> float:
    """What values vary by, squared; of constant ones, whose rounding varies, a part of their size.

    Args:
        away: sum or mean of squares of what they are away from their means.
        squares: the same of themselves.
    """
    return max(float(away), CONSTANT**2 * float(squares))


def contracted(node: Node) -> Node:
    """The activation that a contraction gets."""
    settings = named_arguments(node)
    return next(settings[key] for key in ("input", "mat1", "self") if isinstance(settings.get(key), Node))
