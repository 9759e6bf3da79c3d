"""What the loss says of a unit."""

from __future__ import annotations

from torch import Tensor

from actprune.axes.capture import Graph
from actprune.axes.groups import Group
from actprune.guidance.scores.parts import measure_of
from actprune.stats.statistics import Stats


def taylor(graph: Graph, stats: Stats | None, group: Group, seed: int) -> Tensor | None:
    """(∂L/∂z)² of a gate z = 1 on the unit, averaged over batches (Molchanov et al. 2019, Importance Estimation for
    Neural Network Pruning, eq. 8): see `actprune.stats.gradients`, also for the loss."""
    return measure_of(stats, "taylor", group)
