"""The command beside the figures that it made, as anybody could type it."""

from __future__ import annotations

import sys
from pathlib import Path


def command(module: str) -> str:
    """`python -m module …` with the options of this process; a folder of this machine is only called FOLDER."""
    return " ".join(["python", "-m", module, *("FOLDER" if Path(w).is_absolute() else w for w in sys.argv[1:])])
