"""The gain of the BatchNorm behind a channel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.axes.expr import leaves
from actprune.axes.groups import Group
from actprune.graph.program import named_arguments, op_name
from actprune.guidance.scores.parts import per_unit
from actprune.stats.statistics import Stats


def bn_scale(graph: Graph, stats: Stats | None, group: Group, seed: int) -> Tensor | None:
    """|γ| of the BatchNorm that a unit passes through (Liu et al. 2017, Learning Efficient Convolutional Networks
    through Network Slimming, §3), the mean of them where it passes through several, as channels of a shortcut do.

    The paper trains with an L1 penalty on γ first; here the network is taken as it is. None for units that pass
    through no BatchNorm with a gain: neurons, heads, the channels of networks with other norms.
    """
    found = [per_unit(graph, group, name, 0, lambda rows: rows.abs().sum(1)) for name in _gains(graph, group)]
    return torch.stack(found).mean(0) if found else None


def _gains(graph: Graph, group: Group) -> list[str]:
    """The names of the gains of the BatchNorms that run over a group's units, each once."""
    names: list[str] = []
    for node in graph.program.nodes:
        if op_name(node).startswith("aten.batch_norm"):
            weight = named_arguments(node)["weight"]
            name = graph.program.bindings.get(weight.name) if isinstance(weight, Node) else None
            if name is not None and any(leaf.key == group.key for leaf in leaves(graph.tensor_axes[name][0])):
                names.append(name)
    return list(dict.fromkeys(names))
