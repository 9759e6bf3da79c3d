"""Attention with heads of any number and size: torch's own insists that they make up the width of the stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Projections = Sequence[Tensor]
Biases = Sequence[Tensor | None]


@dataclass(frozen=True)
class Attention:
    """What attention does beside its projections, in the words of `F.multi_head_attention_forward`."""

    heads: int
    bias_k: Tensor | None = None
    bias_v: Tensor | None = None
    add_zero_attn: bool = False
    dropout: float = 0.0
    padding: Tensor | None = None
    mask: Tensor | None = None
    need_weights: bool = True
    average: bool = True
    is_causal: bool = False
    scale: float | None = None

    def __call__(
        self, streams: Projections, weights: Projections, biases: Biases, batch_first: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Queries, keys and values (N, L, E) if `batch_first` else (L, N, E), or (L, E) → the values of all heads side
        by side, laid out alike, and the weights (N, H, L, S) or their mean (N, L, S) where they are asked for."""
        unbatched, swap = streams[0].dim() == 2, streams[0].dim() == 3 and not batch_first
        q, k, v = (
            F.linear(x.unsqueeze(0) if unbatched else x.transpose(0, 1) if swap else x, w, b)
            .unflatten(-1, (self.heads, -1))
            .transpose(1, 2)
            for x, w, b in zip(streams, weights, biases, strict=True)
        )
        # the stock function does not read a mask that is said to be causal
        causal = self.is_causal and self.mask is not None and self.padding is None and not self.need_weights
        mask = None if causal else self._mask(q, unbatched)
        for key, value in self._rows(k, v):
            k, v = torch.cat([k, key], 2), torch.cat([v, value], 2)
            mask = mask if mask is None else F.pad(mask, (0, 1))
        found: Tensor | None = None
        if self.need_weights:
            scores = (q * (q.shape[-1] ** -0.5 if self.scale is None else self.scale)) @ k.transpose(-2, -1)
            each = (scores if mask is None else scores + mask).softmax(-1)
            out = (F.dropout(each, self.dropout) if self.dropout else each) @ v
            found = each.mean(1) if self.average else each
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, self.dropout, causal, scale=self.scale)
        out = out.transpose(1, 2).flatten(2)
        if unbatched:
            return out.squeeze(0), None if found is None else found.squeeze(0)
        return out.transpose(0, 1) if swap else out, found

    def _rows(self, k: Tensor, v: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What keys (N, H, S, D) and values have beside those of the streams: learned ones, and zeros."""
        if self.bias_k is not None and self.bias_v is not None:
            yield self._row(self.bias_k, k), self._row(self.bias_v, v)
        if self.add_zero_attn:
            yield torch.zeros_like(k[:, :, :1]), torch.zeros_like(v[:, :, :1])

    def _row(self, row: Tensor, like: Tensor) -> Tensor:
        """A learned (1, 1, H·D) key or value → (N, H, 1, D)."""
        return row.unflatten(-1, (self.heads, -1)).transpose(1, 2).expand(like.shape[0], -1, -1, -1)

    def _mask(self, q: Tensor, unbatched: bool) -> Tensor | None:
        """Both masks as one to add, (1 or N, 1 or H, L or 1, S); of booleans True means "not attended to"."""
        found: Tensor | None = None
        if self.mask is not None:
            found = _added(self.mask, q)
            if found.dim() == 3:
                found = found.unflatten(0, (q.shape[0], -1))
        if self.padding is not None:
            padded = _added(self.padding.unsqueeze(0) if unbatched else self.padding, q)[:, None, None]
            found = padded if found is None else found + padded
        return found


def in_three(bias: Tensor | None) -> Biases:
    """Of the queries, keys and values."""
    return (None,) * 3 if bias is None else bias.chunk(3)


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
    return mask.to(like.dtype)


def multi_head_attention_forward(
    query: Tensor, key: Tensor, value: Tensor, embed_dim_to_check: int, num_heads: int, in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None, bias_k: Tensor | None, bias_v: Tensor | None, add_zero_attn: bool, dropout_p: float,
    out_proj_weight: Tensor, out_proj_bias: Tensor | None, training: bool = True,
    key_padding_mask: Tensor | None = None, need_weights: bool = True, attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False, q_proj_weight: Tensor | None = None, k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None, static_k: Tensor | None = None, static_v: Tensor | None = None,
    average_attn_weights: bool = True, is_causal: bool = False,
) -> Any:  # fmt: skip
    """See `F.multi_head_attention_forward`, with heads of any size: the scale is that of the size they have.

    `NotImplemented` where keys or values are given that are projected already.
    """
    if static_k is not None or static_v is not None:
        return NotImplemented
    attention = Attention(
        num_heads, bias_k, bias_v, add_zero_attn, dropout_p if training else 0.0, key_padding_mask, attn_mask,
        need_weights, average_attn_weights, is_causal,
    )  # fmt: skip
    separate: Any = (q_proj_weight, k_proj_weight, v_proj_weight)
    weights = separate if in_proj_weight is None or use_separate_proj_weight else in_proj_weight.chunk(3)
    out, found = attention((query, key, value), weights, in_three(in_proj_bias), batch_first=False)
    return F.linear(out, out_proj_weight, out_proj_bias), found


OF_ANY_WIDTH: dict[Callable[..., Any], Callable[..., Any]] = {
    F.multi_head_attention_forward: multi_head_attention_forward
}
"""Functions of torch's that insist on sizes of their tensors → the ones that take their place where these are cut."""
