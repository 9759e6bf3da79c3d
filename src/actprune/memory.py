"""How much memory a run may hold, and how much it held."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from actprune.errors import DataError

SHARE = 0.25
"""Of the machine's memory, or the container's, where no limit is given."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}

MemoryLimit = int | str | None
"""Bytes, or a text such as "4GB" or "500 MB"; None: a quarter of what there is."""


def limit_bytes(given: MemoryLimit) -> int:
    """The bytes of a limit.

    Raises:
        DataError: neither a positive number nor a text with a unit.
    """
    if given is None:
        return int(SHARE * machine_bytes())
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", str(given), re.IGNORECASE)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size < 1 or isinstance(given, bool):
        raise DataError(
            "The memory limit is no amount of memory.",
            expected='bytes as a number, or a text such as "4GB"',
            got=repr(given),
            where="memory_limit",
            hint="leave it out for a quarter of what there is",
        )
    return size


def machine_bytes(cgroups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory of this machine, or of the container that the process is in; 16 GB where the system does not say.

    Args:
        cgroups: where Linux names the control groups of a process.
        mounted: where their limits are.
    """
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        whole = 16 * 10**9
    return min([whole, *_group_limits(cgroups, mounted)])


def _group_limits(cgroups: Path, mounted: Path) -> Iterator[int]:
    """The limits of a process's control groups, of version 2 and 1, and of the groups around them."""
    with suppress(OSError):
        for line in cgroups.read_text().splitlines():
            controllers, _, path = line.partition(":")[2].partition(":")
            if controllers and "memory" not in controllers.split(","):
                continue
            root, name = (mounted / "memory", "memory.limit_in_bytes") if controllers else (mounted, "memory.max")
            own = PurePosixPath(path.strip("/"))
            for group in (own, *own.parents):
                with suppress(OSError, ValueError):  # "max", or a path outside the container
                    yield int((root / group / name).read_text())


def peak_bytes(status: Path = Path("/proc/self/status")) -> int | None:
    """The most that this process has held so far; None where the system does not say.

    Args:
        status: where Linux tells it. (What `getrusage` says there begins with what the parent held.)
    """
    with suppress(OSError):
        if found := re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE):
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
