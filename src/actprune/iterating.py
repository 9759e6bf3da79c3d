"""`prune_in_rounds`: a strong cut in several smaller ones, each after the network has recovered from the one before.

Above a third of its cost a network is better cut at once; below, statistics and curves of the dense network say little
of the one that is left (compare Han et al. 2015, Learning both Weights and Connections). Every round is an ordinary
run of `prune`, proved against the network that it began with; recovery and fine-tune aim at the first one throughout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from actprune.allocation.budget import Amount, Budget, Keep, read_keep
from actprune.allocation.cost import cost
from actprune.arguments import settings_of
from actprune.artifacts.checkpoint import check_output
from actprune.asked import Asked, Finished, is_there, read_finished, samples_for
from actprune.axes.capture import capture
from actprune.composing import save_composed
from actprune.errors import BudgetError, DataError
from actprune.graph.keep import undisturbed
from actprune.keeping import given_digests
from actprune.keras3.backend import is_keras
from actprune.pipeline import arguments_of, pruned, ranks_of
from actprune.plan import Plan
from actprune.report.record import Report
from actprune.result import Result
from actprune.run_folder import on_disk

FINAL = "final"
"""The run folder of all rounds as one cut."""


def prune_in_rounds(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    keep: Keep,
    rounds: int = 2,
    save_to: str | Path | None = None,
    resume: bool = False,
    **arguments: Any,
) -> Iterator[Result | Finished]:
    """`prune` to a budget in several rounds; the result of each as soon as it is there, the last one meets the budget.

        *_, result = prune_in_rounds(model, data, keep="params=5%", rounds=2, recover=Distill())

    Each round keeps the same share of what the one before has left. Its `plan`, `proof` and `report` are about the
    network of the round before; `recover` and an `SGD` distil from `model` in every round (values inside are compared
    in the first one only).

    Args:
        model, calibration: as for `prune`; samples are taken once.
        keep: a budget, as for `prune`; no explicit widths, no plan and no milliseconds.
        rounds: how many.
        save_to: write the run folders `round-1`, `round-2`, … there, and `final`: the last network as one cut of
            `model`, proved as such, for `load(final, model)`.
        resume: go on from what an interrupted call left there. Rounds whose folders are there are read, and come back
            as `Finished`.
        arguments: those of `prune` but `inplace` and `max_drop`.

    Raises:
        BudgetError: a budget that can't be divided.
        DataError: no number of rounds, or a Keras model.
        ArtifactError: a folder that is there already (without `resume`), or holds another run; before its work.
        EquivalenceError: a proof fails, that of a round or of all of them as one cut.
    """
    if taken := {"inplace", "max_drop"} & arguments.keys():
        raise TypeError(f"prune_in_rounds() takes no {min(taken)}=")
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise _no_rounds(rounds)
    if is_keras(model):
        raise _keras()
    budget = _budget(keep)
    given = arguments_of(model, calibration, {**arguments, "keep": budget, "resume": resume})
    settings_of(given).budget()
    folders = [None if save_to is None else Path(save_to) / f"round-{i + 1}" for i in range(rounds)]
    final = None if save_to is None else Path(save_to) / FINAL
    for folder in (*folders, final):
        if folder is not None:
            check_output(folder, overwrite=resume and folder.exists())
    return _rounds(model, calibration, given, budget, folders, final)


def _rounds(
    model: nn.Module,
    calibration: Iterable[Any],
    given: dict[str, Any],
    budget: Budget | Amount,
    folders: Sequence[Path | None],
    final: Path | None,
) -> Iterator[Result | Finished]:
    given["calibration"] = samples = samples_for(model, calibration, [Asked(given, "")])
    whole = _share(model, samples.inputs, budget)
    left, network = 1.0, model
    plans, reports = list[Plan](), list[Report]()
    for i, folder in enumerate(folders):
        share = Budget(whole.cost, min(whole.keep ** ((i + 1) / len(folders)) / left, 1.0))
        asked = Asked({**given, "model": network, "keep": share, "save_to": folder}, f"round-{i + 1}")
        if given["resume"] and is_there(asked):
            digests = given_digests(network, samples, given["calibration_size"])
            result: Result | Finished = read_finished(network, asked, samples, digests)
        else:
            result = pruned(asked.given, teacher=model)
        left *= _left(result, share)
        network = result.model
        plans.append(result.plan)
        reports.append(result.report)
        if final is not None and len(plans) == len(folders):
            _save_as_one(given, network, plans, reports, samples.inputs, final)
        yield result


def _save_as_one(
    given: Mapping[str, Any],
    network: nn.Module,
    plans: Sequence[Plan],
    reports: Sequence[Report],
    inputs: Any,
    folder: Path,
) -> None:
    """Of several processes the first one writes."""
    model, budget = given["model"], str(given["keep"])

    def write(path: Path) -> None:
        again = given["resume"] and path.exists()
        save_composed(path, model, network, plans, reports, inputs, budget, overwrite=again)

    with ranks_of(given) as ranks, undisturbed(model):
        on_disk(ranks, folder, write)


def _left(result: Result | Finished, asked: Budget) -> float:
    """The share of a round's cost that it has left: counted, or what was asked for where that is no count."""
    before, after = (getattr(stage, asked.cost, None) for stage in (result.report.dense, result.report.pruned))
    return after / before if before and after else asked.keep


def _share(model: nn.Module, inputs: Any, asked: Budget | Amount) -> Budget:
    """An amount as a share of the first network."""
    if isinstance(asked, Budget):
        return asked
    with undisturbed(model):
        return asked.of(cost(capture(model, inputs))[asked.cost])


def _budget(keep: Keep) -> Budget | Amount:
    if isinstance(keep, Budget | Amount | str | float | int):
        found = read_keep(keep)
        if isinstance(found, Budget) or found.cost != "latency":
            return found
        keep = found
    raise BudgetError(
        "Only a budget can be met in rounds.",
        expected='keep="params=5%", say, or "params=500K"',
        got=str(keep) if isinstance(keep, Amount) else type(keep).__name__,
        where="prune_in_rounds(keep=…)",
        hint='call prune with explicit widths or a plan; of milliseconds, ask for a share: "latency=50%"',
    )


def _no_rounds(rounds: Any) -> DataError:
    return DataError(
        "rounds is no number of rounds.",
        expected="1 or more",
        got=repr(rounds),
        where="prune_in_rounds(rounds=…)",
        hint="two or three are usual",
    )


def _keras() -> DataError:
    return DataError(
        "A Keras model is not pruned in rounds.",
        expected="a torch module",
        got="a Keras model",
        where="prune_in_rounds",
        hint="call prune again with the model that it returned",
    )
