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
    """Write report.md and a self-contained report.html into a run folder.

    Needs the extra: pip install 'actprune[report]'

    Example: actprune report runs/half --open yes
    """
    opened = known(show, ("yes", "no"), "choice for --open") == "yes"
    from actprune.cli.runs import read_run, write_texts
    from actprune.report.page import markdown, page

    found = read_run(run)
    texts = {"report.html": page(found.report, found.plan), "report.md": markdown(found.report, found.plan)}
    write_texts(run, texts)
    for name in texts:
        typer.echo(f"written to {run / name}")
    if opened:
        typer.launch(str(run / "report.html"))
