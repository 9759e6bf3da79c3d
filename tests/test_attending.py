"""Attention that a class computes by torch's own function, which insists on the width of its tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import flex_attention as library
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from actprune.graph import attending
from actprune.graph.run import run
from actprune.plan import Plan, make_plan
from actprune.proof.check import verify
from actprune.repair.adapt import capture, trial_units
from actprune.surgery.slicing import cut

WIDTH, HEADS = 16, 4


class Pool(nn.Module):
    """The pooling of CLIP's residual networks: one query, the mean, and weights of three linear layers."""

    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.need_weights = nn.Conv2d(3, WIDTH, 3), need_weights
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.c_proj, self.num_heads = nn.Linear(WIDTH, 5), HEADS

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu().flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(0, keepdim=True), x])
        out, weights = F.multi_head_attention_forward(
            x[:1], x, x, embed_dim_to_check=x.shape[-1], num_heads=self.num_heads, in_proj_weight=None,
            in_proj_bias=torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias]), bias_k=None, bias_v=None,
            add_zero_attn=False, dropout_p=0.0, out_proj_weight=self.c_proj.weight, out_proj_bias=self.c_proj.bias,
            use_separate_proj_weight=True, q_proj_weight=self.q_proj.weight, k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight, training=self.training, need_weights=self.need_weights,
        )  # fmt: skip
        return out[0] if weights is None else out[0] + weights.sum((1, 2))[:, None]


@pytest.mark.parametrize("need_weights", [False, True])
def test_a_pool_loses_channels_heads_and_head_dimensions(need_weights: bool) -> None:
    model, x = Pool(need_weights).eval(), torch.randn(3, 3, 5, 5)
    graph = capture(model, x)
    assert {group.kind for group in graph.groups} == {"channels", "heads", "head dims"} - (
        {"heads"} if need_weights else set[str]()  # of the weights a mean is taken over the heads
    )
    plan = Plan.from_json(make_plan(graph, trial_units(graph, (group.name for group in graph.groups))).to_json())
    small = cut(model, plan)
    assert verify(model, small, plan, x, graph=graph).passed
    assert plan.edits.calls[0].functions == ("forward", "multi_head_attention_forward")
    small.train()(torch.randn(2, 3, 6, 6)).sum().backward()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("unbatched", [True, False])
def test_it_is_torchs_own_function_when_nothing_is_cut(packed: bool, weighted: bool, unbatched: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, WIDTH) if unbatched else torch.randn(5, 2, WIDTH)
    weight, bias = torch.randn(3 * WIDTH, WIDTH), torch.randn(3 * WIDTH)
    rows, out = torch.randn(2, 1, 1, WIDTH), torch.randn(WIDTH, WIDTH)
    settings: dict[str, Any] = {
        "need_weights": weighted, "attn_mask": torch.randn(5, 5), "use_separate_proj_weight": not packed,
        "key_padding_mask": torch.randn(5 if unbatched else (2, 5)),
    }  # fmt: skip
    settings |= {} if packed else dict(zip("qkv", weight.chunk(3), strict=True))
    settings = {f"{name}_proj_weight" if name in "qkv" else name: value for name, value in settings.items()}
    given = (x, x, x, WIDTH, HEADS, weight if packed else None, bias, *rows, True, 0.0, out, None)
    expected = F.multi_head_attention_forward(*given, **settings)
    torch.testing.assert_close(attending.multi_head_attention_forward(*given, **settings), expected)


class Own(nn.MultiheadAttention):
    """A class made from torch's, with a forward pass of its own that calls the function by hand."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return F.multi_head_attention_forward(
            x, x, x, self.embed_dim, self.num_heads, self.in_proj_weight, self.in_proj_bias, None, None, False, 0.0,
            self.out_proj.weight, self.out_proj.bias, self.training, need_weights=False,
        )[0]  # fmt: skip


def test_a_class_made_from_torchs_that_calls_it_by_hand_scales_by_the_size_that_it_has() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 2, WIDTH)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Own(WIDTH, HEADS), nn.Linear(WIDTH, 3)).eval()
    graph = capture(model, x)
    assert "head dims" in {group.kind for group in graph.groups}
    plan = make_plan(graph, trial_units(graph, (group.name for group in graph.groups)))
    assert verify(model, cut(model, plan), plan, x, graph=graph).passed


class Renamed(nn.Module):
    """The function under another name, which no edit can exchange."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attend = nn.Linear(WIDTH, WIDTH), F.multi_head_attention_forward
        self.rows, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        rest = (None, None, False, 0.0, self.out.weight, self.out.bias)
        return x + self.attend(x, x, x, WIDTH, HEADS, self.rows.weight, self.rows.bias, *rest)[0]


def test_the_function_under_another_name_stays_as_it_is() -> None:
    assert capture(Renamed().eval(), torch.randn(5, 2, WIDTH)).groups == ()


class Flexible(nn.Module):
    """Two query heads to each of keys and values, under a score and a mask of the class's own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.kv, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, 5, 5, device="cpu")
        self.heads = HEADS

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (part.unflatten(-1, (self.heads // 2, -1)).transpose(1, 2) for part in self.kv(x).chunk(2, -1))
        out: Any = flex_attention(
            q, k, v, score_mod=lambda s, b, h, i, j: s - (i - j) * (i > 2), block_mask=self.mask, enable_gqa=True
        )
        return self.out(out.transpose(1, 2).flatten(2))


def test_flexible_attention_loses_heads_and_head_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)  # compiling takes seconds
    model, x = Flexible().eval().requires_grad_(False), torch.randn(2, 5, WIDTH)  # a CPU has no backward of it
    graph = capture(model, x)
    assert [group.kind for group in graph.groups] == ["heads", "head dims", "head dims"]
    plan = make_plan(graph, trial_units(graph, (group.name for group in graph.groups)))
    assert verify(model, cut(model, plan), plan, x, graph=graph).passed
    torch.testing.assert_close(run(graph.program, (x,))[0], model(x))
