"""Live progress of a run: bars where somebody watches, lines of JSON where a program does, else nothing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Tell = Callable[[str, int, int], None]
"""(stage, done, total)."""


def progress_of(log_json: bool, quiet: bool = False) -> AbstractContextManager[Tell]:
    """What `--log-json` asks for; nothing at all where `quiet`."""
    if quiet:
        return nullcontext(lambda stage, done, total: None)
    return lines() if log_json else bars()


@contextmanager
def bars() -> Iterator[Tell]:
    """A callback that keeps one bar per stage, with the time that it has taken and the time left."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, int] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)  # type: ignore[assignment]
            progress.update(tasks[stage], completed=done, total=total)  # type: ignore[arg-type]

        yield tell


@contextmanager
def lines() -> Iterator[Tell]:
    """A callback that writes one JSON object per event to the error stream, with the seconds since the start."""
    started = time.monotonic()

    def tell(stage: str, done: int, total: int) -> None:
        event = {"seconds": round(time.monotonic() - started, 3), "stage": stage, "done": done, "total": total}
        print(json.dumps(event), file=sys.stderr, flush=True)

    yield tell
