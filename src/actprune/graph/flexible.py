"""Attention by `flex_attention` is captured as the products, masks and softmax that it computes.

Where it isn't compiled, torch runs it as one call that holds the class's own functions on scores, which no axis algebra
sees into. What those functions are given are numbers of samples, heads and positions that broadcast.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from math import log
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

_FLEX = "torch.nn.attention.flex_attention"
_NAMES = "flex_attention_hop", "_create_empty_block_mask", "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"


@contextlib.contextmanager
def written_out() -> Iterator[None]:
    """Inside, `flex_attention` does its calls one by one; compiled functions run as they are written."""
    library = sys.modules.get(_FLEX)
    if library is None or not all(hasattr(library, name) for name in _NAMES):
        yield
        return
    held = {name: getattr(library, name) for name in _NAMES}
    vars(library).update(zip(_NAMES, (_attention, _unmasked, True), strict=True))
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        vars(library).update(held)


def _unmasked(query: Tensor, key: Tensor) -> Any:
    """What is read of the mask of blocks that stands for none; torch makes it by a vmap, which no export shows."""
    library: Any = sys.modules[_FLEX]
    block, mask = library._LARGE_SPARSE_BLOCK_SIZE, library.noop_mask
    return SimpleNamespace(BLOCK_SIZE=(block, block), kv_num_blocks=query, mask_mod=mask, as_tuple=lambda: (mask,))


def _attention(
    query: Tensor, key: Tensor, value: Tensor, score_mod: Callable[..., Tensor], block_mask: Any, scale: Any, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """query (B, Hq, L, E), key (B or 1, H, S, E), value (B or 1, H, S, V) → the outputs (B, Hq, L, V).

    And of the scores the logarithm to base 2 of the sum of their exponentials, and the largest, (B, Hq, L).
    """
    library: Any = sys.modules[_FLEX]
    served = query.shape[1] // key.shape[1]
    if served > 1:
        key, value = (x.repeat_interleave(int(served), dim=1) for x in (key, value))
    scores = query @ key.transpose(-2, -1) * scale
    # plain numbers: what counts heads is read where a function of the class asks for it
    places = [torch.arange(int(n), device=scores.device).view(-1, *[1] * (3 - d)) for d, n in enumerate(scores.shape)]
    if score_mod is not getattr(library, "_identity", None):
        scores = score_mod(scores, *places)
    mask_mod = block_mask[-1]
    masked = mask_mod is not library.noop_mask
    if masked:
        scores = torch.where(mask_mod(*places), scores, -float("inf"))
    sums, largest = scores.logsumexp(-1), scores.amax(-1)
    # a row may be masked as a whole
    weights = torch.ops.aten._safe_softmax(scores, -1) if masked else scores.softmax(-1)
    return weights @ value, sums / log(2), largest / log(2)
