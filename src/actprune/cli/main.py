"""The command line: a parser, one thin call per command, and one way to show errors.

Exit codes: 0 done, 1 an error that actprune explains, 2 wrong usage, 3 another process of a run of several has failed
or is gone, 130 interrupted.
"""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.markup import escape

from actprune.cli.compare import compare
from actprune.cli.demo import demo
from actprune.cli.export import export
from actprune.cli.finetune import finetune
from actprune.cli.init import init
from actprune.cli.inspect import inspect
from actprune.cli.prune import prune
from actprune.cli.report import report
from actprune.cli.shorten import shorten
from actprune.cli.sweep import sweep
from actprune.cli.verify import verify
from actprune.errors import ActpruneError, DistributedError

INTERRUPTED = 130

app = typer.Typer(
    name="actprune",
    help="Structured pruning of PyTorch and Keras models, with a proof for every cut.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
for command in (init, inspect, prune, shorten, sweep, finetune, verify, export, report, compare, demo):
    app.command()(command)


def _version(value: bool) -> None:
    if value:
        from actprune import __version__

        typer.echo(f"actprune {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    pass


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except ActpruneError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(3 if isinstance(error, DistributedError) else 1)
    except SystemExit as end:  # what the parser makes of an interrupt, without a word
        if end.code == INTERRUPTED:
            more = "; the same command with --resume goes on" if sys.argv[1:2] in (["prune"], ["sweep"]) else ""
            Console(stderr=True).print(f"interrupted{more}", soft_wrap=True)
        raise
