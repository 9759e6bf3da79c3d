"""`actprune shorten`."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actprune.cli.options import AsJson, LogJson, RecipeSpec, Seed
from actprune.cli.recipe import DEFAULT
from actprune.errors import ArtifactError, DataError

if TYPE_CHECKING:
    from actprune.depth.shorten import Shorter


def shorten(
    spec: RecipeSpec = DEFAULT,
    keep: Annotated[
        str, typer.Option(help="What stays: a number of blocks (24), blocks=75%, params=80% or params=700M.")
    ] = "blocks=75%",
    protect: Annotated[list[str] | None, typer.Option(help="Module paths of blocks that stay; several times.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Calibration samples; each is run for every block tried.")] = 128,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="The plan, a JSON file.")] = Path("depth.json"),
    hf: Annotated[
        Path | None, typer.Option(help="Write a Hugging Face folder there, for from_pretrained of stock transformers.")
    ] = None,
    as_json: AsJson = False,
    log_json: LogJson = False,
) -> None:
    """Leave whole blocks out of the model of a recipe (layers, residual blocks), prove it, and write which ones stay.

    Example: actprune shorten recipe.py --keep blocks=75% --out depth.json
    """
    from actprune.cli.console import console_of
    from actprune.cli.progress import progress_of
    from actprune.cli.recipe import load_recipe
    from actprune.cli.runs import write_texts
    from actprune.depth.shorten import shorten as run
    from actprune.keras3.backend import is_keras
    from actprune.settings import measured

    for place in (out, hf):
        if place is not None and place.exists():
            raise _taken(place)
    if hf is not None and hf.absolute() in (out.absolute(), *out.absolute().parents):
        raise typer.BadParameter("a folder of its own, without --out in it", param_hint="--hf")
    _make_folder(out.parent)
    with redirect_stdout(sys.stderr), progress_of(log_json) as progress:
        recipe = load_recipe(spec, seed)
        model = recipe.model()
        if is_keras(model):
            raise _keras(spec)
        short = run(
            model, recipe.calibration(), keep=int(keep) if keep.isdecimal() else keep, protect=protect or (),
            calibration_size=samples, seed=seed, progress=progress,
        )  # fmt: skip
        metrics = [measured(recipe.optional("evaluate"), one) for one in (model, short.model)]
        write_texts(out.parent, {out.name: short.plan.to_json() + "\n"})
        if hf is not None:
            short.save_pretrained(hf)
    if as_json:
        typer.echo(json.dumps(_data(short, metrics, out), indent=1))
        return
    console = console_of(soft_wrap=True)
    console.print(str(short), markup=False)
    if metrics[0] is not None:
        console.print("metric {:.4g} → {:.4g}".format(*metrics))
    for place in (out, hf):
        if place is not None:
            console.print(f"written to {place}", markup=False)
    console.print(
        "For the other commands, the recipe's model() returns the shorter one: "
        f'DepthPlan.from_json(Path("{out}").read_text()).apply(dense)',
        markup=False,
    )


def _data(short: Shorter, metrics: list[float | None], out: Path) -> dict[str, Any]:
    """What `--json` prints."""
    proof, before = short.proof, short.before
    return {
        "removed": {step.block: step.distance for step in short.removals},
        "blocks": list(short.blocks),
        "dense": {"params": before.params, "macs": before.macs, "metric": metrics[0]},
        "shorter": {"params": proof.params, "macs": proof.macs, "metric": metrics[1]},
        "proved": proof.passed,
        "plan": str(out),
    }


def _taken(place: Path) -> ArtifactError:
    return ArtifactError(
        "There is something already where the result would be written.",
        expected="a name that is free",
        got="a folder" if place.is_dir() else "a file",
        where=str(place),
        hint="remove it, or name another place",
    )


def _make_folder(place: Path) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            "The plan can't be written there.",
            expected="a folder that can be made",
            got=error.strerror or str(error),
            where=str(place),
            hint="choose another --out",
        ) from error


def _keras(spec: str) -> DataError:
    return DataError(
        "A Keras model is not shortened.",
        expected="a recipe of a torch module",
        got="a Keras model",
        where=spec,
        hint="cut its widths with `actprune prune`",
    )
