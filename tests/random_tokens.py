"""What random networks are made of, third part: blocks on tokens (N, T, C), attention in its many spellings."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from random_blocks import Here, Make, Op, parameter


def _heads(x: Tensor, heads: int) -> Tensor:
    """(N, T, H · D) → (N, H, T, D)."""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    """(N, H, T, D) → (N, T, H · D)."""
    return x.transpose(1, 2).flatten(2)


def _projections(here: Here, inner: int, **more: Any) -> dict[str, Any]:
    return {name: nn.Linear(here.channels, inner, **more) for name in "qkv"} | {"out": nn.Linear(inner, here.channels)}


def separate(here: Here, width: int, count: int) -> nn.Module:
    """Three layers for q, k and v; the number of heads is an attribute, the scale a number."""
    return Op(_separate, heads=count, scale=0.3, **_projections(here, count * width))


def _separate(m: Any, x: Tensor) -> Tensor:
    q, k, v = (_heads(layer(x), m.heads) for layer in (m.q, m.k, m.v))
    return m.out(_joined((q @ k.transpose(-2, -1) * m.scale).softmax(-1) @ v))


def head_dims(here: Here, width: int, count: int) -> nn.Module:
    """The size of a head is an attribute, and the scale is computed of it on every call."""

    def function(m: Any, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (layer(x).view(b, t, -1, m.head_dim).permute(0, 2, 1, 3) for layer in (m.q, m.k, m.v))
        weights = F.softmax(torch.matmul(q, k.transpose(2, 3)) / m.head_dim**0.5, dim=-1)
        return m.out(torch.matmul(weights, v).transpose(1, 2).reshape(b, t, -1))

    return Op(function, head_dim=width, **_projections(here, count * width))


def fused(here: Here, width: int, count: int) -> nn.Module:
    """One layer for q | k | v, as in timm: the size of a head from the residual stream's width."""
    heads = here.shared(count)

    def function(m: Any, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = m.qkv(x).reshape(b, t, 3, m.heads, c // m.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q * m.scale @ k.transpose(-2, -1)).softmax(-1)
        return m.out((weights @ v).transpose(1, 2).reshape(b, t, c))

    c = here.channels
    return Op(function, heads=heads, scale=0.5, qkv=nn.Linear(c, 3 * c, bias=False), out=nn.Linear(c, c))


def fused_chunk(here: Here, width: int, count: int) -> nn.Module:
    """One layer for q | k | v, chunked; scaled dot-product attention with its own scale, causal or not."""

    def function(m: Any, x: Tensor) -> Tensor:
        q, k, v = (_heads(part, m.heads) for part in m.qkv(x).chunk(3, -1))
        return m.out(_joined(F.scaled_dot_product_attention(q, k, v, is_causal=m.causal)))

    inner, c = count * width, here.channels
    return Op(function, heads=count, causal=width % 2 == 0, qkv=nn.Linear(c, 3 * inner), out=nn.Linear(inner, c))


def fixed_split(here: Here, width: int, count: int) -> nn.Module:
    """q | k | v are split with the sizes written down, and given a scale."""
    inner, c = count * width, here.channels

    def function(m: Any, x: Tensor) -> Tensor:
        q, k, v = (_heads(part, count) for part in m.qkv(x).split(inner, dim=2))
        return m.out(_joined(F.scaled_dot_product_attention(q, k, v, scale=0.4)))

    return Op(function, qkv=nn.Linear(c, 3 * inner), out=nn.Linear(inner, c))


def library(here: Here, width: int, count: int) -> nn.Module:
    """nn.MultiheadAttention."""
    attention = nn.MultiheadAttention(here.channels, here.shared(count), batch_first=True, bias=width % 2 == 0)
    return Op(lambda m, x: m.attention(x, x, x, need_weights=False)[0], attention=attention)


def encoder_layer(here: Here, width: int, count: int) -> nn.Module:
    return nn.TransformerEncoderLayer(here.channels, here.shared(count), width, batch_first=True, norm_first=width > 4)


def grouped_queries(here: Here, width: int, count: int) -> nn.Module:
    """Two query heads for every key-value head: repeated, expanded, or left to the op."""
    inner, c = count * width, here.channels
    parts = {"q": nn.Linear(c, 2 * inner), "k": nn.Linear(c, inner), "v": nn.Linear(c, inner)}
    way = (_repeated, _expanded, _enabled)[(width + count) % 3]
    return Op(way, heads=2 * count, key_heads=count, out=nn.Linear(2 * inner, c), **parts)


def _queries(m: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _heads(m.q(x), m.heads), _heads(m.k(x), m.key_heads), _heads(m.v(x), m.key_heads)


def _repeated(m: Any, x: Tensor) -> Tensor:
    q, k, v = _queries(m, x)
    k, v = (y.repeat_interleave(m.heads // m.key_heads, dim=1) for y in (k, v))
    return m.out(_joined(F.scaled_dot_product_attention(q, k, v)))


def _expanded(m: Any, x: Tensor) -> Tensor:
    q, k, v = _queries(m, x)
    b, h, t, d = k.shape
    k, v = (y[:, :, None].expand(b, h, 2, t, d).reshape(b, h * 2, t, d) for y in (k, v))
    return m.out(_joined((q @ k.mT).softmax(-1) @ v))


def _enabled(m: Any, x: Tensor) -> Tensor:
    q, k, v = _queries(m, x)
    return m.out(_joined(F.scaled_dot_product_attention(q, k, v, enable_gqa=True)))


def by_einsum(here: Here, width: int, count: int) -> nn.Module:
    def function(m: Any, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (m.heads, -1)) for layer in (m.q, m.k, m.v))
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
        return m.out(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))

    return Op(function, heads=count, **_projections(here, count * width))


def linear_attention(here: Here, width: int, count: int) -> nn.Module:
    """No softmax over the tokens: k and v meet first."""

    def function(m: Any, x: Tensor) -> Tensor:
        q, k, v = (_heads(layer(x), m.heads) for layer in (m.q, m.k, m.v))
        return m.out(_joined(torch.relu(q) @ (torch.relu(k).transpose(-2, -1) @ v) / x.shape[1]))

    return Op(function, heads=count, **_projections(here, count * width))


def biased(here: Here, width: int, count: int) -> nn.Module:
    """A learned bias for every head and pair of tokens, and a causal mask in a buffer."""
    t = here.value.shape[1]

    def function(m: Any, x: Tensor) -> Tensor:
        q, k, v = (_heads(layer(x), m.heads) for layer in (m.q, m.k, m.v))
        scores = (q @ k.transpose(-2, -1) + m.bias).masked_fill(~m.mask, float("-inf"))
        return m.out(_joined(scores.softmax(-1) @ v))

    mask = torch.ones(t, t, dtype=torch.bool).tril()
    return Op(function, heads=count, bias=parameter(count, t, t), mask=mask, **_projections(here, count * width))


def rotary(here: Here, width: int, count: int) -> nn.Module:
    """Rotary positions: the two halves of a head are mixed in pairs; one key-value head for all queries."""
    t, half, c = here.value.shape[1], width, here.channels
    angles = torch.outer(torch.arange(t), 0.5 ** torch.arange(half)).repeat(1, 2)
    inner = 2 * half * count

    def function(m: Any, x: Tensor) -> Tensor:
        q, k = _heads(m.q(x), m.heads), _heads(m.k(x), 1)
        q, k = (y * m.cos + _turned(y) * m.sin for y in (q, k))
        return m.out(_joined((q @ k.transpose(-2, -1)).softmax(-1) @ _heads(m.v(x), 1)))

    layers = {"q": nn.Linear(c, inner), "k": nn.Linear(c, 2 * half), "v": nn.Linear(c, 2 * half)}
    return Op(function, heads=count, cos=angles.cos(), sin=angles.sin(), out=nn.Linear(inner, c), **layers)


def _turned(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)


def cosine(here: Here, width: int, count: int) -> nn.Module:
    """q and k are normalised, and every head has its own temperature (Swin V2, XCiT)."""

    def function(m: Any, x: Tensor) -> Tensor:
        q, k, v = (_heads(layer(x), m.heads) for layer in (m.q, m.k, m.v))
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * m.temperature
        return m.out(_joined(scores.softmax(-1) @ v))

    return Op(function, heads=count, temperature=parameter(count, 1, 1), **_projections(here, count * width))


def across_channels(here: Here, width: int, count: int) -> nn.Module:
    """Channels attend to channels (XCiT, DaViT): the softmax runs over a head's units."""

    def function(m: Any, x: Tensor) -> Tensor:
        q, k, v = (_heads(layer(x), m.heads).transpose(-2, -1) for layer in (m.q, m.k, m.v))
        return m.out(_joined(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(-2, -1)))

    return Op(function, heads=count, **_projections(here, count * width))


def windows(here: Here, width: int, count: int) -> nn.Module:
    """Attention within windows of the sequence, shifted by a roll, as in Swin."""
    size = 2 if here.value.shape[1] % 2 == 0 else 1

    def function(m: Any, x: Tensor) -> Tensor:
        b, t, c = x.shape
        inner = torch.roll(x, -1, 1).view(b, t // size, size, c).reshape(-1, size, c)
        return torch.roll(m.attention(inner).view(b, t, -1), 1, 1)

    return Op(function, attention=separate(here, width, count))


def experts(here: Here, width: int, count: int) -> nn.Module:
    """A soft mixture of experts."""

    def function(m: Any, x: Tensor) -> Tensor:
        shares = m.router(x).softmax(-1)
        return torch.stack([expert(x) for expert in m.experts], -1).mul(shares.unsqueeze(-2)).sum(-1)

    c = here.channels
    made = (nn.Sequential(nn.Linear(c, width + i), nn.GELU(), nn.Linear(width + i, c)) for i in range(count))
    return Op(function, router=nn.Linear(c, count), experts=nn.ModuleList(made))


def state_space(here: Here, width: int, count: int) -> nn.Module:
    """A gated linear recurrence over the tokens, one channel at a time."""

    def function(m: Any, x: Tensor) -> Tensor:
        value, rate = F.silu(m.into(x)), torch.sigmoid(m.rate(x))
        state, states = torch.zeros_like(value[:, 0]), []
        for t in range(x.shape[1]):
            state = state * rate[:, t] * m.decay + value[:, t]
            states.append(state)
        return m.out(torch.stack(states, 1))

    c = here.channels
    layers = {"into": nn.Linear(c, width), "rate": nn.Linear(c, width), "out": nn.Linear(width, c)}
    return Op(function, decay=parameter(width), **layers)


def recurrent(here: Here, width: int, count: int) -> nn.Module:
    kind, layers = (nn.LSTM, nn.GRU)[width % 2], 1 + count % 2
    rnn = kind(here.channels, width, layers, batch_first=True, bidirectional=count == 3)
    return Op(lambda m, x: m.rnn(x)[0], rnn=rnn)


def mixer(here: Here, width: int, count: int) -> nn.Module:
    """A perceptron over the tokens, as in MLP-Mixer."""
    t = here.value.shape[1]
    layers = {"up": nn.Linear(t, width), "down": nn.Linear(width, t)}
    return Op(lambda m, x: x + m.down(F.gelu(m.up(x.transpose(1, 2)))).transpose(1, 2), **layers)


def written_norm(here: Here, width: int, count: int) -> nn.Module:
    """A root-mean-square norm written out, as language models have it."""

    def function(m: Any, x: Tensor) -> Tensor:
        wide = x.to(torch.float32) if x.dtype == torch.float16 else x
        return m.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)

    return Op(function, weight=parameter(here.channels))


def _perceptron(here: Here, width: int, count: int) -> nn.Module:
    return nn.Sequential(here.layer(width), nn.GELU(), nn.Dropout(0.1), here.layer(here.channels, width))


def _positions(here: Here, width: int, count: int) -> nn.Module:
    t, c = here.value.shape[1:]
    if count % 2:
        return Op(lambda m, x: x + m.table(torch.arange(x.shape[1])), table=nn.Embedding(t, c))
    return Op(lambda m, x: x + m.position[:, : x.shape[1]], position=parameter(1, t + 1, c))


def _convolved(here: Here, width: int, count: int) -> nn.Module:
    conv = nn.Conv1d(here.channels, width, 3, padding=1)
    return Op(lambda m, x: torch.relu(m.conv(x.transpose(1, 2))).transpose(1, 2), conv=conv)


ATTENTION: dict[str, Make] = {
    "separate": separate,
    "head_dims": head_dims,
    "fused": fused,
    "fused_chunk": fused_chunk,
    "fixed_split": fixed_split,
    "library": library,
    "encoder_layer": encoder_layer,
    "grouped_queries": grouped_queries,
    "by_einsum": by_einsum,
    "linear_attention": linear_attention,
    "biased": biased,
    "rotary": rotary,
    "cosine": cosine,
    "across_channels": across_channels,
    "windows": windows,
}

TOKENS: dict[str, Make] = {
    "perceptron": _perceptron,
    "layer_norm": lambda here, width, count: nn.LayerNorm(here.channels, elementwise_affine=count != 3),
    "rms_norm": lambda here, width, count: nn.RMSNorm(here.channels),
    "written_norm": written_norm,
    "positions": _positions,
    "convolved": _convolved,
    "mixer": mixer,
    "recurrent": recurrent,
    "experts": experts,
    "state_space": state_space,
    **ATTENTION,
}
"""Blocks that keep the number of tokens."""


def _class_token(here: Here, width: int, count: int) -> nn.Module:
    token = parameter(1, 1, here.channels)
    return Op(lambda m, x: torch.cat([m.token.expand(x.shape[0], -1, -1), x], 1), token=token)


def _merge(here: Here, width: int, count: int) -> nn.Module:
    """Two neighbours become one token, as in Swin; the first of each pair, where the number is odd."""
    if here.value.shape[1] % 2:
        return Op(lambda m, x: m.layer(x[:, ::2]), layer=here.layer(width))
    merged = nn.Linear(2 * here.channels, width)
    return Op(lambda m, x: m.layer(torch.cat([x[:, 0::2], x[:, 1::2]], -1)), layer=merged)


LENGTHEN: dict[str, Make] = {"class_token": _class_token, "merge": _merge}
"""Blocks that change the number of tokens."""

Bridge = tuple[str, str, Make]


def _by(*functions: Callable[[Any, Tensor], Tensor]) -> Make:
    return lambda here, width, count: Op(functions[(width + count) % len(functions)])


def _unfolded(here: Here, *sizes: int) -> nn.Module:
    """A decoder's first step: one layer makes all the channels of a small map, or all tokens."""
    return nn.Sequential(nn.Linear(here.channels, prod(sizes)), nn.Unflatten(1, sizes))


BRIDGES: dict[str, Bridge] = {
    "mean": ("maps", "rows", _by(lambda m, x: x.mean(tuple(range(2, x.dim()))), lambda m, x: x.flatten(2).amax(2))),
    "flatten": ("maps", "rows", _by(lambda m, x: x.flatten(1), lambda m, x: x.reshape(x.shape[0], -1))),
    "flatten_last": ("maps", "rows", _by(lambda m, x: x.movedim(1, -1).flatten(1))),
    "to_tokens": ("maps", "tokens", _by(lambda m, x: x.flatten(2).transpose(1, 2))),
    "pooled": ("tokens", "rows", _by(lambda m, x: x[:, 0], lambda m, x: x.mean(1), lambda m, x: x.max(1).values)),
    "flatten_tokens": ("tokens", "rows", _by(lambda m, x: x.flatten(1))),
    "to_maps": ("tokens", "maps", _by(lambda m, x: x.transpose(1, 2))),
    "unfolded": ("rows", "maps", lambda here, width, count: _unfolded(here, width, 2, 2)),
    "unfolded_tokens": ("rows", "tokens", lambda here, width, count: _unfolded(here, 3, width)),
}
"""Name → from, to, maker."""
