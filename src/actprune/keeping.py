"""Results of stages by way of the journal: each is made once, by rank 0 or by all ranks, and read back by everybody."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import nn

import actprune
from actprune.artifacts.files import content_digest
from actprune.artifacts.journal import Journal, Kind
from actprune.data.samples import PerBatch, Samples
from actprune.deciding import FailedCutError, FailedElsewhereError
from actprune.distributed import Ranks
from actprune.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Keeping:
    """The journal of a run, on every rank.

    Attributes:
        journal: None where a run keeps nothing: stages are then made, and that is all.
    """

    journal: Journal | None
    ranks: Ranks

    def begin(self, told: Mapping[str, Any]) -> None:
        """Open the journal for this run only: what it was told is the same on every rank."""
        if self.journal is not None:
            journal = self.journal
            self.ranks.check_same({"actprune": actprune.__version__, **told})
            self.ranks.together(lambda: journal.begin(told))

    def of_first(self, name: str, kind: Kind[T], make: Callable[[], T]) -> T:
        """The result of a stage; rank 0 makes it, and the others get it.

        Raises:
            FailedCutError: on every rank, where `make` raises it.
        """
        journal, ranks = self.journal, self.ranks
        if journal is None:
            return make()
        if ranks.world == 1:
            return journal.keep(name, kind, make)
        failed = ranks.alone(lambda: _failure(lambda: journal.keep(name, kind, make)))
        if ranks.from_first(lambda: failed is not None):
            raise failed or FailedElsewhereError(ranks)
        ranks.send_file(journal.path(name, kind))
        return ranks.together(lambda: journal.keep(name, kind, make))  # the file is there

    def of_all(self, name: str, kind: Kind[T], make: Callable[[], T]) -> T:
        """As `of_first`, of what the ranks make with each other."""
        if self.ranks.world == 1 or self.ranks.from_first(self.path(name, kind).exists):
            return self.of_first(name, kind, make)
        made = make()
        return self.of_first(name, kind, lambda: made)

    def path(self, name: str, kind: Kind[Any]) -> Path:
        """The file of a stage, where there is a journal."""
        return cast("Journal", self.journal).path(name, kind)


def given_digests(model: nn.Module, samples: Samples, size: int) -> dict[str, Any]:
    """What a run is given beside its settings."""
    return {
        "calibration_size": size,
        "valued": samples.valued and list(samples.valued),
        "model": content_digest(model.state_dict().items()),
        "data": content_digest(_named(samples)),
    }


def _named(samples: Samples) -> Iterator[tuple[str, Any]]:
    for i, leaf in enumerate(samples.leaves):
        if isinstance(leaf, PerBatch):
            yield from ((f"{i}.{number}", value) for number, value in enumerate(leaf.values))
        else:
            yield str(i), leaf


def request_of(settings: Settings, given: Mapping[str, Any]) -> str:
    """SHA-256 of all that a run is asked for and given."""
    return hashlib.sha256(json.dumps({**settings.told(), **given}, sort_keys=True).encode()).hexdigest()


def in_common(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several runs of one pass of statistics are asked for: all values of what they differ in, but for budgets,
    by which their stages are named."""
    each = {key: list(dict.fromkeys(json.dumps(one[key]) for one in told)) for key in told[0] if key != "keep"}
    return {key: json.loads(values[0]) if len(values) == 1 else values for key, values in each.items()}


def _failure(work: Callable[[], Any]) -> FailedCutError | None:
    """The cut that failed in it."""
    try:
        work()
    except FailedCutError as error:
        return error
    return None
