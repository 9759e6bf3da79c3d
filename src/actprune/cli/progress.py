"""Live progress of a run; quiet where the output isn't a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A callback (stage, done, total) that keeps one bar per stage."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, int] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)  # type: ignore[assignment]
            progress.update(tasks[stage], completed=done, total=total)  # type: ignore[arg-type]

        yield tell
