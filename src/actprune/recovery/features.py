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
from torch.utils import _pytree as pytree

from actprune.axes.capture import Graph
from actprune.axes.expr import Indices, kept_indices, size
from actprune.graph.program import Batch, Program, op_name
from actprune.plan import Plan, make_plan
from actprune.rewrite import kept_units
from actprune.stats.patches import LAYERS
from actprune.surgery.graph_form import with_values
from actprune.surgery.slicing import tensor_slots

WHOLE = 0.9
"""Values that keep a smaller share of their entries are not compared."""

SAME = 1e-3
"""The network and its graph agree to this share of the largest output, else nothing inside is looked at."""


@dataclass(frozen=True, eq=False)
class Features:
    """Both networks as graphs that hold the same parameters as the networks themselves.

    Attributes:
        dense, small: flat inputs → flat outputs, then the values.
        left: of each value the indices that the small network has left of each dimension; None for all of them.
    """

    dense: GraphModule
    small: GraphModule
    left: Sequence[Sequence[Indices | None]]

    def wanted(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs of the dense network, and its values where the small one has some."""
        outputs, values = self._split(self.dense(*batch))
        return outputs, [_taken(value, left) for value, left in zip(values, self.left, strict=True)]

    def found(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs and values of the small network."""
        return self._split(self.small(*batch))

    def _split(self, results: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        count = len(results) - len(self.left)
        return results[:count], results[count:]


def features(graph: Graph, plan: Plan, dense: nn.Module, small: nn.Module, batch: Batch) -> Features | None:
    """What can be compared; None where there is nothing, or the graph is not what `small` computes.

    Args:
        graph: of `dense`, as it was captured.
        plan: by which `small` was cut.
        batch: flat inputs to try it with.
    """
    left = _places(graph, plan)
    if not left:
        return None
    try:
        made = [with_values(dense, graph, each, list(left)).eval() for each in (make_plan(graph, {}), plan)]
        if not all(_shares(module, network) for module, network in zip(made, (dense, small), strict=True)):
            return None
        found = Features(made[0], made[1], list(left.values()))
        with torch.no_grad():
            alike = zip(found.found(batch)[0], called(small, graph.program, batch), strict=True)
            return found if all(_same(ours, theirs) for ours, theirs in alike) else None
    except Exception:  # whatever a graph raises that has never been run before: the outputs are compared all the same
        return None


def called(network: nn.Module, program: Program, batch: Batch) -> tuple[Any, ...]:
    """The flat outputs of a network on flat inputs."""
    args, kwargs = pytree.tree_unflatten(list(batch), program.in_spec)
    return tuple(pytree.tree_leaves(network(*args, **kwargs)))


def _places(graph: Graph, plan: Plan) -> dict[str, list[Indices | None]]:
    """Name of a call → the indices of each dimension of its result that are left."""
    kept, found = kept_units(graph, plan), dict[str, list[Indices | None]]()
    nodes = {node.name: node for node in graph.program.nodes}
    for site in graph.sites:
        source = _read(nodes[site.node]) if site.reads and site.kind in (*LAYERS, "recurrent") else None
        axes = graph.node_axes.get(source.name) if source is not None else None
        if source is None or not isinstance(axes, tuple):
            continue
        left = [kept_indices(axis, kept) for axis in axes]
        sizes = [size(axis) for axis in axes]
        if prod(map(len, left)) >= WHOLE * prod(sizes):
            found[source.name] = [None if len(i) == n else i for i, n in zip(left, sizes, strict=True)]
    return found


def _read(node: Node) -> Node | None:
    """What a layer reads, where a call has made it: an input of the network is the same in both."""
    source = node.args[1 if op_name(node).startswith("aten.addmm") else 0]
    if isinstance(source, Node) and source.op == "call_function" and isinstance(source.meta.get("val"), Tensor):
        return source if source.meta["val"].is_floating_point() else None
    return None


def _shares(module: GraphModule, network: nn.Module) -> bool:
    """Give a graph the very parameters and buffers of the network; False where it has others."""
    theirs = tensor_slots(network)
    for name, (owner, attribute) in tensor_slots(module).items():
        if name.startswith("constants."):
            continue
        if name not in theirs:
            return False
        own, given = (getattr(*slot) for slot in ((owner, attribute), theirs[name]))
        if own.shape != given.shape or own.dtype != given.dtype:
            return False
        (owner._parameters if attribute in owner._parameters else owner._buffers)[attribute] = given
    return True


def _taken(value: Tensor, left: Sequence[Indices | None]) -> Tensor:
    for dim, indices in enumerate(left):
        if indices is not None:
            value = value.index_select(dim, torch.as_tensor(indices, device=value.device))
    return value


def _same(ours: Any, theirs: Any) -> bool:
    if not isinstance(theirs, Tensor) or not theirs.is_floating_point():
        return True
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= SAME * theirs.abs().max().clamp_min(1e-6))
