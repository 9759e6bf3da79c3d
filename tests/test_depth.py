"""Whole blocks left out: which can be, in which order, and that the shorter network is the dense one without them."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import actprune as ap
from actprune.data.take import take
from actprune.depth.blocks import find_blocks
from actprune.depth.budget import Depth, of_blocks, read_depth
from actprune.depth.bypass import Block, Form
from actprune.depth.plan import make_depth_plan
from actprune.depth.proof import _decoding
from actprune.graph.keep import twin

SIZES = {
    "vocab_size": 40, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 32,
}  # fmt: skip


class Residual(nn.Module):
    """x + B relu(A x), where B is as large as asked for: a block that does little, or much."""

    def __init__(self, weight: float = 1.0, width: int = 6) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, width))
        with torch.no_grad():
            self.body[2].weight.mul_(weight)
            self.body[2].bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Chain(nn.Module):
    """Blocks of the given weights between two linear layers."""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(5, 6)
        self.blocks = nn.ModuleList(Residual(weight) for weight in weights)
        self.depth = len(weights)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def data(batches: int = 2) -> list[Tensor]:
    return list(torch.randn(8 * batches, 5, generator=torch.Generator().manual_seed(1)).split(8))


@pytest.fixture(scope="module")
def dense() -> Chain:
    return Chain(1.0, 0.01, 2.0, 0.1).eval()


@pytest.fixture(scope="module")
def short(dense: Chain) -> ap.Shorter:
    """Of the dense chain, two blocks left."""
    return ap.shorten(dense, data(), keep=2)


def test_the_blocks_that_do_least_go_first(dense: Chain, short: ap.Shorter) -> None:
    model, result = dense, short
    assert [step.block for step in result.removals] == ["blocks.1", "blocks.3"]
    assert result.removals[0].distance == min(result.removals[0].tried.values()) < result.removals[1].distance
    assert result.removals[1].tried.keys() == {"blocks.0", "blocks.2", "blocks.3"}
    assert result.blocks == ("blocks.0", "blocks.2") and result.plan.kept == {"blocks": (0, 2)}
    assert type(result.model) is Chain and len(result.model.blocks) == result.model.depth == 2
    with torch.no_grad():  # by hand
        x = data()[0]
        expected = model.last(model.blocks[2](model.blocks[0](model.first(x))))
        torch.testing.assert_close(result.model(x), expected)
    assert result.proof.passed and result.proof.params == sum(p.numel() for p in result.model.parameters())
    assert "without blocks.1: distance" in str(result) and "2 of 4 blocks that can be left out stay" in str(result)
    # the dense model is as it was, and shares no memory with the other
    assert len(model.blocks) == model.depth == 4 and not model.training
    assert all(
        torch.equal(own, new)
        for own, new in zip(model.parameters(), Chain(1.0, 0.01, 2.0, 0.1).parameters(), strict=True)
    )
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in result.model.parameters()}
    assert all(p.requires_grad for p in result.model.parameters())


def test_blocks_are_measured_in_context() -> None:
    """Either of two blocks that undo each other costs much alone; once one is gone the other goes for nothing."""
    model = Chain(1.0, 1.0, 1.0)
    model.blocks[2].load_state_dict(model.blocks[1].state_dict())
    with torch.no_grad():
        model.blocks[2].body[2].weight.mul_(-1)
        for block in model.blocks[1:]:  # what the second reads is as it was before the first
            block.body[0].weight[:, :3] = 0
            block.body[2].weight[3:] = 0
    result = ap.shorten(model, data(), keep=1, distance="mse")
    assert {step.block for step in result.removals} == {"blocks.1", "blocks.2"}
    assert result.removals[0].distance > 1e-3 > 1e-9 > result.removals[1].distance


@pytest.mark.parametrize(("keep", "left"), [(4, 4), ("blocks=75%", 3), ("blocks=0.6", 2), ("blocks=1%", 1)])
def test_budgets_of_blocks(keep: Any, left: int) -> None:
    assert of_blocks(read_depth(keep), 4, 3) == Depth(blocks=left)


@pytest.mark.parametrize(("keep", "left"), [(2, 2), ("params=70%", 1)])
def test_budgets(keep: Any, left: int) -> None:
    model = Chain(1, 1)
    result = ap.shorten(model, data(1), keep=keep)
    assert len(result.model.blocks) == left
    if str(keep).startswith("params"):
        total = sum(p.numel() for p in model.parameters())
        assert (
            result.proof.params <= 0.7 * total < result.proof.params + sum(p.numel() for p in Residual().parameters())
        )


@pytest.mark.parametrize("keep", [0, -1, 0.5, True, None, "macs=50%", "blocks=0%", "blocks=150%", "blocks=1.2.3", "x"])
def test_what_is_no_budget(keep: Any) -> None:
    with pytest.raises(ap.BudgetError) as caught:
        ap.shorten(Chain(1, 1), data(1), keep=keep)
    assert caught.value.where == "keep" and caught.value.expected and caught.value.got and caught.value.hint


def test_budgets_out_of_reach() -> None:
    model = Chain(1, 1, 1)
    with pytest.raises(ap.BudgetError, match=r"1 to 3: of 3 blocks"):
        ap.shorten(model, data(1), keep=4)
    with pytest.raises(ap.BudgetError, match=r"2 to 3: of 3 blocks"):
        ap.shorten(model, data(1), keep=1, protect=["blocks.0", "blocks.2"])
    with pytest.raises(ap.BudgetError, match=r"params=\d+.*% or more"):
        ap.shorten(model, data(1), keep="params=5%")
    with pytest.raises(ap.BudgetError, match=r"\d+ are in what always stays"):
        ap.shorten(model, data(1), keep="params=0.05K")


def test_an_amount_of_parameters() -> None:
    model = Chain(1, 1, 1)
    whole, block = (sum(p.numel() for p in part.parameters()) for part in (model, model.blocks[0]))
    short = ap.shorten(model, data(1), keep=ap.Amount("params", whole - block))
    assert len(short.removals) == 1


def test_protected_blocks_stay() -> None:
    model = Chain(0.01, 1, 1)
    assert ap.shorten(model, data(1), keep=2, protect="*.0").plan.kept["blocks"][0] == 0
    with pytest.raises(ap.PlanError, match="matches no block"):
        ap.shorten(model, data(1), keep=2, protect="layers.*")


# ---- which blocks can be left out


class Other(nn.Module):
    """A stage made of parts, called in an order of its own."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in reversed(self.parts):
            x = part(x)
        return x


class Pair(Residual):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x.mean()


class Plain(Residual):
    """No way past its weights."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x))


class Normed(nn.Module):
    """The way past its weights leads through a norm, as in BERT, and it changes what it is given in place."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = nn.Sequential(nn.Linear(6, 6)), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(x)
        return self.norm(x + self.body(x))


class Standardised(Plain):
    """The weight is computed before it is used."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.body[0].weight
        weight = (weight - weight.mean()) / weight.std()
        return nn.functional.linear(x, weight.T @ weight)


def found(*items: nn.Module, around: type[nn.Module] = nn.Sequential) -> tuple[list[str], dict[str, str]]:
    model = nn.Sequential(nn.Linear(5, 6), around(*items))
    blocks, refused = find_blocks(twin(model).eval(), (data(1)[0],), {})
    return [block.path for block in blocks], refused


def test_residual_blocks_are_found() -> None:
    assert found(Residual(), nn.ReLU(), Residual(), nn.Linear(6, 6)) == (["1.0", "1.2"], {})
    assert found(Normed(), Normed()) == (["1.0", "1.1"], {})
    stage = nn.Sequential(Residual(), Residual())
    names, refused = found(stage, copy.deepcopy(stage))
    assert names == ["1.0.0", "1.0.1", "1.1.0", "1.1.1"]
    assert refused == dict.fromkeys(["1.0", "1.1"], "blocks within it can be left out one by one")
    assert found(Residual()) == ([], {})  # no repeated block


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Plain, "goes past its weights"), (Standardised, "goes past its weights")],
)
def test_blocks_that_are_all_weights_are_refused(kind: Any, reason: str) -> None:
    names, refused = found(kind(), kind())
    assert names == [] and set(refused) == {"1.0", "1.1"}
    assert all(reason in one for one in refused.values())


def test_blocks_that_are_refused_by_what_they_return_or_how_they_are_called() -> None:
    class Twice(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return self[1](self[0](self[0](input)))

    _, refused = found(Residual(), Residual(), around=Twice)
    assert refused == {"1.0": "it is called 2 times"}
    names, refused = found(Other(Residual(), Residual()), Residual())
    assert names == [] and "not called in their order" in refused["1.0.parts.1"]
    same = Residual()
    names, refused = found(nn.Sequential(Residual(), same), nn.Sequential(Residual(), Residual()))
    assert "1.0.1" in names
    model = nn.Sequential(nn.Linear(5, 6), nn.Sequential(Residual(), same))
    model.add_module("again", nn.Identity())
    model[1].best = same
    _, refused = find_blocks(twin(model).eval(), (data(1)[0],), {})
    assert "called 2 times" in refused["1.1"] or "2 modules hold" in refused["1.1"]

    class First(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            for one in self:
                input = one(input)[0]
            return input

    _, refused = found(Pair(), Pair(), around=First)
    assert "returns 2 tensors" in refused["1.0"]


def test_nothing_to_leave_out_is_told() -> None:
    with pytest.raises(ap.UnsupportedModelError, match=r"1\.0: no way from its input") as caught:
        ap.shorten(nn.Sequential(nn.Linear(5, 6), nn.Sequential(Plain(), Plain())), data(1), keep=1)
    assert caught.value.where == "shorten"


# ---- classes that can't run shorter


class Indexed(Chain):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for i in range(2):
            x = self.blocks[i](x)
        return self.last(x)


class Numbered(Chain):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for i, block in enumerate(self.blocks):
            x = block(x) * (1 + i)
        return self.last(x)


class Counted(Chain):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for i in range(self.depth):
            x = self.blocks[i](x)
        return self.last(x)


def test_a_class_that_can_not_run_shorter_is_refused() -> None:
    with pytest.raises(ap.EquivalenceError, match="does not run"):
        ap.shorten(Indexed(1, 1), data(1), keep=1)
    with pytest.raises(ap.EquivalenceError, match="not the dense one without these blocks"):
        ap.shorten(Numbered(1, 1), data(1), keep=1, protect=["blocks.1"])
    assert ap.shorten(Counted(1, 1), data(1), keep=1).model.depth == 1


def test_a_wrong_weight_fails_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    from actprune.depth import plan

    right = plan.shortened

    def wrong(model: nn.Module, kept: Any) -> nn.Module:
        made: Any = right(model, kept)
        with torch.no_grad():
            made.blocks[0].body[0].weight[0, 0] += 1e-3
        return made

    monkeypatch.setattr(plan, "shortened", wrong)
    with pytest.raises(ap.EquivalenceError, match=r"other values in blocks\.0\.body\.0\.weight"):
        ap.shorten(Chain(1, 1), data(1), keep=1)
    monkeypatch.setattr("actprune.depth.proof._changed", lambda *_: None)
    with pytest.raises(ap.EquivalenceError, match="on the real weights"):
        ap.shorten(Chain(1, 1), data(1), keep=1)


# ---- the plan


def test_a_plan_is_read_and_applied_again(dense: Chain, short: ap.Shorter) -> None:
    model, result = dense, short
    plan = ap.DepthPlan.from_json(result.plan.to_json())
    assert plan == result.plan and plan.note["removals"] == {step.block: step.distance for step in result.removals}
    again = plan.apply(model)
    assert all(torch.equal(own, again.state_dict()[name]) for name, own in result.model.state_dict().items())
    assert plan.dense_name("blocks.1.body.0.weight") == "blocks.2.body.0.weight"
    with pytest.raises(ap.PlanError, match="does not fit"):
        plan.apply(Chain(1, 1, 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("actprune.depth/1", "other/1"), ('"kept": [', '"kept": [7, '), ('"kept": [', '"stay": ['),
        ('"kept": [', '"kept": ["a", '), ("{", "{{"), ('"model": "Chain"', '"model": 3'),
    ],
)  # fmt: skip
def test_plans_that_can_not_be_read(short: ap.Shorter, old: str, new: str) -> None:
    text = short.plan.to_json()
    assert old in text
    with pytest.raises(ap.PlanError, match="can't be read"):
        ap.DepthPlan.from_json(text.replace(old, new, 1))


def test_a_shorter_model_is_pruned_like_any(short: ap.Shorter) -> None:
    result = ap.prune(short.model, data(), keep="units=50%", method="l2")
    assert result.proof.passed and len(result.model.blocks) == 2
    shorter = ap.shorten(result.model, data(), keep=1)
    assert shorter.proof.passed and shorter.proof.params < result.report.final.params


# ---- networks of others


class Basic(nn.Module):
    """The block of a CIFAR ResNet (He et al. 2016, §4.2, shortcuts of type B)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None if before == width else nn.Conv2d(before, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    stages = [
        nn.Sequential(*(Basic(a if i == 0 else b, b, s if i == 0 else 1) for i in range(2)))
        for a, b, s in ((4, 4, 1), (4, 6, 2), (6, 8, 2))
    ]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), *stages, *head)


def test_of_a_residual_network_the_blocks_of_unchanged_shape_go() -> None:
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    result = ap.shorten(resnet(), [images], keep=2)
    gone = {step.block for step in result.removals}
    assert gone | set(result.blocks) == {"2.0", "2.1", "3.1", "4.1"} and result.proof.passed
    assert {
        path: reason.split()[1] for path, reason in result.refused.items() if path in ("3.0", "4.0")
    } == dict.fromkeys(("3.0", "4.0"), "makes")


@pytest.mark.filterwarnings("ignore")
def test_a_vision_transformer(vision: ModuleType) -> None:
    images = torch.randn(2, 3, 16, 16)
    net = vision.vision_transformer.VisionTransformer(16, 8, 2, 2, 8, 16, num_classes=3)
    nn.init.normal_(net.heads.head.weight)
    result = ap.shorten(net, [images], keep=1)
    names = list(result.model.encoder.layers._modules)
    assert [f"encoder.layers.{name}" for name in names] == list(result.blocks)


# ---- Hugging Face


def tokens() -> list[dict[str, Tensor]]:
    ids = torch.randint(0, 40, (4, 6), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": part} for part in ids.split(2)]


def decoder(hub: ModuleType, name: str) -> Any:
    torch.manual_seed(0)
    if name == "llama":
        return hub.LlamaForCausalLM(hub.LlamaConfig(**SIZES, num_key_value_heads=1)).eval()
    if name == "qwen":
        windows = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
        return hub.Qwen2ForCausalLM(
            hub.Qwen2Config(**{**SIZES, "num_hidden_layers": 3}, num_key_value_heads=1, **windows)
        ).eval()
    return hub.GPT2LMHeadModel(
        hub.GPT2Config(vocab_size=40, n_embd=8, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
    ).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "number"), [("llama", "num_hidden_layers"), ("gpt2", "n_layer")])
def test_decoders_are_loaded_by_stock_transformers(hub: ModuleType, tmp_path: Path, name: str, number: str) -> None:
    model, ids = decoder(hub, name), tokens()[0]["input_ids"]
    result = ap.shorten(model, tokens(), keep=1)
    assert getattr(model.config, number) == 2 and getattr(result.model.config, number) == 1
    loaded = hub.AutoModelForCausalLM.from_pretrained(result.save_pretrained(tmp_path / "short")).eval()
    assert type(loaded) is type(model) and getattr(loaded.config, number) == 1
    assert sum(p.numel() for p in loaded.parameters()) == result.proof.params
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, result.model(ids).logits)
        made = [result.model.generate(ids, use_cache=cache, **settings) for cache in (True, False)]
    assert torch.equal(*made)


@pytest.mark.filterwarnings("ignore")
def test_an_encoder(hub: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = ap.shorten(hub.BertForSequenceClassification(hub.BertConfig(**SIZES)), tokens(), keep=1)
    assert result.proof.passed and len(result.model.bert.encoder.layer) == 1
    loaded = hub.BertForSequenceClassification.from_pretrained(result.save_pretrained(tmp_path / "short"))
    assert loaded.config.num_hidden_layers == 1


def without(model: Any, position: int, layers: str = "model.layers") -> Any:
    """A decoder without one layer, with no search and no proof."""
    form = Form((), (None,), 0, pytree.tree_structure(0))
    return make_depth_plan(model, [Block(f"{layers}.{position}", layers, position, form)]).apply(model)


@pytest.mark.filterwarnings("ignore")
def test_lists_with_an_entry_for_every_layer(hub: ModuleType) -> None:
    model = decoder(hub, "qwen")
    kinds = list(model.config.layer_types)
    assert kinds[0] != kinds[1]
    small = without(model, 0)
    assert small.config.layer_types == kinds[1:] and small.config.num_hidden_layers == 2
    assert small.config.max_window_layers == 1 and model.config.num_hidden_layers == 3
    assert [layer.self_attn.layer_idx for layer in small.model.layers] == [0, 1]


@pytest.mark.filterwarnings("ignore")
def test_a_cache_that_counts_wrongly_is_noticed(hub: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder(hub, "llama")
    assert _decoding(model, without(model, 0), tokens()[0]) is None
    monkeypatch.setattr("actprune.depth.surgery.NUMBERS", ())
    assert _decoding(model, without(model, 0), tokens()[0]) is not None


@pytest.mark.filterwarnings("ignore")
def test_a_class_that_is_built_by_its_number_is_not_written(hub: ModuleType, short: ap.Shorter, tmp_path: Path) -> None:
    sizes = {"vocab_size": 40, "n_embd": 8, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    config = hub.GPT2Config(**sizes, n_positions=8, initializer_range=0.5, scale_attn_by_inverse_layer_idx=True)
    model = without(hub.GPT2LMHeadModel(config), 0, "transformer.h")
    result = replace(short, model=model, samples=take(model, tokens(), 4))
    with pytest.raises(ap.ArtifactError, match="not written") as caught:
        result.save_pretrained(tmp_path / "short")
    assert "plan.to_json" in str(caught.value.hint) and list(tmp_path.iterdir()) == []
