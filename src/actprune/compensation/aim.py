"""What the outputs of a consumer are fitted to: the dense ones, or those of the sum that they join."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.site import Site
from actprune.compensation.rectified import Rectified
from actprune.compensation.rows import places_of, thinned
from actprune.compensation.schedule import Path
from actprune.compensation.streams import Streams
from actprune.stats.padding import counted
from actprune.stats.patches import output_rows

SMALL_GAIN = 1e-3
"""Outputs whose gain is below this share of the largest keep their own output as target."""


class Each(Sequence[Tensor]):
    """One tensor per batch, made when it is asked for."""

    def __init__(self, count: int, make: Callable[[int], Tensor]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: Any) -> Any:
        if not 0 <= i < self._count:
            raise IndexError(i)
        return self._make(i)


@dataclass(frozen=True, eq=False)
class Aim:
    """Of one consumer, on two streams.

    Attributes:
        path: what lies behind it, up to the sum that it joins.
        sparing: make the tensor of a batch each time that it is asked for.
    """

    streams: Streams
    site: Site
    node: Node
    path: Path
    sparing: bool

    def targets(self, bias: Tensor | None, stride: int = 1) -> Sequence[Tensor]:
        """Per batch (n, positions, o): the dense output, plus the stream's error where the output joins it.

        Args:
            bias: (o,) that can't change, which is left out; None for one that can, or no bias at all.
            stride: every how many-th position of a map is used.
        """
        site, partner = self.site, self.path.partner
        joins = partner is not None and self.streams.differs(partner)

        def target(i: int) -> Tensor:
            places = places_of(i, stride)
            own = output_rows(site, self.streams.output(self.node, i), places)
            if partner is not None and joins:
                streams = (self.streams.dense(partner)[i], self.streams.cut(partner)[i])
                dense, cut = (output_rows(site, value, places) for value in streams)
                own = own + (dense - cut) * self._inverse_gain(own)
            return own if bias is None else own - bias

        return self.of_batches(target)

    def of_batches(self, make: Callable[[int], Tensor]) -> Sequence[Tensor]:
        """One tensor per batch; of a large model, each as it is asked for."""
        each = Each(self.streams.count, make)
        return each if self.sparing else list(each)

    def rectified(
        self, targets: Sequence[Tensor], stride: int, outputs: Tensor, there: Sequence[Tensor | None]
    ) -> list[Rectified]:
        """The targets with where the dense ReLU is off; the ReLU's input is gain · y + shift + partner.

        Args:
            outputs: those that the targets are of.
            there: (n, positions) of every batch, which of these count; None: all.
        """
        inputs = thinned(self.site, self._relu_inputs(), stride)
        inverse = self._inverse_gain(inputs[0])[outputs]
        sign = torch.where(inverse >= 0, 1.0, -1.0)
        found: list[Rectified] = []
        for v, t, which in zip(inputs, targets, there, strict=True):
            v, t = counted(v[..., outputs], which), counted(t, which)
            found.append(Rectified(t, (v <= 0) & (inverse != 0), t - v * inverse, sign))
        return found

    def _relu_inputs(self) -> Iterator[Tensor]:
        partner, norm = self.path.partner, self.path.norm
        for i, y in enumerate(self.streams.dense(self.node)):
            value = y if norm is None else self.streams.peek(norm, i)
            yield value if partner is None else value + self.streams.dense(partner)[i]

    def _inverse_gain(self, like: Tensor) -> Tensor:
        """(o,) 1 / gain; 0 where the gain is too small to aim through."""
        gain = self.path.gain.to(like.device, like.dtype)
        small = gain.abs() <= SMALL_GAIN * gain.abs().max()  # all of them, where every gain is zero
        return torch.where(small, 0, 1 / torch.where(small, 1, gain))
