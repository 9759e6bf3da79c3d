"""A budget of latency, met by networks that are cut and timed."""

from __future__ import annotations

from collections.abc import Callable

from actprune.latency.table import LatencyTable
from actprune.plan import Plan

TIMED_ROUNDS, TIMELY = 8, 0.02
"""Plans that are cut and timed at most for a budget of latency, and the relative error of one that needs no other. One
in two or three meets it: milliseconds are noisy, and they jump from one width to the next."""


def on_time(
    plan_for: Callable[[LatencyTable], Plan],
    ratio_of: Callable[[Plan], float],
    table: LatencyTable,
    keep: float,
    rounds: int = TIMED_ROUNDS,
) -> tuple[Plan, LatencyTable]:
    """The plan whose network, cut and timed, comes nearest to a share of the dense latency, and the table behind it.

    A table of single ops does not know how they run one after the other: as long as the network takes another share
    than planned, the table is led through what was measured, and the plan is made again.

    Args:
        ratio_of: plan → milliseconds of its network as a fraction of the dense one's.
        keep: that fraction as it should be.
    """
    tried: dict[tuple[int, ...], tuple[float, Plan, LatencyTable]] = {}
    for _ in range(rounds):
        plan = plan_for(table)
        widths = tuple(plan.widths.values())
        if widths in tried:
            break
        ratio = ratio_of(plan)
        tried[widths] = abs(ratio - keep), plan, table
        if abs(ratio / keep - 1) <= TIMELY:
            break
        table = table.through(plan.widths, ratio)
    _, plan, table = min(tried.values(), key=lambda found: found[0])
    return plan, table
