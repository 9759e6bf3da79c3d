"""`PrunedMHA`: nn.MultiheadAttention whose heads × head size is no longer its embedding size.

The stock class asserts that they are equal. Tensors keep their names, so that a state dict still fits.
"""

from __future__ import annotations

from functools import cache
from math import sqrt
from typing import Any

from torch import Tensor, nn

from actprune.axes.expr import Axis
from actprune.graph.attending import Attention, in_three
from actprune.plan import Plan
from actprune.surgery.modules import remaining_groups


class PrunedMHA(nn.MultiheadAttention):
    """As its base class, with `num_heads` and `head_dim` set freely (Vaswani et al. 2017).

    Attributes:
        scale: of the products of queries and keys, 1/√d of the head size before it was cut.
    """

    scale: float

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See `nn.MultiheadAttention.forward`: query (N, L, E) if `batch_first` else (L, N, E), or (L, E)."""
        attention = Attention(
            self.num_heads, self.bias_k, self.bias_v, self.add_zero_attn, self.dropout if self.training else 0.0,
            key_padding_mask, attn_mask, need_weights, average_attn_weights, is_causal, self.scale,
        )  # fmt: skip
        biases = in_three(self.in_proj_bias)
        out, weights = attention((query, key, value), self._weights(), biases, self.batch_first)
        return self.out_proj(out), weights

    def _weights(self) -> tuple[Tensor, Tensor, Tensor]:
        if self.in_proj_weight is not None:  # pyright: ignore[reportUnnecessaryComparison]
            return self.in_proj_weight.chunk(3)  # type: ignore[return-value]
        return self.q_proj_weight, self.k_proj_weight, self.v_proj_weight


def adapt_attention(model: nn.Module, plan: Plan) -> None:
    """Give every attention of the stock class whose sizes were cut the class that can carry them.

    Also where only the stream that it reads was cut: the stock class asserts that its width is the embedding size.
    """
    canonical = {alias: name for name, aliases in plan.aliases.items() for alias in aliases}
    for path, module in model.named_modules():
        if not isinstance(module, nn.MultiheadAttention):
            continue
        name = canonical.get(f"{path}.out_proj.weight" if path else "out_proj.weight")
        axis: Axis | None = None if name is None else plan.dims[name][1]
        width: Any = module.out_proj.weight.shape[1]
        if _stock_sizes(module):
            continue
        scale = module.scale if isinstance(module, PrunedMHA) else 1 / sqrt(module.head_dim)
        if axis is not None:
            module.num_heads = remaining_groups(axis, module.num_heads, plan)
        module.head_dim = width // module.num_heads
        module._qkv_same_embed_dim = False  # keeps the fused kernels away, which know only the stock sizes
        module.__class__ = _pruned(type(module))  # pyright: ignore[reportAttributeAccessIssue]
        module.scale = scale  # type: ignore[assignment]
    for encoder in model.modules():
        if isinstance(encoder, nn.TransformerEncoder) and any(isinstance(m, PrunedMHA) for m in encoder.modules()):
            encoder.enable_nested_tensor = encoder.use_nested_tensor = False  # which only fused kernels read


@cache
def _pruned(cls: type[nn.MultiheadAttention]) -> type[nn.MultiheadAttention]:
    """The class that carries other sizes: a class made from the stock one keeps its own code in front of it."""
    if issubclass(cls, PrunedMHA):
        return cls
    if cls is nn.MultiheadAttention:
        return PrunedMHA
    space = {
        "__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__,
        "__reduce__": lambda own: (_made_again, (cls,), own.__getstate__()),
    }  # fmt: skip
    return type(cls)(cls.__name__, (cls, PrunedMHA), space)  # pyright: ignore[reportCallIssue]


def _made_again(cls: type[nn.MultiheadAttention]) -> nn.MultiheadAttention:
    """For pickle, which finds classes by their names."""
    made = _pruned(cls)
    return made.__new__(made)


def _stock_sizes(module: nn.MultiheadAttention) -> bool:
    """Whether the queries, the heads and the output are of the embedding size, as the stock class has it."""
    fused: Any = module.in_proj_weight
    rows, into = module.q_proj_weight.shape if fused is None else (fused.shape[0] // 3, fused.shape[1])
    return {rows, into, *module.out_proj.weight.shape} == {module.embed_dim}
