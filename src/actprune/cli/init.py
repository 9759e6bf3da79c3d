"""`actprune init`."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from actprune.cli.spec import check_imports_others
from actprune.errors import ArtifactError
from actprune.methods import known

TEMPLATES = ("cnn", "transformer", "keras", "hf", "timm")


def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("recipe.py"),
    template: Annotated[str, typer.Option(help=f"{', '.join(TEMPLATES)}.")] = TEMPLATES[0],
) -> None:
    """Write a recipe that runs at once, on made-up data; put your own model and data in its place.

    Example: actprune init && actprune prune recipe.py --keep macs=50%

    Example: actprune init recipe.py --template hf
    """
    name = known(template, TEMPLATES, "template")
    text = files("actprune.cli").joinpath("templates", f"{name}.txt").read_text("utf-8")
    check_imports_others(path, text)
    try:
        with path.open("x", encoding="utf-8") as file:  # never over a file that is there
            file.write(text)
    except OSError as error:
        raise ArtifactError(
            f"{path} can't be written.",
            expected="the name of a new file",
            got=error.strerror or str(error),
            where=str(path),
            hint="name another one: actprune init other.py",
        ) from error
    typer.echo(f"written to {path}; next: actprune prune {path} --keep macs=50%", err=True)
