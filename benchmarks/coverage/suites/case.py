"""What every suite gives for one of its names."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, eq=False)
class Case:
    """One model and how to feed it.

    Attributes:
        inputs: batch size → inputs as `actprune.capture` takes them, the same every time.
    """

    model: nn.Module
    inputs: Callable[[int], Any]


def images(*shape: int) -> Callable[[int], torch.Tensor]:
    """Normal noise of `shape`, for any batch size."""
    return lambda batch: torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch))


def declare_torchvision_ops() -> None:
    """Two detection ops that torchvision registers fakes for: a CPU build of torch may come without them."""
    for op in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # torchvision brought its own, or this ran before
            torch.library.define(f"torchvision::{op}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
