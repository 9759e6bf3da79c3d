"""Padding that a mask tells is no data: padded texts give what the same texts give without padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import actprune as ap
from actprune.data.samples import Calibration
from actprune.data.take import fit
from actprune.distance import divergence, judge, normalised_error
from actprune.graph.run import run_all
from actprune.plan import make_plan
from actprune.recovery.distill import Distill
from actprune.rewrite import Rewrite, zero_columns
from actprune.stats.padding import Padding

pytestmark = pytest.mark.accurate

WORDS, WIDTH, HIDDEN = 20, 16, 24
SHORT, LONG = 6, 10
Batches = Sequence[Mapping[str, Tensor]]


class Attention(nn.Module):
    """Causal, with one head; keys that are padding are masked out."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        length = x.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool).tril() & (mask[:, None] > 0)
        scores = (self.q(x) @ self.k(x).mT / WIDTH**0.5).masked_fill(~seen, -1e9)
        return self.o(scores.softmax(-1) @ self.v(x))


class Texts(nn.Module):
    """A block of a causal transformer, with a logit for every word."""

    activation: nn.Module = nn.GELU()

    def __init__(self) -> None:
        super().__init__()
        self.words, self.attention = nn.Embedding(WORDS, WIDTH), Attention()
        self.up, self.down, self.head = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH), nn.Linear(WIDTH, WORDS)

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.words(input_ids)
        x = x + self.attention(x, attention_mask)
        return x + self.down(self.activation(self.up(x)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.hidden(input_ids, attention_mask))


class Rectified(Texts):
    """With a ReLU alone between two layers at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(WIDTH, WIDTH)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(torch.relu(self.more(self.hidden(input_ids, attention_mask))))


class Pooled(Texts):
    """The mean of a text; its first output has no positions."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[..., None].float()
        return self.head((self.hidden(input_ids, attention_mask) * mask).sum(1) / mask.sum(1).clamp_min(1))


class Encoder(nn.Module):
    """torch's own, with torch's own mask: True is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, 5)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, HIDDEN, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, src: Tensor, src_key_padding_mask: Tensor) -> Tensor:
        return self.head(self.layers(self.words(src), src_key_padding_mask=src_key_padding_mask))


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def texts(length: int, samples: int = 32, size: int = 4) -> Batches:
    """The same texts of `SHORT` words, padded to a length."""
    words = torch.randint(1, WORDS, (samples, SHORT), generator=torch.Generator().manual_seed(1))
    ids = torch.full((samples, length), 7)
    ids[:, :SHORT] = words
    mask = (torch.arange(length) < SHORT).long().expand(samples, -1)
    return [{"input_ids": a, "attention_mask": b} for a, b in zip(ids.split(size), mask.split(size), strict=True)]


def as_torch(batches: Batches) -> Batches:
    return [{"src": b["input_ids"], "src_key_padding_mask": b["attention_mask"] == 0} for b in batches]


def ragged(samples: int = 32, size: int = 4) -> Batches:
    """Texts of several lengths, one of none at all, a batch without padding, and two where nothing else is."""
    draw = torch.Generator().manual_seed(2)
    ids = torch.randint(1, WORDS, (samples, LONG), generator=draw)
    mask = (torch.arange(LONG) < torch.randint(0, LONG, (samples, 1), generator=draw)).long()
    mask[:size], mask[size : 3 * size] = 1, 0
    return [{"input_ids": a, "attention_mask": b} for a, b in zip(ids.split(size), mask.split(size), strict=True)]


def both(kind: type[nn.Module], form: Any = None) -> list[tuple[ap.Graph, Calibration]]:
    """The network on texts without padding and on the same texts with it."""
    found: list[tuple[ap.Graph, Calibration]] = []
    for length in (SHORT, LONG):
        batches = texts(length) if form is None else form(texts(length))
        graph = ap.capture(made(kind), dict(batches[0]))
        found.append((graph, fit(graph.program, batches)))
    return found


def halved(graph: ap.Graph) -> ap.Plan:
    """Half of every group."""
    return make_plan(graph, {group.name: list(range(0, group.width, 2)) for group in graph.groups})


def _apart(kind: type[nn.Module], tensors: Mapping[str, Tensor]) -> float:
    """Of the texts without padding."""
    graph, data = both(kind)[0]
    cut = zero_columns(graph, halved(graph), Rewrite(tensors))
    return normalised_error(run_all(graph.program, data.batches), run_all(graph.program, data.batches, cut))


def test_statistics() -> None:
    plain, padded = (ap.collect(graph, data) for graph, data in both(Texts))
    assert plain.sites.keys() == padded.sites.keys() and plain.sites
    for name in plain.sites:
        a, b = plain.moments(name), padded.moments(name)
        assert a.count == b.count == 32 * SHORT
        torch.testing.assert_close(a.mean, b.mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(a.scatter, b.scatter, rtol=1e-4, atol=1e-4)
        assert plain.input_output_correlation(name) == pytest.approx(padded.input_output_correlation(name), abs=1e-4)
    for name, values in plain.units.items():
        torch.testing.assert_close(values.value, padded.units[name].value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(values.most, padded.units[name].most, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["bias", "ridge_map", "least_squares", "reconstruct"])
@pytest.mark.parametrize("kind", [Texts, Rectified, Pooled])
def test_refits(kind: type[nn.Module], method: str) -> None:
    rewrites = [ap.compensate(graph, halved(graph), data, method=method) for graph, data in both(kind)]
    tensors = [rewrite.tensors for rewrite in rewrites]
    assert tensors[0].keys() == tensors[1].keys() and tensors[0]
    if method == "reconstruct":  # preconditioned with random signs, one for every row: near, but not the same
        apart = [_apart(kind, rewrite.tensors) for rewrite in rewrites]
        assert apart[0] == pytest.approx(apart[1], rel=0.1)
        return
    for name, value in tensors[0].items():
        torch.testing.assert_close(value, tensors[1][name], rtol=1e-3, atol=1e-3)
    rows = [[one.get("rows") for one in rewrite.record.get("consumers", {}).values()] for rewrite in rewrites]
    assert rows[0] == rows[1]


def test_few_samples() -> None:
    """Dealt by sample where there are few batches; by position where there are few samples, so that folds differ."""
    for samples, size, same in ((8, 4, True), (4, 2, False)):
        rewrites: list[Rewrite] = []
        for length in (SHORT, LONG):
            batches = texts(length, samples, size)
            graph = ap.capture(made(Texts), dict(batches[0]))
            rewrites.append(ap.compensate(graph, halved(graph), batches))
        for name, value in rewrites[0].tensors.items() if same else ():
            torch.testing.assert_close(value, rewrites[1].tensors[name], rtol=1e-3, atol=1e-3)
        rows = [[one["rows"] for one in rewrite.record["consumers"].values()] for rewrite in rewrites]
        assert rows[0] == rows[1] == [samples * SHORT] * len(rows[0])


def test_one_sample_at_a_time() -> None:
    batches = texts(LONG, samples=5, size=1)
    stats = ap.collect(graph := ap.capture(made(Texts), dict(batches[0])), batches)
    assert {stats.moments(name).count for name in stats.sites} == {5 * SHORT}
    four = fit(graph.program, batches).batches[0]
    assert bool(
        Padding(graph)
        .marked(
            (torch.zeros(4, LONG, WORDS),),
            tuple(value.repeat(4, 1) if isinstance(value, Tensor) else value for value in four),
        )[0]
        .isfinite()
        .all()
    )


def test_torch_s_own_mask() -> None:
    pairs = both(Encoder, as_torch)
    plain, padded = (ap.collect(graph, data) for graph, data in pairs)
    for name in plain.sites:
        assert plain.moments(name).count == padded.moments(name).count
        torch.testing.assert_close(plain.moments(name).mean, padded.moments(name).mean, rtol=1e-4, atol=1e-5)
    tensors = [ap.compensate(graph, halved(graph), data).tensors for graph, data in pairs]
    for name, value in tensors[0].items():
        torch.testing.assert_close(value, tensors[1][name], rtol=2e-3, atol=2e-3)


def test_distances() -> None:
    found: list[list[float]] = []
    for graph, data in both(Texts):
        padding, changed = Padding(graph), {"up.weight": graph.program.tensors["up.weight"].detach() * 0.5}
        dense, cut = padding.outputs(data.batches), padding.outputs(data.batches, changed)

        def summed(a: Any, b: Any) -> float:
            return float(sum((x[0] - y[0]).abs().sum() for x, y in zip(a, b, strict=True)))

        own = judge(graph.program, summed)
        found.append([divergence(dense, cut), normalised_error(dense, cut), own(dense, cut)])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_pooled_outputs_count_as_a_whole() -> None:
    graph, data = both(Pooled)[1]
    padding = Padding(graph)
    assert all(bool(out[0].isfinite().all()) for out in padding.outputs(data.batches))


def test_sensitivity_is_that_of_the_texts() -> None:
    curves = []
    for graph, data in both(Texts):
        guide = ap.guide(graph, ap.collect(graph, data), method="l2")
        plan = ap.allocate(graph, guide, data, keep="params=60%")
        curves.append(plan.widths)
    assert curves[0] == curves[1]


def test_recovery() -> None:
    distances = []
    for graph, data in both(Texts):
        model, plan = made(Texts), halved(graph)
        small = ap.cut(model, plan, ap.compensate(graph, plan, data))
        done = Distill(steps=3, checks=1).run(small, model, graph.program, data, graph=graph, plan=plan)
        distances.append([done.distance_before, done.distance_after])
    assert distances[0] == pytest.approx(distances[1], rel=1e-2)


@pytest.mark.parametrize("method", ["sgd-ap", "flap", "grail"])
def test_texts_of_any_length(method: str) -> None:
    """Some have no word at all; nothing fails, and what is said of rows is the number of words."""
    batches = ragged()
    model = made(Texts)
    result = ap.prune(model, batches, keep="params=70%", method=method, recover=Distill(steps=2))
    assert all(bool(p.isfinite().all()) for p in result.model.parameters())
    words = sum(int(b["attention_mask"].sum()) for b in batches)
    graph = ap.capture(model, dict(batches[0]))
    stats = ap.collect(graph, batches)
    assert {stats.moments(name).count for name in stats.sites} == {words}


@pytest.mark.parametrize("mask", ["ones", "a float", "of other numbers"])
def test_nothing_changes_without_padding(mask: str) -> None:
    """To the bit: a mask that hides nothing, and numbers that are no mask."""
    batches = [dict(b) for b in texts(SHORT)]
    given = [
        {**b, "attention_mask": b["attention_mask"].float() if mask != "ones" else b["attention_mask"]} for b in batches
    ]
    if mask == "of other numbers":
        given = [{**b, "attention_mask": b["attention_mask"] * 0.5} for b in given]
    model = made(Texts)
    graph = ap.capture(model, given[0])
    data = fit(graph.program, given)
    found = ap.collect(graph, data), ap.compensate(graph, halved(graph), data).tensors

    class Bare(Texts):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return super().forward(input_ids, torch.ones_like(input_ids))

    bare = ap.capture(made(Bare), {"input_ids": batches[0]["input_ids"]})
    other = fit(bare.program, [{"input_ids": b["input_ids"]} for b in batches])
    stats, tensors = ap.collect(bare, other), ap.compensate(bare, halved(bare), other).tensors
    for a, b in zip(found[0].sites.values(), stats.sites.values(), strict=True):
        assert all(torch.equal(x.scatter, y.scatter) for x, y in zip(a, b, strict=True))
    assert all(torch.equal(value, tensors[name]) for name, value in found[1].items())


def test_a_mask_goes_with_the_input_of_its_side() -> None:
    class Pair(nn.Module):
        """An encoder and a decoder of texts that are equally long, so that sizes do not tell them apart."""

        def __init__(self) -> None:
            super().__init__()
            self.words, self.a, self.b = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN)
            self.c, self.d = nn.Linear(HIDDEN, WIDTH), nn.Linear(HIDDEN, WIDTH)

        def forward(
            self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor, decoder_attention_mask: Tensor
        ) -> tuple[Tensor, Tensor]:
            x = self.c(torch.relu(self.a(self.words(input_ids)))) * attention_mask[..., None]
            y = self.d(torch.relu(self.b(self.words(decoder_input_ids)))) * decoder_attention_mask[..., None]
            return x, y + x.mean(1, keepdim=True)

    first, second = texts(LONG)[0], ragged()[-1]
    batch = {**first, **{f"decoder_{name}": value for name, value in second.items()}}
    graph = ap.capture(made(Pair), batch)
    stats = ap.collect(graph, [batch])
    counts = {site.module: stats.moments(site.name).count for site in graph.sites if site.name in stats.sites}
    words = int(first["attention_mask"].sum()), int(second["attention_mask"].sum())
    assert (counts["c"], counts["d"]) == words


@pytest.mark.parametrize("hidden", [0.0, 1.0])
@pytest.mark.parametrize("samples", [4, 6])
def test_a_mask_of_positions_by_positions_hides_no_padding(hidden: float, samples: int) -> None:
    """A causal one, under the name of a padding mask; also with as many samples as positions."""

    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.out(self.attend(x, x, x, attn_mask=attention_mask == hidden)[0])

    mask = torch.ones(6, 6).triu(1) if hidden else torch.ones(6, 6).tril()
    data = {"x": torch.randn(samples, 6, 8), "attention_mask": mask}
    graph = ap.capture(Causal().eval(), data)
    batch = graph.program.example
    assert all(Padding(graph).of(node.name, batch) is None for node in graph.program.nodes)
