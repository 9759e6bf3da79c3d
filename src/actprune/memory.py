"""How much memory a run may hold, and how much it held."""

from __future__ import annotations

import os
import re
import sys

from actprune.errors import DataError

SHARE = 0.25
"""Of the machine's memory, where no limit is given."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}

MemoryLimit = int | str | None
"""Bytes, or a text such as "4GB" or "500 MB"; None: a quarter of the machine's."""


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
            hint="leave it out for a quarter of the machine's memory",
        )
    return size


def machine_bytes() -> int:
    """Memory of this machine; 16 GB where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 16 * 10**9


def peak_bytes() -> int | None:
    """The most that this process has held so far; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
