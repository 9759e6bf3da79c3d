"""The run folder: where it may be written, and that it exists whole or not at all, whatever happens meanwhile.

It is written under a temporary name beside its own, flushed to the disk, and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from actprune.artifacts.files import read_text, sibling, sync, unreadable
from actprune.errors import ArtifactError

WEIGHTS, PLAN, REPORT = "weights.safetensors", "plan.json", "report.json"
RUN_FILES = (
    WEIGHTS,
    PLAN,
    REPORT,
    "README.md",
    "report.md",
    "report.html",
    "model.onnx",
    "model.onnx.data",
    "model.pt2",
    "model.keras",
    "layers.json",
)
"""All that actprune ever writes into a run folder: overwriting deletes nothing else."""

PLAN_BYTES = 1 << 28  # the plan of a network with 8 G parameters takes about 5 MB

AGAIN = "copy the whole folder again from where it was saved, or prune again"


def check_output(folder: str | Path, overwrite: bool = False) -> Path:
    """Whether `save` could write here: ask before long work.

    Returns:
        The absolute path that `save` will write.

    Raises:
        ArtifactError: the folder exists (with `overwrite`: and is neither empty nor a run folder), or the folder
            that would hold it can't be written.
    """
    try:
        path = Path(folder)
        if path.is_symlink():
            raise _no_output(path, "the name of a folder", "a link", "name the folder that the link points to")
        path = path.resolve()
        if os.path.lexists(path):
            _check_replaceable(path, overwrite)
        parent = next(p for p in path.parents if os.path.lexists(p))
        probe = sibling(parent / path.name)
        probe.mkdir()
        probe.rmdir()
    except (OSError, RuntimeError, ValueError) as error:
        got = f"{type(error).__name__}: {error}"
        hint = "choose another place, or make this one writable"
        raise _no_output(Path(folder), "a place where a folder can be made", got, hint) from error
    return path


def file_of(folder: Path, name: str) -> Path:
    """One of the files of a run folder.

    Raises:
        ArtifactError: a link is there instead, which may lead anywhere.
    """
    path = folder / name
    if path.is_symlink():
        hint = "put the file itself there, with everything else of the run"
        raise unreadable(path, "a file in the run folder", "a link", hint)
    return path


@contextmanager
def new_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """An empty folder to write files into: it becomes `folder` when the block ends.

    When anything fails it is removed with all that is in it, and what was at `folder` stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = sibling(folder)
    scratch.mkdir()
    try:
        yield scratch
        for entry in scratch.iterdir():
            sync(entry)
        sync(scratch)
        check_output(folder, overwrite)  # what was free or ours may have become someone else's meanwhile
        old = _rename(scratch, folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    sync(folder.parent)
    if old is not None:
        _discard(old)


def _no_output(path: Path, expected: str, got: str, hint: str) -> ArtifactError:
    return ArtifactError(
        "The run folder can't be written here.", expected=expected, got=got, where=str(path), hint=hint
    )


def _check_replaceable(folder: Path, overwrite: bool) -> None:
    if not overwrite:
        hint = "choose another folder, or remove that one; in Python save(…, overwrite=True) replaces it"
        raise _no_output(folder, "a folder that does not exist yet", "one that exists", hint)
    got = None
    if not folder.is_dir():
        got = "a file"
    elif os.path.ismount(folder):
        got = "a mount point, which can't be replaced"
    elif any(folder.iterdir()):
        foreign = [e.name for e in folder.iterdir() if e.name not in RUN_FILES or e.is_symlink() or not e.is_file()]
        got = f"a folder with {', '.join(sorted(foreign)[:5])}" if foreign else None
        if got is None and not _is_plan(folder / PLAN):
            got = f"a folder without an actprune {PLAN}"
    if got is not None:
        hint = "choose another folder (one inside it, for example); actprune deletes nothing that it has not written"
        raise _no_output(folder, "a folder that is empty or holds nothing but a run of actprune", got, hint)


def _is_plan(path: Path) -> bool:
    try:
        data = json.loads(read_text(path, PLAN_BYTES, AGAIN))
    except (ArtifactError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and str(data.get("schema")).startswith("actprune.plan/")


def _rename(written: Path, folder: Path) -> Path | None:
    """Give `written` its name; a folder of that name is first set aside, and its new name returned."""
    if not folder.exists():
        written.rename(folder)
        return None
    old = sibling(folder)
    folder.rename(old)
    try:
        written.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    return old


def _discard(old: Path) -> None:
    """Delete the files of a run by name, not the tree: somebody may have put a file there a moment ago."""
    for name in RUN_FILES:
        with suppress(OSError):
            (old / name).unlink(missing_ok=True)
    try:
        old.rmdir()
    except OSError as error:
        warnings.warn(f"the folder that was replaced could not be deleted and is now {old}: {error}", stacklevel=5)
