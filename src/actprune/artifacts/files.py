"""Files that exist whole or not at all, and reading files that may be anything."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actprune.errors import ArtifactError
from actprune.graph.sparse import parts_of
from actprune.mapped import let_go


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to: it becomes `path` when the block ends, and is removed when that fails.

    What was written reaches the disk before it is renamed, so that after a power cut too there is all of it or none.
    """
    scratch = sibling(path)
    try:
        yield scratch
        sync(scratch)
        scratch.replace(path)
    except BaseException:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sibling(path: Path) -> Path:
    """A name in the same folder, and so on the same disk, that nothing has yet; hidden, and short."""
    return path.with_name(f".actprune-{secrets.token_hex(8)}.tmp")


def sync(path: Path) -> None:
    """Have what was written reach the disk. Folders as far as the system can: their content is complete by then."""
    if path.is_dir():
        with suppress(OSError):  # Windows opens no folders, some network disks do not flush them
            _flush(path, os.O_RDONLY)
    else:
        _flush(path, os.O_RDWR)


def _flush(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path, hint: str) -> str:
    """SHA-256 of a file's content, read in pieces.

    Raises:
        ArtifactError: there is no regular file of that name, or it can't be read.
    """
    check_regular(path, hint)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, "a file that can be read", str(error), hint) from error


def content_digest(items: Iterable[tuple[str, Any]]) -> str:
    """SHA-256 of named values: of tensors the dtypes, shapes and bytes, of others what they print."""
    found = hashlib.sha256()
    for name, value in items:
        found.update(f"{name} ".encode())
        if isinstance(value, Tensor):
            for part in parts_of(value.detach()):
                own = part.cpu().contiguous()
                found.update(f"{own.dtype} {tuple(own.shape)} ".encode())
                found.update(own.reshape(-1).view(torch.uint8).numpy().data if own.numel() else b"")
            let_go((value,))
        else:
            found.update(repr(value).encode())
    return found.hexdigest()


def read_text(path: Path, limit: int, hint: str) -> str:
    """A UTF-8 file of at most `limit` bytes.

    Raises:
        ArtifactError: there is no such file, it is longer, or it is not UTF-8.
    """
    check_regular(path, hint)
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise unreadable(path, f"at most {limit} bytes", "more", hint)
        return content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, "a UTF-8 text file", str(error), hint) from error


def check_regular(path: Path, hint: str) -> None:
    """Before opening: opening a pipe would wait for ever, and some devices have no end.

    Raises:
        ArtifactError: `path` is missing or something other than a file.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise unreadable(path, "a file", getattr(error, "strerror", None) or str(error), hint) from error
    if not stat.S_ISREG(mode):
        raise unreadable(path, "a file", "a folder" if stat.S_ISDIR(mode) else "a pipe or device", hint)


def unreadable(path: Path, expected: str, got: str, hint: str) -> ArtifactError:
    """The error for a file that is missing, damaged or foreign."""
    got = got if len(got) <= 300 else f"{got[:300]}…"
    return ArtifactError(f"{path.name} can't be read.", expected=expected, got=got, where=str(path), hint=hint)
