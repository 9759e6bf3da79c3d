"""Loops: linear layers and cells that several calls share, as over time, and what is read of what they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.axes.expr import Indices, kept_indices, left_of
from actprune.axes.site import Site
from actprune.compensation.own import calls_of, is_plain
from actprune.compensation.rows import contracted
from actprune.compensation.walk import Walk
from actprune.graph.output_kinds import tensor_outputs
from actprune.graph.program import Program, leading_to, named_arguments
from actprune.graph.values import is_float
from actprune.stats.recurrent import is_cell


@dataclass(frozen=True, eq=False)
class Loop:
    """Calls that share weights, and what runs between them.

    Attributes:
        names: of the weights and biases that may change.
        module: of the first call.
        start: place of the first call among the nodes of a walk.
        nodes: what is run, from there on.
        read: value that a layer reads behind one of the calls, that later calls join, or that is an output → its units
            that stay, in the last dimension.
    """

    names: Sequence[str]
    module: str
    start: int
    nodes: Sequence[Node]
    read: Mapping[Node, Tensor]


def find_loops(walk: Walk) -> list[Loop]:
    """Layers and cells that several calls share, with those that get what they give, front to back.

    A layer between two of them divides them (the input weights of the second of two recurrent layers): that is
    refitted when the first ones are fitted, and before the second ones are.
    """
    names, found = _shared(walk), list[Loop | None]()
    while names:
        own = _first(walk, names)
        found.append(_loop(walk, own))
        names -= own
    return [loop for loop in found if loop is not None]


def _first(walk: Walk, names: set[str]) -> set[str]:
    """Of the weights that several calls read, those of the first call and of all that get its results directly, and
    nothing from layers that come in between (an encoder beside it)."""
    sites, weights = walk.graph.sites_of, dict[str, set[str]]()
    for site in walk.graph.sites:
        if site.weight in names:
            weights.setdefault(site.node, set()).add(site.weight)
    start = next(i for i, node in enumerate(walk.nodes) if node.name in weights)
    own = weights[walk.nodes[start].name]
    while True:
        known, behind, later = set(own), set[Node](), set[Node]()
        for node in walk.nodes[start:]:
            read, late = weights.get(node.name, set[str]()), not later.isdisjoint(node.all_input_nodes)
            reached = not late and not behind.isdisjoint(node.all_input_nodes)
            if read & own or (reached and (read or node.name not in sites)):
                behind.add(node)
                own = own | read
            elif late or node.name in sites:
                later.add(node)
        if own == known:
            return own


def _loop(walk: Walk, names: set[str]) -> Loop | None:
    """The calls of these weights; None where another kind of layer reads what they give, or not all of it is read."""
    graph, kept, sites = walk.graph, walk.state.kept, walk.graph.sites_of
    calls = {site.node for of_node in sites.values() for site in of_node if site.weight in names}
    start = next(i for i, node in enumerate(walk.nodes) if node.name in calls)
    if not names & walk.overrides.keys():
        return None
    behind, later, read = set[Node](), set[Node](), dict[Node, Tensor]()
    for node in walk.nodes[start:]:
        if not later.isdisjoint(node.all_input_nodes) or (node.name in sites and node.name not in calls):
            later.add(node)  # it is of a layer that is refitted only later
        if node.name not in calls and behind.isdisjoint(node.all_input_nodes):
            continue
        for site in sites.get(node.name, ()):
            source = _given(site, node, graph.program)
            if source is None and not behind.isdisjoint(node.all_input_nodes):
                return None  # a layer whose part of the error is not known
            if source in behind and source is not None:
                read[source] = _units(graph, site, kept)
        if node in later and node.name not in sites:
            joined = ((source, _joined(graph, source, kept)) for source in node.all_input_nodes if source in behind)
            read |= {source: units for source, units in joined if units is not None}
        if node.name not in sites or node.name in calls:
            behind.add(node)
    for out in tensor_outputs(graph.program):
        if out in behind:
            units = _joined(graph, out, kept)
            if units is None:
                return None
            read[out] = units
    read = {value: units for value, units in read.items() if value not in later}
    nodes = leading_to(walk.nodes[start:], read)
    counted = leading_to(walk.nodes, {out for out in graph.program.outputs if isinstance(out, Node)})
    if calls & {node.name for node in counted} - {node.name for node in nodes}:
        return None
    biases = {site.bias for name in calls for site in sites[name] if site.bias is not None}
    module = sites[walk.nodes[start].name][0].module
    return Loop(sorted(names | _free(walk, biases, calls)), module, start, nodes, read)


def _shared(walk: Walk) -> set[str]:
    """Names of the weights of linear layers and cells that several calls read, and nothing else does."""
    nodes, calls = {node.name: node for node in walk.nodes}, dict[str, set[str]]()
    for site in walk.graph.sites:
        if site.node in nodes and _given(site, nodes[site.node], walk.graph.program) is not None:
            calls.setdefault(site.weight, set()).add(site.node)
    return {
        name
        for name, own in calls.items()
        if len(own) > 1
        and {reader.name for reader in calls_of(walk.state.placeholders[name])} == own
        and walk.graph.program.tensors[name].dtype.itemsize >= 4
    }


def _free(walk: Walk, biases: set[str], calls: set[str]) -> set[str]:
    """Those that these calls alone read."""
    return {name for name in biases if {call.name for call in calls_of(walk.state.placeholders[name])} <= calls}


def _given(site: Site, node: Node, program: Program) -> Node | None:
    """What a linear layer, or a weight of a cell, is multiplied with; None for any other layer."""
    if site.kind == "linear":
        return contracted(node) if is_plain(node) else None
    if site.kind != "recurrent" or not is_cell(node):
        return None
    own = named_arguments(node)
    state = own["hx"][0] if isinstance(own["hx"], list | tuple) else own["hx"]
    return own["input"] if program.bindings.get(own["w_ih"].name) == site.weight else state


def _units(graph: Graph, site: Site, kept: Mapping[int, Indices]) -> Tensor:
    units = kept_indices(site.in_axis(graph.tensor_axes[site.weight]), kept)
    return torch.as_tensor(units, device=graph.program.tensors[site.weight].device)


def _joined(graph: Graph, value: Node, kept: Mapping[int, Indices]) -> Tensor | None:
    """Of a value that later ones join (the other direction, in front of the layer that reads both): the units that stay
    in its last dimension; None where another one is cut."""
    dims, held = graph.node_axes.get(value.name), value.meta.get("val")
    if not isinstance(dims, tuple) or not dims or not isinstance(held, Tensor) or not is_float(held):
        return None
    if any(left_of(axis, kept) is not None for axis in dims[:-1]):
        return None
    return torch.as_tensor(kept_indices(dims[-1], kept), device=held.device)
