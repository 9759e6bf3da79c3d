"""What a run says of itself at its end: the figures of every network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from torch import nn

from actprune.allocation.budget import Amount, Budget
from actprune.allocation.cost import Cost, cost
from actprune.attempt import Attempt
from actprune.axes.capture import Graph
from actprune.captured import Captured, Ranked
from actprune.errors import PlanError
from actprune.graph.rebuilt import name_of
from actprune.guidance.confidence import Confidence, confidence
from actprune.mapped import any_mapped
from actprune.memory import peak_bytes
from actprune.notes import Told, notes, of_latency
from actprune.plan import Plan
from actprune.report.groups import group_rows
from actprune.report.measure import command, state_bytes, versions
from actprune.report.record import Report, Stage
from actprune.settings import Settings

RESAMPLES, QUICK_GUIDE = 5, 4.0
"""For `confidence="auto"`: so many resamples, where the guide took at most so many seconds."""


@dataclass(frozen=True, eq=False)
class Reporting:
    """What a run was asked for, and what its stages left.

    Attributes:
        settings: with "kl" or "mse" where `distance` was "auto".
        seconds: stage → time.
        losses: of the fine-tune: (steps done, loss).
        request: see `Report.request`.
    """

    settings: Settings
    captured: Captured
    ranked: Ranked
    seconds: Mapping[str, float]
    losses: Sequence[Sequence[float]]
    request: str | None = None

    @property
    def graph(self) -> Graph:
        return self.captured.graph

    def __call__(self, attempt: Attempt, budget: Budget | None, dense: float | None) -> Report:
        """The report.

        Args:
            budget: that was asked for, if one was.
            dense: the metric of the dense network, where there is one.
        """
        plan, small, final = attempt.decided.plan, attempt.small, attempt.final
        before, after = cost(self.graph), cost(self.graph, plan.widths)
        timed = [self.captured.model, small, *([] if attempt.recovered is None else [attempt.recovered]), final]
        latencies = self._latencies(timed, budget)

        sure = self._sure(plan)
        told = Told(
            self.settings, self.captured, self.ranked, attempt, budget, after.macs / max(before.macs, 1),
            latencies[self.captured.model], latencies[final], dense, bool(sure),
        )  # fmt: skip
        trained = self.settings.finetune is not None and attempt.diverged is None

        def stage(model: nn.Module, metric: float | None, costs: Cost) -> Stage:
            return Stage(metric, costs.params, costs.macs, state_bytes(model), latencies[model])

        return Report(
            model=name_of(self.captured.model),
            method=self.settings.name,
            allocation=str(plan.note.get("allocation")),
            compensation=self.settings.method.compensate or "none",
            budget=self._goal(budget),
            dense=stage(self.captured.model, dense, before),
            pruned=stage(small, attempt.metric, after),
            recovered=None if attempt.recovered is None else stage(attempt.recovered, attempt.recovered_metric, after),
            finetuned=stage(final, attempt.final_metric, after) if trained else None,
            groups=group_rows(self.graph, self.ranked.guide, self.ranked.stats, plan, sure),
            proof=asdict(attempt.proof),
            rounds=tuple(asdict(one) for one in attempt.decided.rounds),
            calibration={
                "samples": self.captured.data.samples,
                "left_over": self.captured.data.left_over,
                "batch_size": self.graph.program.batch_size,
                "distance": how if isinstance(how := self.settings.distance, str) else "a function",
            },
            seed=self.settings.seed,
            seconds={name: round(value, 3) for name, value in self.seconds.items()},
            versions=versions(),
            notes=notes(told),
            latency=self.captured.bench.about(),
            losses=tuple((int(step), loss) for step, loss in self.losses),
            command=command(),
            peak_bytes=peak_bytes(),
            request=self.request,
        )

    def _sure(self, plan: Plan) -> dict[str, Confidence]:
        """The confidence of every group that is cut, where it was asked for and the ranking can be resampled."""
        asked = self.settings
        resamples = asked.confidence
        if isinstance(resamples, str):
            resamples = RESAMPLES if self.seconds.get("guide", 0.0) <= QUICK_GUIDE else 0
        if resamples == 0:
            return {}
        try:
            return confidence(
                self.graph, self.ranked.stats, self.ranked.guide, plan.widths, resamples=resamples, seed=asked.seed
            )
        except PlanError:  # a ranking by something else than the folds, or a single one
            return {}

    def _latencies(self, models: Iterable[nn.Module], budget: Budget | None) -> Mapping[nn.Module, float | None]:
        """Milliseconds of every network, the dense one first; for longer where a budget was made of it. None of
        networks that lie in files: a forward pass would measure the disk."""
        each = list(dict.fromkeys(models))
        if any_mapped(self.captured.model.parameters()) and not of_latency(budget):
            return dict.fromkeys(each)
        return dict(zip(each, self.captured.bench.models(each, quick=not of_latency(budget)), strict=True))

    def _goal(self, budget: Budget | None) -> str | None:
        """What was asked for, in one line."""
        if isinstance(self.settings.keep, Mapping | Plan):
            return "explicit widths"
        given = self.settings.budget()
        goals = [f"{given} ({budget})" if isinstance(given, Amount) else str(budget)] if budget is not None else []
        goals += [f"max_drop={self.settings.max_drop:g}"] if self.settings.max_drop is not None else []
        return ", ".join(goals) or None
