"""The stages of one run of `prune`, each a short method; data flows from the top to the bottom of this file.

capture → axes → stats → guide → allocate → plan → compensate → cut → verify → recover → fine-tune → report
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from actprune.allocation.allocate import Measured
from actprune.allocation.budget import Budget, Keep
from actprune.allocation.correct import Corrected, describe
from actprune.allocation.cost import Cost, cost
from actprune.artifacts.files import content_digest
from actprune.artifacts.journal import DECIDED, GUIDE, REWRITE, STATISTICS, TRAINED, Kind, Trained
from actprune.axes.capture import Graph
from actprune.data import Forward, Samples, fit, take
from actprune.deciding import Deciding, FailedCutError
from actprune.distance import choose
from actprune.errors import DataError, EquivalenceError, PlanError
from actprune.forms import Form, capture_form
from actprune.graph.keep import copied
from actprune.graph.run import run
from actprune.graph.trace import preserved
from actprune.guidance.guide import Guide, guide
from actprune.guidance.problem import problems
from actprune.latency.bench import Bench, Latency
from actprune.plan import Plan
from actprune.proof.check import Proof, verify
from actprune.proof.trial import at_fault
from actprune.recovery.distill import Distill, Recovered
from actprune.recovery.sgd import SGD
from actprune.report.groups import group_rows
from actprune.report.measure import command, state_bytes, versions
from actprune.report.record import Report, Stage
from actprune.result import Result
from actprune.rewrite import Rewrite
from actprune.settings import Settings
from actprune.stats.collect import Stats, collect

T = TypeVar("T")

_FORMS = {
    "class": "The network is of the class that was given.",
    "graph": "The network is the captured graph as a module, without dropout and the branches of training.",
}
"""What the report says of the form that was not a matter of course."""

SLOW, NO_FASTER = 1.3, 0.95
"""Latency is told to be too high at so many times the share of MACs that stays, and at this share of the dense one."""

ENOUGH_ROWS = 10
"""Calibration rows per column below which a refit is said to have had too few."""


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


class _AnotherNetworkError(Exception):
    """A fine-tune returned a network of its own; never seen by the caller of `prune`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


@dataclass(eq=False)
class Run:
    """One call of `prune`: its settings, and the stages that share them."""

    model: nn.Module
    settings: Settings
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    known: dict[str, Measured | None] = field(default_factory=dict[str, "Measured | None"])
    losses: list[list[float]] = field(default_factory=list[list[float]])
    frozen: int = 0
    turn: str = ""

    def __call__(self, calibration: Iterable[Any], size: int, forward: Forward | None) -> Result:
        budget = self.settings.budget()
        return self._result(budget, self._prepared(calibration, size, forward))

    def decide(self, calibration: Iterable[Any], size: int, forward: Forward | None) -> Plan:
        """The plan alone: nothing is refitted for good, cut, proved or trained."""
        budget = self.settings.budget()
        dense = self._prepared(calibration, size, forward)
        while True:
            try:
                return self._decided(budget, dense)[1].plan
            except FailedCutError as error:
                self._freeze(error)

    def sweep(
        self, keeps: Iterable[Keep], calibration: Iterable[Any], size: int, forward: Forward | None
    ) -> Iterator[Result]:
        """One result for each budget, of one capture and one pass of statistics."""
        each = [replace(self.settings, keep=keep) for keep in keeps]
        budgets = [asked.budget() for asked in each]  # all of them are looked at before the work
        dense = self._prepared(calibration, size, forward)
        shared = dict(self.seconds)
        for self.settings, budget in zip(each, budgets, strict=True):
            self.seconds, self.losses = dict(shared), []
            self.turn = f"-{self.settings.keep}"
            yield self._result(budget, dense)

    def _prepared(self, calibration: Iterable[Any], size: int, forward: Forward | None) -> float | None:
        """All that comes before a budget is looked at; the metric of the dense network."""
        asked = self.settings
        with self._stage("capture"):
            labels = asked.loss is not None and "taylor" in asked.method.measures
            samples = take(self.model, calibration, size, forward, labels)
            self._begin(samples, size)
            # copies, for a model may write into its inputs; they are all positional or all by name
            args, kwargs = pytree.tree_map_only(Tensor, Tensor.clone, samples.example())
            self.inputs: Any = kwargs or args
            self.form = capture_form(self.model, self.inputs, asked.form, norms=asked.norms, seed=asked.seed)
            self.bench = Bench(self.graph.program, asked.latency or Latency())
            self.data = fit(self.graph.program, samples)
            choose(self.graph.program, asked.distance)  # an unknown one is refused before the work
            self._check_finite()
        with self._stage("evaluate"):
            dense_metric = asked.metric(self.model)
        self._look()
        return dense_metric

    def _result(self, budget: Budget | None, dense_metric: float | None) -> Result:
        attempt = self._proved(budget, dense_metric)
        with self._stage("report"):
            report = self._report(attempt, budget, dense_metric)
        return Result(
            model=attempt.final,
            plan=attempt.decided.plan,
            proof=attempt.proof,
            report=report,
            before_finetune=attempt.small if attempt.final is not attempt.small else None,
            graph=self.graph,
            stats=self.stats,
            guide=self.guide,
            rewrite=attempt.rewrite,
        )

    def _proved(self, budget: Budget | None, dense: float | None) -> Attempt:
        """The first attempt whose cut is proved: each that fails freezes the groups at fault, one at least."""
        while True:
            try:
                return self._attempt(budget, dense)
            except FailedCutError as error:
                self._freeze(error)

    def _freeze(self, failed: FailedCutError) -> None:
        tried = self.form.name
        with self._stage("cut and verify"):
            self.form = self._without_what_fails(failed)
        self.frozen += 1
        self.known.clear()
        if self.form.name != tried:  # it has other groups than those that were looked at
            self._look()

    def _decided(self, budget: Budget | None, dense: float | None) -> tuple[Deciding, Corrected]:
        deciding = Deciding(self.settings, self.model, self.form, self.guide, self.data, self.bench, known=self.known)

        def decide() -> Corrected:
            decided = deciding(budget, dense)
            return replace(decided, plan=decided.plan.with_note(**self.form.note, **deciding.note))

        with self._stage("allocate"):
            return deciding, self._kept("plan", DECIDED, decide)

    def _attempt(self, budget: Budget | None, dense: float | None) -> Attempt:
        """From allocation to fine-tune."""
        deciding, decided = self._decided(budget, dense)
        with self._stage("cut and verify"):
            rewrite = self._kept("rewrite", REWRITE, lambda: deciding.rewrite(decided.plan))
            small, proof = self._cut(decided.plan, rewrite)
        with self._stage("evaluate"):
            metric = self.settings.metric(small)
        attempt = Attempt(decided, rewrite, small, proof, metric, small, metric)
        if self.settings.recover is not None:
            with self._stage("recover"):
                trained, done = self._recovered(small)
            with self._stage("evaluate"):
                attempt = self._better(replace(attempt, recovery=done), "recovery", trained, dense)
            attempt = replace(attempt, recovered=attempt.final, recovered_metric=attempt.final_metric)
        if self.settings.finetune is not None:
            with self._stage("fine-tune"):
                tuned = self._finetuned(attempt.final)
            with self._stage("evaluate"):
                attempt = self._better(attempt, "fine-tune", tuned, dense)
        return attempt

    def _better(self, attempt: Attempt, step: str, trained: nn.Module, dense: float | None) -> Attempt:
        """With the network after a step, unless the metric says that it is worse; that is recorded as a round."""
        found, before = self.settings.metric(trained), attempt.final_metric
        if found is None or before is None or dense is None or found >= before:
            return replace(attempt, final=trained, final_metric=found)
        decided = attempt.decided
        rho = decided.rounds[-1].rho if decided.rounds else 1.0
        lost = describe(decided.plan, step, rho, found, dense, accepted=False)
        rounds = replace(decided, rounds=(*decided.rounds, lost))
        return replace(attempt, decided=rounds, worse=(*attempt.worse, (step, before, found)))

    # -- the stages --------------------------------------------------------------------------------

    @property
    def graph(self) -> Graph:
        return self.form.graph

    def _look(self) -> None:
        """Gather what the groups are ranked by, and what plans are proved on."""
        asked = self.settings
        with self._stage("capture"):
            self.proving = self.form.few(self.model, self.inputs)
        with self._stage("statistics"):
            self.stats = None if not asked.method.statistics else self._kept("statistics", STATISTICS, self._collected)
        with self._stage("guide"):
            self.guide = self._guide()

    def _guide(self) -> Guide:
        asked, stats = self.settings, self.stats

        def look() -> Guide:
            return guide(self.graph, stats, method=asked.name, threshold=asked.threshold, seed=asked.seed)

        if asked.journal is None:
            return look()
        groups = self._kept("guide", GUIDE, lambda: look().groups)
        asks = {g.name: problems(self.graph, stats, g) if stats is not None else () for g in self.graph.groups}
        return Guide(asked.name, groups, asks, asked.threshold)

    def _collected(self) -> Stats:
        asked = self.settings
        return collect(self.graph, self.data, measures=asked.method.measures, loss=asked.loss)

    def _check_finite(self) -> None:
        """Of one batch: methods without statistics look at no activations."""
        outputs = run(self.graph.program, self.data.batches[0])
        if not all(bool(torch.isfinite(out).all()) for out in outputs if isinstance(out, Tensor)):
            if self.settings.method.statistics:
                collect(self.graph, self.data.subset(1))  # it names the first layer that is at fault
            raise DataError(
                f"{type(self.model).__name__} does not give finite outputs.",
                expected="finite outputs on the calibration data",
                got="NaN or infinite values",
                where="the first calibration batch",
                hint="look for NaN or infinite entries in the calibration data and in the weights",
            )

    def _cut(self, plan: Plan, rewrite: Rewrite) -> tuple[nn.Module, Proof]:
        try:
            small = self.form.cut(self.model, plan, rewrite)
            graph, inputs = self.proving
            return small, verify(self.model, small, plan, inputs, rewrite=rewrite, graph=graph, seed=self.settings.seed)
        except (EquivalenceError, PlanError) as error:
            raise FailedCutError(plan, rewrite, error) from error

    def _without_what_fails(self, failed: FailedCutError) -> Form:
        """The groups at fault are frozen; what was raised is raised again where there are none, or no others."""
        graph, inputs = self.proving
        culprits = at_fault(
            self.model, graph, failed.plan, inputs, self.form.cut,
            rewrite=failed.rewrite, seed=self.settings.seed,
        )  # fmt: skip
        left = self.form.without(culprits)
        if not culprits or not left.graph.groups:
            raise failed.error
        return left

    def _recovered(self, small: nn.Module) -> tuple[nn.Module, Recovered]:
        """A copy that was trained towards the dense network."""
        trained, asked = copied(small), self.settings

        def recover(trained: nn.Module) -> Recovered:
            return cast("Distill", asked.recover).run(
                trained, self.model, self.graph.program, self.data,
                distance=asked.distance, seed=asked.seed, progress=lambda i, n: asked.tell("recover", i, n),
            )  # fmt: skip

        with preserved(trained):
            if asked.journal is None:
                return trained, recover(trained)

            def step() -> Trained:
                done = asdict(recover(trained))
                return trained.state_dict(keep_vars=True), done

            state, done = self._kept("recovered", TRAINED, step)
            trained.load_state_dict({**trained.state_dict(), **state})
            return trained, Recovered(**done)

    def _finetuned(self, small: nn.Module) -> nn.Module:
        """A trained copy, in the modes of the original."""
        tuned, asked = copied(small), self.settings

        def finetune() -> nn.Module:
            returned: Any = None
            with preserved(tuned), torch.enable_grad():
                if isinstance(asked.finetune, SGD):
                    asked.finetune.run(
                        tuned, self.model, lambda done, total, _: asked.tell("fine-tune", done, total), self.losses
                    )
                elif asked.finetune is not None:
                    returned = asked.finetune(tuned)
            return returned if isinstance(returned, nn.Module) else tuned

        if asked.journal is None:
            return finetune()

        def step() -> Trained:
            returned = finetune()
            if returned is not tuned:
                raise _AnotherNetworkError(returned)
            return tuned.state_dict(keep_vars=True), self.losses

        try:
            state, self.losses = self._kept("fine-tuned", TRAINED, step)
        except _AnotherNetworkError as error:  # whose weights say nothing of how to make it again
            return error.network
        tuned.load_state_dict({**tuned.state_dict(), **state})
        return tuned

    def _report(self, attempt: Attempt, budget: Budget | None, dense: float | None) -> Report:
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
            groups=group_rows(self.graph, self.guide, self.stats, plan),
            proof=asdict(attempt.proof),
            rounds=tuple(asdict(one) for one in attempt.decided.rounds),
            calibration={
                "samples": self.data.samples,
                "left_over": self.data.left_over,
                "batch_size": self.graph.program.batch_size,
            },
            seed=self.settings.seed,
            seconds={name: round(value, 3) for name, value in self.seconds.items()},
            versions=versions(),
            notes=(
                *self._notes(attempt, budget),
                *self._speed(budget, latencies[final] / latencies[self.model], after.macs / max(before.macs, 1)),
            ),
            latency=self.bench.about(),
            losses=tuple((int(step), loss) for step, loss in self.losses),
            command=command(),
        )

    def _latencies(self, models: Iterable[nn.Module], budget: Budget | None) -> dict[nn.Module, float]:
        """Milliseconds of every network, the dense one first; for longer where a budget was made of it."""
        each = list(dict.fromkeys(models))
        return dict(zip(each, self.bench.models(each, quick=not _of_latency(budget)), strict=True))

    def _speed(self, budget: Budget | None, latency: float, macs: float) -> Iterator[str]:
        """What is to be said of the shares of the dense latency and MACs that were reached."""
        about = self.bench.about()
        where = f"batches of {about['batch_size']} on {about['device']} with {about['threads']} threads"
        if _of_latency(budget):
            yield f"Latency is {latency:.1%} of the dense network's ({where})."
        elif macs < 1 and latency > min(SLOW * macs, NO_FASTER):
            yield (
                f"Fewer MACs, but hardly faster: MACs are {macs:.0%} of the dense network's, latency is {latency:.0%} "
                f'({where}). keep="latency=50%" aims at milliseconds, round_to="auto" at widths that suit the machine, '
                "and result.fold() takes BatchNorm out of the way."
            )

    def _goal(self, budget: Budget | None) -> str | None:
        """What was asked for, in one line."""
        if isinstance(self.settings.keep, Mapping | Plan):
            return "explicit widths"
        goals = [str(budget)] if budget is not None else []
        goals += [f"max_drop={self.settings.max_drop:g}"] if self.settings.max_drop is not None else []
        return ", ".join(goals) or None

    def _notes(self, attempt: Attempt, budget: Budget | None) -> Iterator[str]:
        """What a reader of the figures must know."""
        if self.settings.form != "class":
            yield _FORMS[self.form.name]
        if self.data.left_over:
            yield f"{self.data.left_over} calibration samples did not fill a batch and were not used."
        drop, reached = self.settings.max_drop, attempt.decided.plan.note.get("budget")
        if drop is not None and budget is not None and reached != str(budget):
            yield f"{budget} would lose more than max_drop={drop:g}: {reached}."
        for step, before, after in attempt.worse:
            yield f"The {step} made the metric worse ({before:.4g} → {after:.4g}): the network before it is returned."
        if (done := attempt.recovery) is not None:
            yield (
                f"The recovery took {done.steps} steps; on held-out calibration samples the distance to the dense "
                f"network went from {done.distance_before:.4g} to {done.distance_after:.4g}."
            )
        fits = attempt.rewrite.record.get("consumers", {}).values()
        if left := [fit for fit in fits if "left" in fit]:
            yield f"{len(left)} of {len(fits)} consumers were not compensated: {left[0]['module']} {left[0]['left']}."
        refitted = [fit for fit in fits if "rows" in fit]
        few = sum(fit["rows"] < ENOUGH_ROWS * fit["columns"] for fit in refitted)
        if few:
            rows = f"fewer than {ENOUGH_ROWS} calibration rows per column"
            yield f"{few} of {len(refitted)} refitted layers had {rows}: more samples would help."

    # -- what the stages share ---------------------------------------------------------------------

    def _begin(self, samples: Samples, size: int) -> None:
        """Open the journal, for this run only: its settings, its weights and its data."""
        asked = self.settings
        if asked.journal is None:
            return
        keep = asked.keep.digest if isinstance(asked.keep, Plan) else asked.keep
        told = {
            "method": asked.name, "compensate": asked.method.compensate, "allocation": asked.method.allocation,
            "keep": dict(keep) if isinstance(keep, Mapping) else None if keep is None else str(keep),
            "max_drop": asked.max_drop, "evaluate": asked.evaluate is not None,
            "recover": str(asked.recover) if asked.recover else None, "finetune": asked.finetune is not None,
            "batchnorm": asked.batchnorm, "protect": list(asked.protect), "round_to": asked.round_to,
            "latency": str(asked.latency) if asked.latency else None, "threshold": asked.threshold,
            "norms": asked.norms, "form": asked.form, "seed": asked.seed, "calibration_size": size,
            "torch": torch.__version__,
        }  # fmt: skip
        model = content_digest(self.model.state_dict().items())
        data = content_digest((str(i), leaf) for i, leaf in enumerate(samples.leaves))
        asked.journal.begin({**told, "model": model, "data": data})

    def _kept(self, name: str, kind: Kind[T], make: Callable[[], T]) -> T:
        """The result of a stage, by way of the journal where there is one."""
        journal = self.settings.journal
        return make() if journal is None else journal.keep(f"{name}{self.turn}-{self.frozen}", kind, make)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.settings.tell(name, 0, 1)
        if self.settings.journal is not None:  # a stage must not depend on which stages ran before it in this process
            random.seed(self.settings.seed)
            np.random.seed(self.settings.seed)
            torch.manual_seed(self.settings.seed)
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        self.settings.tell(name, 1, 1)


def _of_latency(budget: Budget | None) -> bool:
    return budget is not None and budget.cost == "latency"
