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
    hf: Annotated[
        Path | None, typer.Option(help="Write a Hugging Face folder there, for from_pretrained of stock transformers.")
    ] = None,
    folded: Annotated[bool, typer.Option("--fold", help="With BatchNorm folded into the layer before.")] = False,
) -> None:
    """Write the network of a run folder as files that deploy, each compared with it on real inputs first.

    Example: actprune export runs/half recipe.py --onnx --pt2 --fold

    Example: actprune export runs/half recipe.py --hf runs/half-hf
    """
    wanted = [f"model{ending}" for ending, asked in ((".onnx", onnx), (".pt2", pt2)) if asked]
    if not wanted and hf is None:
        raise typer.BadParameter("say what to write: --onnx, --pt2, --hf")
    from actprune.artifacts.checkpoint import load
    from actprune.artifacts.export import export as write
    from actprune.artifacts.pretrained import save_pretrained
    from actprune.cli.recipe import load_recipe
    from actprune.cli.runs import read_run
    from actprune.deployment import fold
    from actprune.keras3.bridge import unfoldable
    from actprune.keras3.network import KerasNetwork
    from actprune.report.card import card

    with redirect_stdout(sys.stderr):  # the exporters talk
        found = read_run(run)  # before the recipe trains a model, perhaps
        model, inputs = load_recipe(spec, data=data).network()
        if folded and isinstance(model, KerasNetwork):
            raise unfoldable(model.model)
        small = load(run, model, inputs)
        written: list[Path] = []
        if hf is not None:
            text = card(found.report, found.plan, "transformers")
            written.append(save_pretrained(small, found.plan, inputs, hf, text))
        if folded:
            small = fold(small, inputs, channels_last=False)
        written += [write(small, inputs, run / name) for name in wanted]
    for path in written:
        typer.echo(f"written to {path}")
