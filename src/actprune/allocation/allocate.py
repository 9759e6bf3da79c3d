"""`allocate`: guide + budget → plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from actprune.allocation.budget import Amount, Budget, Keep, read_keep
from actprune.allocation.cost import cost
from actprune.allocation.effort import affordable, is_small, starts
from actprune.allocation.explicit import explicit, predicted
from actprune.allocation.improve import improve
from actprune.allocation.measured import Measured, RewriteOf, measure_all
from actprune.allocation.one_criterion import one_criterion
from actprune.allocation.rules import RULES, units
from actprune.allocation.sensitivity import Progress
from actprune.allocation.space import Space, Widths, make_space
from actprune.allocation.starts import best_start
from actprune.axes.capture import Graph
from actprune.data.samples import Calibration
from actprune.distance import Distance
from actprune.errors import BudgetError
from actprune.guidance.guide import Guide
from actprune.latency.table import LatencyTable
from actprune.methods import ALLOCATIONS, known, method
from actprune.plan import Plan, make_plan


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


def _by_sensitivity(
    space: Space, guide: Guide, measured: Measured, effort: tuple[int, int] | None
) -> tuple[Widths, str | None, float]:
    """(widths, the one criterion whose units stay, or None for the best of all in each group, distance)."""
    graph, samples = space.graph, measured.samples
    rounds, trials = affordable(graph, samples) if effort is None else effort
    tried = starts(graph, samples) if effort is None else rounds
    more = tried if effort is None and is_small(graph, samples) else 0
    widths = best_start(space, measured.curves, measured.around, tried, more)
    widths, distance = improve(space, widths, measured.curves, measured.around, rounds, trials)
    if measured.distance_of is None:
        return widths, None, distance
    return widths, *one_criterion(guide, space.every(widths), distance, measured.distance_of, tried - 1)


def _preset(guide: Guide, keep: Keep) -> str:
    """The method's allocation; natural widths know of no budget."""
    own = method(guide.method).allocation
    return "uniform" if own == "natural" and keep is not None else own


def _check_met(space: Space, widths: Widths, name: str) -> None:
    if space.budget.cost != "units" and not space.fits(widths):
        raise BudgetError(
            "The allocation misses the budget.",
            expected=f"at most {space.target:,.0f} {space.budget.cost}",
            got=f"{space.cost(widths):,}",
            where=f"allocation={name!r}",
            hint="ask for more, protect less, or choose another allocation",
        )
