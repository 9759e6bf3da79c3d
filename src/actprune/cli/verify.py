"""`actprune verify`."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from actprune.cli.recipe import DEFAULT


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    spec: Annotated[str, typer.Argument(metavar="RECIPE", help="The recipe that it was made with.")] = DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain data.")] = False,
) -> None:
    """Prove again that the network in a run folder is the dense one, cut by its plan, with the weights saved.

    Example: actprune verify runs/half recipe.py
    """
    from actprune.artifacts.checkpoint import load, proved
    from actprune.cli.recipe import load_recipe
    from actprune.cli.runs import dense_of

    with redirect_stdout(sys.stderr):
        model, inputs = dense_of(load_recipe(spec))
        small = load(run, model, inputs)
        proof = proved(run, model, small, inputs)
    typer.echo(json.dumps(asdict(proof), indent=1) if as_json else str(proof))
