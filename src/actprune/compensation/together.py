"""Weights of several calls fitted together: steps of Gauss and Newton through all of these calls.

One refit for all calls (`shared`) goes by what the dense network gives each of them. In a loop over time, as of the
cells of a recurrent network, a call gets what those before it made: errors add up, and gates are not linear. These
steps start from that refit, run the loop as it is, and go by what its layers, and those behind it, read, and by the
outputs that it gives itself (compare `unrolled`, for a recurrent layer that is one call).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.axes.expr import Indices, kept_indices, left_of
from actprune.axes.site import Site
from actprune.compensation.effort import STEPS
from actprune.compensation.gauss_newton import best_size, descend, gauss_newton, twice_differentiable
from actprune.compensation.own import calls_of, is_plain
from actprune.compensation.rows import CONSTANT, contracted
from actprune.compensation.streams import Streams
from actprune.compensation.unrolled import affordable
from actprune.compensation.walk import Walk
from actprune.data.samples import evenly
from actprune.graph.output_kinds import tensor_outputs
from actprune.graph.program import Program, leading_to, named_arguments
from actprune.graph.run import arguments, call
from actprune.graph.values import is_float
from actprune.rewrite import entry_mask
from actprune.stats.recurrent import is_cell

HELD = 0.25
"""Share of the batches that no step sees: on them it must bring what is read nearer to the dense network's."""

EVEN = 0.1
"""Of the weight of a logit, what all have alike: one whose probability is next to nothing may not go anywhere."""

BYTES = 4
"""Of a number that is held."""


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
    ends = {out: _joined(graph, out, kept) for out in tensor_outputs(graph.program) if out in behind}
    if None in ends.values():
        return None
    read |= {out: units for out, units in ends.items() if units is not None}
    read = {value: units for value, units in read.items() if value not in later}
    nodes = leading_to(walk.nodes[start:], read)
    counted = leading_to(walk.nodes, {out for out in graph.program.outputs if isinstance(out, Node)})
    if calls & {node.name for node in counted} - {node.name for node in nodes}:
        return None
    biases = {site.bias for name in calls for site in sites[name] if site.bias is not None}
    module = sites[walk.nodes[start].name][0].module
    return Loop(sorted(names | _free(walk, biases, calls)), module, start, nodes, read)


def fit_together(walk: Walk, loop: Loop, room: int, logits: bool) -> dict[str, Any]:
    """Steps from where a walk is; the overrides of its streams change. What was done.

    Args:
        room: bytes that derivatives may take.
        logits: whether the first output is logits of classes.
    """
    every, masks = range(walk.streams.count), [entry_mask(walk.graph, name, walk.state.kept) for name in loop.names]
    residuals = sum(_numbers(value) * len(units) for value, units in loop.read.items())
    held = evenly(len(every), max(1, min(round(HELD * len(every)), room // (BYTES * residuals))))
    fitted = [i for i in every if i not in held]
    rows = residuals // max(map(len, loop.read.values()))
    count, rounds = affordable(dict(enumerate(masks)), rows, residuals, len(fitted), room)
    if not count:
        return {}
    run = _Run(walk, loop, masks, logits)
    first = run.loss(held, run.nothing)
    batches = [fitted[i] for i in evenly(len(fitted), count)]
    left, failed = descend(partial(run.step, batches, held), first, rounds)
    if left < first:
        walk.overrides.update(run.tensors)
    told = {
        "module": loop.module,
        "weights": list(loop.names),
        "batches": count,
        "left": left / first if first else 1.0,
    }
    return told if failed is None else {**told, "failed": failed}


class _Run:
    """The calls of a loop in the cut network, on every batch."""

    def __init__(self, walk: Walk, loop: Loop, masks: Sequence[Tensor], logits: bool) -> None:
        self.loop, self.streams, self.masks = loop, walk.streams, masks
        self.tensors = {name: walk.streams.tensor(name) for name in loop.names}
        self.nothing = [torch.zeros_like(mask) for mask in self.masks]
        self.placeholders = {name: walk.state.placeholders[name] for name in loop.names}
        self.dense: dict[int, list[Tensor]] = {}  # of a large network not all batches have room
        self.outputs = tensor_outputs(walk.graph.program)
        self.logits = self.outputs[0] if logits else None
        self.scales = self._scales()

    def residual(self, i: int, at: Sequence[Tensor]) -> Tensor:
        """What is left of the values that are read: of each output beside what that varies by, of all others beside
        what they vary by together."""
        left = map(self._left, self.loop.read, self._read(i, self._changed(at)), self._dense(i))
        return torch.cat([(scale * one).flatten() for scale, one in zip(self.scales, left, strict=True)])

    def _scales(self) -> list[float]:
        """Per value. The first ones of a loop hardly vary, and count no more for that."""
        sizes = {node: self._varied(node, value) for node, value in zip(self.loop.read, self._dense(0), strict=True)}
        inner = sum(size for node, size in sizes.items() if node not in self.outputs)
        beside = [size if node in self.outputs else inner for node, size in sizes.items()]
        return [size**-0.5 if 0 < size < inf else 1.0 for size in beside]

    def _varied(self, node: Node, value: Tensor) -> float:
        """What it is away from its mean, squared; of one that does not vary but by rounding a part of its size."""
        away = self._left(node, value.flatten(0, -2).mean(0), value)
        return max(float((away * away).sum()), CONSTANT**2 * float(value[value.isfinite()].square().sum()))

    def _left(self, node: Node, found: Tensor, dense: Tensor) -> Tensor:
        """How far one is from the other; nothing of a class that is masked out. Of logits the square is twice the
        divergence of their probabilities, for small differences, and a part of what their own would be."""
        apart = torch.where(dense.isfinite(), found - dense, 0)
        if node is not self.logits:
            return apart
        p = dense.softmax(-1)
        return (p + EVEN / p.shape[-1]).sqrt() * (apart - (p * apart).sum(-1, keepdim=True))

    def _dense(self, i: int) -> list[Tensor]:
        if i not in self.dense:
            with torch.no_grad():
                self.dense[i] = self._read(i, {}, dense=True)
        return self.dense[i]

    def loss(self, batches: Sequence[int], at: Sequence[Tensor]) -> float:
        with torch.no_grad():
            return sum(float((self.residual(i, at) ** 2).sum()) for i in batches)

    def step(self, fitted: Sequence[int], held: Sequence[int], loss: float) -> float:
        """One step on some batches, as large as is best for the held-out ones; none where that does not help."""
        residuals = [partial(self.residual, i) for i in fitted]
        with twice_differentiable():
            changes = gauss_newton(residuals, self.masks, STEPS)
        best, loss = best_size(partial(self.loss, held), changes, loss)
        if best is not None:
            self.tensors = self._changed(best)
        return loss

    def _changed(self, at: Sequence[Tensor]) -> dict[str, Tensor]:
        parts = zip(self.tensors.items(), self.masks, at, strict=True)
        return {name: tensor + mask * change for (name, tensor), mask, change in parts}

    def _read(self, i: int, tensors: Mapping[str, Tensor], dense: bool = False) -> list[Tensor]:
        """What is read on a batch, its units that stay."""
        values: dict[Node, Any] = {}
        for name, tensor in tensors.items():
            values |= dict.fromkeys(self.placeholders[name], tensor)
        for node in self.loop.nodes:
            for source in node.all_input_nodes:
                if source not in values:
                    values[source] = _value(self.streams, source, i, dense)
            values[node] = call(node, *arguments(node, values))
        return [values[node][..., units] for node, units in self.loop.read.items()]


def _value(streams: Streams, node: Node, i: int, dense: bool) -> Any:
    return streams.dense(node)[i] if dense else streams.now(node, i)


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


def _numbers(value: Node) -> int:
    """Of each unit, in a batch."""
    return value.meta["val"].numel() // value.meta["val"].shape[-1]


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
