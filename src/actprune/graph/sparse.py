"""Sparse tensors: the adjacency of a graph, say. They are read as they are, and never cut."""

from __future__ import annotations

import torch
from torch import Tensor

_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices"), torch.sparse_csc: ("ccol_indices", "row_indices"),
    torch.sparse_bsr: ("crow_indices", "col_indices"), torch.sparse_bsc: ("ccol_indices", "row_indices"),
}  # fmt: skip


def parts_of(value: Tensor) -> tuple[Tensor, ...]:
    """The dense tensors that hold a tensor: itself, or the indices, the values and the shape of a sparse one."""
    if value.layout == torch.strided:
        return (value,)
    if value.layout == torch.sparse_coo:
        value = value.coalesce()
        held = value.indices(), value.values()
    else:
        held = (*(getattr(value, name)() for name in _COMPRESSED[value.layout]), value.values())
    return (*held, torch.tensor(value.shape))
