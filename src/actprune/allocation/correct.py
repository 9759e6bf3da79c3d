"""The correction loop: evaluate the cut network, and mend the plan where it lost too much.

On validation data (a split of the training data, never the test set). While the drop is too large the group whose
return gains most per cost is regrown and the one whose loss is cheapest shrinks in exchange; when no trade
helps, ρ is raised; where there is room, ρ is lowered. Every round is recorded with its prune states and
remaining ratios, as in the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from actprune.allocation.budget import Budget
from actprune.axes.capture import Graph
from actprune.errors import BudgetError, DataError, shortly
from actprune.plan import Plan

EvaluatePlan = Callable[[Plan], float]
"""Plan → the metric of its cut and compensated network on validation data, higher is better."""

PlanFor = Callable[[float], Plan]
"""ρ, the fraction of the budgeted cost that stays → plan."""

ROUNDING = 1e-9
"""0.98 − 0.975 is a little more than 0.005."""

DROP_ROUNDS = 10
"""Plans that are evaluated at most for the smallest network within a drop."""


@dataclass(frozen=True)
class Round:
    """One round of correction.

    Attributes:
        action: what was tried.
        rho: the fraction of the cost that the plan was made for.
        widths: group name → units that stay.
        remaining_ratios: group name → percent of its units that stay (the seed's `remaining_ratios`).
        prune_states: group name → a string with one "1" per kept and one "0" per removed unit (the seed's
            `prune_states`).
        metric: the metric of the candidate; drop: how much less than the dense network's.
        accepted: whether the plan became the best one.
    """

    action: str
    rho: float
    widths: Mapping[str, int]
    remaining_ratios: Mapping[str, float]
    prune_states: Mapping[str, str] = field(repr=False)
    metric: float
    drop: float
    accepted: bool


@dataclass(frozen=True)
class Corrected:
    """The plan that correction settled on, its metric, and the record."""

    plan: Plan
    metric: float
    rounds: tuple[Round, ...]


def within_drop(
    plan_for: PlanFor,
    evaluate: EvaluatePlan,
    dense: float,
    max_drop: float,
    least: float,
    first: float,
) -> Corrected:
    """The smallest network found whose metric is at most `max_drop` below `dense`: ρ by bisection.

    Args:
        plan_for: ρ → plan.
        dense: metric of the dense network.
        max_drop: in the units of the metric, ≥ 0.
        least: the smallest ρ that may be tried.
        first: the ρ to begin with.

    Raises:
        BudgetError: not even a hardly cut network stays within the drop.
    """
    check_drop(max_drop)
    record: list[Round] = []
    low, high = least, 1.0  # at `high` the drop is known (or assumed) to be within bounds
    best: tuple[Plan, float] | None = None
    for step in range(DROP_ROUNDS):
        rho = (low + high) / 2 if step else max(least, first)
        plan = plan_for(rho)
        metric = checked(evaluate(plan))
        accepted = dense - metric <= max_drop + ROUNDING * max(1.0, abs(dense))
        record.append(describe(plan, "lower ρ" if accepted else "raise ρ", rho, metric, dense, accepted))
        if accepted:
            best, high = (plan, metric), rho
        else:
            low = rho
        if high - low < 0.01 or (accepted and rho <= least):
            break
    if best is None:
        raise BudgetError(
            "No cut network stays within the allowed drop.",
            expected=f"a drop of at most {max_drop:g}",
            got=f"{min(r.drop for r in record):.4g} with {100 * record[-1].rho:.0f} % kept",
            where="max_drop",
            hint="allow more, give more calibration data, or choose another method",
        )
    return Corrected(*best, tuple(record))


def check_drop(max_drop: Any) -> None:
    """That it is a number ≥ 0."""
    if isinstance(max_drop, bool) or not isinstance(max_drop, Real) or not float(max_drop) >= 0:
        raise BudgetError(
            "The allowed drop is out of range.",
            expected="a number ≥ 0, in the units of evaluate",
            got=repr(max_drop),
            where="max_drop",
            hint="0.005 is half a point where evaluate returns 0 to 1",
        )


def within_budget(
    graph: Graph,
    start: Plan,
    budget: Budget,
    trades: Callable[[Plan], Iterable[Plan]],
    evaluate: EvaluatePlan,
    dense: float,
    tolerance: float = 0.001,
    rounds: int = 6,
) -> Corrected:
    """Trade width between groups within a budget while the drop exceeds `tolerance`.

    Args:
        trades: plan → plans of the same budget that regrow one group and shrink another, the best bet first.
        tolerance: drop, in the units of the metric, that needs no correction.
    """
    metric = checked(evaluate(start))
    best, record = start, [describe(start, "plan", budget.keep, metric, dense, True)]
    tried = [start.widths]
    while dense - metric > tolerance and len(record) <= rounds:
        improved = False
        for candidate in trades(best):
            if candidate.widths in tried:  # trades of two sizes may come to the same
                continue
            tried.append(candidate.widths)
            found = checked(evaluate(candidate))
            accepted = found > metric
            record.append(describe(candidate, "regrow and shrink", budget.keep, found, dense, accepted))
            if accepted:
                best, metric, improved = candidate, found, True
            if accepted or len(record) > rounds:
                break
        if not improved:
            break
    return Corrected(best, metric, tuple(record))


def describe(plan: Plan, action: str, rho: float, metric: float, dense: float, accepted: bool) -> Round:
    """A round as it is recorded."""
    states = {name: group.states for name, group in plan.groups.items()}
    ratios = {name: round(100 * len(group.kept) / group.width, 2) for name, group in plan.groups.items()}
    return Round(action, rho, plan.widths, ratios, states, metric, dense - metric, accepted)


def checked(metric: Any) -> float:
    """A metric that is a finite number.

    Raises:
        DataError: it is NaN, infinite or no number.
    """
    try:
        value = float(metric)
    except (TypeError, ValueError):
        value = float("nan")
    if value != value or value in (float("inf"), float("-inf")):
        raise DataError(
            "evaluate did not return a finite number.",
            expected="a finite number, higher is better",
            got=shortly(metric),
            where="evaluate",
            hint="check the validation data and the metric on the dense model",
        )
    return value
