"""What a run says of itself at its end: figures of every network, and what a reader of them must know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from torch import nn

from actprune.allocation.budget import Amount, Budget
from actprune.allocation.correct import Corrected
from actprune.allocation.cost import Cost, cost
from actprune.axes.capture import Graph
from actprune.data.samples import Calibration
from actprune.errors import PlanError
from actprune.forms import Form
from actprune.graph.rebuilt import Rebuilt
from actprune.guidance.blocks import by_blocks
from actprune.guidance.confidence import Confidence, confidence
from actprune.guidance.guide import Guide
from actprune.latency.bench import Bench
from actprune.mapped import any_mapped
from actprune.memory import peak_bytes
from actprune.plan import Plan
from actprune.proof.check import Proof
from actprune.recovery.distill import Recovered
from actprune.recovery.sgd import SGD
from actprune.report.groups import group_rows
from actprune.report.measure import command, state_bytes, versions
from actprune.report.record import Report, Stage
from actprune.rewrite import Rewrite
from actprune.settings import Settings
from actprune.stats.collect import Stats
from actprune.stats.room import folds_on_disk, folds_within

_FORMS = {
    "class": "The network is of the class that was given.",
    "graph": "The network is the captured graph as a module, without dropout and the branches of training.",
}
"""What the report says of the form that was not a matter of course."""

SLOW, NO_FASTER = 1.3, 0.95
"""Latency is told to be too high at so many times the share of MACs that stays, and at this share of the dense one."""

ENOUGH_ROWS = 10
"""Calibration rows per column below which a refit is said to have had too few."""


RESAMPLES, QUICK_GUIDE = 5, 4.0
"""For `confidence="auto"`: so many resamples, where the guide took at most so many seconds."""


@dataclass(frozen=True, eq=False)
class Attempt:
    """One way from allocation to fine-tune.

    Attributes:
        small, metric: the network after cut and compensation.
        final, final_metric: the one that is returned.
        recovery, recovered: what the recovery without labels did, and the network after it, where it was asked for.
        worse: steps that made the metric worse: (name, metric before, after).
    """

    decided: Corrected
    rewrite: Rewrite
    small: nn.Module
    proof: Proof
    metric: float | None
    final: nn.Module
    final_metric: float | None
    recovery: Recovered | None = None
    recovered: nn.Module | None = None
    recovered_metric: float | None = None
    worse: tuple[tuple[str, float, float], ...] = ()


@dataclass(frozen=True, eq=False)
class Reporting:
    """What a run was asked for, and what its stages left.

    Attributes:
        settings: with "kl" or "mse" where `distance` was "auto".
        seconds: stage → time.
        losses: of the fine-tune: (steps done, loss).
        request: see `Report.request`.
    """

    model: nn.Module
    settings: Settings
    form: Form
    guide: Guide
    stats: Stats | None
    data: Calibration
    bench: Bench
    seconds: Mapping[str, float]
    losses: Sequence[Sequence[float]]
    request: str | None = None

    @property
    def graph(self) -> Graph:
        return self.form.graph

    def __call__(self, attempt: Attempt, budget: Budget | None, dense: float | None) -> Report:
        """The report.

        Args:
            budget: that was asked for, if one was.
            dense: the metric of the dense network, where there is one.
        """
        plan, small, final = attempt.decided.plan, attempt.small, attempt.final
        before, after = cost(self.graph), cost(self.graph, plan.widths)
        timed = [self.model, small, *([attempt.recovered] if attempt.recovered else []), final]
        latencies = self._latencies(timed, budget)

        def stage(model: nn.Module, metric: float | None, costs: Cost) -> Stage:
            return Stage(metric, costs.params, costs.macs, state_bytes(model), latencies[model])

        return Report(
            model=type(self.model).__name__,
            method=self.settings.name,
            allocation=str(plan.note.get("allocation")),
            compensation=self.settings.method.compensate or "none",
            budget=self._goal(budget),
            dense=stage(self.model, dense, before),
            pruned=stage(small, attempt.metric, after),
            recovered=stage(attempt.recovered, attempt.recovered_metric, after) if attempt.recovered else None,
            finetuned=stage(final, attempt.final_metric, after) if self.settings.finetune is not None else None,
            groups=group_rows(self.graph, self.guide, self.stats, plan, self._sure(plan)),
            proof=asdict(attempt.proof),
            rounds=tuple(asdict(one) for one in attempt.decided.rounds),
            calibration={
                "samples": self.data.samples,
                "left_over": self.data.left_over,
                "batch_size": self.graph.program.batch_size,
                "distance": how if isinstance(how := self.settings.distance, str) else "a function",
            },
            seed=self.settings.seed,
            seconds={name: round(value, 3) for name, value in self.seconds.items()},
            versions=versions(),
            notes=(
                *self._notes(attempt, budget),
                *self._speed(budget, latencies[final], latencies[self.model], after.macs / max(before.macs, 1)),
            ),
            latency=self.bench.about(),
            losses=tuple((int(step), loss) for step, loss in self.losses),
            command=command(),
            peak_bytes=peak_bytes(),
            request=self.request,
        )

    def _room(self) -> Iterator[str]:
        """What the memory limit took from the statistics."""
        if self.stats is None:
            return
        whole = folds_on_disk if any_mapped(self.model.parameters()) else folds_within
        wanted, found = whole(self.graph), {name: len(parts) for name, parts in self.stats.sites.items()}
        fewer = sum(0 < found.get(name, 0) < count for name, count in wanted.items())
        if fewer or wanted.keys() - found.keys():
            none = len(wanted.keys() - found.keys())
            of = f"of {len(wanted)} consumers"
            yield f"By the memory limit, {fewer} {of} had statistics in fewer folds, and {none} had none."

    def _sure(self, plan: Plan) -> dict[str, Confidence]:
        """The confidence of every group that is cut, where it was asked for and the ranking can be resampled."""
        asked = self.settings
        resamples = asked.confidence
        if not isinstance(resamples, int):
            resamples = RESAMPLES if self.seconds.get("guide", 0.0) <= QUICK_GUIDE else 0
        if resamples == 0:
            return {}
        try:
            return confidence(self.graph, self.stats, self.guide, plan.widths, resamples=resamples, seed=asked.seed)
        except PlanError:  # a ranking by weights alone, or a single fold
            return {}

    def _latencies(self, models: Iterable[nn.Module], budget: Budget | None) -> Mapping[nn.Module, float | None]:
        """Milliseconds of every network, the dense one first; for longer where a budget was made of it. None of
        networks that lie in files: a forward pass would measure the disk."""
        each = list(dict.fromkeys(models))
        if any_mapped(self.model.parameters()) and not _of_latency(budget):
            return dict.fromkeys(each)
        return dict(zip(each, self.bench.models(each, quick=not _of_latency(budget)), strict=True))

    def _speed(self, budget: Budget | None, ms: float | None, dense: float | None, macs: float) -> Iterator[str]:
        """What is to be said of the shares of the dense latency and MACs that were reached."""
        if ms is None or dense is None:
            return
        latency = ms / dense
        about = self.bench.about()
        where = f"batches of {about['batch_size']} on {about['device']} with {about['threads']} threads"
        if _of_latency(budget):
            yield f"Latency is {latency:.1%} of the dense network's ({where})."
        elif macs < 1 and latency > min(SLOW * macs, NO_FASTER):
            folds = "" if isinstance(self.model, Rebuilt) else ", and result.fold() takes BatchNorm out of the way"
            yield (
                f"Fewer MACs, but hardly faster: MACs are {macs:.0%} of the dense network's, latency is {latency:.0%} "
                f'({where}). keep="latency=50%" aims at milliseconds, round_to="auto" at widths that suit the machine'
                f"{folds}."
            )

    def _goal(self, budget: Budget | None) -> str | None:
        """What was asked for, in one line."""
        if isinstance(self.settings.keep, Mapping | Plan):
            return "explicit widths"
        given = self.settings.budget()
        goals = [f"{given} ({budget})" if isinstance(given, Amount) else str(budget)] if budget is not None else []
        goals += [f"max_drop={self.settings.max_drop:g}"] if self.settings.max_drop is not None else []
        return ", ".join(goals) or None

    def _notes(self, attempt: Attempt, budget: Budget | None) -> Iterator[str]:
        """What a reader of the figures must know."""
        if self.settings.form != "class":
            yield _FORMS[self.form.name]
        if isinstance(given := self.settings.budget(), Amount) and budget is not None and budget.keep == 1:
            yield f"The dense network is within {given} as it is."
        if self.data.left_over:
            yield f"{self.data.left_over} calibration samples did not fill a batch and were not used."
        if idle := _not_reached(self.graph):
            more = f" and {len(idle) - 4} more" if len(idle) > 4 else ""
            yield (
                f"Not reached with the calibration data, and left as they were: {', '.join(idle[:4])}{more}. Where a "
                "call reaches them, they may not fit the layers in front any more: name those in protect=."
            )
        drop, reached = self.settings.max_drop, attempt.decided.plan.note.get("budget")
        if drop is not None and budget is not None and reached != str(budget):
            yield f"{budget} would lose more than max_drop={drop:g}: {reached}."
        for step, before, after in attempt.worse:
            yield f"The {step} made the metric worse ({before:.4g} → {after:.4g}): the network before it is returned."
        if (done := attempt.recovery) is not None:
            yield (
                f"The recovery took {done.steps} steps{_inside(done)}; on held-out calibration samples the distance to "
                f"the dense network went from {done.distance_before:.4g} to {done.distance_after:.4g}."
            )
        tune, world = self.settings.finetune, self.settings.ranks.world
        if isinstance(tune, SGD) and world > 1:
            yield f"Fine-tuned by {world} processes ({tune.strategy}), each with the whole dense network as teacher."
        yield from self._room()
        wide = sum("greedy" in own.orders and by_blocks(self.guide.problems[n]) for n, own in self.guide.groups.items())
        if wide and self.stats is not None:
            yield f"The greedy order of {wide} wide groups is approximate: units were removed several at a time."
        used = attempt.rewrite.record.get("samples", self.data.samples)
        if used < self.data.samples:
            yield f"Refits used {used} of {self.data.samples} calibration samples, by the memory limit."
        fits = attempt.rewrite.record.get("consumers", {}).values()
        if left := [fit for fit in fits if "left" in fit]:
            yield f"{len(left)} of {len(fits)} consumers were not compensated: {left[0]['module']} {left[0]['left']}."
        blocks = attempt.rewrite.record.get("blocks", {}).values()
        if nearer := [block["left"] for block in blocks if block["left"] < 1]:
            share = sum(nearer) / len(nearer)
            yield (
                f"{len(nearer)} of {len(blocks)} blocks of layers were fitted as a whole: on held-out calibration "
                f"samples, {share:.1%} of a refit's squared error is left on average."
            )
        if last := attempt.rewrite.record.get("logits"):
            yield (
                f"The last layer, {last['module']}, was fitted to the dense network's probabilities: in a trial, "
                f"their divergence on calibration samples that it had not seen went from {last['held_before']:.3g} to "
                f"{last['held_after']:.3g} nats."
            )
        refitted = [fit for fit in fits if "rows" in fit]
        few = sum(fit["rows"] < ENOUGH_ROWS * fit["columns"] for fit in refitted)
        if few:
            rows = f"fewer than {ENOUGH_ROWS} calibration rows per column"
            yield f"{few} of {len(refitted)} refitted layers had {rows}: more samples would help."


def _not_reached(graph: Graph) -> list[str]:
    """The modules with parameters that no captured run reads."""
    idle = sorted(graph.program.parameters - graph.used)
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in idle))


def _of_latency(budget: Budget | None) -> bool:
    return budget is not None and budget.cost == "latency"


def _inside(done: Recovered) -> str:
    return f", which compared {done.values} values inside, too" if done.values else ""
