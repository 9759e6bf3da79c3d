"""Mixtures of experts whose weights are one tensor: rows sorted by expert, each block against its own matrix."""

from __future__ import annotations

from actprune.axes.inference import Call, Dims, rule


@rule("transformers.grouped_mm_fallback")
def grouped_product(call: Call) -> Dims:
    """rows (M, K), weight (experts, K, N), ends of the experts' rows (experts,) → (M, N)."""
    rows, weight, *_ = call.values
    source, held = call.axes(rows), call.axes(weight)
    call.freeze(source[0], "sorted by expert")
    call.freeze(held[0], "one matrix for each expert")
    call.unify(source[-1], held[1])
    call.site("product", weight, None, in_dim=1, out_dim=2, source=(rows, -1))
    call.macs([source[0], held[1], held[2]])
    return (source[0], held[2])
