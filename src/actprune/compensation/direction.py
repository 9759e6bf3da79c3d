"""One layer of a recurrent call in one direction: its weights refitted by what they aim at, and judged by its states.

See `recurrent` for the formulas. A target is never written out for every step: it is affine in rows that there are
(`_Target`), so its moments are theirs, mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, islice
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.axes.expr import Indices, kept_indices
from actprune.axes.site import Site
from actprune.compensation.ridge import Normal, choose_ridge, merged, merged_all, normal, solve
from actprune.compensation.streams import Streams
from actprune.compensation.unrolled import Whole, affordable
from actprune.data.samples import evenly
from actprune.rewrite import entry_mask
from actprune.stats.padding import counted
from actprune.stats.patches import most_rows
from actprune.stats.recurrent import BACK, INTO, INTO_BIAS, PROJECTION, WEIGHTS, Params, Part, States

FOLDS = 3

EXACT = 1e-10
"""A fit whose states are off by at most this share of their squares is not improved further."""

Values = list[Tensor]
"""(N, T, …) of every batch."""

Lengths = Sequence[Tensor | None]
"""(N,) of every batch: see `Unrolled.lengths`."""


@dataclass(frozen=True, eq=False)
class Scope:
    """What a refit may look at and change.

    Attributes:
        kept: leaf key → kept units.
        wanted: whether a site is to be refitted.
        free: whether a tensor is read by a call alone.
        rounds: of fits on the layer's own states.
        rows: per column that are used at most.
        again: whether what is found on a part of the samples is made again on all of them.
        room: bytes that the derivatives of a layer may take where it is fitted as a whole; 0: it is not.
    """

    graph: Graph
    streams: Streams
    kept: Mapping[int, Indices]
    wanted: Callable[[Site], bool]
    free: Callable[[str, Node], bool]
    rounds: int
    rows: int
    again: bool
    room: int = 0


def name_of(scope: Scope, part: Part, which: int) -> str | None:
    """The tensor that a parameter is; None where it is absent or computed."""
    node = part.nodes[which]
    return None if node is None else scope.graph.program.bindings.get(node.name)


@dataclass(eq=False)
class Direction:
    """One layer in one direction: its dense run, and what it gets in the cut network.

    Attributes:
        there: (N, T) the steps that a sample of a packed call has, of every batch.
        sites: place of a weight → its site, for those that are to be refitted.
        hidden: the dense states.
    """

    scope: Scope
    node: Node
    part: Part
    x: Values
    states: list[States]
    own_x: Values
    own_states: list[States]
    there: Lengths
    sites: Mapping[int, Site]
    hidden: Values = field(init=False)
    record: dict[str, dict[str, Any]] = field(default_factory=dict[str, "dict[str, Any]"])

    def __post_init__(self) -> None:
        self.hidden = [self.part(x, states) for x, states in zip(self.x, self.states, strict=True)]

    def run(self, params: Params) -> Values:
        """The states of the cut layer with these parameters."""
        return [self.part(x, s, params) for x, s in zip(self.own_x, self.own_states, strict=True)]

    def best(self, params: Params) -> tuple[Params, Values]:
        """The parameters in the place of `params`, and the states of their run."""
        samples = sum(len(x) for x in self.x)
        learnt, held = ((1, 2), (0,)) if samples >= FOLDS else (range(FOLDS), range(FOLDS))
        exact = EXACT * self._squares(self.hidden, held)
        errors, found, record = list[float](), (params, list[Tensor]()), dict(self.record)
        for candidate in self._candidates(params, learnt):
            error = self._error(candidate[1], held)
            if error < min(errors, default=float("inf")):
                found, record = candidate, dict(self.record)
            elif len(errors) > len(self.sites):  # the states of its own run bring it no nearer any more
                break
            errors.append(error)
            if error <= exact:
                break
        self.record = record
        if self.scope.again:
            self.record.clear()
            chosen = min(range(len(errors)), key=errors.__getitem__)
            found = next(islice(self._candidates(params, range(FOLDS)), chosen, None))
        if self.scope.room and samples >= FOLDS and min(errors) > exact:
            found = self._as_a_whole(found, learnt, held)
        for site in self.sites.values():
            nothing = {"module": site.module, "left": "no refit was nearer to the dense states on held-out samples"}
            self.record.setdefault(site.name, nothing)
        return found

    def _as_a_whole(
        self, found: tuple[Params, Values], learnt: Sequence[int], held: Sequence[int]
    ) -> tuple[Params, Values]:
        """What is found, after steps for all that the layer has; as it is where something else reads its weights."""
        names = {i: name for i in range(len(found[0])) if (name := name_of(self.scope, self.part, i)) is not None}
        free = {i: name for i, name in names.items() if self.scope.free(name, self.node)}
        masks = {i: entry_mask(self.scope.graph, name, self.scope.kept) for i, name in free.items()}
        weights = {i for i in WEIGHTS if found[0][i] is not None}
        if not masks.keys() >= weights or any(mask.dtype.itemsize < 4 for mask in masks.values()):
            return found
        starts = list(accumulate(map(len, self.x), initial=0))
        learnt_of = [[j for j in range(len(x)) if (j + starts[i]) % FOLDS in learnt] for i, x in enumerate(self.x)]
        some = [i for i, own in enumerate(learnt_of) if own]

        def lacking(i: int, params: Params) -> Tensor:
            own = learnt_of[i]
            there, start = self.there[i], [state[own].double() for state in self.own_states[i]]
            exactly = tuple(None if p is None else p.double() for p in params)  # oneDNN's LSTM has one derivative only
            left = self.part(self.own_x[i][own].double(), start, exactly) - self.hidden[i][own]
            return counted(left, there if there is None else there[own])[..., self._kept]

        rows = _count(self.x) // len(self.x)
        residuals = rows * self.hidden[0][..., self._kept].shape[-1] * len(learnt) // FOLDS
        count, rounds = affordable(masks, rows, residuals, len(some), self.scope.room, self.x[0].shape[1])
        whole = Whole(masks, lacking, lambda one: self._error(self.run(one), held))
        params, left, failed = whole.stepped(found[0], [some[i] for i in evenly(len(some), count)], rounds)
        told = ({"as_a_whole": left} if left < 1 else {}) | ({"failed": failed} if failed is not None else {})
        for site in self.sites.values() if told else ():
            self.record[site.name] = {**self.record.get(site.name, {"module": site.module}), **told}
        return params, self.run(params)

    def _candidates(self, params: Params, folds: Sequence[int]) -> Iterator[tuple[Params, Values]]:
        """Fit upon fit, each made on the samples of `folds`, with the states of the layer's run."""
        states = self.run(params)
        yield params, states
        for which in (which for which in (INTO, PROJECTION) if which in self.sites):
            given = zip(self.own_x, self.states, self.hidden, strict=True)
            rows = self.own_x if which == INTO else [self.part.cells(*one, params) for one in given]
            params = self._fitted(which, params, rows, folds)
            states = self.run(params)
            yield params, states
        for number in range(1 + self.scope.rounds if BACK in self.sites else 0):
            start, hidden = (self.own_states, states) if number else (self.states, self.hidden)
            rows = [self.part.before(*one) for one in zip(start, hidden, strict=True)]
            params = self._fitted(BACK, params, rows, folds)
            states = self.run(params)
            yield params, states

    def _error(self, states: Values, folds: Sequence[int]) -> float:
        """Σ (h̃ − h)² over the kept units and the samples of `folds`."""
        return self._squares([a - b for a, b in zip(states, self.hidden, strict=True)], folds)

    @cached_property
    def _kept(self) -> slice | Tensor:
        """The states that stay."""
        back = name_of(self.scope, self.part, BACK)
        axis = None if back is None else self.scope.graph.tensor_axes[back][1]
        return slice(None) if axis is None else torch.as_tensor(kept_indices(axis, self.scope.kept))

    def _squares(self, values: Values, folds: Sequence[int]) -> float:
        """Σ v² over the same."""
        total, seen = 0.0, 0
        for value, there in zip(values, self.there, strict=True):
            for fold in folds:
                own = _samples(fold, seen)
                some = None if there is None else there[own]
                total += float((counted(value[own], some)[..., self._kept] ** 2).sum())
            seen += len(value)
        return total

    def _fitted(self, which: int, params: Params, rows: Values, folds: Sequence[int]) -> Params:
        """The parameters with one weight, and its bias, fitted on these rows (N, T, columns)."""
        site, held = self.sites[which], _there(params[which])
        axes = self.scope.graph.tensor_axes[site.weight]
        columns, outputs = (
            torch.as_tensor(kept_indices(axes[dim], self.scope.kept), device=held.device)
            for dim in (site.in_dim, site.out_dim)
        )
        bias = None if which == PROJECTION else params[which + INTO_BIAS]
        intercept = bias is not None and site.bias is not None and self.scope.free(site.bias, self.node)
        target = self._target(which, params)
        constant = target.constant if intercept or bias is None else target.constant - bias.double()
        stride = max(1, min(_count(rows) // most_rows(len(columns), self.scope.rows), rows[0].shape[1]))
        parts: dict[int, Normal] = {}
        seen = 0
        for i, x in enumerate(rows):
            steps = slice((7 * i) % stride, None, stride)
            x, sources = x[:, steps][..., columns], torch.cat([values[i][:, steps] for values in target.sources], -1)
            there = self.there[i]
            for fold in folds:
                own = _samples(fold, seen)
                some = None if there is None else there[:, steps][own]
                parts[fold] = merged(parts.get(fold), normal(counted(x[own], some), counted(sources[own], some)))
            seen += len(x)
        weight, constant = target.weight[outputs], constant[outputs]
        dealt = [Normal(part.inner, part.outer.mapped(weight, constant)) for part in parts.values() if part.inner.count]
        start = held.detach().double()[outputs][:, columns]
        size, every = choose_ridge(dealt, start, intercept), merged_all(dealt)
        fit = solve(every, start, size, intercept)
        self.record[site.name] = {
            "module": site.module, "ridge": size, "rows": every.inner.count, "columns": len(columns),
        }  # fmt: skip
        new = list(params)
        new[which] = held.detach().clone().index_put((outputs[:, None], columns), fit.weight.to(held.dtype))
        if intercept and bias is not None:
            new[which + INTO_BIAS] = bias.detach().clone().index_put((outputs,), fit.bias.to(bias.dtype))
        return tuple(new)

    def _target(self, which: int, params: Params) -> _Target:
        """What a weight and its bias should give."""
        if which == PROJECTION:
            unit = torch.eye(self.hidden[0].shape[-1], dtype=torch.float64, device=self.hidden[0].device)
            return _Target([self.hidden], unit, unit.new_zeros(len(unit)))
        into = _affine(self.part.params, INTO)
        if which == INTO:
            return _Target([self.x], *into)
        weight, constant = _affine(self.part.params, BACK)
        before = [self.part.before(*one) for one in zip(self.states, self.hidden, strict=True)]
        own = _affine(params, INTO)
        added = torch.ones_like(constant)
        if self.part.kind == "gru":
            added[2 * len(added) // 3 :] = 0  # W_hh h stands behind the reset gate there
        if self.own_x is self.x and all(torch.equal(a, b) for a, b in zip(into, own, strict=True)):
            return _Target([before], weight, constant)
        weight = torch.cat([weight, added[:, None] * into[0], -added[:, None] * own[0]], 1)
        return _Target([before, self.x, self.own_x], weight, constant + added * (into[1] - own[1]))


@dataclass(frozen=True, eq=False)
class _Target:
    """A target that is affine in what there is: weight (outputs, columns) · sources beside each other + constant.

    Its moments are those of the sources mapped, so that no (N, T, outputs) is ever made.
    """

    sources: list[Values]
    weight: Tensor
    constant: Tensor


def _affine(params: Params, which: int) -> tuple[Tensor, Tensor]:
    """(outputs, columns) and (outputs,) a weight and its bias, in float64."""
    weight, bias = _there(params[which]).detach().double(), params[which + INTO_BIAS]
    return weight, weight.new_zeros(len(weight)) if bias is None else bias.detach().double()


def _there(value: Tensor | None) -> Tensor:
    if value is None:
        raise ValueError("the part has no such weight")
    return value


def _samples(fold: int, seen: int) -> slice:
    """Those of a batch that belong to a fold, after so many samples: they are dealt in turn."""
    return slice((fold - seen) % FOLDS, None, FOLDS)


def _count(rows: Values) -> int:
    return sum(x.shape[0] * x.shape[1] for x in rows)
