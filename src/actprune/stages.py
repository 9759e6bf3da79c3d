"""One run of `prune`: what looks at the model once (`actprune.looking`), then an attempt at every budget
(`actprune.attempting`).

capture → axes → stats → guide → allocate → plan → compensate → cut → verify → recover → fine-tune → report
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from actprune.attempting import Attempting
from actprune.captured import Captured
from actprune.data.calls import Forward
from actprune.data.samples import Samples
from actprune.ledger import Ledger
from actprune.looking import Looking
from actprune.plan import Plan
from actprune.result import Result
from actprune.settings import Settings
from actprune.stats.statistics import Stats


@dataclass(frozen=True, eq=False)
class Run:
    """One call of `prune`, `predict` or `sweep`.

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

    def __call__(self, calibration: Iterable[Any] | Samples, size: int, forward: Forward | None) -> Result:
        budget = self.settings.budget()  # what can be checked is, before the work
        return self._looked(calibration, size, forward).result(budget)

    def decide(self, calibration: Iterable[Any] | Samples, size: int, forward: Forward | None) -> tuple[Plan, Captured]:
        """The plan alone, and what it was made of."""
        budget = self.settings.budget()
        attempting = self._looked(calibration, size, forward)
        return attempting.plan(budget), attempting.captured

    def sweep(
        self, asks: Sequence[Settings], calibration: Iterable[Any] | Samples, size: int, forward: Forward | None
    ) -> Iterator[Result]:
        """One result for each of some settings, which differ in budget and method: of one pass of statistics.

        What a run freezes because its cut failed is no matter of the others.
        """
        budgets = [asked.budget() for asked in asks]
        several = len({asked.name for asked in self.asks}) > 1
        attempting = self._looked(calibration, size, forward, ranking=f"-{asks[0].name}" if several else "")
        ledger = attempting.ledger
        shared = dict(ledger.seconds)
        for asked, budget in zip(asks, budgets, strict=True):
            ledger.seconds = dict(shared)
            if asked.name != attempting.settings.name:
                ledger.ranking, ledger.turn, ledger.frozen = f"-{asked.name}", "", 0
                ledger.seconds.pop("guide")
                attempting = attempting.asked_for(asked)
            shared = dict(ledger.seconds)
            ledger.turn, ledger.frozen = f"{ledger.ranking}-{asked.keep}", 0
            yield attempting.asked_for(asked).result(budget)

    def gather(self, calibration: Iterable[Any] | Samples, size: int, forward: Forward | None) -> Stats | None:
        """The statistics that the runs of a sweep need; None where they need none."""
        looking = self._looking()
        return looking.gather(looking.capture(calibration, size, forward))

    def _looking(self, ranking: str = "") -> Looking:
        ledger = Ledger(self.settings, ranking=ranking)
        return Looking(self.model, self.settings, ledger, self.asks, self.known_stats)

    def _looked(
        self, calibration: Iterable[Any] | Samples, size: int, forward: Forward | None, ranking: str = ""
    ) -> Attempting:
        """All that comes before a budget is looked at."""
        looking = self._looking(ranking)
        captured = looking.capture(calibration, size, forward)
        with looking.ledger.stage("evaluate"):
            dense = looking.metric(self.model)
        teacher = self.model if self.teacher is None else self.teacher
        return Attempting(looking, captured, looking.rank(captured), dense, teacher)
