"""Measures that are taken only where a method asks for them: they cost a backward pass, or many decompositions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.graph.program import Batch
from actprune.methods import known
from actprune.stats.gradients import GRADIENTS, Loss, wants_labels
from actprune.stats.maps import Place, affordable, independence, places, ranks
from actprune.stats.spread import Spread, spread

SAMPLES = 500
"""Samples whose maps are measured at most: mean ranks hardly depend on the images (Lin et al. 2020, §3.2, take 500)."""

OF_MAPS: dict[str, Callable[[Tensor], Tensor]] = {"hrank": ranks, "chip": independence}
"""Name → (samples, n, rows, columns) → (samples, n)."""

MEASURES = (*GRADIENTS, *OF_MAPS)


class Measures:
    """The measures of one pass.

    Args:
        first: number of samples that other passes see before this one.

    Attributes:
        found: measure → name of a group or site → its values per unit, or per output, so far.
        labelled: whether the loss needs labels.
    """

    def __init__(self, graph: Graph, names: Iterable[str], loss: Loss | None, first: int = 0) -> None:
        self.found: dict[str, dict[str, Spread]] = {known(name, MEASURES, "measure"): {} for name in names}
        self.labelled = wants_labels(self.found, loss)
        self._graph, self._loss, self._first, self._seen = graph, loss, first, first
        self._places: dict[str, list[tuple[str, Place]]] = {}
        if self.found.keys() & OF_MAPS.keys():
            for name, place in places(graph).items():
                self._places.setdefault(place.node, []).append((name, place))

    def observe(self, node: Node, value: Any) -> None:
        """See the result of a call."""
        for name, place in self._places.get(node.name, ()):
            maps = place.maps(value)
            for measure in self.found.keys() & OF_MAPS.keys():
                seen = self.found[measure].get(name)
                most = affordable(maps, SAMPLES) if measure == "chip" else SAMPLES
                left = most - self._first - (0 if seen is None else seen.count * _samples_per_value(maps, measure))
                if left > 0:
                    self._add(measure, name, OF_MAPS[measure](maps[:left]))

    def differentiate(self, batch: Batch, labels: Tensor | None) -> None:
        """See a batch whose run is over."""
        first, self._seen = self._seen, self._seen + self._graph.program.batch_size
        for measure in GRADIENTS.keys() & self.found.keys():
            for name, values in GRADIENTS[measure](self._graph, batch, labels, self._loss, first).items():
                self._add(measure, name, values)

    def _add(self, measure: str, name: str, values: Tensor) -> None:
        known_values, new = self.found[measure].get(name), spread(values)
        self.found[measure][name] = new if known_values is None else known_values.merge(new)


def _samples_per_value(maps: Tensor, measure: str) -> int:
    """A whole batch where it serves as the map."""
    return maps.shape[0] if measure == "chip" and maps[0, 0].numel() == 1 else 1
