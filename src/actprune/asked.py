"""Some of several runs: what each is asked, and how one that is finished is read from its folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from torch import nn

from actprune.allocation.budget import Keep, read_keep
from actprune.arguments import settings_of
from actprune.artifacts.files import read_text
from actprune.artifacts.folder import AGAIN, PLAN, PLAN_BYTES, REPORT, file_of
from actprune.artifacts.plan_file import read_plan
from actprune.data.samples import Samples
from actprune.data.take import take
from actprune.errors import ArtifactError, BudgetError
from actprune.graph.keep import undisturbed
from actprune.keeping import request_of
from actprune.keras3.bridge import as_batches, load
from actprune.looking import labelled
from actprune.pipeline import arguments_of
from actprune.plan import Plan
from actprune.report.reading import read_report
from actprune.report.record import Report


@dataclass(frozen=True, eq=False)
class Finished:
    """A run of a sweep that this call has not made itself, as its folder has it.

    Attributes:
        plan, report: as in `Result`.
        folder: the run folder; gone, where none was asked for.
    """

    plan: Plan
    report: Report = field(repr=False)
    folder: Path
    _dense: Any = field(repr=False)
    _example: Any = field(repr=False)

    @cached_property
    def model(self) -> Any:
        """The network of the run, loaded when it is first asked for; see `actprune.load`."""
        return load(self.folder, self._dense, self._example)


@dataclass(frozen=True, eq=False)
class Asked:
    """One run: the arguments of `prune`, and the name of its folder."""

    given: Mapping[str, Any]
    name: str

    @property
    def seed(self) -> int:
        return self.given["seed"]


def run_names(keeps: Sequence[Keep], methods: Sequence[str], seeds: Sequence[int]) -> list[tuple[Any, str]]:
    """Budget and folder of every run, in the order in which they come."""
    return [(keep, name) for keep, _, _, name in _runs(keeps, methods, seeds)]


def _runs(keeps: Sequence[Keep], methods: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[Any, str, int, str]]:
    """Budget, method, seed and name of every run, seed by seed and method by method."""
    for seed, method, keep in product(seeds, methods, keeps):
        parts = [read_keep(keep).slug]  # type: ignore[arg-type]
        parts += [method] if len(methods) > 1 else []
        parts += [f"seed{seed}"] if len(seeds) > 1 else []
        yield keep, method, seed, "-".join(parts)


def all_asked(
    model: nn.Module, keeps: Sequence[Keep], several: Mapping[str, Sequence[Any]], arguments: Mapping[str, Any]
) -> list[Asked]:
    """Every run of a sweep, in order.

    Args:
        several: "methods" and "seeds"; where one is empty, that of the arguments.
        arguments: those of `prune`, but for budget, method and seed; `save_to` is the folder of all runs.
    """
    usual = arguments_of(model, (), arguments)
    if not keeps:
        raise BudgetError(
            "A sweep has no budget.",
            expected="at least one",
            got="none",
            where="sweep(keeps=…)",
            hint='write for example sweep(model, data, ["macs=70%", "macs=50%"])',
        )
    methods = tuple(several["methods"]) or (usual["method"],)
    seeds = tuple(several["seeds"]) or (usual["seed"],)
    found: list[Asked] = []
    for keep, method, seed, name in _runs(keeps, methods, seeds):
        folder = None if usual["save_to"] is None else Path(usual["save_to"]) / name
        given = {**usual, "keep": keep, "method": method, "seed": seed, "save_to": folder}
        settings_of(given).budget()  # whatever is wrong is told before the work
        found.append(Asked(given, name))
    names = [one.name for one in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BudgetError(
            "Two runs would have one run folder.",
            expected="budgets, methods and seeds that differ",
            got=f"{twice[0]} twice",
            where="sweep(keeps=…)",
            hint="leave one of them out",
        )
    return found


def samples_for(model: nn.Module, calibration: Iterable[Any], group: Sequence[Asked]) -> Samples:
    """What every one of some runs with the same data looks at."""
    given = group[0].given
    data = as_batches(calibration, model) if given["forward"] is None else calibration
    with undisturbed(given["model"]):
        labels = labelled(settings_of(one.given) for one in group)
        return take(given["model"], data, given["calibration_size"], given["forward"], labels)


def is_there(one: Asked) -> bool:
    """Whether there is a run in its folder, which exists whole or not at all; an empty one does not count."""
    folder = one.given["save_to"]
    return folder is not None and (folder / PLAN).exists()


def read_finished(model: Any, one: Asked, samples: Samples, digests: Mapping[str, Any] | None) -> Finished:
    """A finished run from its folder.

    Args:
        model: the dense model, as the caller gave it.
        digests: of what the run was given; None where this call has just made it.

    Raises:
        ArtifactError: the folder can't be read, or holds a run of other settings, weights or data.
    """
    folder = one.given["save_to"]
    path = file_of(folder, REPORT)
    report = read_report(read_text(path, PLAN_BYTES, AGAIN), str(path))
    if digests is not None and report.request != request_of(settings_of(one.given), digests):
        raise ArtifactError(
            "The run in this folder is another one.",
            expected="a run with the same model, data, settings and version of torch",
            got=f"one whose request is {str(report.request)[:16]}",
            where=str(path),
            hint="give the same as then, move that folder away, or choose another place",
        )
    return Finished(read_plan(file_of(folder, PLAN)), report, folder, model, samples.inputs)
