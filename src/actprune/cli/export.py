"""`actprune export`."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from actprune.cli.options import MadeWith, Samples
from actprune.cli.recipe import DEFAULT


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    spec: MadeWith = DEFAULT,
    data: Samples = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write model.onnx, run in onnxruntime.")] = False,
    pt2: Annotated[bool, typer.Option("--pt2", help="Write model.pt2, for torch.export.load.")] = False,
    folded: Annotated[bool, typer.Option("--fold", help="With BatchNorm folded into the layer before.")] = False,
) -> None:
    """Write the network of a run folder as files that deploy, each compared with it on real inputs first.

    Example: actprune export runs/half recipe.py --onnx --pt2 --fold
    """
    wanted = [f"model{ending}" for ending, asked in ((".onnx", onnx), (".pt2", pt2)) if asked]
    if not wanted:
        raise typer.BadParameter("say what to write: --onnx, --pt2 or both")
    from actprune.artifacts.checkpoint import load
    from actprune.artifacts.export import export as write
    from actprune.cli.recipe import load_recipe
    from actprune.deployment import fold
    from actprune.keras3.bridge import unfoldable
    from actprune.keras3.network import KerasNetwork

    with redirect_stdout(sys.stderr):  # the exporters talk
        model, inputs = load_recipe(spec, data=data).network()
        if folded and isinstance(model, KerasNetwork):
            raise unfoldable(model)
        small = load(run, model, inputs)
        if folded:
            small = fold(small, inputs, channels_last=False)
        written = [write(small, inputs, run / name) for name in wanted]
    for path in written:
        typer.echo(f"written to {path}")
