"""Values inside of both networks that should be alike: what layers read of streams that lost no units, or few.

Outputs say little where samples are few; what the layers before them read says more of the same samples (Romero et al.
2015, FitNets, §2.2; Wang and Wu 2022, Practical Network Acceleration with Tiny Sets, §3.2, for networks that were cut).
A value that lost many units is no aim: the refit has made those that stay into something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from actprune.axes.capture import Graph
from actprune.axes.expr import Indices, leaves, left_of, size
from actprune.distance import batch_error
from actprune.graph.program import Batch, Program
from actprune.graph.run import called
from actprune.mapped import any_mapped
from actprune.plan import Plan, make_plan
from actprune.rewrite import kept_units
from actprune.stats.patches import LAYERS, source_of
from actprune.surgery.graph_form import with_values

LEFT = 0.9
"""Values that keep a smaller share of their entries are not compared."""

APART = 1e-6
"""Nor are those that differ by a smaller share of their variance before the first step: nothing was lost there yet."""

SAME = 1e-3
"""A network and its graph agree to this share of the largest output, else nothing inside is looked at."""

Left = Sequence[Indices | None]
"""Of each dimension the indices that the small network has left; None for all of them."""


@dataclass(frozen=True, eq=False)
class Features:
    """Both networks as graphs that hold the very parameters of the networks themselves.

    Attributes:
        dense, small: flat inputs → flat outputs, then the values.
        left: what is left of each value.
        names: of the calls that give them.
    """

    dense: GraphModule
    small: GraphModule
    left: Sequence[Left]
    names: Sequence[str]

    def wanted(self, batch: Batch) -> tuple[list[Any], list[Tensor]]:
        """Outputs of the dense network, and its values where the small one has some."""
        outputs, values = self._split(self.dense(*batch))
        return outputs, [_taken(value, left) for value, left in zip(values, self.left, strict=True)]

    def found(self, batch: Batch) -> tuple[list[Any], list[Tensor]]:
        """Outputs and values of the small network."""
        return self._split(self.small(*batch))

    def _split(self, results: list[Any]) -> tuple[list[Any], list[Tensor]]:
        count = len(results) - len(self.left)
        return results[:count], results[count:]


def features(graph: Graph, plan: Plan, dense: nn.Module, small: nn.Module, batch: Batch) -> Features | None:
    """What can be compared; None where there is nothing, or the graphs are not what the networks compute.

    Args:
        graph: of `dense`, as it was captured.
        plan: by which `small` was cut.
        batch: flat inputs to try it with, of the size that steps will have.
    """
    left = _places(graph, plan)
    if not left or any_mapped(dense.parameters()):
        return None

    whole = make_plan(graph, {})

    def made(names: Sequence[str]) -> Features:
        pair = (with_values(dense, graph, whole, names), with_values(small, graph, plan, names))
        return Features(*pair, [left[name] for name in names], names)

    try:
        apart = _apart(made(list(left)), graph.program, dense, small, batch)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):  # only the class can make this call
        return None
    names = [name for name, error in zip(left, apart, strict=True) if error > APART]
    return made(names) if names else None


def _apart(tried: Features, program: Program, dense: nn.Module, small: nn.Module, batch: Batch) -> list[float]:
    """How far apart each value is; all zero where a graph and its network are not the same.

    Also tries the gradients: a recurrent layer on CUDA has none in eval mode.
    """
    with torch.no_grad():
        (targets, wanted), theirs = tried.wanted(batch), called(dense, program, batch)
    with torch.enable_grad():
        outputs, values = tried.found(batch)
        total = torch.stack([v.float().sum() for v in (*outputs, *values) if _differentiable(v)]).sum()
        torch.autograd.grad(total, [p for p in tried.small.parameters() if p.requires_grad], allow_unused=True)
    with torch.no_grad():
        same = all(map(_same, targets, theirs)) and all(map(_same, outputs, called(small, program, batch)))
        if not same or any(a.shape != b.shape for a, b in zip(wanted, values, strict=True)):
            return [0.0] * len(values)
        return [float(batch_error((a,), (b,))) for a, b in zip(wanted, values, strict=True)]


def _places(graph: Graph, plan: Plan) -> dict[str, Left]:
    """Name of a call → what is left of its result, for what layers read."""
    kept, found = kept_units(graph, plan), dict[str, Left]()
    nodes = {node.name: node for node in graph.program.nodes}
    batch = graph.batch[1].key if graph.batch is not None else None
    for site in graph.sites:
        source = _read(nodes[site.node]) if site.reads and site.kind in (*LAYERS, "recurrent") else None
        axes = graph.node_axes.get(source.name) if source is not None else None
        if source is None or not isinstance(axes, tuple):
            continue
        left = [left_of(axis, kept) for axis in axes]
        entries = prod(size(axis) if i is None else len(i) for axis, i in zip(axes, left, strict=True))
        cut = [axis for axis, i in zip(axes, left, strict=True) if i is not None]
        # what is left of a dimension that grows with the batch is told for the capture's batch alone
        grows = any(leaf.key == batch for axis in cut for leaf in leaves(axis))
        if entries >= LEFT * prod(map(size, axes)) and not grows:
            found[source.name] = left
    return found


def _read(node: Node) -> Node | None:
    """What a layer reads, where a call has made it: an input of the network is the same in both."""
    source = node.args[source_of(node)]
    if isinstance(source, Node) and source.op == "call_function" and isinstance(source.meta.get("val"), Tensor):
        return source if source.meta["val"].is_floating_point() else None
    return None


def _taken(value: Tensor, left: Left) -> Tensor:
    for dim, indices in enumerate(left):
        if indices is not None:
            value = value.index_select(dim, torch.as_tensor(indices, device=value.device))
    return value


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _same(ours: Any, theirs: Any) -> bool:
    if not isinstance(theirs, Tensor) or not theirs.is_floating_point():
        return True
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= SAME * theirs.abs().max().clamp_min(1e-6))
