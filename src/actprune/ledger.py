"""What a run keeps beside its results: how long each stage took, and the name of what it left in the journal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from actprune.graph.keep import seed_all
from actprune.keeping import Keeping, in_common, request_of
from actprune.settings import Settings


@dataclass(eq=False)
class Ledger:
    """The book of one call of `prune`, or of a sweep, whose runs have one journal, one seed and one progress.

    Attributes:
        given: digests of the model and of the data, where there is a journal.
        seconds: stage → time.
        frozen: how many cuts have failed; stages after one have other names than those before it.
        milliseconds: of the dense network, once they were measured.
        ranking, turn: of a sweep, what tells its guides apart, and the stages from allocation on.
    """

    settings: Settings
    given: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    frozen: int = 0
    ranking: str = ""
    turn: str = ""
    milliseconds: float | None = None

    @property
    def keeping(self) -> Keeping:
        """The journal, on every rank."""
        return Keeping(self.settings.journal, self.settings.ranks)

    def begin(self, given: Mapping[str, Any], asks: Sequence[Settings]) -> None:
        """Open the journal, for this run only.

        Args:
            given: the digests.
            asks: of a sweep, the settings of all its runs.
        """
        self.given = given
        told = in_common([one.told() for one in asks]) if asks else self.settings.told()
        self.keeping.begin({**told, **given})

    def name(self, stage: str) -> str:
        """In the journal."""
        return f"{stage}{self.turn}-{self.frozen}"

    def request(self, settings: Settings) -> str | None:
        """The digest of all that a run with these settings is asked for and given."""
        return request_of(settings, self.given) if self.given else None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Around a stage, or a part of one."""
        self.settings.tell(name, 0, 1)
        seed_all(self.settings.seed)  # a stage must not depend on what ran before it in this process
        started = time.perf_counter()
        try:
            yield
        finally:  # a cut that fails has taken its time as well
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        self.settings.tell(name, 1, 1)
