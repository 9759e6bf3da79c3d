"""Scaled dot-product attention as one op."""

from __future__ import annotations

from math import sqrt

from actprune.axes.call import Call, rule
from actprune.axes.expr import size
from actprune.axes.site import Dims


@rule("aten.scaled_dot_product_attention")
def attention(call: Call) -> Dims:
    """query (…, H, L, E), key (…, H, S, E), value (…, H, S, V), mask (…, L, S) → (…, H, L, V).

    Without a `scale` the call divides by √E of the tensors that it is given, so by another number once E is cut.
    With `enable_gqa` every key head serves the same number of query heads.
    """
    query, key, value, mask = (call.axes(call[name]) for name in ("query", "key", "value", "attn_mask"))
    call.unify(query[-1], key[-1])
    call.unify(key[-2], value[-2])
    call.freeze(key[-2], "attended over")
    heads, groups = query[:-2], key[:-2]
    if call["enable_gqa"] and size(heads[-1]) != size(groups[-1]):
        served = size(heads[-1]) // size(groups[-1])
        each, _ = call.algebra.split(heads[-1], [size(groups[-1]), served], call.where)
        call.unify(each, groups[-1])
        call.unify(groups[-1], value[-3])
        pairs = list(zip(heads[:-1], groups[:-1], value[:-3], strict=True))
    else:
        pairs = list(zip(heads, groups, value[:-2], strict=True))
    for a, b, c in pairs:
        for x, y in ((a, b), (a, c)):
            if size(x) == size(y):
                call.unify(x, y)
    for own, axis in zip(reversed(mask), reversed((*heads, query[-2], key[-2])), strict=False):
        if size(own) != 1:
            call.unify(own, axis)
    # the class that torch's own attention becomes keeps its scale
    default = call["scale"] is None and not call.inside("torch.nn.modules.activation.MultiheadAttention")
    call.mixes(call["query"], -1, gain=(lambda dense, kept: sqrt(dense / kept)) if default else None)
    call.attends(heads)
    batch = [*heads, query[-2], key[-2]]
    call.macs([*batch, query[-1]])
    call.macs([*batch, value[-1]])
    return (*heads, query[-2], value[-1])
