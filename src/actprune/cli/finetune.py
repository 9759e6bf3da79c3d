"""`actprune finetune`."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from actprune.cli.options import AsJson, Seed
from actprune.cli.recipe import DEFAULT
from actprune.errors import DataError


def finetune(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    spec: Annotated[str, typer.Argument(metavar="RECIPE", help="The recipe that it was made with.")] = DEFAULT,
    out: Annotated[
        Path | None, typer.Option(help="A new run folder for the result.", show_default="RUN itself")
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train the network of a run folder with the recipe's finetune(model); a worse one is never kept.

    What was exported from the network before is removed with it.

    Example: actprune finetune runs/half recipe.py

    Example: actprune finetune runs/half recipe.py --out runs/half-tuned
    """
    from actprune.artifacts.checkpoint import check_output, load, save
    from actprune.cli.console import console_of
    from actprune.cli.recipe import load_recipe
    from actprune.cli.runs import read_run
    from actprune.finetuning import finetuned
    from actprune.joining import launched
    from actprune.keras3.bridge import on_network, training_of
    from actprune.keras3.files import run_files
    from actprune.keras3.network import KerasNetwork
    from actprune.report.table import metric, tables

    found = read_run(run)
    place = check_output(run if out is None else out, overwrite=out is None)
    with redirect_stdout(sys.stderr):  # what the user's code prints is no part of the answer
        recipe = load_recipe(spec, seed)
        train = recipe.optional("finetune")
        if train is None:
            raise DataError(
                "The recipe has no fine-tune.",
                expected="a function finetune(model)",
                got=", ".join(recipe.functions),
                where=spec,
                hint="add one that trains the model it is given, as `actprune init` writes it; a .keras file has none",
            )
        model, inputs = recipe.network()
        small, evaluate, more = load(run, model, inputs), recipe.optional("evaluate"), {}
        if isinstance(small, KerasNetwork):
            train, evaluate = training_of(train) or train, on_network(evaluate)
        tuned = finetuned(small, found.report, train, evaluate)
        if isinstance(tuned.model, KerasNetwork):
            more = run_files(tuned.model)
        if launched()[0] > 0:  # of several processes the first one writes and speaks
            return
        if tuned.kept:
            save(place, tuned.model, found.plan, tuned.report.to_data(), overwrite=out is None, more=more)
    if as_json:
        typer.echo(json.dumps({**tuned.to_data(), "run": str(out or run) if tuned.kept else None}, indent=1))
        return
    percent = found.report.in_percent
    change = f"{metric(tuned.before, percent)} → {metric(tuned.after, percent)}"
    console = console_of()
    if not tuned.kept:
        console.print(f"the fine-tune made the metric worse ({change}): nothing is written, {run} is as it was")
        return
    console.print(tables(tuned.report))
    console.print(f"metric {change}" if tuned.after is not None else "the recipe has no evaluate(model): not measured")
    console.print(f"written to {out or run}")
