"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

RecipeSpec = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe.py, package.module or model.keras.")]
MadeWith = Annotated[str, typer.Argument(metavar="RECIPE", help="The recipe, or model.keras, that it was made with.")]
Samples = Annotated[Path | None, typer.Option(help="Calibration samples of a .keras file: an .npz.")]
MethodName = Annotated[str, typer.Option(help="Method: sgd-ap, l2, flap, wanda, …")]
Allocation = Annotated[str | None, typer.Option(help="Instead of the method's.")]
Compensate = Annotated[str | None, typer.Option(help="Instead of the method's.")]
Protect = Annotated[list[str] | None, typer.Option(help="Module paths whose units stay; several times.")]
RoundTo = Annotated[str, typer.Option(help="Widths are multiples of it; or auto.")]
EqualWidths = Annotated[
    bool, typer.Option("--equal-widths", help="One width for all layers of a kind, as stock configs have it.")
]
FormName = Annotated[str, typer.Option(help="class, graph or auto.")]
MemoryLimit = Annotated[str | None, typer.Option(help="Of statistics and refits, such as 4GB.")]
Recover = Annotated[int | None, typer.Option(min=1, help="Steps towards the dense network's outputs; no labels.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
Resamples = Annotated[str, typer.Option(help="Resamples of the data for the report's confidence; auto: if quick.")]
LogJson = Annotated[bool, typer.Option("--log-json", help="Progress as one JSON object per line on the error stream.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print plain data instead of tables.")]


def rounded(text: str) -> Any:
    """What `--round-to` or `--confidence` says: a number, or auto."""
    return int(text) if text.isdecimal() else text


def recovery(steps: int | None) -> Any:
    """What `--recover` asks for."""
    if steps is None:
        return None
    from actprune.recovery.distill import Distill  # the help loads no torch

    return Distill(steps)
