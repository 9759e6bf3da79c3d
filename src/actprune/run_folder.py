"""The run folder of a call, and the stages of one that is unfinished."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from actprune.artifacts.checkpoint import check_output
from actprune.artifacts.folder import PLAN
from actprune.artifacts.journal import SUFFIX, Journal, journal_of
from actprune.distributed import Ranks
from actprune.errors import ArtifactError


@contextmanager
def open_journal(ranks: Ranks, save_to: str | Path | None, resume: bool) -> Iterator[Journal | None]:
    """That of the run folder; what passes between several processes needs one as well, which nobody keeps."""
    if save_to is not None and ranks.first:
        yield journal_of(save_to, resume)
    elif ranks.world == 1:
        yield None
    else:
        with TemporaryDirectory(prefix="actprune-") as scratch:
            yield Journal(Path(scratch) / "stages", False)


def on_disk(ranks: Ranks, save_to: str | Path | None, work: Callable[[Path], Any]) -> None:
    """What rank 0 has to do in the run folder, if there shall be one; it fails on all ranks."""
    ranks.together(lambda: work(Path(save_to)) if save_to is not None and ranks.first else None)


def check_unfinished(path: Path, resume: bool, begun: bool) -> None:
    """That the folder can be written. One that is whole is only replaced by the run that was interrupted behind it."""
    if resume and not begun and (path / PLAN).exists():
        raise ArtifactError(
            "The run in this folder is finished.",
            expected=f"the stages of an interrupted run, in {path.name}{SUFFIX}",
            got="a run folder",
            where=str(path),
            hint="read it with actprune.load (actprune report, actprune verify), or choose another folder",
        )
    check_output(path, overwrite=begun and path.exists())
