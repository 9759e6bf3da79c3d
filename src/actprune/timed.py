"""How long plans take: a latency table led through measured networks, and the multiple that widths are rounded to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import cast

from torch import nn

from actprune.allocation.budget import Budget
from actprune.allocation.on_time import TIMED_ROUNDS, on_time
from actprune.allocation.rounding import best_multiple
from actprune.allocation.space import make_space
from actprune.axes.capture import Graph
from actprune.guidance.guide import Guide
from actprune.latency.bench import Bench
from actprune.latency.table import LatencyTable, measure_latency
from actprune.plan import Plan, make_plan
from actprune.rewrite import Rewrite
from actprune.settings import Settings

Tried = Callable[[Plan, Rewrite, Callable[[nn.Module], float]], float]
"""(plan, rewrite, what to make of the network that they leave) → that number."""


@dataclass(eq=False)
class Timed:
    """What is known of the time that plans take.

    Attributes:
        budget: that plans keep to; None: no number was given.
        tried: cuts the model.
        table: what plans cost, for a budget of latency: led through what was measured of networks so far.
    """

    settings: Settings
    graph: Graph
    guide: Guide
    model: nn.Module
    bench: Bench
    budget: Budget | None
    tried: Tried
    table: LatencyTable | None = None

    @cached_property
    def ops(self) -> LatencyTable:
        """What the ops of the dense network take, and those of narrower ones as they are asked for."""
        return measure_latency(self.model, self.graph, bench=self.bench)

    @cached_property
    def round_to(self) -> int:
        """Of what widths are multiples; measured, where that is asked for."""
        asked = self.settings
        if asked.round_to != "auto":
            return cast("int", asked.round_to)  # `make_space` looks at it
        wanted = self.budget or Budget("macs", 0.5)
        table = self.table or self.ops
        return best_multiple(self.graph, wanted, table, protect=asked.protect, equal=asked.equal_widths)

    def lead_through_the_narrowest(self, wanted: Budget) -> None:
        """Make the table, which then knows how much of the latency the widths decide at all."""
        asked, whole = self.settings, replace(wanted, keep=1.0)
        multiple = 1 if asked.round_to == "auto" else cast("int", asked.round_to)
        space = make_space(
            self.graph, whole, protect=asked.protect, round_to=multiple, latency=self.ops, equal=asked.equal_widths
        )
        narrowest = space.every(space.narrowest)
        plan = make_plan(self.graph, self.guide.supports(narrowest))
        self.table = self.ops.through(narrowest, self._ratio_of(plan))

    def plan(self, plan_for: Callable[..., Plan], wanted: Budget, improved: bool) -> Plan:
        """The plan whose network, measured, meets a budget of latency; `table` is then the one behind it.

        Args:
            plan_for: (share, effort) → the plan for it by the table as it is.
            improved: whether plans are improved in context, which is only done once the table is good enough.
        """

        def plan_by(effort: tuple[int, int] | None, table: LatencyTable) -> Plan:
            self.table = table
            return plan_for(wanted.keep, effort)

        table = cast("LatencyTable", self.table)
        if improved:
            _, table = on_time(partial(plan_by, (0, 0)), self._ratio_of, table, wanted.keep)
        rounds = 2 if improved else TIMED_ROUNDS
        found, self.table = on_time(partial(plan_by, None), self._ratio_of, table, wanted.keep, rounds)
        return found

    def _ratio_of(self, plan: Plan) -> float:
        """Latency of the cut network as a fraction of the dense one's; a refit changes no shapes."""

        def ratio(small: nn.Module) -> float:
            dense, cut = self.bench.models([self.model, small])
            return cut / dense

        return self.tried(plan, Rewrite({}), ratio)
