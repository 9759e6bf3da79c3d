"""From a guide to the plan: allocation, and where a metric is given, correction by what candidates measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from actprune.allocation.allocate import allocate
from actprune.allocation.budget import Budget
from actprune.allocation.correct import Corrected, describe, within_budget, within_drop
from actprune.allocation.effort import FITTED, is_small, measured_samples
from actprune.allocation.explicit import predicted
from actprune.allocation.measured import Measured, measure_all
from actprune.allocation.solve import trades
from actprune.allocation.space import Space, make_space
from actprune.axes.capture import Graph
from actprune.compensation.crossed import compared, crossed, pairs
from actprune.compensation.near import COLLECTED
from actprune.compensation.refit import compensate as refit
from actprune.compensation.room import matrix_bytes
from actprune.compensation.schedule import refitted_calls, schedule
from actprune.data.samples import Calibration
from actprune.distributed import Ranks
from actprune.errors import ActpruneError, DistributedError, PlanError
from actprune.forms import Form
from actprune.graph.room import held_bytes
from actprune.guidance.guide import Guide
from actprune.latency.bench import Bench
from actprune.mapped import any_mapped
from actprune.memory import limit_bytes
from actprune.methods import quickly
from actprune.plan import Plan, make_plan
from actprune.rewrite import Rewrite, thresholded
from actprune.settings import Settings
from actprune.timed import Timed

QUICK_ROUNDS = 3
"""Rounds of rectified fits for candidates of small networks; those of large ones have plain fits."""


class FailedCutError(Exception):
    """A plan whose cut does not run, or fails its proof; never seen by the caller of `prune`.

    Attributes:
        plan, rewrite: what was cut.
        error: what was raised.
    """

    def __init__(self, plan: Plan, rewrite: Rewrite, error: Exception) -> None:
        super().__init__(str(error))
        self.plan, self.rewrite, self.error = plan, rewrite, error


class FailedElsewhereError(FailedCutError):
    """The same, on a rank that has not decided: rank 0 knows what was cut."""

    def __init__(self, ranks: Ranks) -> None:
        told = DistributedError(
            "No cut could be proved.",
            expected="a plan that rank 0 can cut and prove",
            got="an error there, which says why",
            where=f"rank {ranks.rank} of {ranks.world}",
            hint="look at the output of rank 0",
        )
        super().__init__(Plan({}, {}, {}, ""), Rewrite({}), told)


@dataclass(eq=False)
class Deciding:
    """One decision: what it goes by, and the metrics of the candidates so far."""

    settings: Settings
    model: nn.Module
    form: Form
    guide: Guide
    data: Calibration
    bench: Bench
    budget: Budget | None = None
    metrics: dict[Any, float] = field(default_factory=dict[Any, float])
    known: dict[str, Measured | None] = field(default_factory=dict[str, "Measured | None"])
    """Cost that a budget names → what was measured for it; given by who decides on several budgets."""
    judged: bool = False
    """Whether the distance in the settings is what "auto" was found to be."""

    @property
    def graph(self) -> Graph:
        return self.form.graph

    @cached_property
    def timed(self) -> Timed:
        """How long plans take, where the budget is of latency or widths are rounded by measurement."""
        return Timed(self.settings, self.graph, self.guide, self.model, self.bench, self.budget, self._tried)

    @property
    def note(self) -> dict[str, Any]:
        """What a plan says of how it came about that no allocation knows."""
        return {"round_to": self.timed.round_to} if self.settings.round_to == "auto" else {}

    def __call__(self, dense: float | None) -> Corrected:
        """The plan.

        Args:
            dense: the metric of the dense network, where there is one.

        Raises:
            FailedCutError: a candidate could not be cut or evaluated.
        """
        asked, budget = self.settings, self.budget
        if isinstance(asked.keep, Plan):
            kept = {name: group.kept for name, group in asked.keep.groups.items()}
            costs = predicted(self.graph, asked.keep.widths)
            note = {"method": asked.name, "allocation": "plan", "budget": None, "predicted": costs}
            return self._as_it_is(make_plan(self.graph, kept, **note), 1.0, dense)
        if isinstance(asked.keep, Mapping) or (budget is None and asked.max_drop is None):
            plan = allocate(
                self.graph, self.guide, keep=asked.keep, protect=asked.protect, round_to=self.timed.round_to,
                equal_widths=asked.equal_widths,
            )  # fmt: skip
            return self._as_it_is(plan, 1.0, dense)
        wanted = budget or Budget("macs", 1.0)
        if wanted.cost == "latency":
            self.timed.lead_through_the_narrowest(wanted)
        space = self._space(wanted)
        if wanted.cost not in self.known:
            self.known[wanted.cost] = self._measured(wanted)
        measured = self.known[wanted.cost]

        def plan_for(keep: float, effort: tuple[int, int] | None = None) -> Plan:
            return allocate(
                self.graph, self.guide, keep=Budget(wanted.cost, keep), allocation=asked.method.allocation,
                protect=asked.protect, round_to=self.timed.round_to, measured=measured, latency=self.timed.table,
                effort=effort, equal_widths=asked.equal_widths,
            )  # fmt: skip

        on_time = self.timed.plan(plan_for, wanted, measured is not None) if wanted.cost == "latency" else None
        if asked.max_drop is None or dense is None:
            plan = on_time or plan_for(wanted.keep)
            if dense is None or measured is None or wanted.cost == "units":
                return self._as_it_is(plan, wanted.keep, dense)
            found = within_budget(
                self.graph, plan, wanted, lambda p: self._trades(p, wanted, measured), self._quick_metric_of, dense
            )
            if self._quick == self._compensation:
                return found
            metric = self._metric_of(found.plan)
            told = describe(found.plan, "reconstruct", wanted.keep, metric, dense, True)
            return replace(found, metric=metric, rounds=(*found.rounds, told))
        lowest = space.least if wanted.cost != "units" else 0.01
        lowest = max(lowest, wanted.keep if budget is not None else 0.0)
        first = lowest if budget is not None else max(lowest, 0.5)
        return within_drop(plan_for, self._metric_of, dense, asked.max_drop, lowest, first)

    def rewrite(self, plan: Plan, method: str | None = None) -> Rewrite:
        """The candidate network of a plan, by this compensation or the one that is asked for."""
        asked = self.settings
        return refit(
            self.graph,
            plan,
            self.refitted,
            method=method or self._compensation,
            batchnorm=asked.batchnorm,
            distance=asked.distance,
            judged=self.judged,
            base=self._base(),
            memory_limit=asked.memory_limit,
        )

    @cached_property
    def refitted(self) -> Calibration:
        """As many of the samples as two runs may hold within the memory limit."""
        free = limit_bytes(self.settings.memory_limit)
        if any_mapped(self.model.parameters()):
            free -= matrix_bytes(self.graph)
        batches = free // max(2 * held_bytes(refitted_calls(self.graph)), 1)
        return self.data.subset(max(batches, 1) * self.graph.program.batch_size)

    def _base(self) -> dict[str, Tensor] | None:
        asked = self.settings
        return thresholded(self.graph, asked.threshold or 0.0) if asked.name == "filter" else None

    def _measured(self, budget: Budget) -> Measured | None:
        asked = self.settings
        if asked.method.allocation != "sensitivity" or budget.cost == "units":
            return None
        cheap = is_small(self.graph, self.refitted.samples)
        among = pairs(self.refitted, measured_samples(self.graph), FITTED, cheap)
        held, room = compared(among), limit_bytes(asked.memory_limit) // 32  # in float64; two networks live at a time
        space = self._space(replace(budget, keep=1.0))
        rectified = any(path.rectified for path in schedule(self.graph).paths.values())
        rounds = QUICK_ROUNDS if rectified and is_small(self.graph, held.samples) else 0
        near = crossed(self.graph, among, self._quick, rounds, self._base(), min(COLLECTED, room))
        return measure_all(
            self.graph, self.guide, space, held, None, asked.distance,
            lambda done, total: asked.tell("sensitivity", done, total), near,
        )  # fmt: skip

    def _metric_of(self, plan: Plan, method: str | None = None) -> float:
        """Of the cut network; several ρ may give one plan."""
        key = method or self._compensation, *(group.kept for group in plan.groups.values())
        if key not in self.metrics:
            rewrite = self.rewrite(plan, method)
            self.metrics[key] = self._tried(plan, rewrite, lambda small: self.settings.metric(small) or 0.0)
        return self.metrics[key]

    def _quick_metric_of(self, plan: Plan) -> float:
        return self._metric_of(plan, self._quick)

    @property
    def _compensation(self) -> str:
        return self.settings.method.compensate or "none"

    @property
    def _quick(self) -> str:
        """The compensation by which many plans are compared."""
        return quickly(self._compensation)

    def _tried(self, plan: Plan, rewrite: Rewrite, use: Callable[[nn.Module], float]) -> float:
        """What `use` says of the network that `plan` leaves."""
        try:
            return use(self.form.cut(self.model, plan, rewrite))
        except PlanError as error:  # a source that can't be rewritten
            raise FailedCutError(plan, rewrite, error) from error
        except ActpruneError:
            raise
        except Exception as error:  # of the caller's own function, or of a class that does not carry the cut
            raise FailedCutError(plan, rewrite, error) from error

    def _space(self, budget: Budget) -> Space:
        asked = self.settings
        return make_space(
            self.graph, budget, protect=asked.protect, round_to=self.timed.round_to, latency=self.timed.table,
            equal=asked.equal_widths,
        )  # fmt: skip

    def _as_it_is(self, plan: Plan, rho: float, dense: float | None) -> Corrected:
        if dense is None:
            return Corrected(plan, 0.0, ())
        metric = self._metric_of(plan)
        return Corrected(plan, metric, (describe(plan, "plan", rho, metric, dense, True),))

    def _trades(self, plan: Plan, budget: Budget, measured: Measured, most: int = 3) -> Iterator[Plan]:
        space = self._space(budget)
        names, now = list(measured.curves), {name: plan.widths[name] for name in space.options}
        for share in (0.2, 0.1):
            for i, widths in enumerate(trades(space, now, names, share, measured.curves)):
                if i == most:
                    break
                every = space.every(widths)
                note = {name: value for name, value in plan.note.items() if name != "distance"}  # it is another plan's
                note["predicted"] = predicted(self.graph, every, self.timed.table)
                yield make_plan(self.graph, self.guide.supports(every), **note)
