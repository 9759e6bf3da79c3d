"""One refit for a weight that several calls read: twin towers, a head that is used twice.

No call can have a refit for itself. The equations of all calls together are those of one layer with the rows of all,
taken in the dense network: what the cut one gives a call behind another is known only once both are refitted. (Rows of
the network that was cut and refitted so, in a second turn, brought a siamese network no nearer.)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.axes.expr import Indices, kept_indices
from actprune.axes.site import Site
from actprune.compensation.equations import Equations, Slot, numbers_of, refit_from
from actprune.compensation.folds import Dealer
from actprune.compensation.own import calls_of, has_plain_bias, is_plain, placeholders_of
from actprune.compensation.ridge import Normal, merged
from actprune.compensation.rows import InputRows, contracted, rows_there, stride_of, thinned, thinned_there
from actprune.compensation.streams import Streams
from actprune.graph.program import Batch
from actprune.stats.padding import Padding
from actprune.stats.patches import LAYERS, columns_per_input, has_rows, most_rows


def shared_equations(
    graph: Graph,
    batches: Sequence[Batch],
    nodes: Sequence[Node],
    rows: int,
    room: int,
    names: Collection[str] | None = None,
) -> dict[str, Equations]:
    """Weight → the equations of all of its calls, over all of its columns.

    Args:
        nodes: the calls of the graph, in an order in which they can be made.
        rows: per column that are used at most, of each call.
        room: numbers that all equations may take; weights beyond have none.
        names: of the weights that are asked for; None: all that several calls read.
    """
    by_node = {node.name: node for node in nodes}
    calls: dict[str, list[Site]] = {}
    for name, sites in _shared(graph, by_node).items():
        numbers = numbers_of(sites[0], graph.program.tensors[name])
        if (names is None or name in names) and numbers <= room:
            calls[name], room = sites, room - numbers
    left = {site.node: site for sites in calls.values() for site in sites}
    if not left:
        return {}
    streams, dealer = Streams(graph.program, batches, nodes), Dealer()
    folds: dict[str, list[Normal]] = {name: [] for name in calls}
    slots = {name: _slot(graph, sites) for name, sites in calls.items()}
    for node in nodes:
        streams.step_dense(node)
        site = left.pop(node.name, None)
        if site is not None:
            own = _equations(graph, streams, dealer, site, node, rows, slots[site.weight])
            pairs = zip_longest(folds[site.weight], own)
            folds[site.weight] = [merged(a, b) if b is not None else a for a, b in pairs]
        streams.forget(node)
        if not left:
            break
    return {name: Equations(calls[name][0], folds[name], slots[name]) for name in calls}


def refit_shared(
    graph: Graph,
    equations: Mapping[str, Equations],
    kept: Mapping[int, Indices],
    base: Mapping[str, Tensor],
    record: dict[str, dict[str, Any]],
) -> dict[str, Tensor]:
    """The new weights and biases; what was done goes to `record`, by call."""
    found: dict[str, Tensor] = {}
    for name, own in equations.items():
        found |= refit_from(graph, own, kept, base)
        weight = graph.program.tensors[name]
        units = kept_indices(own.site.in_axis(graph.tensor_axes[name]), kept)
        told = {"ridge": own.chosen, "rows": own.folds[0].inner.count,
                "columns": len(units) * columns_per_input(own.site, weight)}  # fmt: skip
        record |= {site.node: {"module": site.module, **told} for site in graph.sites if site.weight == name}
    return found


def _shared(graph: Graph, nodes: Mapping[str, Node]) -> dict[str, list[Site]]:
    """The sites of every weight that several plain calls of layers read, and nothing else does."""
    placeholders = placeholders_of(graph.program)
    found: dict[str, list[Site]] = {}
    for site in graph.sites:
        if site.kind in LAYERS and site.node in nodes:
            found.setdefault(site.weight, []).append(site)

    def alike(name: str, sites: Sequence[Site]) -> bool:
        calls, weight = {site.node for site in sites}, graph.program.tensors[name]
        plain = all(
            is_plain(nodes[site.node]) and has_rows(site, weight) and has_plain_bias(graph.program, site)
            for site in sites
        )
        forms = {(site.kind, site.in_dims, site.out_dims, site.order) for site in sites}
        return len(calls) > 1 and plain and len(forms) == 1 and {c.name for c in calls_of(placeholders[name])} == calls

    return {name: sites for name, sites in found.items() if alike(name, sites)}


def _slot(graph: Graph, sites: Sequence[Site]) -> Slot | None:
    """Where the bias of all calls is; None where there is none, or something else reads it."""
    names = {site.bias for site in sites}
    name = next(iter(names))
    if len(names) > 1 or name is None:
        return None
    readers = {call.name for call in calls_of(placeholders_of(graph.program)[name])}
    return Slot(name, 1.0) if readers == {site.node for site in sites} else None


def _equations(
    graph: Graph, streams: Streams, dealer: Dealer, site: Site, node: Node, rows: int, slot: Slot | None
) -> list[Normal]:
    weight = graph.program.tensors[site.weight].detach()
    units = torch.arange(site.inputs(weight), device=weight.device)
    columns = len(units) * columns_per_input(site, weight)
    there = rows_there(Padding(graph), streams, site, node)
    stride = stride_of(site, streams.dense(node)[0], there, most_rows(columns, rows))
    targets = thinned(site, streams.dense(node), stride)
    if slot is None and site.bias is not None:
        targets = [t - graph.program.tensors[site.bias].detach().reshape(-1) for t in targets]
    inputs, which = streams.dense(contracted(node)), thinned_there(there, stride)
    return dealer(InputRows(inputs, site, node, weight, units, stride, 0, which), targets, columns)
