"""Batches, put where a network is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def to(value: Any, device: torch.device) -> Any:
    """Tensors on `device`, also those within tuples, lists and dicts; arrays are made tensors, as in calibration."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.tensor(value, device=device)
    if isinstance(value, Tensor):  # what was made in inference mode is copied, for gradients are taken past it
        return (value.clone() if value.is_inference() else value).to(device)
    if isinstance(value, Mapping):
        return {key: to(item, device) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [to(item, device) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value
