"""`allocate`: guide + budget → plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import isfinite
from typing import Any, Protocol

from actprune.allocation.budget import Amount, Budget, Keep, read_keep
from actprune.allocation.cost import cost
from actprune.allocation.effort import (
    CURVE_SAMPLES,
    FITTED,
    MEASURE_SAMPLES,
    affordable,
    change_samples,
    is_small,
    starts,
)
from actprune.allocation.explicit import explicit, predicted
from actprune.allocation.improve import improve
from actprune.allocation.one_criterion import DistanceOf, Supports, one_criterion
from actprune.allocation.rules import RULES, units
from actprune.allocation.sensitivity import Around, Curve, Measure, Progress, measure_curves
from actprune.allocation.space import Space, Widths, make_space
from actprune.allocation.starts import best_start
from actprune.axes.capture import Graph
from actprune.data.samples import Calibration
from actprune.data.take import fit
from actprune.distance import Distance, Outputs, judge, resolve
from actprune.errors import BudgetError, DataError
from actprune.guidance.guide import Guide
from actprune.latency.table import LatencyTable
from actprune.methods import ALLOCATIONS, known, method
from actprune.plan import Plan, make_plan
from actprune.rewrite import Rewrite, mask_values, zero_columns
from actprune.stats.padding import Padding

OutputsOf = Callable[[Plan, int], list[Outputs]]
"""(plan, number of batches) → the candidate's outputs on so many batches of the samples that are compared on."""


class Nearby(Protocol):
    """The outputs of one network, and of plans that differ from it in some groups."""

    def itself(self) -> list[Outputs]:
        """Of the network, on all samples that are compared on."""
        ...

    def __call__(self, plan: Plan, batches: int) -> list[Outputs]:
        """See `OutputsOf`."""
        ...


NearOf = Callable[[Plan | None], Nearby]
"""A plan, or None for the dense network → what is near; given by the pipeline."""

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


def allocate(
    graph: Graph,
    guide: Guide,
    calibration: Iterable[Any] | Calibration | None = None,
    *,
    keep: Keep = "macs=50%",
    allocation: str | None = None,
    rewrite: RewriteOf | None = None,
    protect: Sequence[str] = (),
    round_to: int = 1,
    distance: str | Distance = "auto",
    measured: Measured | None = None,
    latency: LatencyTable | None = None,
    effort: tuple[int, int] | None = None,
    progress: Progress | None = None,
    equal_widths: bool = False,
) -> Plan:
    """Decide how many units of every group stay, and which.

    Args:
        calibration: held-out samples on which candidates are compared (for "sensitivity").
        keep: the budget, "macs=50%", "params=10%", "bytes=…", "latency=50%", "units=70%" (of every group, at
            least one), an amount ("params=500K", "macs=1.5G", "bytes=256KB", "latency=5ms"), a fraction of MACs, a
            `Budget`, explicit widths as a mapping, or None for the natural widths.
        allocation: "sensitivity", "uniform", "layerwise", "spatial", "global", "natural"; None: the method's, and
            "uniform" for a method that has natural widths only but is given a budget.
        rewrite: how a candidate plan becomes a network; None: zero columns, no compensation.
        protect: patterns of module paths whose units all stay.
        round_to: widths become multiples of it.
        distance: see `actprune.distance`.
        measured: from `measure_all`, to plan several budgets from one measurement.
        latency: from `measure_latency`, for a budget of latency.
        effort: (rounds, trials) of the improvement in context; None: as many as a fixed amount of work allows.
        equal_widths: the same width for all groups that have one place in repeated blocks (not for explicit widths).

    Raises:
        BudgetError: a budget out of range or unreachable.
        PlanError: an unknown allocation, a pattern that matches nothing, nothing to cut.
        DataError: a distance that is no finite number.
    """
    only: str | None = None
    name = known(allocation or _preset(guide, keep), ALLOCATIONS, "allocation")
    if isinstance(keep, Mapping):
        return explicit(graph, guide, keep, protect)
    budget = Budget("macs", 1.0) if keep is None else share_of(read_keep(keep), graph, lambda: _whole(latency))
    space = make_space(graph, budget, protect=protect, round_to=round_to, latency=latency, equal=equal_widths)
    note: dict[str, Any] = {"method": guide.method, "budget": None if keep is None else str(budget)}
    if keep is None:
        name = "natural"
    if budget.cost == "units":
        name, (ratio, widths) = "units", units(space)
        note["rho"] = ratio
    elif name == "sensitivity":
        measured = measured or measure_all(graph, guide, space, calibration, rewrite, distance, progress)
        widths, only, note["distance"] = _by_sensitivity(space, guide, measured, effort)
        note |= {} if only is None else {"criterion": only}
        note["sensitivity"] = {n: dict(curve.measured) for n, curve in measured.curves.items()}
    else:
        note["rho"], widths = RULES[name](space, guide)
    _check_met(space, widths, name)
    widths = space.every(widths)
    note |= {"allocation": name, "predicted": predicted(graph, widths, latency)}
    return make_plan(graph, guide.supports(widths) if only is None else guide.by(only, widths), **note)


def share_of(asked: Budget | Amount, graph: Graph, milliseconds: Callable[[], float]) -> Budget:
    """An amount as a share of what the dense network takes.

    Args:
        milliseconds: of the dense network, asked for where they are meant.
    """
    if isinstance(asked, Budget):
        return asked
    return asked.of(milliseconds() if asked.cost == "latency" else cost(graph)[asked.cost])


def _whole(latency: LatencyTable | None) -> float:
    return latency({}) if latency is not None else 0.0  # without a table, the space says what is missing


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
        near: a quicker way to candidates that have much in common; without it each is a network of its own.
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
    how, padding = judge(graph.program, resolve(graph.program, distance, data)), Padding(graph)

    def outputs(plan: Plan, batches: int) -> list[Outputs]:
        if rewrite is None:
            candidate = zero_columns(graph, plan)
        else:
            candidate = {**rewrite(plan).tensors, **mask_values(graph, plan)}
        return padding.outputs(data.batches[:batches], candidate)

    dense = padding.outputs(data.batches)

    wholes: dict[tuple[tuple[str, int], ...], float] = {}

    def comparing(batches: int) -> Around:
        """Networks are compared on all samples, single changes of one on the first batches."""

        def around(widths: Widths) -> Measure:
            widths = space.every(widths)
            here = make_plan(graph, guide.supports(widths)) if widths else None
            nearby = None if near is None else near(here)

            @cache
            def distance_on(count: int, changed: tuple[tuple[str, int], ...] = ()) -> float:
                plan = make_plan(graph, guide.near(widths, space.every(dict(changed))))
                return _finite(how(dense[:count], (nearby or outputs)(plan, count)))

            def whole() -> float:
                if here is None or nearby is None:
                    return distance_on(len(dense))
                key = tuple(widths.items())
                if key not in wholes:
                    wholes[key] = _finite(how(dense, nearby.itself()))
                return wholes[key]

            def measure(changed: Widths) -> float:
                if not changed:
                    return whole()
                return whole() + distance_on(batches, tuple(changed.items())) - distance_on(batches)

            return measure

        return around

    def distance_of(supports: Supports) -> float:
        here = make_plan(graph, supports)
        found = outputs(here, len(dense)) if near is None else near(here).itself()
        return _finite(how(dense, found))

    few, fewer = (len(data.subset(n).batches) for n in (CURVE_SAMPLES, change_samples(graph, data.samples)))
    curves = measure_curves(space, guide, comparing(few)({}), progress)
    return Measured(curves, comparing(fewer), data.samples, distance_of)


def _by_sensitivity(
    space: Space, guide: Guide, measured: Measured, effort: tuple[int, int] | None
) -> tuple[Widths, str | None, float]:
    """(widths, the one criterion whose units stay, or None for the best of all in each group, distance)."""
    graph, samples = space.graph, measured.samples
    rounds, trials = affordable(graph, samples) if effort is None else effort
    tried = starts(graph, samples) if effort is None else rounds
    more = tried if effort is None and is_small(graph, samples) else 0
    widths = best_start(space, guide, measured.curves, measured.around, tried, more)
    widths, distance = improve(space, widths, measured.curves, measured.around, rounds, trials)
    if measured.distance_of is None:
        return widths, None, distance
    return widths, *one_criterion(guide, space.every(widths), distance, measured.distance_of, tried - 1)


def _preset(guide: Guide, keep: Keep) -> str:
    """The method's allocation; natural widths know of no budget."""
    own = method(guide.method).allocation
    return "uniform" if own == "natural" and keep is not None else own


def _finite(distance: float) -> float:
    """A distance that is a number ≥ 0; everything that is decided by it would be arbitrary otherwise."""
    if not (isfinite(distance) and distance >= 0):
        raise DataError(
            "The distance between the outputs of two networks is no finite number ≥ 0.",
            expected="0 for equal outputs, more for others",
            got=repr(distance),
            where="distance",
            hint="look for NaN in the model's outputs, or mend the function that was passed as distance=",
        )
    return distance


def _check_met(space: Space, widths: Widths, name: str) -> None:
    if space.budget.cost != "units" and not space.fits(widths):
        raise BudgetError(
            "The allocation misses the budget.",
            expected=f"at most {space.target:,.0f} {space.budget.cost}",
            got=f"{space.cost(widths):,}",
            where=f"allocation={name!r}",
            hint="ask for more, protect less, or choose another allocation",
        )
