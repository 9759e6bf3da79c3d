"""`x.data` and `x.data = y` are nothing that a tracer sees: they are done by calls that it does see."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

_DATA: Any = Tensor.data
_GET, _SET = _DATA.__get__, _DATA.__set__


class DataCalls(TorchFunctionMode):
    """Reading is `x.detach()`; assigning is a copy into `x`, as long as the shape stays."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _GET:
            return args[0].detach()
        if func == _SET and args[0].shape == args[1].shape:
            return args[0].detach().copy_(args[1])
        return func(*args, **(kwargs or {}))
