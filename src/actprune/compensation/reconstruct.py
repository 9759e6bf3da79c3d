"""Block-wise reconstruction: the weights that make what is left of a group are fitted too, with those that read it.

A refit of the reader alone leaves the kept units what they were. Here the layers in front of it turn them into better
ones for the sum that the reader joins: some steps of Gauss and Newton (`gauss_newton`) for the makers and the reader
together, through whatever lies between (activations, norms, gates, pooling, an attention); then the reader is refitted
in closed form on all samples. Readers that lead to different places, side by side, are fitted together, each for its
own sum. Of a recurrent call that reads them the sums W_ih x count (`read`). Blocks are taken front to back, each on
what the network that is already reconstructed gives it. (Compare Li et al. 2021, BRECQ: block reconstruction, §3.2, for
quantisation, by gradient descent.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import ceil, inf
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from actprune.compensation.blocks import Block, find_blocks
from actprune.compensation.choice import chosen
from actprune.compensation.effort import STEPS
from actprune.compensation.gauss_newton import best_size, descend, gauss_newton, twice_differentiable
from actprune.compensation.loops import Loop, find_loops
from actprune.compensation.narrowed import WHOLE, Narrowed
from actprune.compensation.read import Read
from actprune.compensation.rows import beyond_rounding, rows_there
from actprune.compensation.together import fit_together
from actprune.compensation.walk import Walk
from actprune.data.samples import evenly
from actprune.graph.purify import writes

SAME = 1e-4
"""Calls in the widths that stay may give so much else, as a share of what they give."""

HELD = 0.25
"""So many more samples there are on which a step must bring the block nearer to the dense one."""


def reconstruct(walk: Walk, room: int, logits: bool) -> dict[str, Any]:
    """Take a walk past every block, each fitted as a whole on the way; what was done where.

    Args:
        room: bytes that the derivatives of a block may take.
        logits: whether the first output is logits of classes.
    """
    if any(map(writes, walk.nodes)) or walk.state.sparing:
        return {}
    loops = find_loops(walk) if walk.streams.count > 1 else []
    blocks, batches, rounds = chosen(find_blocks(walk), walk.streams.count, room)
    record: dict[str, Any] = {}
    for block in blocks:
        while loops and block.start > loops[0].start:
            record |= _together(walk, loops.pop(0), room, logits)
        if batches[block]:
            walk.advance(block.start)
            record[block.name] = _fit(walk, block, batches[block], rounds)
    for loop in loops:
        record |= _together(walk, loop, room, logits)
    return record


def _together(walk: Walk, loop: Loop, room: int, logits: bool) -> dict[str, Any]:
    """Steps for what several calls read, once all in front of them is refitted."""
    walk.advance(loop.start)
    told = fit_together(walk, loop, room, logits)
    return {walk.nodes[loop.start].name: told} if told else {}


def _fit(walk: Walk, block: Block, batches: int, rounds: int) -> dict[str, Any]:
    """Refit and steps of one block; a step that does not bring its sum nearer on held-out batches is not made."""
    count = min(batches + ceil(HELD * batches), walk.streams.count)
    held = evenly(count, count - batches)
    fitted = [i for i in range(count) if i not in held]
    refit, settled = walk.branch(), block.made
    if not block.recurrent:  # the walk itself refits the reader once more
        refit.state.settings = replace(walk.state.settings, rounds=0, unrolls=0)
    refit.advance(block.stop)
    run = _Run(walk, block, evenly(walk.streams.count, count), refit.overrides)
    first = run.loss(held)
    left, failed = descend(partial(run.step, fitted, held), first, rounds)
    if left < first or block.recurrent:  # a recurrent layer has had its refit by then, whatever came of the steps
        walk.streams.overrides = run.streams.overrides
        walk.settled |= settled
    if block.recurrent:
        own = [site.name for site in walk.graph.sites if site.weight in settled and site.name in refit.record]
        walk.record.update({name: refit.record[name] for name in own})
    told = {"module": block.reader.module, "batches": batches, "left": left / first if first else 1.0}
    return told if failed is None else {**told, "failed": failed}


class _Run:
    """A block on some of the batches, with everything that its calls read; steps are in `streams.overrides`."""

    def __init__(self, walk: Walk, block: Block, batches: Sequence[int], overrides: Mapping[str, Tensor]) -> None:
        self.block, self.streams = block, walk.streams.part(batches, overrides)
        for node in walk.nodes[block.start : max(walk.nodes.index(read.value) for read in block.reads) + 1]:
            self.streams.step_dense(node)
            self.streams.step_cut(node)
        self.there = [rows_there(walk.state.padding, self.streams, read.sites[0], read.value) for read in block.reads]
        self.scales = self._scales()
        self.placeholders = {name: walk.state.placeholders[name] for name in block.masks}
        self._use(WHOLE)
        if block.narrow:
            whole = self._as_it_is()
            self._use(block.narrow)
            both = list(zip(whole, self._as_it_is(), strict=True))
            if not all(float((a - b).norm()) <= SAME * float(a.norm()) for a, b in both):
                self._use(WHOLE)

    def _use(self, narrow: Narrowed) -> None:
        """Run the calls in these widths from now on."""
        self.narrow = narrow
        self.masks = {name: narrow.tensor(name, mask) for name, mask in self.block.masks.items()}
        for read, scale in zip(self.block.reads, self.scales, strict=True):
            self.masks |= {name: self.masks[name] / scale for name in read.changed}

    def _as_it_is(self) -> list[Tensor]:
        with torch.no_grad():
            return self._made(0, [torch.zeros_like(mask) for mask in self.masks.values()])

    def step(self, fitted: Sequence[int], held: Sequence[int], loss: float) -> float:
        """One step on some batches, as large as is best for the held-out ones; none where that does not help.

        Args:
            loss: of the held-out batches, before.

        Returns:
            The same behind it.
        """
        residuals = [partial(self._residual, i) for i in fitted]
        with twice_differentiable(self.block.recurrent):
            changes = gauss_newton(residuals, list(self.masks.values()), STEPS)
        best, loss = best_size(lambda at: self._loss(at, held), changes, loss)
        if best is not None:
            self.streams.overrides |= self._whole(best)
        return loss

    def loss(self, batches: Iterable[int]) -> float:
        """Mean square of the residuals."""
        return self._loss([torch.zeros_like(mask) for mask in self.masks.values()], batches)

    def _loss(self, at: Sequence[Tensor], batches: Iterable[int]) -> float:
        with torch.no_grad():
            losses = [float((self._residual(i, at) ** 2).mean()) for i in batches]
        return sum(losses) / len(losses)

    def _changed(self, at: Sequence[Tensor]) -> dict[str, Tensor]:
        """The weights with some changes, in the widths that stay."""
        return {
            name: self.narrow.tensor(name, self.streams.tensor(name)) + mask * change
            for (name, mask), change in zip(self.masks.items(), at, strict=True)
        }

    def _whole(self, at: Sequence[Tensor]) -> dict[str, Tensor]:
        """The same weights in all of their width."""
        return {
            name: (whole := self.streams.tensor(name)) + self.narrow.put(name, mask * change, whole)
            for (name, mask), change in zip(self.masks.items(), at, strict=True)
        }

    def _made(self, i: int, at: Sequence[Tensor]) -> list[Tensor]:
        """Per read (n, positions, o): the block's own part of what the reader's output becomes, for the outputs that
        stay."""
        values, weights = dict[Node, Any](), self._changed(at)
        for name, value in weights.items():
            values |= dict.fromkeys(self.placeholders[name], value)
        for node in self.block.calls:
            for source in node.all_input_nodes:
                if source not in values:
                    values[source] = self.narrow.value(source, self.streams.now(source, i))
            values[node] = self.narrow.call(node, values)
        return [read.sums(values[read.value], weights, whole=not self.narrow) for read in self.block.reads]

    def _residual(self, i: int, at: Sequence[Tensor]) -> Tensor:
        """What is left of the dense network's sums, each reader's beside what its own vary by."""
        left = [self._left(i, *one) for one in zip(self.block.reads, self._made(i, at), self.there, strict=True)]
        return torch.cat([scale * one.flatten() for scale, one in zip(self.scales, left, strict=True)])

    def _left(self, i: int, read: Read, made: Tensor, there: Sequence[Tensor | None]) -> Tensor:
        """Of one reader; in front of a ReLU, what that lets through; nothing of padding."""
        found, target = made + self._partner(i, read, cut=True), self._target(i, read)
        left = found - target
        if read.path.rectified:
            left = torch.where(target > 0, left, found.relu())
        which = there[i]
        return left if which is None else left.where(which[..., None], 0)

    @torch.no_grad()
    def _scales(self) -> list[float]:
        """Per read, so that the mean square of residuals is that of all readers' relative ones.

        Changes of a reader's weights are counted in such units, too: else steps would be damped by those that give
        the smallest numbers, which the largest changes of a relative error come of.
        """
        spreads = [self._spread(*one) for one in zip(self.block.reads, self.there, strict=True)]
        sizes = [read.residuals * spread for read, spread in zip(self.block.reads, spreads, strict=True)]
        return [(self.block.residuals / size) ** 0.5 if 0 < size < inf else 1.0 for size in sizes]

    def _spread(self, read: Read, there: Sequence[Tensor | None]) -> float:
        """What the dense network's sums vary by, squared."""
        targets = [self._target(i, read) for i in range(self.streams.count)]
        rows = torch.cat([(t if w is None else t[w]).flatten(0, -2) for t, w in zip(targets, there, strict=True)])
        return beyond_rounding(rows.var(0, correction=0).mean(), (rows * rows).mean())

    def _target(self, i: int, read: Read) -> Tensor:
        return self._sums(self.streams.dense(read.value)[i], read) + self._partner(i, read, cut=False)

    def _partner(self, i: int, read: Read, cut: bool) -> Tensor | float:
        """The other part of the sum that the reader's output joins."""
        partner = read.path.partner
        if partner is None:
            return 0.0
        return self._sums((self.streams.cut(partner) if cut else self.streams.dense(partner))[i], read)

    def _sums(self, value: Tensor, read: Read) -> Tensor:
        """Of a value of the dense network, or one as large, the sums that stay."""
        return read.sums(value, self.streams.program.tensors)
