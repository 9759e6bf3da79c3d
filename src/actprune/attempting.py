"""The stages behind a guide, for one budget: from allocation and the proof of a cut to fine-tune and report."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from torch import nn

from actprune.allocation.allocate import share_of
from actprune.allocation.budget import Amount, Budget
from actprune.allocation.correct import Corrected, describe
from actprune.allocation.measured import Measured
from actprune.artifacts.checkpoint import finite
from actprune.artifacts.journal import DECIDED, NUMBER, REWRITE
from actprune.attempt import Attempt
from actprune.axes.capture import Graph
from actprune.captured import Captured, Ranked
from actprune.deciding import Deciding, FailedCutError, FailedElsewhereError
from actprune.errors import EquivalenceError, PlanError
from actprune.forms import Form, nothing_left
from actprune.graph.rebuilt import name_of
from actprune.ledger import Ledger
from actprune.looking import Looking
from actprune.plan import Plan
from actprune.proof.check import Proof, verify
from actprune.proof.elsewhere import check_elsewhere
from actprune.proof.trial import at_fault, unprovable
from actprune.recovery.steps import DivergedError, Losses
from actprune.report.reading import read_report
from actprune.report.record import Report
from actprune.reporting import Reporting
from actprune.result import Result
from actprune.rewrite import Rewrite
from actprune.settings import Settings
from actprune.training import Training

T = TypeVar("T")


@dataclass(eq=False)
class Attempting:
    """Attempts at a budget, each of which freezes what the one before it could not cut.

    Attributes:
        looking: makes `captured` and `ranked`, which hold until a cut fails in another form of the model.
        dense: the metric of the dense network, where there is one.
        teacher: what recovery and fine-tune aim at.
        known: what was measured for a kind of budget; it serves all budgets of that kind.
        losses: of the fine-tune: (steps done, loss).
    """

    looking: Looking
    captured: Captured
    ranked: Ranked
    dense: float | None
    teacher: nn.Module
    known: dict[str, Measured | None] = field(default_factory=dict[str, "Measured | None"])
    losses: Losses = field(default_factory=list[list[float]])

    @property
    def model(self) -> nn.Module:
        return self.looking.model

    @property
    def graph(self) -> Graph:
        return self.captured.graph

    @property
    def ledger(self) -> Ledger:
        return self.looking.ledger

    @property
    def settings(self) -> Settings:
        """With what distance="auto" stands for on these samples."""
        return replace(self.looking.settings, distance=self.captured.distance)

    def asked_for(self, settings: Settings) -> Attempting:
        """Those for another budget of a sweep, which freeze nothing in these; ranked again for another method."""
        another = replace(self, looking=replace(self.looking, settings=settings), losses=[])
        if settings.name == self.settings.name:
            return another
        return replace(another, ranked=another.looking.rank_again(self.captured, self.ranked), known={})

    def plan(self, asked: Budget | Amount | None) -> Plan:
        """The plan alone: nothing is refitted for good, cut, proved or trained."""
        budget = self._share(asked)
        return self._retried(lambda: self._decided(budget)[1].plan)

    def result(self, asked: Budget | Amount | None) -> Result:
        """The first attempt whose cut is proved."""
        budget = self._share(asked)
        attempt = self._retried(lambda: self._attempt(budget))
        return Result(
            model=attempt.final,
            plan=attempt.decided.plan,
            proof=attempt.proof,
            report=self._report(attempt, budget),
            before_finetune=attempt.small if attempt.final is not attempt.small else None,
            graph=self.graph,
            stats=self.ranked.stats,
            guide=self.ranked.guide,
            rewrite=attempt.rewrite,
        )

    def _share(self, asked: Budget | Amount | None) -> Budget | None:
        """An amount as a share of what the dense network takes."""
        with self.ledger.stage("allocate"):
            return None if asked is None else share_of(asked, self.graph, self._milliseconds)

    def _milliseconds(self) -> float:
        """Of the dense network; measured once, and kept for the run that goes on."""
        ledger, bench = self.ledger, self.captured.bench
        if ledger.milliseconds is None:
            made = ledger.keeping.of_first("milliseconds", NUMBER, lambda: bench.models([self.model])[0])
            ledger.milliseconds = made
        return ledger.milliseconds

    def _report(self, attempt: Attempt, budget: Budget | None) -> Report:
        """What rank 0 says of the run; it alone has measured."""
        ranks = self.settings.ranks
        with self.ledger.stage("report"):
            reporting = Reporting(
                self.settings, self.captured, self.ranked, self.ledger.seconds, self.losses,
                self.ledger.request(self.looking.settings),
            )  # fmt: skip
            if ranks.world == 1:
                return reporting(attempt, budget, self.dense)
            return read_report(
                json.dumps(ranks.from_first(lambda: finite(reporting(attempt, budget, self.dense).to_data())))
            )

    # -- one attempt -------------------------------------------------------------------------------

    def _attempt(self, budget: Budget | None) -> Attempt:
        """From allocation to fine-tune."""
        deciding, decided = self._decided(budget)
        ledger, training = self.ledger, self._training
        with ledger.stage("cut and verify"):
            name = ledger.name("rewrite")
            rewrite = ledger.keeping.of_first(name, REWRITE, lambda: deciding.rewrite(decided.plan))
            small, proof = self._cut(decided.plan, rewrite)
        with ledger.stage("evaluate"):
            metric = self.looking.metric(small)
        attempt = Attempt(decided, rewrite, small, proof, metric, small, metric)
        if self.settings.recover is not None:
            with ledger.stage("recover"):
                plan = decided.plan if self.teacher is self.model else None
                trained, done = training.recovered(small, self.graph, plan, self.captured.data)
            with ledger.stage("evaluate"):
                attempt = self._better(replace(attempt, recovery=done), "recovery", trained)
            attempt = replace(attempt, recovered=attempt.final, recovered_metric=attempt.final_metric)
        if self.settings.finetune is not None:
            try:
                with ledger.stage("fine-tune"):
                    tuned, self.losses = training.finetuned(attempt.final, self.losses)
            except DivergedError as error:  # what was proved before it is not thrown away
                warnings.warn(str(error), stacklevel=2)
                self.losses = []
                return replace(attempt, diverged=error.got)
            with ledger.stage("evaluate"):
                attempt = self._better(attempt, "fine-tune", tuned)
        return attempt

    @property
    def _training(self) -> Training:
        return Training(self.settings, self.teacher, self.ledger.keeping, self.ledger.name)

    def _decided(self, budget: Budget | None) -> tuple[Deciding, Corrected]:
        captured = self.captured
        deciding = Deciding(
            self.settings, self.model, captured.form, self.ranked.guide, captured.data, captured.bench, budget,
            known=self.known, judged=self.looking.settings.distance == "auto",
        )  # fmt: skip

        def decide() -> Corrected:
            decided = deciding(self.dense)
            return replace(decided, plan=decided.plan.with_note(**captured.form.note, **deciding.note))

        with self.ledger.stage("allocate"):
            decided = self.ledger.keeping.of_first(self.ledger.name("plan"), DECIDED, decide)
        self.settings.ranks.check_same({"plan": decided.plan.digest})
        return deciding, decided

    def _better(self, attempt: Attempt, step: str, trained: nn.Module) -> Attempt:
        """With the network after a step, unless the metric says that it is worse; that is recorded as a round."""
        found, before = self.looking.metric(trained), attempt.final_metric
        if found is None or before is None or self.dense is None or found >= before:
            return replace(attempt, final=trained, final_metric=found)
        decided = attempt.decided
        rho = decided.rounds[-1].rho if decided.rounds else 1.0
        lost = describe(decided.plan, step, rho, found, self.dense, accepted=False)
        rounds = replace(decided, rounds=(*decided.rounds, lost))
        return replace(attempt, decided=rounds, worse=(*attempt.worse, (step, before, found)))

    # -- cuts that fail ----------------------------------------------------------------------------

    def _retried(self, attempt: Callable[[], T]) -> T:
        """Of the first attempt whose cut does not fail; each that does freezes the groups at fault, one at least."""
        while True:
            try:
                return attempt()
            except FailedCutError as error:
                self._freeze(error)

    def _freeze(self, failed: FailedCutError) -> None:
        tried = self.captured.form.name
        with self.ledger.stage("cut and verify"):
            self.captured = replace(self.captured, form=self._without_what_fails(failed))
        self.ledger.frozen += 1
        self.known = {}
        if self.captured.form.name != tried:  # it has other groups than those that were looked at
            self.ranked = self.looking.rank(self.captured)

    def _cut(self, plan: Plan, rewrite: Rewrite) -> tuple[nn.Module, Proof]:
        """On every rank, which all must come to the same."""
        ranks, seed = self.settings.ranks, self.settings.seed

        def cut() -> tuple[nn.Module, Proof] | FailedCutError:
            try:
                small = self.captured.form.cut(self.model, plan, rewrite)
                graph, inputs = self.ranked.proving
                proof = verify(self.model, small, plan, inputs, rewrite=rewrite, graph=graph, seed=seed)
                if self.captured.form.name == "class":  # a graph has no other branch
                    check_elsewhere(small, graph.program, self.captured.data.batches, self.captured.elsewhere)
                return small, proof
            except (EquivalenceError, PlanError) as error:
                failed = FailedCutError(plan, rewrite, error)
                failed.__cause__ = error
                return failed

        found = ranks.together(cut)
        ranks.check_same({"proved": not isinstance(found, FailedCutError)})
        if isinstance(found, FailedCutError):
            raise found
        return found

    def _without_what_fails(self, failed: FailedCutError) -> Form:
        """The groups at fault are frozen; where there are none, or no others, what was raised is said in full."""
        (graph, inputs), form = self.ranked.proving, self.captured.form
        culprits = self.settings.ranks.from_first(
            lambda: at_fault(
                self.model, graph, failed.plan, inputs, form.cut, rewrite=failed.rewrite, seed=self.settings.seed
            )
        )
        left = form.without(culprits)
        if isinstance(failed, FailedElsewhereError) and not (culprits and left.graph.groups):
            raise failed.error
        if not culprits:
            whole = unprovable(self.model, graph, inputs, form.cut, rewrite=failed.rewrite, seed=self.settings.seed)
            raise whole or failed.error
        if not left.graph.groups:
            raise EquivalenceError(
                f"Nothing in {name_of(self.model)} can be cut and proved.",
                expected="at least one group that its class can carry a cut of",
                got=next(iter(culprits.values())),
                where="cut and verify",
                hint=nothing_left(self.model, left, self.graph, form.name),
            ) from failed.error
        return left
