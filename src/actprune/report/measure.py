"""What the figures of a model depend on, and the size of its state."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from torch import Tensor, nn

import actprune
from actprune.graph.sparse import parts_of

PACKAGES = ("torch", "numpy", "scikit-learn", "safetensors")


def state_bytes(model: nn.Module) -> int:
    """Bytes of the state dict, each storage once."""
    seen: dict[int, int] = {}
    for tensor in model.state_dict().values():
        for part in parts_of(tensor) if isinstance(tensor, Tensor) else ():
            seen[part.data_ptr() or id(tensor)] = part.numel() * part.element_size()
    return sum(seen.values())


def versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of what the figures depend on: the packages `names`, and what they run on."""
    found = {"actprune": actprune.__version__, "python": platform.python_version(), "platform": platform.machine()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def command() -> str | None:
    """What was typed to start this run; None where Python started it."""
    program = Path(sys.argv[0])
    called = program.parent.name if program.name == "__main__.py" else program.stem
    return shlex.join(["actprune", *sys.argv[1:]]) if called == "actprune" else None
