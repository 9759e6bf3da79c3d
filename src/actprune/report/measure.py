"""Measured costs of a model as it is: state size and latency."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

import actprune
from actprune.graph.trace import preserved

PACKAGES = ("torch", "numpy", "scikit-learn", "safetensors")


def latency_ms(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float = 0.2) -> float:
    """Median milliseconds of one forward pass in eval mode without gradients (torch.utils.benchmark, warmed up)."""
    with preserved(model), torch.no_grad():
        model.eval()
        model(*args, **kwargs)
        timer = Timer(
            "model(*args, **kwargs)",
            globals={"model": model, "args": args, "kwargs": kwargs},
            num_threads=torch.get_num_threads(),
        )
        return 1e3 * timer.blocked_autorange(min_run_time=seconds).median


def state_bytes(model: nn.Module) -> int:
    """Bytes of the state dict, each storage once."""
    seen: dict[int, int] = {}
    for tensor in model.state_dict().values():
        if isinstance(tensor, Tensor):
            seen[tensor.data_ptr() or id(tensor)] = tensor.numel() * tensor.element_size()
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
