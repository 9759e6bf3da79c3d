"""`actprune compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from actprune.cli.options import AsJson


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A run folder.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    as_json: AsJson = False,
) -> None:
    """Show two runs side by side: the networks that they returned, and the widths that differ.

    Example: actprune compare runs/half runs/third
    """
    from actprune.cli.console import console_of
    from actprune.cli.runs import read_run
    from actprune.report.comparison import compared, comparison_tables

    found = compared((str(a), str(b)), read_run(a).report, read_run(b).report)
    if as_json:
        typer.echo(json.dumps(found.to_data(), indent=1))
    else:
        console_of().print(comparison_tables(found))
