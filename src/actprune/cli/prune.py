"""`actprune prune`."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actprune.cli.options import (
    Allocation,
    AsJson,
    Compensate,
    EqualWidths,
    FormName,
    LogJson,
    MemoryLimit,
    MethodName,
    Protect,
    RecipeSpec,
    Recover,
    Resamples,
    RoundTo,
    Samples,
    Seed,
    recovery,
    rounded,
)
from actprune.cli.recipe import DEFAULT

if TYPE_CHECKING:
    from actprune.report.record import Report


def prune(
    spec: RecipeSpec = DEFAULT,
    data: Samples = None,
    keep: Annotated[str | None, typer.Option(help="Budget: macs=50%, params=10%, bytes=256KB, latency=50%, …")] = None,
    max_drop: Annotated[float | None, typer.Option(min=0, help="How much the metric may fall, in its units.")] = None,
    plan: Annotated[Path | None, typer.Option(help="Keep the units of this plan.json, edited by hand or not.")] = None,
    method: MethodName = "sgd-ap",
    allocation: Allocation = None,
    compensate: Compensate = None,
    protect: Protect = None,
    round_to: RoundTo = "1",
    equal_widths: EqualWidths = False,
    memory_limit: MemoryLimit = None,
    form: FormName = "class",
    recover: Recover = None,
    confidence: Resamples = "auto",
    seed: Seed = 0,
    rounds: Annotated[
        int, typer.Option(min=1, help="Cut in so many steps, with --recover after each; OUT/final is the end.")
    ] = 1,
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/pruned"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that was interrupted there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would stay; write nothing.")] = False,
    as_json: AsJson = False,
    log_json: LogJson = False,
) -> None:
    """Prune the model of a recipe, prove the cut, fine-tune if the recipe can, and write a run folder.

    Example: actprune prune recipe.py --keep macs=50% --out runs/half

    Example: actprune prune recipe.py --keep params=3% --rounds 2 --recover 400 --out runs/small

    Example: actprune prune lenet.keras --data mnist.npz --keep macs=50% --out runs/keras
    """
    from actprune.artifacts.folder import check_output
    from actprune.cli.console import console_of
    from actprune.cli.progress import progress_of
    from actprune.cli.recipe import load_recipe
    from actprune.joining import launched
    from actprune.pipeline import check_arguments, predict
    from actprune.report.table import prediction_table, tables

    arguments: dict[str, Any] = {
        "keep": _budget(keep, max_drop, plan), "max_drop": max_drop, "method": method, "allocation": allocation,
        "compensate": compensate, "protect": protect or (), "form": form, "seed": seed,
        "round_to": rounded(round_to), "equal_widths": equal_widths, "memory_limit": memory_limit,
        "confidence": rounded(confidence),
    }  # fmt: skip
    if rounds > 1:
        _check_rounds(keep, max_drop, plan, dry_run)
    quiet = launched()[0] > 0  # of several processes the first one speaks
    console = console_of(quiet=quiet)
    with (
        redirect_stdout(sys.stderr),
        progress_of(log_json, quiet) as progress,
    ):  # what the user's code prints is no part of the answer
        recipe = load_recipe(spec, seed, data)
        arguments |= {"evaluate": recipe.optional("evaluate"), "progress": progress}
        check_arguments(arguments)  # before the recipe trains a model, perhaps
        if not dry_run and not resume and rounds == 1:
            check_output(out)
        model, samples = recipe.model(), recipe.calibration()
        if dry_run:
            found: Any = predict(model, samples, **arguments)
        else:
            arguments |= {"recover": recovery(recover), "finetune": recipe.optional("finetune")}
            found, out = _run(model, samples, rounds, out, {**arguments, "resume": resume})
    if as_json and not quiet:
        typer.echo(json.dumps(found.to_data(), indent=1))
    if as_json:
        return
    console.print(prediction_table(found) if dry_run else tables(found))
    if not dry_run:
        console.print(f"written to {out}")


def _run(model: Any, samples: Any, rounds: int, out: Path, arguments: dict[str, Any]) -> tuple[Report, Path]:
    """The report of the run, and the folder of the network that it ends with."""
    from actprune.cli.runs import read_run
    from actprune.iterating import FINAL, prune_in_rounds
    from actprune.joining import launched
    from actprune.pipeline import prune as run

    if rounds == 1:
        return run(model, samples, **arguments, save_to=out).report, out
    given = {name: value for name, value in arguments.items() if name != "max_drop"}
    *_, last = prune_in_rounds(model, samples, rounds=rounds, **given, save_to=out)
    report = read_run(out / FINAL).report if launched()[0] == 0 else last.report  # the first process writes
    return report, out / FINAL


def _check_rounds(keep: str | None, max_drop: float | None, plan: Path | None, dry_run: bool) -> None:
    if plan is not None or max_drop is not None or keep is None:
        raise typer.BadParameter("give a budget: --keep params=5%, say", param_hint="--rounds")
    if dry_run:
        raise typer.BadParameter("the second cut is decided once the first is made", param_hint="--rounds --dry-run")


def _budget(keep: str | None, max_drop: float | None, plan: Path | None) -> Any:
    if plan is None:
        return "macs=50%" if keep is None and max_drop is None else keep
    if keep is not None:
        raise typer.BadParameter("--plan says all that --keep could", param_hint="--plan")
    from actprune.artifacts.plan_file import read_plan

    return read_plan(plan)
