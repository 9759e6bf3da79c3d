"""Pretrained models with a measurable quality, in a folder of `eval_*.py` files that each define `load`, `example`,
`calibration`, `evaluate` and `ignored`."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.coverage.suites.case import Case

FILES = {"crepe_tiny": "eval_crepe_tiny", "magika": "eval_magika", "g2p": "eval_g2p"}


def module(name: str, folder: Path) -> Any:
    """The folder's module for a model."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return import_module(FILES[name])


def build(name: str, folder: Path) -> Case:
    """With its pretrained weights, which are not redrawn."""
    own = module(name, folder)
    return Case(own.load(), own.example)
