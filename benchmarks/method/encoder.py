"""A sentence encoder (all-MiniLM-L6-v2, BERT type, 22.7 M parameters): how near embeddings stay without training.

Heads and MLP neurons are cut until 70 or 50 % of the parameters of the blocks are left. Calibration on paragraphs of
WikiText-2's validation part, 64 tokens each; test on those of its test part and on the pairs of the STS benchmark.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.coverage.suites.case import declare_torchvision_ops
from benchmarks.method.rows import Row, Rows, pivot
from safetensors.torch import load_file
from torch import Tensor, nn

import actprune as ap

TOKENS, CALIBRATION, TEST = 64, 512, 512
KEEPS = (0.7, 0.5)
METHODS: tuple[dict[str, Any], ...] = (
    {"method": "sgd-ap"},
    {"method": "grail"},
    {"method": "flap"},
    {"method": "wanda"},
    {"method": "wanda", "compensate": "least_squares"},
    {"method": "l2"},
)


class Encoder(nn.Module):
    """Token numbers and attention mask (N, T) → embeddings (N, 384): the mean over the tokens, of length 1."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(hidden.dtype)
        return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def load(folder: Path) -> tuple[Encoder, Any]:
    """The encoder and its tokenizer, from the folder of its files."""
    declare_torchvision_ops()  # transformers imports torchvision where there is one
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    given = json.loads((folder / "config.json").read_text())
    bert = BertModel(BertConfig(**{k: v for k, v in given.items() if k != "architectures"}), add_pooling_layer=False)
    missing, _ = bert.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    if missing:
        raise ValueError(f"{missing} are not in the file")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(TOKENS)
    return Encoder(bert).eval(), tokenizer


def paragraphs(path: Path, tokenizer: Any, count: int) -> list[dict[str, Tensor]]:
    """Batches of 32 paragraphs that fill all tokens."""
    lines = [line for line in path.read_text().splitlines() if not line.strip().startswith("=")]
    ids = [e.ids for e in tokenizer.encode_batch(lines) if len(e.ids) == TOKENS][:count]
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in torch.tensor(ids).split(32)]


def sentences(lines: Iterable[str], tokenizer: Any) -> list[dict[str, Tensor]]:
    """Batches of sentences, padded."""
    ids = [torch.tensor(e.ids) for e in tokenizer.encode_batch(list(lines))]
    found: list[dict[str, Tensor]] = []
    for i in range(0, len(ids), 64):
        padded = nn.utils.rnn.pad_sequence(ids[i : i + 64], batch_first=True)
        lengths = torch.tensor([len(x) for x in ids[i : i + 64]])
        found.append({"input_ids": padded, "attention_mask": (torch.arange(padded.shape[1]) < lengths[:, None]).long()})
    return found


@torch.no_grad()
def embed(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> Tensor:
    return torch.cat([model(**batch) for batch in batches])


class Bench:
    """The test data and what the dense network says of it."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.dense, tokenizer = load(folder)
        self.calibration = paragraphs(data / "wikitext2_valid.txt", tokenizer, CALIBRATION)
        self.lines = paragraphs(data / "wikitext2_test.txt", tokenizer, TEST)
        rows = [line.split("\t") for line in (data / "stsb.tsv").read_text().splitlines() if line.startswith("test")]
        self.scores = torch.tensor([float(row[1]) for row in rows])
        self.pairs = [sentences((row[i] for row in rows), tokenizer) for i in (2, 3)]
        self.wanted = embed(self.dense, self.lines)

    def figures(self, model: nn.Module) -> Row:
        """Mean cosine to the dense embeddings; share of paragraphs with the same nearest other one; Spearman on STS."""
        found = embed(model, self.lines)
        left, right = (embed(model, part) for part in self.pairs)
        return {
            "cosine": float((found * self.wanted).sum(1).mean()),
            "retrieval": float((nearest(found) == nearest(self.wanted)).float().mean()),
            "spearman": spearman((left * right).sum(1), self.scores),
            "block_params": blocks(model),
        }


def nearest(embeddings: Tensor) -> Tensor:
    """(N,) the number of the nearest other embedding."""
    return (embeddings @ embeddings.T).fill_diagonal_(-1).argmax(1)


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation, ties by their mean rank."""
    return float(torch.corrcoef(torch.stack([_ranks(a), _ranks(b)]))[0, 1])


def _ranks(x: Tensor) -> Tensor:
    _, inverse, counts = x.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts - 1) / 2)[inverse]


def blocks(model: nn.Module) -> int:
    """Parameters of the blocks: all but the embeddings."""
    return sum(p.numel() for name, p in model.named_parameters() if ".layer." in name)


def measure(rows: Rows, folder: Path, data: Path) -> None:
    bench = Bench(folder, data)
    rows.measure(lambda: bench.figures(bench.dense), method="dense", stage="dense", seed=0)
    total = sum(p.numel() for p in bench.dense.parameters())
    for keep in KEEPS:
        budget = f"params={100 * (1 - (1 - keep) * blocks(bench.dense) / total):.3f}%"
        for setting in METHODS:

            def work(setting: dict[str, Any] = setting, budget: str = budget) -> Row:
                result = ap.prune(bench.dense, bench.calibration, keep=budget, **setting)
                return {**bench.figures(result.model), "widths": dict(result.plan.widths)}

            rows.measure(work, **setting, keep=f"blocks={keep:.0%}", stage="pruned", seed=0)


def tables(rows: Rows) -> str:
    parts = ["# all-MiniLM-L6-v2: embeddings after a cut, without any gradient step"]
    for name, title in (
        ("cosine", "Mean cosine to the dense embeddings, 512 paragraphs"),
        ("retrieval", "Paragraphs whose nearest other one is the same, %"),
        ("spearman", "Spearman correlation on the STS benchmark × 100"),
    ):
        found = pivot(
            rows.found, ("method", "compensate"), lambda r: r.get("keep") or "dense", lambda r, n=name: r.get(n)
        )
        parts.append(f"## {title}\n\n{found}")
    return "\n\n".join(parts) + "\n"
