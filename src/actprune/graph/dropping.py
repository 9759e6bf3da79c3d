"""Dropout that a model calls as a function, and random numbers by a generator of its own: switched off, and drawn by
torch's, where a run must not depend on chance."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

_DROPPING = {
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
    torch.dropout, torch.dropout_, torch.alpha_dropout, torch.alpha_dropout_,
    torch.feature_dropout, torch.feature_dropout_, torch.feature_alpha_dropout, torch.feature_alpha_dropout_,
}  # fmt: skip

_RATE = 4
"""Place of `dropout_p` among the arguments of `F.scaled_dot_product_attention`."""


class NothingDropped(TorchFunctionMode):
    """Within it, torch's dropouts give back what they are given, and generators stay where they are: a captured graph
    has neither."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func in _DROPPING:
            return args[0] if args else given["input"]
        if func is F.scaled_dot_product_attention:
            if len(args) > _RATE:
                args = (*args[:_RATE], 0.0, *args[_RATE + 1 :])
            elif "dropout_p" in given:
                given["dropout_p"] = 0.0
        if given.get("generator") is not None:
            given["generator"] = None
        return func(*args, **given)
