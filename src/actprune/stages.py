"""The stages of one run of `prune`, each a short method; data flows from the top to the bottom of this file.

capture → axes → stats → guide → allocate → plan → compensate → cut → verify → recover → fine-tune → report
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from actprune.allocation.allocate import Measured, share_of
from actprune.allocation.budget import Amount, Budget
from actprune.allocation.correct import Corrected, describe
from actprune.artifacts.checkpoint import finite
from actprune.artifacts.journal import DECIDED, GUIDE, NUMBER, REWRITE, STATISTICS
from actprune.axes.capture import Graph
from actprune.compensation.room import check_room
from actprune.data.calls import Forward
from actprune.data.samples import Calibration, Samples
from actprune.data.take import fit, take
from actprune.deciding import Deciding, FailedCutError
from actprune.distance import Distance, choose, objective, resolve
from actprune.errors import DataError, EquivalenceError, PlanError
from actprune.forms import Form, capture_form
from actprune.graph.digest import digest
from actprune.graph.keep import seed_all
from actprune.graph.run import run
from actprune.guidance.guide import Guide
from actprune.guidance.ranking import guide, questions_of
from actprune.keeping import Keeping, given_digests, in_common, request_of
from actprune.latency.bench import Bench, Latency
from actprune.plan import Plan
from actprune.proof.check import Proof, verify
from actprune.proof.trial import at_fault
from actprune.report.reading import read_report
from actprune.report.record import Report
from actprune.reporting import Attempt, Reporting
from actprune.result import Result
from actprune.rewrite import Rewrite
from actprune.settings import Settings
from actprune.stats.across import collect_across
from actprune.stats.collect import Stats, collect
from actprune.stats.gradients import wants_labels
from actprune.training import Training


@dataclass(eq=False)
class Run:
    """One call of `prune`: its settings, and the stages that share them.

    Attributes:
        known_stats: statistics that another process has gathered for this model and data.
        asks: of a sweep, the settings of all its runs, also of those that are finished.
        teacher: what recovery and fine-tune aim at; None: the model.
    """

    model: nn.Module
    settings: Settings
    known_stats: Stats | None = None
    asks: Sequence[Settings] = ()
    teacher: nn.Module | None = None
    given: dict[str, Any] = field(default_factory=dict[str, Any])
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    known: dict[str, Measured | None] = field(default_factory=dict[str, "Measured | None"])
    losses: list[list[float]] = field(default_factory=list[list[float]])
    frozen: int = 0
    turn: str = ""
    of: str = ""

    def __call__(self, calibration: Iterable[Any] | Samples, size: int, forward: Forward | None) -> Result:
        budget = self.settings.budget()
        dense = self._prepared(calibration, size, forward)
        return self._result(self._share(budget), dense)

    def decide(self, calibration: Iterable[Any] | Samples, size: int, forward: Forward | None) -> Plan:
        """The plan alone: nothing is refitted for good, cut, proved or trained."""
        budget = self.settings.budget()
        dense = self._prepared(calibration, size, forward)
        share = self._share(budget)
        while True:
            try:
                return self._decided(share, dense)[1].plan
            except FailedCutError as error:
                self._freeze(error)

    def sweep(
        self, asks: Sequence[Settings], calibration: Iterable[Any] | Samples, size: int, forward: Forward | None
    ) -> Iterator[Result]:
        """One result for each of some settings, which differ in budget and method: of one pass of statistics."""
        budgets = [asked.budget() for asked in asks]  # all of them are looked at before the work
        several = len({asked.name for asked in self.asks}) > 1
        self.of = f"-{asks[0].name}" if several else ""
        dense = self._prepared(calibration, size, forward)
        shared = dict(self.seconds)
        for asked, budget in zip(asks, budgets, strict=True):
            another, self.settings = asked.name != self.settings.name, asked
            self.seconds, self.losses = dict(shared), []
            if another:
                self.of, self.turn = f"-{asked.name}", ""
                self.known.clear()
                self.seconds.pop("guide")
                self._rank()
                shared = dict(self.seconds)
            self.turn = f"{self.of}-{asked.keep}"
            yield self._result(self._share(budget), dense)

    def gather(self, calibration: Iterable[Any] | Samples, size: int, forward: Forward | None) -> Stats | None:
        """The statistics that the runs of a sweep need; None where they need none."""
        self._taken(calibration, size, forward)
        return self._statistics() if any(asked.method.statistics for asked in self._all) else None

    def _prepared(self, calibration: Iterable[Any] | Samples, size: int, forward: Forward | None) -> float | None:
        """All that comes before a budget is looked at; the metric of the dense network."""
        self._taken(calibration, size, forward)
        with self._stage("evaluate"):
            dense_metric = self._metric(self.model)
        self._look()
        return dense_metric

    def _taken(self, calibration: Iterable[Any] | Samples, size: int, forward: Forward | None) -> None:
        """The samples, and the model captured on a batch of them."""
        ranks = self.settings.ranks
        with self._stage("capture"):
            labels = labelled(self._all)
            samples = ranks.together(lambda: take(self.model, calibration, size, forward, labels))
            self._begin(samples, size)
            ranks.together(lambda: self._capture(samples))
            if ranks.world > 1:  # a digest of the whole program is no work for a process that is alone
                widths = {group.name: group.width for group in self.graph.groups}
                ranks.check_same({"form": self.form.name, "program": digest(self.graph.program), "groups": widths})

    @property
    def _all(self) -> Sequence[Settings]:
        """The settings that samples and statistics serve."""
        return self.asks or (self.settings,)

    def _capture(self, samples: Samples) -> None:
        asked = self.settings
        # copies, for a model may write into its inputs
        self.inputs: Any = pytree.tree_map_only(Tensor, Tensor.clone, samples.inputs)
        self.form = capture_form(self.model, self.inputs, asked.form, norms=asked.norms, seed=asked.seed)
        check_room(self.graph, asked.memory_limit)
        self.bench = Bench(self.graph.program, asked.latency or Latency())
        self.data = fit(self.graph.program, samples)
        choose(self.graph.program, asked.distance)  # an unknown one is refused before the work
        if any(one.recover is not None for one in self._all):
            objective(self.graph.program, asked.distance)  # and outputs that nothing can be trained by
        self._check_finite()
        self.distance: str | Distance = resolve(self.graph.program, asked.distance, self.data)

    def _share(self, asked: Budget | Amount | None) -> Budget | None:
        """An amount as a share of what the dense network takes."""
        with self._stage("allocate"):
            return None if asked is None else share_of(asked, self.graph, lambda: self._milliseconds)

    @cached_property
    def _milliseconds(self) -> float:
        """Of the dense network; measured once, and kept for the run that goes on."""
        return self._keeping.of_first("milliseconds", NUMBER, lambda: self.bench.models([self.model])[0])

    def _metric(self, model: nn.Module) -> float | None:
        """What `evaluate` says, on rank 0."""
        return self.settings.ranks.from_first(lambda: self.settings.metric(model))

    def _result(self, budget: Budget | None, dense_metric: float | None) -> Result:
        attempt = self._proved(budget, dense_metric)
        with self._stage("report"):
            reporting = Reporting(
                self.model, self._judged, self.form, self.guide, self.stats, self.data, self.bench, self.seconds,
                self.losses, request_of(self.settings, self.given) if self.given else None,
            )  # fmt: skip
            report = self._reported(lambda: reporting(attempt, budget, dense_metric))
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

    def _reported(self, make: Callable[[], Report]) -> Report:
        """What rank 0 says of the run; it alone has measured."""
        ranks = self.settings.ranks
        if ranks.world == 1:
            return make()
        return read_report(json.dumps(ranks.from_first(lambda: finite(make().to_data()))))

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
        asked = self.settings
        deciding = Deciding(
            self._judged, self.model, self.form, self.guide, self.data, self.bench, budget, known=self.known,
            judged=asked.distance == "auto",
        )  # fmt: skip

        def decide() -> Corrected:
            decided = deciding(dense)
            return replace(decided, plan=decided.plan.with_note(**self.form.note, **deciding.note))

        with self._stage("allocate"):
            decided = self._keeping.of_first(self._name("plan"), DECIDED, decide)
        asked.ranks.check_same({"plan": decided.plan.digest})
        return deciding, decided

    def _attempt(self, budget: Budget | None, dense: float | None) -> Attempt:
        """From allocation to fine-tune."""
        deciding, decided = self._decided(budget, dense)
        with self._stage("cut and verify"):
            rewrite = self._keeping.of_first(self._name("rewrite"), REWRITE, lambda: deciding.rewrite(decided.plan))
            small, proof = self._cut(decided.plan, rewrite)
        with self._stage("evaluate"):
            metric = self._metric(small)
        attempt = Attempt(decided, rewrite, small, proof, metric, small, metric)
        if self.settings.recover is not None:
            with self._stage("recover"):
                plan = decided.plan if self.teacher is None or self.teacher is self.model else None
                trained, done = self._training.recovered(small, self.graph, plan, self.data)
            with self._stage("evaluate"):
                attempt = self._better(replace(attempt, recovery=done), "recovery", trained, dense)
            attempt = replace(attempt, recovered=attempt.final, recovered_metric=attempt.final_metric)
        if self.settings.finetune is not None:
            with self._stage("fine-tune"):
                tuned, self.losses = self._training.finetuned(attempt.final, self.losses)
            with self._stage("evaluate"):
                attempt = self._better(attempt, "fine-tune", tuned, dense)
        return attempt

    def _better(self, attempt: Attempt, step: str, trained: nn.Module, dense: float | None) -> Attempt:
        """With the network after a step, unless the metric says that it is worse; that is recorded as a round."""
        found, before = self._metric(trained), attempt.final_metric
        if found is None or before is None or dense is None or found >= before:
            return replace(attempt, final=trained, final_metric=found)
        decided = attempt.decided
        rho = decided.rounds[-1].rho if decided.rounds else 1.0
        lost = describe(decided.plan, step, rho, found, dense, accepted=False)
        rounds = replace(decided, rounds=(*decided.rounds, lost))
        return replace(attempt, decided=rounds, worse=(*attempt.worse, (step, before, found)))

    # -- the stages --------------------------------------------------------------------------------

    @property
    def _keeping(self) -> Keeping:
        return Keeping(self.settings.journal, self.settings.ranks)

    @property
    def _training(self) -> Training:
        return Training(self._judged, self.model if self.teacher is None else self.teacher, self._keeping, self._name)

    @property
    def _judged(self) -> Settings:
        """The settings, with what distance="auto" stands for on these samples."""
        return replace(self.settings, distance=self.distance)

    @property
    def graph(self) -> Graph:
        return self.form.graph

    def _look(self) -> None:
        """Gather what the groups are ranked by, and what plans are proved on."""
        asked = self.settings
        with self._stage("capture"):
            self.proving = asked.ranks.together(lambda: self.form.few(self.model, self.inputs))
        with self._stage("statistics"):
            wanted = any(one.method.statistics for one in self._all)
            self.gathered = self._statistics() if wanted else None
        self._rank()

    def _rank(self) -> None:
        """The guide of the method."""
        self.stats = self.gathered if self.settings.method.statistics else None
        with self._stage("guide"):
            self.guide = self._guide()

    def _statistics(self) -> Stats:
        """By all ranks, each of its share of the batches, where rank 0 does not have them from an earlier run."""
        ranks = self.settings.ranks
        if self.known_stats is not None and not self.frozen:
            return self.known_stats
        if ranks.world == 1:
            return self._keeping.of_first(self._name("statistics"), STATISTICS, self._collected)
        return self._keeping.of_all(
            self._name("statistics"), STATISTICS, lambda: collect_across(ranks, self.data, self._collected)
        )

    def _guide(self) -> Guide:
        asked, stats = self.settings, self.stats

        def look() -> Guide:
            return guide(self.graph, stats, method=asked.name, threshold=asked.threshold, seed=asked.seed)

        if asked.journal is None:
            return look()
        groups = self._keeping.of_first(self._name(f"guide{self.of}"), GUIDE, lambda: look().groups)
        asks = {g.name: questions_of(self.graph, stats, g, asked.name) for g in self.graph.groups}
        return Guide(asked.name, groups, asks, asked.threshold)

    def _collected(self, data: Calibration | None = None, **part: int) -> Stats:
        """Of all batches, or of some: then `collect` has to know of which."""
        asked = self.settings
        measures = dict.fromkeys(name for one in self._all for name in one.method.measures)
        return collect(
            self.graph, data or self.data, measures=measures, loss=asked.loss,
            memory_limit=asked.memory_limit, **part,
        )  # fmt: skip

    def _check_finite(self) -> None:
        """Of one batch: methods without statistics look at no activations."""
        outputs = [out for out in run(self.graph.program, self.data.batches[0]) if isinstance(out, Tensor)]
        if all(bool(out.isfinite().all()) for out in outputs):
            return
        collect(self.graph, self.data.subset(1))  # it names the first layer that is at fault
        if any(bool(out.isnan().any()) or not bool(out.isfinite().any()) for out in outputs):
            raise DataError(
                f"{type(self.model).__name__} does not give finite outputs.",
                expected="finite outputs on the calibration data",
                got="NaN or infinite values",
                where="the first calibration batch",
                hint="look for NaN or infinite entries in the calibration data and in the weights; every layer gives "
                "finite values, so that it may be what stands behind the last one",
            )

    def _cut(self, plan: Plan, rewrite: Rewrite) -> tuple[nn.Module, Proof]:
        """On every rank, which all must come to the same."""
        asked = self.settings

        def cut() -> tuple[nn.Module, Proof] | FailedCutError:
            try:
                small = self.form.cut(self.model, plan, rewrite)
                graph, inputs = self.proving
                return small, verify(self.model, small, plan, inputs, rewrite=rewrite, graph=graph, seed=asked.seed)
            except (EquivalenceError, PlanError) as error:
                failed = FailedCutError(plan, rewrite, error)
                failed.__cause__ = error
                return failed

        found = asked.ranks.together(cut)
        asked.ranks.check_same({"proved": not isinstance(found, FailedCutError)})
        if isinstance(found, FailedCutError):
            raise found
        return found

    def _without_what_fails(self, failed: FailedCutError) -> Form:
        """The groups at fault are frozen; what was raised is raised again where there are none, or no others."""
        graph, inputs = self.proving
        culprits = self.settings.ranks.from_first(
            lambda: at_fault(
                self.model, graph, failed.plan, inputs, self.form.cut, rewrite=failed.rewrite, seed=self.settings.seed
            )
        )
        left = self.form.without(culprits)
        if not culprits or not left.graph.groups:
            raise failed.error
        return left

    # -- what the stages share ---------------------------------------------------------------------

    def _begin(self, samples: Samples, size: int) -> None:
        """Open the journal, for this run only: its settings, its weights and its data."""
        if self.settings.journal is None:
            return
        self.given = self.settings.ranks.together(lambda: given_digests(self.model, samples, size))
        asked = in_common([one.told() for one in self.asks]) if self.asks else self.settings.told()
        self._keeping.begin({**asked, **self.given})

    def _name(self, stage: str) -> str:
        """In the journal."""
        return f"{stage}{self.turn}-{self.frozen}"

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.settings.tell(name, 0, 1)
        if self.settings.journal is not None:  # a stage must not depend on which stages ran before it in this process
            seed_all(self.settings.seed)
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        self.settings.tell(name, 1, 1)


def labelled(asks: Iterable[Settings]) -> bool:
    """Whether samples have to come with labels."""
    return any(wants_labels(asked.method.measures, asked.loss) for asked in asks)
