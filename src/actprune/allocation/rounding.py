"""`round_to="auto"`: of what widths should be multiples, by what the network's own shapes take."""

from __future__ import annotations

from collections.abc import Sequence

from actprune.allocation.budget import Budget
from actprune.allocation.cost import cost
from actprune.allocation.rules import layerwise, units
from actprune.allocation.space import make_space
from actprune.axes.capture import Graph
from actprune.errors import BudgetError, PlanError
from actprune.latency.table import LatencyTable

MULTIPLES = (1, 4, 8, 16)

WORTH = 0.05
"""A coarser multiple leaves allocation less choice: it has to save so much of the time of a multiply-add."""


def best_multiple(
    graph: Graph, budget: Budget, latency: LatencyTable, *, protect: Sequence[str] = (), equal: bool = False
) -> int:
    """The multiple with the fewest milliseconds per multiply-add.

    Compared are the widths of the uniform rule within the budget, every op measured at just these shapes.
    """
    found: dict[int, float] = {}
    for multiple in MULTIPLES:
        try:
            space = make_space(graph, budget, protect=protect, round_to=multiple, latency=latency, equal=equal)
        except (BudgetError, PlanError):  # too coarse for a budget that small, or for groups that narrow
            continue
        widths = space.every((units if budget.cost == "units" else layerwise)(space)[1])
        found[multiple] = latency.exact(widths) / max(cost(graph, widths).macs, 1)
    best = min(found.values(), default=0.0)
    return next((m for m, rate in found.items() if (1 - WORTH) * rate <= best), 1)
