"""Where tables are shown."""

from __future__ import annotations

import os
import sys
from typing import Any

WIDE = 160
"""Columns of what is written to a file or a pipe, which has no width of its own: no table is cut off there."""


def console_of(**settings: Any) -> Any:
    """A `rich.console.Console` on the standard output."""
    from rich.console import Console  # the help shows no table

    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if known else WIDE, **settings)
