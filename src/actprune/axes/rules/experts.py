"""Mixtures of experts whose weights are one tensor: rows sorted by expert, each block against its own matrix."""

from __future__ import annotations

from torch.fx import Node

from actprune.axes.call import Call, NotCovered, rule
from actprune.axes.site import Dims, Form

ALIGNMENT = 16
"""Bytes: the kernel demands that rows begin at multiples of it, in both operands."""


@rule("aten._grouped_mm", "transformers.grouped_mm_fallback")
def grouped_product(call: Call) -> Dims:
    """rows (M, K), weight (experts, K, N), ends of the experts' rows (experts,), bias (N,) → (M, N).

    What stands in a row of memory, K or N, keeps a size that fills 16 bytes: also where the captured graph holds a
    fallback that would not mind, since the class calls the kernel where it can.
    """
    rows, weight, ends, *_ = call.values
    source, held = call.axes(rows), call.axes(weight)
    if len(source) != 2 or len(held) != 3:
        raise NotCovered("blocks of another form")
    call.freeze(source[0], "sorted by expert")
    call.freeze(held[0], "one matrix for each expert")
    call.unify(source[1], held[1])
    for own in call.axes(call["bias"]):
        call.unify(own, held[2])
    for value, axes in ((rows, source), (weight, held)):
        tensor = value.meta["val"]
        in_row = min((-2, -1), key=tensor.stride().__getitem__)
        call.aligns(axes[in_row], ALIGNMENT // tensor.element_size())
    if call["bias"] is None and call.inference.stored.find(weight) is not None and isinstance(ends, Node):
        call.stacked(weight, [1], [2], [0], Form(rows.name, (), *[((-1,), (0,), (1,))] * 2, ends=ends.name))
    else:
        call.site("product", weight, call["bias"], in_dim=1, out_dim=2, source=(rows, -1))
    call.macs([source[0], held[1], held[2]])
    return (source[0], held[2])
