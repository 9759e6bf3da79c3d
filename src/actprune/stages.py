"""The stages of one run of `prune`, each a short method; data flows from the top to the bottom of this file.

capture → axes → stats → guide → allocate → plan → compensate → cut → verify → recover → fine-tune → report
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from actprune.allocation.allocate import Measured, allocate, measure_all
from actprune.allocation.budget import Budget, Keep, parse
from actprune.allocation.correct import Corrected, check_drop, checked, describe, least_keep, within_budget, within_drop
from actprune.allocation.cost import Cost, cost
from actprune.allocation.solve import trades
from actprune.allocation.space import make_space
from actprune.axes.capture import Graph
from actprune.compensation.alone import Alone
from actprune.compensation.refit import ROUNDS
from actprune.compensation.refit import compensate as refit
from actprune.compensation.walk import ROWS
from actprune.data import Calibration, Forward, fit, take
from actprune.distance import Distance, choose
from actprune.errors import BudgetError, DataError, EquivalenceError, UnsupportedModelError
from actprune.graph.run import run
from actprune.graph.trace import preserved
from actprune.guidance.guide import guide
from actprune.methods import Method
from actprune.plan import Plan, make_plan
from actprune.proof.check import Proof, verify
from actprune.proof.trial import cannot_follow
from actprune.recovery.sgd import SGD
from actprune.repair.adapt import capture
from actprune.report.groups import group_rows
from actprune.report.measure import latency_ms, state_bytes, versions
from actprune.report.record import Report, Stage
from actprune.result import Result
from actprune.rewrite import Rewrite, thresholded
from actprune.stats.collect import Stats, collect
from actprune.stats.gradients import Loss
from actprune.surgery.slicing import cut

Evaluate = Callable[[nn.Module], float]
"""model → metric, higher is better, on validation data."""

Progress = Callable[[str, int, int], None]
"""(stage, done, total): called as stages go on."""

MEASURE_SAMPLES = 512
"""Calibration samples that candidates are refitted and compared on while widths are decided."""

QUICK_ROUNDS = 3
QUICK_ROWS = 100
"""Rounds of rectified fits, and rows per column, for candidates that are only compared."""

ENOUGH_ROWS = 10
"""Calibration rows per column below which a refit is said to have had too few."""

MEASURE_WORK = 2e13
"""Multiply-adds that measuring all sensitivity curves may take; large models use fewer samples."""


@dataclass(frozen=True, eq=False)
class Attempt:
    """One way from allocation to fine-tune.

    Attributes:
        small, metric: the network after cut and compensation.
        final, final_metric: the one that is returned.
        worse: the metric of a fine-tune that made it worse.
    """

    decided: Corrected
    rewrite: Rewrite
    small: nn.Module
    proof: Proof
    metric: float | None
    final: nn.Module
    final_metric: float | None
    worse: float | None = None


@dataclass(eq=False)
class Run:
    """One call of `prune`: its settings, and the stages that share them."""

    model: nn.Module
    method: Method
    name: str
    keep: Keep
    max_drop: float | None
    evaluate: Evaluate | None
    finetune: SGD | Callable[[nn.Module], Any] | None
    batchnorm: bool | str
    protect: tuple[str, ...]
    round_to: int
    distance: str | Distance
    threshold: float | None
    loss: Loss | None
    norms: bool
    seed: int
    progress: Progress | None
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    metrics: dict[Any, float] = field(default_factory=dict[Any, float])

    def __call__(self, calibration: Iterable[Any], size: int, forward: Forward | None) -> Result:
        budget = self._checked_budget()
        with self._stage("capture"):
            labels = self.loss is not None and "taylor" in self.method.measures
            samples = take(self.model, calibration, size, forward, labels)
            # copies, for a model may write into its inputs; they are all positional or all by name
            self.args, self.kwargs = pytree.tree_map_only(Tensor, Tensor.clone, samples.example())
            self.inputs: Any = self.kwargs or self.args
            self.graph = self._captured()
            self.data = fit(self.graph.program, samples)
            choose(self.graph.program, self.distance)  # an unknown one is refused before the work
            self._check_finite()
        with self._stage("evaluate"):
            dense_metric = self._metric(self.model)
        with self._stage("statistics"):
            self.stats = self._collected()
        with self._stage("guide"):
            self.guide = guide(self.graph, self.stats, method=self.name, threshold=self.threshold, seed=self.seed)
        try:
            attempt = self._attempt(budget, dense_metric)
        except EquivalenceError as error:
            self._freeze_what_fails(error)
            attempt = self._attempt(budget, dense_metric)
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

    def _attempt(self, budget: Budget | None, dense: float | None) -> Attempt:
        """From allocation to fine-tune."""
        with self._stage("allocate"):
            decided = self._decide(budget, dense)
        with self._stage("cut and verify"):
            plan, rewrite = decided.plan, self._rewrite(decided.plan)
            small = cut(self.model, plan, rewrite)
            proof = verify(self.model, small, plan, self.inputs, rewrite=rewrite, graph=self.graph, seed=self.seed)
        with self._stage("evaluate"):
            metric = self._metric(small)
        attempt = Attempt(decided, rewrite, small, proof, metric, small, metric)
        if self.finetune is None:
            return attempt
        with self._stage("fine-tune"):
            tuned = self._finetuned(small)
        with self._stage("evaluate"):
            return self._better(attempt, tuned, dense)

    def _better(self, attempt: Attempt, tuned: nn.Module, dense: float | None) -> Attempt:
        """With the fine-tuned network, unless the metric says that it is worse; that is recorded as a round."""
        found = self._metric(tuned)
        if found is None or attempt.metric is None or dense is None or found >= attempt.metric:
            return replace(attempt, final=tuned, final_metric=found)
        decided = attempt.decided
        rho = decided.rounds[-1].rho if decided.rounds else 1.0
        lost = describe(decided.plan, "fine-tune", rho, found, dense, accepted=False)
        return replace(attempt, decided=replace(decided, rounds=(*decided.rounds, lost)), worse=found)

    # -- the stages --------------------------------------------------------------------------------

    def _checked_budget(self) -> Budget | None:
        """The budget, once all that can be checked before the work is checked."""
        for name, given in (("evaluate", self.evaluate), ("finetune", self.finetune)):
            if given is not None and not callable(given):
                raise DataError(
                    f"{name} can't be called.",
                    expected=f"a function {'model → metric' if name == 'evaluate' else 'of the model'}",
                    got=repr(given),
                    where=f"prune({name}=…)",
                    hint="pass a function that takes the model as its one argument",
                )
        if self.max_drop is not None:
            check_drop(self.max_drop)
            self._check_drop_decides()
        return None if self.keep is None or isinstance(self.keep, Mapping) else parse(self.keep)

    def _check_drop_decides(self) -> None:
        if self.evaluate is None:
            raise BudgetError(
                "max_drop needs a metric.",
                expected="evaluate=, a function model → metric on validation data",
                got="None",
                where="prune(max_drop=…)",
                hint="pass evaluate=, or a budget with keep=",
            )
        if isinstance(self.keep, Mapping):
            raise BudgetError(
                "max_drop has nothing to decide where all widths are given.",
                expected="max_drop, or keep={group: units}",
                got="both",
                where="prune(keep=…, max_drop=…)",
                hint="leave one of them out",
            )

    def _captured(self) -> Graph:
        graph = capture(self.model, self.inputs, norms=self.norms)
        graph = graph.without(cannot_follow(self.model, graph, self.inputs, seed=self.seed))
        if not graph.groups:
            raise UnsupportedModelError(
                f"Nothing in {type(self.model).__name__} can be cut.",
                expected="at least one layer whose units only linear layers and convolutions consume",
                got="no prunable group",
                where="capture",
                hint=f"the account says why:\n{graph.account()}",
            )
        return graph

    def _check_finite(self) -> None:
        """Of one batch: methods without statistics look at no activations."""
        outputs = run(self.graph.program, self.data.batches[0])
        if not all(bool(torch.isfinite(out).all()) for out in outputs if isinstance(out, Tensor)):
            if self.method.statistics:
                collect(self.graph, self.data.subset(1))  # it names the first layer that is at fault
            raise DataError(
                f"{type(self.model).__name__} does not give finite outputs.",
                expected="finite outputs on the calibration data",
                got="NaN or infinite values",
                where="the first calibration batch",
                hint="look for NaN or infinite entries in the calibration data and in the weights",
            )

    def _freeze_what_fails(self, error: EquivalenceError) -> None:
        """The class runs with the cut but computes something else: freeze the groups at fault, or give up."""
        culprits = cannot_follow(self.model, self.graph, self.inputs, deep=True, seed=self.seed)
        if not culprits or len(culprits) == len(self.graph.groups):
            raise error
        self.graph = self.graph.without(culprits)

    def _collected(self) -> Stats | None:
        if not self.method.statistics:
            return None
        return collect(self.graph, self.data, measures=self.method.measures, loss=self.loss)

    def _metric(self, model: nn.Module) -> float | None:
        if self.evaluate is None:
            return None
        with preserved(model):
            model.eval()
            return checked(self.evaluate(model))

    def _rewrite(self, plan: Plan, data: Calibration | None = None, quick: bool = False) -> Rewrite:
        """The candidate network of a plan; `quick` for the many that are only compared."""
        return refit(
            self.graph,
            plan,
            data or self.data,
            method=self.method.compensate,
            rounds=QUICK_ROUNDS if quick else ROUNDS,
            rows=QUICK_ROWS if quick else ROWS,
            batchnorm=False if quick else self.batchnorm,
            distance=self.distance,
            base=self._base(),
        )

    def _base(self) -> dict[str, Tensor] | None:
        return thresholded(self.graph, self.threshold or 0.0) if self.name == "filter" else None

    def _decide(self, budget: Budget | None, dense: float | None) -> Corrected:
        """The plan: allocation, and where a metric is given, correction."""
        if isinstance(self.keep, Mapping) or (budget is None and self.max_drop is None):
            plan = allocate(self.graph, self.guide, keep=self.keep, protect=self.protect, round_to=self.round_to)
            return self._as_it_is(plan, 1.0, dense)
        wanted = budget or Budget("macs", 1.0)
        space = make_space(self.graph, wanted, protect=self.protect, round_to=self.round_to)
        measured = self._measured(wanted)

        def plan_for(keep: float) -> Plan:
            return allocate(
                self.graph, self.guide, keep=Budget(wanted.cost, keep), allocation=self.method.allocation,
                protect=self.protect, round_to=self.round_to, measured=measured,
            )  # fmt: skip

        if self.max_drop is None or dense is None:
            plan = plan_for(wanted.keep)
            if dense is None or measured is None or wanted.cost == "units":
                return self._as_it_is(plan, wanted.keep, dense)
            return within_budget(
                self.graph, plan, wanted, lambda p: self._trades(p, wanted, measured), self._metric_of, dense
            )
        lowest = least_keep(self.graph, wanted.cost, space.narrowest) if wanted.cost != "units" else 0.01
        lowest = max(lowest, wanted.keep if budget is not None else 0.0)
        first = lowest if budget is not None else max(lowest, 0.5)
        return within_drop(plan_for, self._metric_of, dense, self.max_drop, lowest, first)

    def _measured(self, budget: Budget) -> Measured | None:
        if self.method.allocation != "sensitivity" or budget.cost == "units":
            return None
        fitted, held = self.data.holdout(0.25)
        samples = _affordable(self.graph)
        fitted, held = fitted.subset(samples), held.subset(samples)
        space = make_space(self.graph, replace(budget, keep=1.0), protect=self.protect, round_to=self.round_to)
        alone = Alone(
            self.graph, fitted, held,
            method=self.method.compensate, rounds=QUICK_ROUNDS, rows=QUICK_ROWS, base=self._base(),
        )  # fmt: skip
        return measure_all(
            self.graph, self.guide, space, held, lambda plan: self._rewrite(plan, fitted, quick=True), self.distance,
            lambda done, total: self._tell("sensitivity", done, total), alone,
        )  # fmt: skip

    def _metric_of(self, plan: Plan) -> float:
        """Of the cut network; several ρ may give one plan."""
        key = tuple(group.kept for group in plan.groups.values())
        if key not in self.metrics:
            self.metrics[key] = self._metric(cut(self.model, plan, self._rewrite(plan))) or 0.0
        return self.metrics[key]

    def _as_it_is(self, plan: Plan, rho: float, dense: float | None) -> Corrected:
        if dense is None:
            return Corrected(plan, 0.0, ())
        metric = self._metric_of(plan)
        return Corrected(plan, metric, (describe(plan, "plan", rho, metric, dense, True),))

    def _trades(self, plan: Plan, budget: Budget, measured: Measured, most: int = 3) -> Iterator[Plan]:
        space = make_space(self.graph, budget, protect=self.protect, round_to=self.round_to)
        names = list(measured.curves)
        for share in (0.2, 0.1):
            for i, widths in enumerate(trades(space, plan.widths, names, share, measured.curves)):
                if i == most:
                    break
                yield make_plan(self.graph, self.guide.supports(widths), **plan.note)

    def _finetuned(self, small: nn.Module) -> nn.Module:
        """A trained copy, in the modes of the original."""
        tuned = copy.deepcopy(small)
        returned: Any = None
        with preserved(tuned), torch.enable_grad():
            if isinstance(self.finetune, SGD):
                self.finetune.run(tuned, self.model, lambda done, total, _: self._tell("fine-tune", done, total))
            elif self.finetune is not None:
                returned = self.finetune(tuned)
        return returned if isinstance(returned, nn.Module) else tuned

    def _report(self, attempt: Attempt, budget: Budget | None, dense: float | None) -> Report:
        plan, small, final = attempt.decided.plan, attempt.small, attempt.final
        before, after = cost(self.graph), cost(self.graph, plan.widths)

        def stage(model: nn.Module, metric: float | None, costs: Cost) -> Stage:
            latency = latency_ms(model, self.args, self.kwargs)
            return Stage(metric, costs.params, costs.macs, state_bytes(model), latency)

        return Report(
            model=type(self.model).__name__,
            method=self.name,
            allocation=str(plan.note.get("allocation")),
            compensation=self.method.compensate or "none",
            budget=self._goal(budget),
            dense=stage(self.model, dense, before),
            pruned=stage(small, attempt.metric, after),
            recovered=None,
            finetuned=stage(final, attempt.final_metric, after) if self.finetune is not None else None,
            groups=group_rows(self.graph, self.guide, self.stats, plan),
            proof=asdict(attempt.proof),
            rounds=tuple(asdict(one) for one in attempt.decided.rounds),
            calibration={
                "samples": self.data.samples,
                "left_over": self.data.left_over,
                "batch_size": self.graph.program.batch_size,
            },
            seed=self.seed,
            seconds={name: round(value, 3) for name, value in self.seconds.items()},
            versions=versions(),
            notes=tuple(self._notes(attempt, budget)),
        )

    def _goal(self, budget: Budget | None) -> str | None:
        """What was asked for, in one line."""
        if isinstance(self.keep, Mapping):
            return "explicit widths"
        goals = [str(budget)] if budget is not None else []
        goals += [f"max_drop={self.max_drop:g}"] if self.max_drop is not None else []
        return ", ".join(goals) or None

    def _notes(self, attempt: Attempt, budget: Budget | None) -> Iterator[str]:
        """What a reader of the figures must know."""
        if self.data.left_over:
            yield f"{self.data.left_over} calibration samples did not fill a batch and were not used."
        if self.max_drop is not None and budget is not None and attempt.decided.plan.note["budget"] != str(budget):
            yield f"{budget} would lose more than max_drop={self.max_drop:g}: {attempt.decided.plan.note['budget']}."
        if attempt.worse is not None:
            yield (
                f"The fine-tune made the metric worse ({attempt.metric:.4g} → {attempt.worse:.4g}): the network before "
                "it is returned."
            )
        refitted = [fit for fit in attempt.rewrite.record.get("consumers", {}).values() if "rows" in fit]
        fits = attempt.rewrite.record.get("consumers", {}).values()
        left = [fit for fit in fits if "left" in fit]
        if left:
            yield f"{len(left)} of {len(fits)} consumers were not compensated: {left[0]['module']} {left[0]['left']}."
        few = sum(fit["rows"] < ENOUGH_ROWS * fit["columns"] for fit in refitted)
        if few:
            rows = f"fewer than {ENOUGH_ROWS} calibration rows per column"
            yield f"{few} of {len(refitted)} refitted layers had {rows}: more samples would help."

    # -- what the stages share ---------------------------------------------------------------------

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self._tell(name, 0, 1)
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        self._tell(name, 1, 1)

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(stage, done, total)


def _affordable(graph: Graph) -> int:
    """Samples with which measuring every sensitivity curve keeps to `MEASURE_WORK`."""
    per_sample = max(cost(graph).macs * 3 * 4 * len(graph.groups), 1)
    return max(graph.program.batch_size, min(MEASURE_SAMPLES, int(MEASURE_WORK / per_sample)))
