"""What a block is fitted to give: the sums of the call that reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.axes.expr import Indices, kept_indices
from actprune.axes.site import Site
from actprune.compensation.schedule import ALONE, Path
from actprune.graph.program import shape
from actprune.stats.patches import output_rows


@dataclass(frozen=True, eq=False)
class Read:
    """The outputs of a layer, of the norm behind it or of several layers added; of a recurrent call W_ih x in every
    direction.

    Attributes:
        sites: the weight of each layer, or those of a recurrent call that its input is multiplied with.
        value: the call whose value has these sums, or the input of a recurrent call: no call has those of that.
        path: what becomes of the sums.
        outputs: weight → the outputs that stay; all layers that are added have those of the first one.
        changed: names of the weights and biases that may change.
        multiplied: whether the value is yet to be multiplied with the weights.
        rows: how many the value has for one batch.
        left: how many numbers stay in a row of it.
    """

    sites: tuple[Site, ...]
    value: Node
    path: Path
    outputs: Mapping[str, Sequence[int]]
    changed: frozenset[str]
    multiplied: bool
    rows: int
    left: int

    @property
    def residuals(self) -> int:
        """How many sums of one batch stay."""
        return self.rows * sum(map(len, self.outputs.values()))

    @property
    def macs(self) -> int:
        """Multiply-adds for the sums that no call makes."""
        return self.residuals * self.left if self.multiplied else 0

    def sums(self, value: Tensor, weights: Mapping[str, Tensor], whole: bool = True) -> Tensor:
        """(n, positions, o) those that stay, of all directions beside each other.

        Args:
            value: of the call.
            weights: by name.
            whole: whether both have the dense shapes; else that of what stays.
        """
        rows = output_rows(self.sites[0], value)
        made = {name: F.linear(rows, weights[name]) if self.multiplied else rows for name in self.outputs}
        parts = [sums[..., self.outputs[name]] if whole else sums for name, sums in made.items()]
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


def read_by(
    graph: Graph,
    value: Node,
    sites: Sequence[Site],
    path: Path | None,
    kept: Mapping[int, Indices],
    changed: Iterable[str],
) -> Read:
    """What weights read: one of a layer, those of layers whose results are added, or those of a recurrent call.

    Args:
        value: see `Read`.
        path: of the value; None for a recurrent call.
        kept: leaf key → units.
        changed: names of the weights and biases that may change.
    """
    tensors, axes, first = graph.program.tensors, graph.tensor_axes, sites[0]

    def outputs(site: Site) -> list[int]:
        return list(kept_indices(site.out_axis(axes[site.weight]), kept))

    if path is not None:
        width, stays = first.outputs(tensors[first.weight]), outputs(first)
        rows = prod(shape(value)) // width
        return Read(tuple(sites), value, path, {first.weight: stays}, frozenset(changed), False, rows, len(stays))
    rows = prod(shape(value)) // first.inputs(tensors[first.weight])
    left = len(kept_indices(first.in_axis(axes[first.weight]), kept))
    linear = tuple(replace(site, kind="linear") for site in sites)
    return Read(linear, value, ALONE, {s.weight: outputs(s) for s in sites}, frozenset(changed), True, rows, left)
