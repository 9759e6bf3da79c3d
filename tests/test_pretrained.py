"""Hugging Face folders: pruned, saved, and loaded by stock transformers to the same outputs."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import actprune as ap
from actprune.allocation.budget import Budget
from actprune.allocation.space import make_space, role
from nets import build

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers and its friends

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 16,
}  # fmt: skip


def tokens() -> list[dict[str, torch.Tensor]]:
    return [
        {"input_ids": x} for x in torch.randint(0, 40, (16, 6), generator=torch.Generator().manual_seed(0)).split(4)
    ]


def made(hub: ModuleType, name: str) -> Any:
    torch.manual_seed(0)
    if name.startswith("llama"):
        heads = 4 if name == "llama, heads alone" else 2
        return hub.LlamaForCausalLM(hub.LlamaConfig(**SIZES, num_key_value_heads=heads)).eval()
    return hub.BertForSequenceClassification(hub.BertConfig(**SIZES)).eval()


@pytest.mark.parametrize(
    ("name", "protect", "changed"),
    [
        ("llama", (), {"num_attention_heads", "num_key_value_heads", "intermediate_size"}),
        ("llama, heads alone", (), {"num_attention_heads", "num_key_value_heads", "intermediate_size"}),
        ("bert", ("*attention*", "*pooler*"), {"intermediate_size"}),
    ],
)
def test_stock_transformers_loads_it(
    hub: ModuleType, tmp_path: Path, name: str, protect: Any, changed: set[str]
) -> None:
    model, data = made(hub, name), tokens()
    result = ap.prune(model, data, keep="units=50%", method="l2", equal_widths=True, protect=protect)
    folder = result.save_pretrained(tmp_path / "hf")
    loaded = type(model).from_pretrained(folder).eval()
    assert type(loaded) is type(model)
    differing = {key for key, value in model.config.to_dict().items() if loaded.config.to_dict()[key] != value}
    assert changed == differing & SIZES.keys() | (differing & {"num_key_value_heads"})
    with torch.no_grad():
        expected, found = (net.eval()(**data[0]).logits for net in (result.model, loaded))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in model.parameters())
    text = (folder / "README.md").read_text()
    assert "library_name: transformers" in text and f"{result.report.final.params:,}" in text
    with pytest.raises(ap.ArtifactError, match="exists"):
        result.save_pretrained(folder)


def test_heads_and_their_size_in_equal_shares(hub: ModuleType, tmp_path: Path) -> None:
    """Half of the heads of half the size are a quarter of either as well, but for the biases that each head has."""
    config = hub.T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    model = hub.T5ForConditionalGeneration(config).eval()
    data = [{**batch, "decoder_input_ids": batch["input_ids"][:, :3].contiguous()} for batch in tokens()]
    result = ap.prune(model, data, keep="units=50%", method="l2", equal_widths=True)
    loaded = hub.T5Config.from_pretrained(result.save_pretrained(tmp_path / "hf"))
    assert (loaded.num_heads, loaded.d_kv, loaded.d_ff) == (2, 4, 32)


def test_a_width_that_the_configuration_leaves_out(hub: ModuleType, tmp_path: Path) -> None:
    """`n_inner` is None: four times the width."""
    config = hub.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=16, eos_token_id=1, bos_token_id=1
    )
    result = ap.prune(
        hub.GPT2LMHeadModel(config).eval(),
        tokens(),
        keep="units=50%",
        method="l2",
        equal_widths=True,
        protect=["*attn*"],
    )
    assert hub.GPT2Config.from_pretrained(result.save_pretrained(tmp_path / "hf")).n_inner == 32


def test_what_no_configuration_says_is_told(hub: ModuleType, tmp_path: Path) -> None:
    result = ap.prune(made(hub, "bert"), tokens(), keep="units=50%", method="l2", equal_widths=True)
    with pytest.raises(ap.ArtifactError, match="No configuration") as caught:
        result.save_pretrained(tmp_path / "hf")
    assert "--protect 'bert.encoder.layer.*.attention.self.query'" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("equal", [True, False])
def test_a_family_that_stock_transformers_can_not_load_cut(hub: ModuleType, tmp_path: Path, equal: bool) -> None:
    torch.manual_seed(0)
    model = hub.BloomForCausalLM(hub.BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=4)).eval()
    group = "transformer.h.0.mlp.dense_h_to_4h"
    how: dict[str, Any] = {"keep": "units=50%", "equal_widths": True} if equal else {"keep": {group: 8}}
    result = ap.prune(model, tokens(), method="l2", **how)
    with pytest.raises(ap.ArtifactError, match="No configuration") as caught:
        result.save_pretrained(tmp_path / "hf")
    assert ("none of its groups" in str(caught.value.hint)) == equal
    assert ("equal_widths" in str(caught.value.hint)) != equal and "actprune.load" in str(caught.value.hint)


def test_a_model_of_another_house(hub: ModuleType, tmp_path: Path) -> None:
    model, x = build("chain")
    result = ap.prune(model, [x, x], keep="units=50%", method="l2")
    with pytest.raises(ap.ArtifactError, match="no model of transformers"):
        result.save_pretrained(tmp_path / "hf")


# ---- equal widths


class Blocks(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(6, 12)
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(12, n), torch.nn.ReLU(), torch.nn.Linear(n, 12))
            for n in (16, 16, 16, 8)
        )
        self.last = torch.nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


@pytest.mark.parametrize("allocation", ["sensitivity", "uniform", "global"])
@pytest.mark.parametrize("budget", ["macs=50%", "params=40%", "units=50%"])
def test_blocks_get_one_width(budget: str, allocation: str) -> None:
    torch.manual_seed(0)
    model, data = Blocks(), [torch.randn(16, 6) for _ in range(4)]
    graph = ap.capture(model, data[0])
    guide = ap.guide(graph, ap.collect(graph, data), method="flap")
    widths = ap.allocate(graph, guide, data, keep=budget, allocation=allocation, equal_widths=True).widths
    assert widths["blocks.0.0"] == widths["blocks.1.0"] == widths["blocks.2.0"] < 16
    kind, dense, found = budget.partition("=")[0], ap.cost(graph), ap.cost(graph, widths)
    assert kind == "units" or found[kind] <= float(budget[-3:-1]) / 100 * dense[kind]


def test_roles() -> None:
    assert role("model.layers.11.mlp.up_proj") == role("model.layers.2.mlp.up_proj#3") == "model.layers.*.mlp.up_proj"
    space = make_space(ap.capture(Blocks(), torch.randn(2, 6)), Budget("macs", 0.5), equal=True)
    assert space.tied["blocks.0.0"] == ("blocks.0.0", "blocks.1.0", "blocks.2.0")  # the last one is narrower
    assert space.every({"blocks.0.0": 4})["blocks.2.0"] == 4


@pytest.mark.parametrize("how", ["by name", "by position", "mixed"])
def test_a_decoder_that_forward_calls(hub: ModuleType, how: str) -> None:
    """It is called without its cache, as at capture."""
    calls = {
        "by name": lambda model, batch: model(**batch),
        "by position": lambda model, batch: model(batch["input_ids"]),
        "mixed": lambda model, batch: model(batch["input_ids"], attention_mask=None),
    }
    result = ap.prune(made(hub, "llama"), tokens(), keep="units=50%", method="flap", forward=calls[how])
    assert result.proof.passed


@pytest.mark.parametrize("kind", ["Qwen2", "Mixtral"])
def test_a_configuration_without_the_size_of_its_heads(hub: ModuleType, tmp_path: Path, kind: str) -> None:
    """Its class computes it from two other numbers; told, it may be any."""
    torch.manual_seed(0)
    config = getattr(hub, f"{kind}Config")(**SIZES, num_key_value_heads=2)
    assert getattr(config, "head_dim", None) is None
    model = getattr(hub, f"{kind}ForCausalLM")(config).eval()
    result = ap.prune(model, tokens(), keep="units=60%", method="l2", equal_widths=True)
    loaded = type(model).from_pretrained(result.save_pretrained(tmp_path / "hf")).eval()
    assert loaded.config.head_dim == 4 and loaded.config.num_attention_heads < 4
    with torch.no_grad():
        expected, found = (net.eval()(**tokens()[0]).logits for net in (result.model, loaded))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_numbers_that_a_configuration_checks_against_each_other(hub: ModuleType, tmp_path: Path) -> None:
    """Of the heads of a Falcon-H1's Mamba and their size the tensors show the product alone."""
    torch.manual_seed(0)
    mamba = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_chunk_size": 8}
    model = hub.FalconH1ForCausalLM(hub.FalconH1Config(**SIZES, num_key_value_heads=2, head_dim=4, **mamba)).eval()
    result = ap.prune(model, tokens(), keep="units=50%", method="l2", equal_widths=True)
    loaded = type(model).from_pretrained(result.save_pretrained(tmp_path / "hf")).eval()
    config = loaded.config  # half of the heads, and of the units of each
    assert (config.mamba_d_ssm, config.mamba_n_heads, config.mamba_d_head) == (8, 2, 4)
    with torch.no_grad():
        expected, found = (net.eval()(**tokens()[0]).logits for net in (result.model, loaded))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_widths_in_a_list(hub: ModuleType, tmp_path: Path) -> None:
    """The channels of a Wav2Vec2's convolutions are the entries of `conv_dim`."""
    torch.manual_seed(0)
    convolutions = {"conv_dim": (8, 8, 8), "conv_stride": (4, 2, 2), "conv_kernel": (8, 4, 2)}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    sizes = {**SIZES, "num_feat_extract_layers": 3, "classifier_proj_size": 16, "apply_spec_augment": False}
    model = hub.HubertForSequenceClassification(hub.HubertConfig(**sizes, **convolutions, **positions)).eval()
    data = list(torch.randn(8, 200, generator=torch.Generator().manual_seed(0)).split(4))
    result = ap.prune(model, data, keep="units=50%", method="l2", equal_widths=True, protect=["*attention*"])
    loaded = type(model).from_pretrained(result.save_pretrained(tmp_path / "hf")).eval()
    assert (list(loaded.config.conv_dim), loaded.config.classifier_proj_size) == ([4, 4, 4], 8)
    with torch.no_grad():
        expected, found = (net.eval()(data[0]).logits for net in (result.model, loaded))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
