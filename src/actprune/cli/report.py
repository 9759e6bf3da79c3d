"""`actprune report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from actprune.methods import known


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    show: Annotated[str, typer.Option("--open", help="Open the page in the browser: yes or no.")] = "no",
) -> None:
    r"""Write a self-contained report.html, report.md and a model card, README.md, into a run folder.

    Needs the extra: pip install 'actprune\[report]'

    Example: actprune report runs/half --open yes
    """
    opened = known(show, ("yes", "no"), "choice for --open") == "yes"
    from actprune.cli.runs import read_run, sweep_of, write_texts
    from actprune.report.card import card
    from actprune.report.page import markdown, page

    found = read_run(run)
    told = found.report, found.plan
    texts = {"report.html": page(*told, sweep_of(run)), "report.md": markdown(*told), "README.md": card(*told)}
    write_texts(run, texts)
    for name in texts:
        typer.echo(f"written to {run / name}")
    if opened:
        typer.launch(str(run / "report.html"))
