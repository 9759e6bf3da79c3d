"""`sweep`: budgets × methods × seeds, of one pass of statistics for each seed; here or by other processes (joblib)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from torch import nn

from actprune.allocation.budget import Keep
from actprune.arguments import settings_of
from actprune.artifacts.checkpoint import check_output
from actprune.artifacts.journal import journal_of
from actprune.asked import Asked, Finished, all_asked, is_there, read_finished, samples_for
from actprune.data.samples import Samples
from actprune.errors import DataError, DistributedError
from actprune.graph.keep import undisturbed
from actprune.joining import launched
from actprune.keeping import given_digests
from actprune.keras3.backend import is_keras
from actprune.pipeline import pruned, returned
from actprune.result import Result
from actprune.settings import Settings
from actprune.stages import Run
from actprune.stats.statistics import Stats


def sweep(
    model: nn.Module,
    calibration: Iterable[Any] | Callable[[int], Iterable[Any]],
    keeps: Sequence[Keep],
    *,
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (),
    jobs: int = 1,
    save_to: str | Path | None = None,
    resume: bool = False,
    **arguments: Any,
) -> Iterator[Result | Finished]:
    """`prune` for all budgets × methods × seeds; a result as soon as it is there, seed by seed and method by method.

    There is one capture and one pass of statistics for each seed.

    Args:
        calibration: as for `prune`; or a function seed → batches, where every seed shall draw its own.
        methods, seeds: instead of `method=` and `seed=`.
        jobs: how many runs at a time. One: in this process. More, or −1 for as many as there are cores: each in a
            process of its own, by joblib's back end loky, or the one that `joblib.parallel_config` names (dask, ray).
            What they get is pickled in memory, by joblib; nothing that is pickled is written or read here. Such runs
            come back as `Finished`, which has `model`, `plan` and `report`.
        save_to: write each result there as a run folder, named after its budget (`macs-50`; with several methods or
            seeds `macs-50-l2-seed1`). Until the last one is there, every stage leaves its result in folders whose names
            end in ".unfinished".
        resume: go on from what an interrupted sweep left there: the end is the same. Runs whose folders are there are
            read, not made again, and come back as `Finished`.
        arguments: those of `prune` but `keep` and `inplace`.

    Raises:
        BudgetError, ArtifactError, DataError, DistributedError: before any work, where the runs can't be made or
            written like this.
    """
    if "keep" in arguments or arguments.get("inplace"):
        raise TypeError("sweep() takes neither keep= nor inplace=: it has keeps, and leaves the model as it is")
    for name in ("method", "seed"):
        if isinstance(arguments.get(name), tuple | list):
            raise TypeError(f"sweep() takes one {name}=; several are {name}s=")
    several = {"methods": [methods] if isinstance(methods, str) else methods, "seeds": seeds}
    budgets = list(keeps) if isinstance(keeps, Iterable) and not isinstance(keeps, str | Mapping) else [keeps]
    asked = all_asked(model, budgets, several, {**arguments, "save_to": save_to, "resume": resume})
    _check_processes(model, jobs)
    for one in asked if save_to is not None else ():
        folder = one.given["save_to"]
        check_output(folder, overwrite=resume and folder.exists())
    return _swept(model, calibration, asked, jobs, save_to, resume)


def _swept(
    model: nn.Module,
    calibration: Iterable[Any] | Callable[[int], Iterable[Any]],
    asked: Sequence[Asked],
    jobs: int,
    save_to: str | Path | None,
    resume: bool,
) -> Iterator[Result | Finished]:
    known: Samples | None = None
    for seed in dict.fromkeys(one.seed for one in asked):
        group = [one for one in asked if one.seed == seed]
        if not isinstance(calibration, Iterable):
            known = samples_for(model, calibration(seed), group)
        known = known or samples_for(model, cast("Iterable[Any]", calibration), group)
        own = f"-seed{seed}" if len(group) < len(asked) else ""
        place = None if save_to is None else Path(save_to).with_name(Path(save_to).name + own)
        yield from _of_one_seed(model, known, group, jobs, place, resume)


def _check_processes(model: nn.Module, jobs: int) -> None:
    if launched()[1] > 1:
        raise DistributedError(
            "A sweep is no run of several ranks.",
            expected="one process, which starts others itself",
            got=f"{launched()[1]} ranks",
            where="sweep, under torchrun or in an initialised group",
            hint="call sweep(jobs=…) (--jobs) without torchrun, or prune() under it",
        )
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs == 0:
        raise DataError(
            "jobs is no number of processes.",
            expected="1 or more, or −1 for as many as there are cores",
            got=repr(jobs),
            where="sweep(jobs=…)",
            hint="leave it out for one run at a time in this process",
        )
    if jobs != 1 and is_keras(model):
        raise DataError(
            "A Keras model is not sent to other processes.",
            expected="jobs=1",
            got=f"jobs={jobs}",
            where="sweep(jobs=…)",
            hint="leave jobs out, or start one sweep for each budget yourself",
        )


def _of_one_seed(
    model: nn.Module, samples: Samples, group: Sequence[Asked], jobs: int, save_to: Path | None, resume: bool
) -> Iterator[Result | Finished]:
    """The results of a seed in the order in which they were asked for."""
    digests = given_digests(group[0].given["model"], samples, group[0].given["calibration_size"]) if resume else {}
    done = {one: read_finished(model, one, samples, digests) for one in group if resume and is_there(one)}
    left = [one for one in group if one not in done]
    if jobs == 1:
        made = _in_turn(group, left, samples, save_to, resume)
    else:
        made = _side_by_side(model, group, left, samples, jobs, save_to, resume)
    for one in group:
        yield done[one] if one in done else next(made)
    next(made, None)  # its processes end


def _in_turn(
    group: Sequence[Asked], left: Sequence[Asked], samples: Samples, save_to: Path | None, resume: bool
) -> Iterator[Result]:
    """In this process."""
    if not left:
        return
    journal = journal_of(save_to, resume) if save_to is not None else None
    given = left[0].given
    asks = [settings_of(one.given, journal) for one in left]
    job = Run(given["model"], asks[0], asks=[settings_of(one.given, journal) for one in group])
    found = job.sweep(asks, samples, given["calibration_size"], given["forward"])
    for one in left:
        with undisturbed(job.model):  # what the caller does between two results is the caller's
            result = returned(next(found))
            if (folder := one.given["save_to"]) is not None:
                result.save(folder, overwrite=resume and folder.exists())
            if journal is not None and one is left[-1]:
                journal.remove()  # before the last result, behind which nobody needs to ask
        yield result


def _side_by_side(
    model: nn.Module,
    group: Sequence[Asked],
    left: Sequence[Asked],
    samples: Samples,
    jobs: int,
    save_to: Path | None,
    resume: bool,
) -> Iterator[Finished]:
    """Each in a process of its own; statistics are gathered here."""
    if not left:
        return
    from joblib import Parallel, delayed, parallel

    journal = journal_of(save_to, resume) if save_to is not None else None
    given = left[0].given
    asks: list[Settings] = [settings_of(one.given, journal) for one in group]
    job = Run(given["model"], asks[0], asks=asks)
    with undisturbed(job.model):
        gathered = job.gather(samples, given["calibration_size"], given["forward"])
    tell = asks[0].tell
    tell("sweep", 0, len(left))
    with TemporaryDirectory(prefix="actprune-") as scratch:
        placed = [replace(one, given=_sent(one, samples, Path(scratch))) for one in left]
        streaming = getattr(parallel.get_active_backend()[0], "supports_return_generator", False)
        several = Parallel(n_jobs=jobs, return_as="generator" if streaming else "list")
        ended = cast("Iterable[str]", several(delayed(_run)(one.given, gathered) for one in placed))
        for i, (one, _) in enumerate(zip(placed, ended, strict=True), 1):
            tell("sweep", i, len(left))
            found = read_finished(model, one, samples, None)
            if save_to is None:
                _ = found.model  # its folder goes
            if journal is not None and one is placed[-1]:
                journal.remove()
            yield found


def _sent(one: Asked, samples: Samples, scratch: Path) -> dict[str, Any]:
    """The arguments as another process gets them."""
    folder = one.given["save_to"] or scratch / one.name
    return {**one.given, "calibration": samples, "save_to": folder, "progress": None}


def _run(given: Mapping[str, Any], gathered: Stats | None) -> str:
    """One run, in whatever process: its result is the run folder."""
    pruned(given, gathered)
    return str(given["save_to"])
