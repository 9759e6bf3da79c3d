"""RUN on the command line → what a run folder says of itself; its weights are not looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actprune.plan import Plan
    from actprune.report.record import Report, Sweep

REPORT_BYTES = 1 << 28


@dataclass(frozen=True)
class RunFolder:
    """A run folder."""

    path: Path
    plan: Plan
    report: Report


def read_run(folder: Path) -> RunFolder:
    """Plan and report of a run folder.

    Raises:
        ArtifactError: there is none, or a file is missing, damaged or foreign.
        PlanError: the plan is none.
    """
    from actprune.artifacts.files import read_text, unreadable
    from actprune.artifacts.folder import AGAIN, PLAN, REPORT, file_of
    from actprune.artifacts.plan_file import read_plan
    from actprune.report.reading import read_report

    if not folder.is_dir():
        got = "a file" if folder.is_file() else "nothing"
        raise unreadable(folder, f"a run folder with {PLAN} and {REPORT}", got, "pass the --out of actprune prune")
    inner = sorted(path.parent.name for path in folder.glob(f"*/{PLAN}"))
    if inner and not (folder / PLAN).exists():  # of several rounds, or of a sweep
        got = f"run folders in it: {', '.join(inner[:8])}"
        raise unreadable(
            folder, f"a run folder with {PLAN} and {REPORT}", got, f"name one of them: {folder / inner[0]}"
        )
    plan = read_plan(file_of(folder, PLAN))
    path = file_of(folder, REPORT)
    return RunFolder(folder, plan, read_report(read_text(path, REPORT_BYTES, AGAIN), str(path)))


def sweep_of(folder: Path) -> Sweep | None:
    """The sweep that a run folder is part of; None where it is none, or one that can't be read."""
    from actprune.artifacts.files import read_text
    from actprune.errors import ArtifactError
    from actprune.report.reading import read_frontier

    path = folder.resolve().parent / "frontier.json"
    try:
        found = read_frontier(read_text(path, REPORT_BYTES, ""), str(path))
    except ArtifactError:
        return None
    return found if folder.resolve().name in {spot.folder for spot in found.points} else None


def write_texts(folder: Path, texts: dict[str, str]) -> None:
    """Files in a folder, each whole or as it was before.

    Raises:
        ArtifactError: one can't be written.
    """
    from actprune.artifacts.files import new_file
    from actprune.errors import ArtifactError

    for name, text in texts.items():
        try:
            with new_file(folder / name) as scratch:
                scratch.write_text(text, "utf-8")
        except OSError as error:
            raise ArtifactError(
                f"{name} can't be written.",
                expected="a folder that can be written",
                got=error.strerror or str(error),
                where=str(folder),
                hint="make room, or make the folder writable",
            ) from error
