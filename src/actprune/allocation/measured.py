"""How far candidates are from the dense network, measured once for any number of budgets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from math import isfinite
from typing import Any, Protocol

from actprune.allocation.effort import CURVE_SAMPLES, FITTED, MEASURE_SAMPLES, change_samples
from actprune.allocation.one_criterion import DistanceOf, Supports
from actprune.allocation.sensitivity import Around, Curve, Measure, Progress, measure_curves
from actprune.allocation.space import Space, Widths
from actprune.axes.capture import Graph
from actprune.data.samples import Calibration
from actprune.data.take import fit
from actprune.distance import Distance, Outputs, judge, resolve
from actprune.errors import BudgetError, DataError
from actprune.guidance.guide import Guide
from actprune.plan import Plan, make_plan
from actprune.rewrite import Rewrite, mask_values, zero_columns
from actprune.stats.padding import Padding

ROUNDING = 1e-6
"""A distance so far below zero is one of zero: a divergence of equal outputs in float32 may come out as -1e-10."""


class Nearby(Protocol):
    """The outputs of one network, and of plans that differ from it in some groups."""

    def itself(self) -> list[Outputs]:
        """Of the network, on all samples that are compared on."""
        ...

    def __call__(self, plan: Plan, batches: int) -> list[Outputs]:
        """Of such a plan, on so many batches of them."""
        ...


NearOf = Callable[[Plan | None], Nearby]
"""A plan, or None for the dense network → what is near; given by the pipeline."""

Wanted = tuple[tuple[str, int], ...]
"""(group, width) of some groups."""

RewriteOf = Callable[[Plan], Rewrite]
"""Plan → the candidate network on the dense graph (zero columns, or compensated); given by the pipeline."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What allocation measured once and can use for every budget.

    Attributes:
        curves: group name → sensitivity curve.
        around: widths → the distances of candidates near the network of these widths; what they add to its own is
            measured on a part of the samples where the network is large.
        samples: that these are compared on.
        distance_of: the units that stay → the distance of their network; None: only widths are compared.
    """

    curves: Mapping[str, Curve]
    around: Around = field(repr=False)
    samples: int = MEASURE_SAMPLES // (1 + FITTED)
    distance_of: DistanceOf | None = field(default=None, repr=False)


def measure_all(
    graph: Graph,
    guide: Guide,
    space: Space,
    calibration: Iterable[Any] | Calibration | None,
    rewrite: RewriteOf | None,
    distance: str | Distance = "auto",
    progress: Progress | None = None,
    near: NearOf | None = None,
) -> Measured:
    """Measure the sensitivity curves of a space once, for any number of budgets.

    Args:
        calibration: held-out samples on which candidates are compared.
        rewrite: how a candidate plan becomes a network; None: zero columns, no compensation.
        distance: see `actprune.distance`.
        near: a quicker way to candidates that have much in common; without it each is a network of its own.

    Raises:
        BudgetError: no calibration samples.
        DataError: a distance that is no finite number.
    """
    if calibration is None:
        raise BudgetError(
            'allocation="sensitivity" needs data to measure on.',
            expected="calibration samples",
            got="None",
            where="allocate",
            hint='pass calibration=…, or choose allocation="uniform"',
        )
    data = fit(graph.program, calibration)
    how = judge(graph.program, resolve(graph.program, distance, data))
    dense = Padding(graph).outputs(data.batches)
    candidates = _Candidates(graph, guide, space, dense, how, near or partial(_Apart, graph, data, rewrite))
    few, fewer = (len(data.subset(n).batches) for n in (CURVE_SAMPLES, change_samples(graph, data.samples)))
    curves = measure_curves(space, guide, candidates.around({}, few), progress)
    around = partial(candidates.around, batches=fewer)
    return Measured(curves, around, data.samples, candidates.distance_of)


@dataclass(frozen=True, eq=False)
class _Apart:
    """Candidates that share nothing: each is a network of its own."""

    graph: Graph
    data: Calibration
    rewrite: RewriteOf | None
    around: Plan | None

    def itself(self) -> list[Outputs]:
        return self(self.around or make_plan(self.graph, {}), len(self.data.batches))

    def __call__(self, plan: Plan, batches: int) -> list[Outputs]:
        if self.rewrite is None:
            candidate = zero_columns(self.graph, plan)
        else:
            candidate = {**self.rewrite(plan).tensors, **mask_values(self.graph, plan)}
        return Padding(self.graph).outputs(self.data.batches[:batches], candidate)


@dataclass(frozen=True, eq=False)
class _Candidates:
    """The distances of candidates to the dense network.

    Attributes:
        dense: its outputs on every batch.
        how: what the distance between two networks' outputs is.
        near: see `measure_all`.
        wholes: widths → the distance of their network on all batches.
    """

    graph: Graph
    guide: Guide
    space: Space
    dense: list[Outputs]
    how: Distance
    near: NearOf
    wholes: dict[Wanted, float] = field(default_factory=dict["Wanted", float])

    def distance_of(self, supports: Supports) -> float:
        """Of the network in which these units stay."""
        return self._distance(self.near(make_plan(self.graph, supports)).itself())

    def around(self, widths: Widths, batches: int) -> Measure:
        """Of the networks that differ from the one of these widths; what that adds is measured on so many batches."""
        widths = self.space.every(widths)
        here = make_plan(self.graph, self.guide.supports(widths)) if widths else None
        nearby = self.near(here)

        @cache
        def on(count: int, *changed: tuple[str, int]) -> float:
            plan = make_plan(self.graph, self.guide.near(widths, self.space.every(dict(changed))))
            return self._distance(nearby(plan, count))

        def whole() -> float:
            if here is None:  # what changes of it are compared with is known already
                return on(len(self.dense))
            key = tuple(widths.items())
            if key not in self.wholes:
                self.wholes[key] = self._distance(nearby.itself())
            return self.wholes[key]

        def measure(changed: Widths) -> float:
            return whole() + (on(batches, *changed.items()) - on(batches) if changed else 0.0)

        return measure

    def _distance(self, outputs: list[Outputs]) -> float:
        """A number ≥ 0: everything that is decided by it would be arbitrary otherwise."""
        distance = self.how(self.dense[: len(outputs)], outputs)
        if not (isfinite(distance) and distance >= -ROUNDING):
            raise DataError(
                "The distance between the outputs of two networks is no finite number ≥ 0.",
                expected="0 for equal outputs, more for others",
                got=repr(distance),
                where="distance",
                hint="look for NaN in the model's outputs, or mend the function that was passed as distance=",
            )
        return max(distance, 0.0)
