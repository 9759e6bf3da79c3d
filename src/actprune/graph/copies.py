"""The values of tensors, to be given back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actprune.mapped import is_mapped


@dataclass(frozen=True, eq=False)
class Copy:
    """A tensor, the memory it had (`tensor.data = …` gives it other memory), and the values in that."""

    tensor: Tensor
    memory: Tensor
    values: Tensor

    def holds(self) -> bool:
        """Whether the tensor still has that memory and those values."""
        if self.tensor.data_ptr() != self.memory.data_ptr() or self.tensor.shape != self.values.shape:
            return False
        a, b = self.memory, self.values
        return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())  # NaN to NaN


def copies(values: Iterable[Any]) -> list[Copy]:
    """Copies of the tensors among `values`; those without memory of their own, or of several shapes in one, have no
    values to keep, and those in files are not written to."""
    distinct = {id(v): v for v in values if isinstance(v, Tensor)}
    memory = (t for t in distinct.values() if t.device.type != "meta" and t.layout == torch.strided)
    kept = (t for t in memory if not t.is_nested and not is_mapped(t))
    return [Copy(tensor, tensor.detach(), tensor.detach().clone()) for tensor in kept]


def write_back(kept: Iterable[Copy]) -> bool:
    """Give every tensor its memory and values again; whether some had changed."""
    changed = [own for own in kept if not own.holds()]
    for own in changed:
        own.tensor.data = own.memory
        own.memory.copy_(own.values)
    return bool(changed)
