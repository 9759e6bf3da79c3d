"""`actprune inspect`."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from actprune.cli.recipe import KERAS
from actprune.errors import ArtifactError, CaptureError

if TYPE_CHECKING:
    from actprune.report.inspection import Inspection

DRAWINGS = (".dot", ".html")


def inspect(
    spec: Annotated[
        str, typer.Argument(metavar="SPEC", help="package.module:name, path/to/file.py:name or model.keras.")
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="Shape of an input, batch first: 1,3,224,224; int64:1,16; input_ids=int64:1,16."),
    ] = None,
    draw: Annotated[Path | None, typer.Option(help="Draw the groups: a file that ends in .dot or .html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain data instead of tables.")] = False,
) -> None:
    """Show what can be cut in a model, what that would take with it, and why the rest is frozen.

    SPEC names a model, or a class or function that makes one; arguments are Python literals. A function may return
    the pair (model, example inputs), then no --input is needed, nor for a Keras model whose inputs have shapes.

    Example: actprune inspect "torchvision.models:resnet18(num_classes=10)" --input 1,3,224,224
    """
    from actprune.cli.inputs import make_inputs, parse_inputs
    from actprune.cli.spec import load_spec, parse_spec

    if draw is not None and draw.suffix not in DRAWINGS:
        raise typer.BadParameter(f"a file that ends in {' or '.join(DRAWINGS)}, not {draw}", param_hint="--draw")
    wanted = None if spec.endswith(KERAS) else parse_spec(spec)
    shapes = parse_inputs(inputs or [])

    from actprune.cli.recipe import load_recipe
    from actprune.graph.rebuilt import name_of
    from actprune.keras3.bridge import as_network, example_of
    from actprune.proof.trial import cannot_follow
    from actprune.repair.adapt import capture
    from actprune.report.inspection import inspect as inspect_graph

    with redirect_stdout(sys.stderr):  # what the user's code prints is no part of the answer
        model, example = load_spec(wanted) if wanted else (load_recipe(spec).model(), None)
        if example is None:
            example = example_of(model)
        model = as_network(model)
        if shapes:
            example = make_inputs(shapes, model)
        if example is None:
            raise CaptureError(
                f"{name_of(model)} needs inputs to be captured with.",
                expected="--input with a shape, once for each input",
                got="none",
                where=spec,
                hint="--input 1,3,224,224 for images, --input int64:1,16 for tokens, or return (model, example inputs)",
            )
        graph = capture(model, example)
        found = inspect_graph(graph.without(cannot_follow(model, graph, example)))  # as prune sees it
    _show(found, as_json)
    if draw is not None:
        _draw(found, draw)


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
