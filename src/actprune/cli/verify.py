"""`actprune verify`."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from actprune.cli.options import MadeWith, Samples
from actprune.cli.recipe import DEFAULT


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    spec: MadeWith = DEFAULT,
    data: Samples = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain data.")] = False,
) -> None:
    """Prove again that the network in a run folder is the dense one, cut by its plan, with the weights saved.

    Example: actprune verify runs/half recipe.py
    """
    from actprune.artifacts.checkpoint import load, proved_folder
    from actprune.cli.recipe import load_recipe
    from actprune.cli.runs import read_run

    with redirect_stdout(sys.stderr):
        read_run(run)  # before the recipe trains a model, perhaps
        model, inputs = load_recipe(spec, data=data).network()
        small = load(run, model, inputs)
        proof = proved_folder(run, model, small, inputs)
    typer.echo(json.dumps(asdict(proof), indent=1) if as_json else str(proof))
