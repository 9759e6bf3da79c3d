"""`actprune inspect`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actprune.cli.recipe import Recipe
from actprune.errors import ArtifactError, CaptureError

if TYPE_CHECKING:
    from torch import nn

    from actprune.cli.inputs import Input
    from actprune.report.inspection import Inspection

DRAWINGS = (".dot", ".html")


def inspect(
    spec: Annotated[
        str, typer.Argument(metavar="SPEC", help="A recipe, package.module:name, path/to/file.py:name or model.keras.")
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="Shape of an input, batch first: 1,3,224,224; int64:1,16; input_ids=int64:1,16."),
    ] = None,
    draw: Annotated[Path | None, typer.Option(help="Draw the groups: a file that ends in .dot or .html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain data instead of tables.")] = False,
) -> None:
    """Show what can be cut in a model, what that would take with it, and why the rest is frozen.

    SPEC names a recipe, a model, or a class or function that makes one; arguments are Python literals. Without --input,
    a recipe's first calibration batch is taken; a function may return the pair (model, example inputs), and a Keras
    model whose inputs have shapes needs none.

    Example: actprune inspect "torchvision.models:resnet18(num_classes=10)" --input 1,3,224,224
    """
    from actprune.cli.inputs import parse_inputs

    if draw is not None and draw.suffix not in DRAWINGS:
        raise typer.BadParameter(f"a file that ends in {' or '.join(DRAWINGS)}, not {draw}", param_hint="--draw")
    shapes = parse_inputs(inputs or [])

    from actprune.cli.recipe import load_recipe
    from actprune.keras3.bridge import as_network
    from actprune.proof.trial import cannot_follow
    from actprune.repair.adapt import capture
    from actprune.report.inspection import inspect as inspect_graph

    with redirect_stdout(sys.stderr):  # what the user's code prints is no part of the answer
        recipe = load_recipe(spec)
        model = recipe.model()
        network = as_network(model)
        example = _example(recipe, model, network, shapes)
        graph = capture(network, example)
        found = inspect_graph(graph.without(cannot_follow(network, graph, example)))  # as prune sees it
    _show(found, as_json)
    if draw is not None:
        _draw(found, draw)


def _example(recipe: Recipe, model: Any, network: nn.Module, shapes: Sequence[Input]) -> Any:
    """What the model is captured with: inputs of the shapes that were asked for, or those that come with it."""
    from actprune.cli.inputs import make_inputs
    from actprune.data.take import first_batch
    from actprune.graph.rebuilt import name_of
    from actprune.keras3.bridge import as_batches, example_of

    if shapes:
        return make_inputs(shapes, network)
    own = recipe.optional("example_inputs")
    example = own() if own is not None else example_of(model)
    if example is None and "calibration" in recipe.functions:
        example = first_batch(network, as_batches(recipe.calibration(), model))
    if example is None:
        raise CaptureError(
            f"{name_of(network)} needs inputs to be captured with.",
            expected="--input with a shape, once for each input",
            got="none",
            where=recipe.text,
            hint="--input 1,3,224,224 for images, --input int64:1,16 for tokens, or return (model, example inputs)",
        )
    return example


def _show(found: Inspection, as_json: bool) -> None:
    if as_json:
        typer.echo(found.to_json())
        return
    from actprune.cli.console import console_of
    from actprune.report.table import inspection_tables

    console_of().print(inspection_tables(found))


def _draw(found: Inspection, path: Path) -> None:
    from actprune.artifacts.files import new_file

    text = found.to_dot() if path.suffix == ".dot" else found.to_html()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as scratch:
            scratch.write_text(text, "utf-8")
    except OSError as error:
        raise ArtifactError(
            f"{path.name} can't be written.",
            expected="a place for a new file",
            got=error.strerror or str(error),
            where=str(path),
            hint="choose another --draw",
        ) from error
    typer.echo(f"written to {path}", err=True)
