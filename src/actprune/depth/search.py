"""In which order blocks go: the one first without which the network's outputs change least, measured in context.

After every removal what is left is measured again, since a block may stand in for the one that has gone. The measure
is the network's own distance (`actprune.distance`) between its outputs and those without the block, on calibration
data that nothing was fitted to. Men et al. 2024, *ShortGPT*, rank blocks once, by how little each turns its input; Song
et al. 2024, *SLEB* §3, measure the outputs after each removal, as here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from actprune.depth.bypass import Block, bypassed
from actprune.distance import Distance, Outputs
from actprune.errors import DataError
from actprune.graph.arguments import Arguments


@dataclass(frozen=True)
class Removal:
    """One step of the search.

    Attributes:
        block: module path of the block that went.
        distance: of the network without it, and without those before it, to the dense one.
        tried: what that would have been for every block that might have gone: module path → distance.
    """

    block: str
    distance: float
    tried: Mapping[str, float] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Search:
    """What is searched in.

    Attributes:
        net: a twin of the dense network, in eval mode.
        calls: the calibration batches.
        marked: their outputs, in which padding does not count.
        sizes: container → number of its items; one of them stays in each.
        tell: (blocks tried in this step, of how many).
    """

    net: nn.Module = field(repr=False)
    calls: Sequence[Arguments] = field(repr=False)
    marked: Callable[[Sequence[Outputs]], list[Outputs]] = field(repr=False)
    distance: Distance = field(repr=False)
    sizes: Mapping[str, int] = field(repr=False)
    tell: Callable[[int, int], None] = field(repr=False)

    def __call__(self, blocks: Sequence[Block], met: Callable[[Sequence[Block]], bool]) -> list[Removal]:
        """Leave out blocks until `met` says that enough have gone, or none may go."""
        gone: list[Block] = []
        steps: list[Removal] = []
        dense = self._outputs(gone) if not met(gone) else []
        while not met(gone) and (left := removable(blocks, gone, self.sizes)):
            tried: dict[str, float] = {}
            for i, block in enumerate(left):
                tried[block.path] = self._apart(dense, [*gone, block])
                self.tell(i + 1, len(left))
            best = min(left, key=lambda block: tried[block.path])
            gone.append(best)
            steps.append(Removal(best.path, tried[best.path], tried))
        return steps

    def _apart(self, dense: Sequence[Outputs], gone: Sequence[Block]) -> float:
        """Outputs that are no numbers are infinitely far."""
        found = float(self.distance(dense, self._outputs(gone)))
        return math.inf if math.isnan(found) else found

    def _outputs(self, gone: Sequence[Block]) -> list[Outputs]:
        with torch.no_grad(), bypassed(self.net, gone):
            found = [tuple(pytree.tree_leaves(self.net(*args, **kwargs))) for args, kwargs in self.calls]
        if not gone and not all(_finite(leaf) for outputs in found for leaf in outputs):
            raise DataError(
                "The dense network gives outputs that are not finite.",
                expected="finite outputs on the calibration data",
                got="NaN or infinity",
                where="calibration",
                hint="look at the data, and at the network's precision",
            )
        return self.marked(found)


def removable(blocks: Sequence[Block], gone: Sequence[Block], sizes: Mapping[str, int]) -> list[Block]:
    """The blocks that may still go: no container is emptied."""
    left = dict(sizes)
    for block in gone:
        left[block.container] -= 1
    return [block for block in blocks if block not in gone and left[block.container] > 1]


def _finite(leaf: Any) -> bool:
    return not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point() or bool(torch.isfinite(leaf).all())
