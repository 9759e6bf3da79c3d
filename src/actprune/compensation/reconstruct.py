"""Block-wise reconstruction: the weights that make what is left of a group are fitted too, with those that read it.

A refit of the reader alone leaves the kept units what they were. Here the layers in front of it turn them into better
ones for the sum that the reader joins: some steps of Gauss and Newton (`gauss_newton`) for the makers and the reader
together, through whatever lies between (activations, norms, gates, pooling, an attention); then the reader is refitted
in closed form on all samples. Blocks are taken front to back, each on what the network that is already reconstructed
gives it. (Compare Li et al. 2021, BRECQ: block reconstruction, §3.2, for quantisation, by gradient descent.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn.attention import SDPBackend, sdpa_kernel

from actprune.axes.capture import Graph
from actprune.axes.expr import kept_indices
from actprune.axes.inference import Site
from actprune.compensation.gauss_newton import PROBES, best_size, gauss_newton
from actprune.compensation.schedule import Path
from actprune.compensation.streams import writes
from actprune.compensation.walk import Walk, exclusive
from actprune.data import Calibration
from actprune.graph.program import named_arguments, op_name, shape
from actprune.graph.run import arguments, call
from actprune.rewrite import column_mask
from actprune.stats.patches import LAYERS, output_rows

ROUNDS, STEPS = 3, 12
"""Steps of Gauss and Newton at most, and of conjugate gradients in each."""

WORTH = 0.97
"""A step that leaves more of the error than this is the last one."""

PASSES = 5
"""A step of conjugate gradients takes as much as so many forward passes."""

WORK = 6e11
"""Multiply-adds that the steps of all blocks may take; large models use fewer samples, or are left as they are."""

FEWEST, ENOUGH = 4, 20
"""Residuals for each weight that is fitted: below the first a block is left as it is, beyond the second more are of
no use, as long as there are `SAMPLES` samples."""

SAMPLES = 512

HELD = 0.25
"""So many more samples there are on which a step must bring the block nearer to the dense one."""

VALUE = 30
"""Multiply-adds in the time that a value takes which is only read and written."""

GRAPHS = 16
"""Bytes for each value of a block that its derivatives hold."""


@dataclass(frozen=True, eq=False)
class Block:
    """From the first maker of some groups to the only call that reads them.

    Attributes:
        reader: the call that reads them.
        outputs: those of its outputs that stay.
        calls: in order, all that depends on the makers' weights and that the result depends on.
        result: what has to come out as in the dense network: the reader's output, or the norm's behind it.
        path: what becomes of the reader's output.
        start, stop: the places of the first maker and behind the reader.
        masks: weights and biases of all of them by name → 1 where they may change.
        macs, values, residuals: numbers of them for one batch.
    """

    reader: Site
    outputs: tuple[int, ...]
    calls: tuple[Node, ...]
    result: Node
    path: Path
    start: int
    stop: int
    masks: Mapping[str, Tensor]
    macs: int
    values: int
    residuals: int

    @property
    def unknowns(self) -> int:
        return sum(int(mask.sum()) for mask in self.masks.values())


def reconstruct(walk: Walk, data: Calibration, room: int) -> dict[str, Any]:
    """Take a walk past every block, each fitted as a whole on the way; what was done where.

    Args:
        data: the samples of the walk.
        room: bytes that the derivatives of a block may take.
    """
    graph = walk.graph
    if any(map(writes, walk.nodes)) or walk.sparing:
        return {}
    blocks = find_blocks(walk)
    batches, rounds = affordable(blocks, graph.program.batch_size, len(data.batches), room)
    record: dict[str, Any] = {}
    for block in sorted(blocks, key=lambda block: block.start):
        walk.advance(block.start)
        if batches[block.reader]:
            record[block.reader.node] = _fit(walk, block, batches[block.reader], rounds)
    return record


def affordable(blocks: Sequence[Block], batch_size: int, most: int, room: int) -> tuple[dict[Site, int], int]:
    """Reader → how many of `most` batches its block is fitted on, 0 where those would be too few; and the rounds.

    One round on all the samples that are of use comes first, then further rounds.
    """

    def wanted(block: Block) -> int:
        enough = max(ENOUGH * block.unknowns / max(block.residuals, 1), SAMPLES / batch_size)
        return min(most - 1, ceil(enough), room // (GRAPHS * block.values + 1))

    work = max(sum(block.macs * wanted(block) for block in blocks) * PASSES * (STEPS + PROBES), 1)
    rounds, share = min(ROUNDS, max(1, int(WORK / work))), min(1.0, WORK / work)
    found = {block.reader: int(share * wanted(block)) for block in blocks}
    fewest = {block.reader: FEWEST * block.unknowns / max(block.residuals, 1) for block in blocks}
    return {reader: count if count >= fewest[reader] else 0 for reader, count in found.items()}, rounds


def find_blocks(walk: Walk) -> list[Block]:
    """One for every reader that has some cut groups for itself, which linear layers or convolutions alone make."""
    makers: dict[Site, dict[Site, None]] = {}
    for group in walk.graph.groups:
        cut = len(walk.kept.get(group.key, range(group.width))) < group.width
        plain = all(site.kind in LAYERS for site in (*group.producers, *group.consumers))
        if cut and plain and group.producers and len(group.consumers) == 1:
            makers.setdefault(group.consumers[0], {}).update(dict.fromkeys(group.producers))
    found = (_block(walk, reader, tuple(sites)) for reader, sites in makers.items())
    return [block for block in found if block is not None]


def _block(walk: Walk, reader: Site, makers: Iterable[Site]) -> Block | None:
    tensors, axes = walk.graph.program.tensors, walk.graph.tensor_axes
    places = {node.name: i for i, node in enumerate(walk.nodes)}

    def free(site: Site) -> bool:
        node = walk.nodes[places[site.node]]
        floats = tensors[site.weight].dtype in (torch.float32, torch.float64)
        return floats and exclusive(walk.placeholders.get(site.weight, ()), node)

    chosen = [site for site in makers if site.weight != reader.weight and free(site)]
    if not chosen or not free(reader):
        return None
    node = walk.nodes[places[reader.node]]
    path, masks = walk.paths[node], dict[str, Tensor]()
    for site in (*chosen, reader):
        masks |= _masks(walk, site, walk.nodes[places[site.node]], behind=site is not reader)
    result = path.norm or node
    calls = _between(walk.nodes, masks, walk.placeholders, result)
    if path.partner in calls or any(_masked(walk, node) for node in calls):
        return None
    outputs = kept_indices(axes[reader.weight][reader.out_dim], walk.kept)
    residuals = prod(shape(result)) * len(outputs) // tensors[reader.weight].shape[reader.out_dim]
    return Block(
        reader, tuple(outputs), tuple(calls), result, path,
        min(places[site.node] for site in chosen), places[node.name] + 1, masks, *_effort(walk.graph, calls), residuals,
    )  # fmt: skip


def _masked(walk: Walk, node: Node) -> bool:
    """Whether a call reads the mask of a cut group that no weight sums over, such as the size of queries and keys."""
    graph = walk.graph
    cut = {group.key for group in graph.groups if len(walk.kept.get(group.key, range(group.width))) < group.width}
    names = (graph.program.bindings.get(source.name, "") for source in node.all_input_nodes)
    return any(name in graph.masks and graph.masks[name].touches(cut) for name in names)


def _masks(walk: Walk, site: Site, node: Node, behind: bool) -> dict[str, Tensor]:
    """Of a layer's weight and of its bias: rows and columns that stay.

    Args:
        behind: take the bias of the norm behind it where it has none itself. (A refit counts on that one.)
    """
    tensors = walk.graph.program.tensors
    weight = tensors[site.weight].detach()
    kept = kept_indices(walk.graph.tensor_axes[site.weight][site.out_dim], walk.kept)
    rows = torch.zeros(weight.shape[site.out_dim], dtype=weight.dtype, device=weight.device)
    rows[torch.as_tensor(kept, device=rows.device)] = 1
    shaped = rows.view([n if d == site.out_dim else 1 for d, n in enumerate(weight.shape)])
    columns = column_mask(walk.graph, site, walk.kept, weight)
    name = _bias(walk, site, node, behind)
    bias = {} if name is None else {name: rows.to(tensors[name].dtype)}
    return {site.weight: torch.ones_like(weight) * shaped * columns, **bias}


def _bias(walk: Walk, site: Site, node: Node, behind: bool) -> str | None:
    slot = walk.slot(site, node)
    norm = walk.paths[node].norm
    if slot is not None and slot.sign > 0:
        return slot.name
    if slot is None or norm is None or not behind:
        return None
    bias = named_arguments(norm)["bias"]  # a running mean would do the same, but has no derivative
    name = walk.graph.program.bindings.get(bias.name) if isinstance(bias, Node) else None
    return name if name is not None and exclusive(walk.placeholders[name], norm) else None


def _between(
    nodes: Sequence[Node], names: Iterable[str], placeholders: Mapping[str, list[Node]], result: Node
) -> list[Node]:
    """The calls that depend on these tensors and that `result` depends on."""
    behind: set[Node] = {placeholder for name in names for placeholder in placeholders[name]}
    for node in nodes:
        if not behind.isdisjoint(node.all_input_nodes):
            behind.add(node)
    needed, stack = set[Node](), [result]
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack += node.all_input_nodes
    return [node for node in nodes if node in behind and node in needed]


def _effort(graph: Graph, calls: Iterable[Node]) -> tuple[int, int]:
    """(multiply-adds, values) of these calls, for one batch; what values take by themselves counts as multiply-adds."""
    sites = {site.node: site for site in graph.sites}
    macs = values = 0
    for node in calls:
        results, site = prod(shape(node)), sites.get(node.name)
        values += results
        if site is not None:
            weight = graph.program.tensors[site.weight]
            macs += weight.numel() * results // weight.shape[site.out_dim]
        elif op_name(node).startswith("aten.scaled_dot_product_attention."):
            query, key = node.args[:2]
            weights = prod(shape(query)[:-1]) * shape(key)[-2]
            macs, values = macs + 2 * weights * shape(query)[-1], values + 2 * weights
    return macs + VALUE * values, values


def _fit(walk: Walk, block: Block, batches: int, rounds: int) -> dict[str, Any]:
    """Refit and steps of one block; a step that does not bring its sum nearer on held-out batches is not made."""
    count = min(batches + ceil(HELD * batches), walk.streams.count)
    spread = [i * walk.streams.count // count for i in range(count)]
    every = ceil(count / (count - batches))
    held = range(every - 1, count, every) or range(count - 1, count)
    fitted = [i for i in range(count) if i not in held]
    refit = walk.branch()
    refit.settings = replace(walk.settings, rounds=0)  # the walk itself refits the reader once more
    refit.advance(block.stop)
    overrides = refit.overrides
    run = _Run(walk, block, spread, overrides)
    first = left = run.loss(held)
    failed: dict[str, str] = {}
    for _ in range(rounds):
        try:
            changes = run.step(fitted, held)
        except RuntimeError as error:  # a call without a second derivative, or no memory for it
            failed = {"failed": str(error).partition("\n")[0]}
            break
        if changes is None:
            break
        overrides = overrides | changes
        run = _Run(walk, block, spread, overrides)
        before, left = left, run.loss(held)
        if left > WORTH * before:
            break
    if left < first:
        walk.streams.overrides = overrides
        walk.settled |= block.masks.keys() - {block.reader.weight}
    return {"module": block.reader.module, "batches": batches, "left": left / first if first else 1.0, **failed}


class _Run:
    """A block in both streams on some of the batches, with everything that its calls read."""

    def __init__(self, walk: Walk, block: Block, batches: Sequence[int], overrides: Mapping[str, Tensor]) -> None:
        self.block, self.streams = block, walk.streams.part(batches, overrides)
        for node in walk.nodes[block.start : walk.nodes.index(block.result) + 1]:
            self.streams.step_dense(node)
            self.streams.step_cut(node)
        self.placeholders = {name: walk.placeholders[name] for name in block.masks}

    def step(self, fitted: Sequence[int], held: Sequence[int]) -> dict[str, Tensor] | None:
        """The makers' tensors after one step; None where no size of it helps on held-out batches."""
        residuals = [partial(self._residual, i) for i in fitted]
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # others have one derivative only
            changes = gauss_newton(residuals, list(self.block.masks.values()), STEPS)
        found = best_size(lambda at: self._loss(at, held), changes)
        return None if found is None else self._changed(found)

    def loss(self, batches: Sequence[int]) -> float:
        """Mean square of the residuals."""
        return self._loss([torch.zeros_like(mask) for mask in self.block.masks.values()], batches)

    def _loss(self, at: Sequence[Tensor], batches: Sequence[int]) -> float:
        with torch.no_grad():
            return sum(float((self._residual(i, at) ** 2).mean()) for i in batches) / len(batches)

    def _changed(self, at: Sequence[Tensor]) -> dict[str, Tensor]:
        return {
            name: self.streams.tensor(name) + mask * change
            for (name, mask), change in zip(self.block.masks.items(), at, strict=True)
        }

    def _residual(self, i: int, at: Sequence[Tensor]) -> Tensor:
        """What is left of the dense network's sum; in front of a ReLU, what that lets through."""
        values: dict[Node, Any] = {}
        for name, value in self._changed(at).items():
            values |= dict.fromkeys(self.placeholders[name], value)
        for node in self.block.calls:
            given = {s: values[s] if s in values else self.streams.now(s, i) for s in node.all_input_nodes}
            values[node] = call(node, *arguments(node, given))
        found, target = self._sum(values[self.block.result], i, cut=True), self._target(i)
        if self.block.path.rectified:
            return torch.where(target > 0, found - target, found.relu())
        return found - target

    def _target(self, i: int) -> Tensor:
        return self._sum(self.streams.dense(self.block.result)[i], i, cut=False)

    def _sum(self, value: Tensor, i: int, cut: bool) -> Tensor:
        """(n, positions, o): what the reader's output becomes, for the outputs that stay."""
        partner = self.block.path.partner
        if partner is not None:
            value = value + (self.streams.cut(partner) if cut else self.streams.dense(partner))[i]
        return output_rows(self.block.reader, value)[..., self.block.outputs]
