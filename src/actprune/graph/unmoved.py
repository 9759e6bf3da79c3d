"""A model stays on its device and in its precision, whatever a function of the user's does with it.

`model.half()` and `model.to("cuda")` change the model that they are called on. In a metric that would be the dense
network itself, with which all goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

from torch import Tensor, nn


@contextmanager
def unmoved(model: nn.Module, *, trained: bool = False) -> Iterator[None]:
    """Put back the device and dtype of every parameter and buffer, and of their gradients, also after an error.

    Args:
        trained: what was moved keeps the values that it got meanwhile; else it has those that it had.
    """
    boxes: list[dict[str, Any]] = [box for module in model.modules() for box in (module._parameters, module._buffers)]
    held = [(box, name, tensor) for box in boxes for name, tensor in box.items() if tensor is not None]
    tensors = chain.from_iterable((tensor, tensor.grad) for _, _, tensor in held if tensor.is_leaf)
    before = [(tensor, tensor.data) for tensor in tensors if tensor is not None]
    try:
        yield
    finally:
        for box, name, tensor in held:
            now = box.get(name)
            if now is not None and now is not tensor and _placed(now) != _placed(tensor):  # of a buffer, a new tensor
                if trained:
                    tensor.data = now.data.to(tensor.device, tensor.dtype)
                box[name] = tensor
        for tensor, values in before:
            if _placed(tensor) != _placed(values):
                tensor.data = tensor.data.to(values.device, values.dtype) if trained else values
        for _, _, tensor in held:
            if tensor.is_leaf and tensor.grad is not None and _placed(tensor.grad) != _placed(tensor):
                tensor.grad = None  # of a step of the training


def _placed(tensor: Tensor) -> tuple[object, object]:
    return tensor.device, tensor.dtype
