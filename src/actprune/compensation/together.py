"""Weights of several calls fitted together: steps of Gauss and Newton through all of these calls.

One refit for all calls (`shared`) goes by what the dense network gives each of them. In a loop over time, as of the
cells of a recurrent network, a call gets what those before it made: errors add up, and gates are not linear. These
steps start from that refit, run the loop as it is, and go by what its layers, and those behind it, read, and by the
outputs that it gives itself (compare `unrolled`, for a recurrent layer that is one call).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from actprune.compensation.effort import STEPS
from actprune.compensation.gauss_newton import best_size, descend, gauss_newton, twice_differentiable
from actprune.compensation.loops import Loop
from actprune.compensation.rows import beyond_rounding
from actprune.compensation.streams import Streams
from actprune.compensation.unrolled import affordable
from actprune.compensation.walk import Walk
from actprune.data.samples import evenly
from actprune.graph.output_kinds import tensor_outputs
from actprune.graph.run import arguments, call
from actprune.rewrite import entry_mask

HELD = 0.25
"""Share of the batches that no step sees: on them it must bring what is read nearer to the dense network's."""

EVEN = 0.1
"""Of the weight of a logit, what all have alike: one whose probability is next to nothing may not go anywhere."""

BYTES = 4
"""Of a number that is held."""


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
        return beyond_rounding((away * away).sum(), value[value.isfinite()].square().sum())

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


def _numbers(value: Node) -> int:
    """Of each unit, in a batch."""
    return value.meta["val"].numel() // value.meta["val"].shape[-1]
