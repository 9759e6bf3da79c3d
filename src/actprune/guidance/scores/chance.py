"""No criterion at all."""

from __future__ import annotations

import torch
from torch import Tensor

from actprune.axes.capture import Graph
from actprune.axes.groups import Group
from actprune.stats.statistics import Stats


def random(graph: Graph, stats: Stats | None, group: Group, seed: int) -> Tensor:
    """Uniform noise: the floor that every criterion has to beat."""
    return torch.rand(group.width, generator=torch.Generator().manual_seed(seed + group.key), dtype=torch.float64)
