"""`actprune sweep`."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actprune.allocation.budget import read_keep
from actprune.cli.options import (
    Allocation,
    AsJson,
    Compensate,
    EqualWidths,
    FormName,
    LogJson,
    MemoryLimit,
    Protect,
    RecipeSpec,
    Recover,
    Resamples,
    RoundTo,
    Samples,
    recovery,
    rounded,
)
from actprune.cli.recipe import DEFAULT, Recipe
from actprune.errors import ArtifactError

if TYPE_CHECKING:
    from actprune.report.frontier import Frontier

FRONTIER_FILES = ("frontier.json", "frontier.md")


def sweep(
    keep: Annotated[list[str], typer.Option(help="A budget: macs=50%, params=10%, …; several times.")],
    spec: RecipeSpec = DEFAULT,
    data: Samples = None,
    method: Annotated[list[str] | None, typer.Option(help="sgd-ap (the default), l2, …; several times.")] = None,
    allocation: Allocation = None,
    compensate: Compensate = None,
    protect: Protect = None,
    round_to: RoundTo = "1",
    equal_widths: EqualWidths = False,
    memory_limit: MemoryLimit = None,
    form: FormName = "class",
    recover: Recover = None,
    confidence: Resamples = "auto",
    seed: Annotated[list[int] | None, typer.Option(help="Of everything random, 0 else; several times.")] = None,
    jobs: Annotated[int, typer.Option(help="Runs at a time, each in a process of its own; -1: one for each core.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for the run folders and the frontier.")] = Path("runs/sweep"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep that was interrupted there.")] = False,
    as_json: AsJson = False,
    log_json: LogJson = False,
) -> None:
    """Prune to several budgets, of one pass of statistics: accuracy against cost.

    With several methods or seeds, to every budget with each of them.

    Each result is a run folder below --out; frontier.json and frontier.md say what was reached.

    Example: actprune sweep recipe.py --keep macs=70% --keep macs=50% --out runs/sweep

    Example: actprune sweep recipe.py --keep macs=50% --method sgd-ap --method l2 --seed 0 --seed 1 --jobs 4
    """
    _check_different(keep)
    methods, seeds = method or ["sgd-ap"], seed or [0]
    from actprune.asked import run_names
    from actprune.cli.console import console_of
    from actprune.cli.progress import progress_of
    from actprune.cli.recipe import load_recipe
    from actprune.cli.runs import write_texts
    from actprune.pipeline import check_arguments
    from actprune.report.frontier import Frontier, Point
    from actprune.sweeping import sweep as run

    if not resume:
        _check_free(out)
    points: list[Point] = []
    with (
        redirect_stdout(sys.stderr),
        progress_of(log_json) as progress,
    ):  # what the user's code prints is no part of the answer
        recipe = load_recipe(spec, seeds[0], data)
        for one in methods:  # before the recipe trains a model, perhaps
            asked = {"keep": keep[0], "method": one, "allocation": allocation, "compensate": compensate, "form": form}
            check_arguments({**asked, "round_to": rounded(round_to), "memory_limit": memory_limit})
        own = recipe if len(seeds) == 1 else replace(recipe, seed=None)  # then every run brings its own
        results = run(
            recipe.model(), _calibration(recipe, seeds), keep, methods=methods, seeds=seeds, jobs=jobs,
            allocation=allocation, compensate=compensate,
            protect=protect or (), round_to=rounded(round_to), equal_widths=equal_widths,
            memory_limit=memory_limit, form=form,
            recover=recovery(recover), confidence=rounded(confidence), progress=progress,
            evaluate=own.optional("evaluate"), finetune=own.optional("finetune"), save_to=out, resume=resume,
        )  # fmt: skip
        for result, (budget, name) in zip(results, run_names(keep, methods, seeds), strict=True):
            points.append(Point(budget, name, result.report))
            # written each time, so that an interruption leaves what was reached
            write_texts(out, dict(zip(FRONTIER_FILES, _texts(Frontier(points)), strict=True)))
    found = Frontier(points)
    if as_json:
        typer.echo(_texts(found)[0])
        return
    console = console_of()
    console.print(found.to_table())
    console.print(f"written to {out}")


def _texts(found: Frontier) -> tuple[str, str]:
    return json.dumps(found.to_data(), indent=1), found.to_markdown()


def _check_different(keeps: list[str]) -> None:
    names = [read_keep(keep).slug for keep in keeps]
    if len(set(names)) < len(names):
        raise typer.BadParameter("every budget once", param_hint="--keep")


def _calibration(recipe: Recipe, seeds: list[int]) -> Any:
    """The batches; of several seeds a function, for each draws its own."""
    if len(seeds) == 1:
        return recipe.calibration()
    return lambda seed: replace(recipe, seed=seed).calibration()


def _check_free(out: Path) -> None:
    """That no earlier sweep is there."""
    if any((out / name).exists() for name in FRONTIER_FILES):
        raise ArtifactError(
            "There is a sweep in this folder already.",
            expected="a folder without one",
            got=f"one with {' and '.join(FRONTIER_FILES)}",
            where=str(out),
            hint="choose another --out, or move that one away",
        )
