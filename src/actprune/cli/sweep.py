"""`actprune sweep`."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from actprune.allocation.budget import parse
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
    Resamples,
    RoundTo,
    Samples,
    Seed,
    rounded,
)
from actprune.cli.recipe import DEFAULT
from actprune.errors import ArtifactError

if TYPE_CHECKING:
    from actprune.report.frontier import Frontier

FRONTIER_FILES = ("frontier.json", "frontier.md")


def sweep(
    keep: Annotated[list[str], typer.Option(help="A budget: macs=50%, params=10%, …; several times.")],
    spec: RecipeSpec = DEFAULT,
    data: Samples = None,
    method: MethodName = "sgd-ap",
    allocation: Allocation = None,
    compensate: Compensate = None,
    protect: Protect = None,
    round_to: RoundTo = "1",
    equal_widths: EqualWidths = False,
    memory_limit: MemoryLimit = None,
    form: FormName = "class",
    confidence: Resamples = "auto",
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for the run folders and the frontier.")] = Path("runs/sweep"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep that was interrupted there.")] = False,
    as_json: AsJson = False,
    log_json: LogJson = False,
) -> None:
    """Prune to several budgets, of one pass of statistics: accuracy against cost.

    Each result is a run folder below --out; frontier.json and frontier.md say what was reached.

    Example: actprune sweep recipe.py --keep macs=70% --keep macs=50% --out runs/sweep
    """
    names = _folders(keep)
    from rich.console import Console

    from actprune.cli.progress import progress_of
    from actprune.cli.recipe import load_recipe
    from actprune.cli.runs import write_texts
    from actprune.pipeline import sweep as run
    from actprune.report.frontier import Frontier, Point

    if not resume:
        _check_free(out)
    points: list[Point] = []
    with (
        redirect_stdout(sys.stderr),
        progress_of(log_json) as progress,
    ):  # what the user's code prints is no part of the answer
        recipe = load_recipe(spec, seed, data)
        results = run(
            recipe.model(), recipe.calibration(), keep, method=method, allocation=allocation, compensate=compensate,
            protect=protect or (), round_to=rounded(round_to), equal_widths=equal_widths,
            memory_limit=memory_limit, form=form, seed=seed,
            confidence=rounded(confidence), progress=progress,
            evaluate=recipe.optional("evaluate"), finetune=recipe.optional("finetune"), save_to=out, resume=resume,
        )  # fmt: skip
        for result, budget, name in zip(results, keep, names, strict=True):
            points.append(Point(budget, name, result.report))
            # written each time, so that an interruption leaves what was reached
            write_texts(out, dict(zip(FRONTIER_FILES, _texts(Frontier(points)), strict=True)))
    found = Frontier(points)
    if as_json:
        typer.echo(_texts(found)[0])
        return
    console = Console(highlight=False)
    console.print(found.to_table())
    console.print(f"written to {out}")


def _texts(found: Frontier) -> tuple[str, str]:
    return json.dumps(found.to_data(), indent=1), found.to_markdown()


def _folders(keeps: list[str]) -> list[str]:
    """The name of a folder for each budget: macs-50."""
    budgets = [parse(keep) for keep in keeps]
    names = [budget.slug for budget in budgets]
    if len(set(names)) < len(names):
        raise typer.BadParameter("every budget once", param_hint="--keep")
    return names


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
