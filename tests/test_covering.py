"""Kernels that cover a dimension of their input read it as channels are read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import actprune as ap


class Sentence(nn.Module):
    """Kim (2014): filters of a few words and the whole embedding, of several lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.filters = nn.ModuleList(nn.Conv2d(1, 6, (k, 8), padding=(k - 1, 0)) for k in (2, 3))
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = [conv(self.embed(x)[:, None]).relu().squeeze(3) for conv in self.filters]
        return self.fc(torch.cat([m.amax(2) for m in maps], 1))


class Rows(nn.Module):
    """The first dimension of space is covered, without padding; the other one is slid over, with stride."""

    def __init__(self, padding: Any = (0, 1)) -> None:
        super().__init__()
        self.embed, self.conv, self.bn = nn.Linear(5, 8), nn.Conv2d(1, 6, (8, 3), (1, 2), padding), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn(self.conv(self.embed(x).mT[:, None])).relu().mean((2, 3)))


SENTENCES = torch.randint(0, 20, (32, 7), generator=torch.Generator().manual_seed(0))
SERIES = torch.randn(32, 7, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("make", "x"), [(Sentence, SENTENCES), (Rows, SERIES)])
@pytest.mark.parametrize(("method", "form"), [("l2", "class"), ("flap", "graph")])
def test_the_covered_dimension_is_cut(make: type[nn.Module], x: Tensor, method: str, form: str) -> None:
    result = ap.prune(make(), list(x.split(8)), keep="units=50%", method=method, form=form)
    assert result.plan.widths["embed"] == 4
    assert result.model.state_dict()["embed.weight"].numel() == make().embed.weight.numel() // 2  # type: ignore[union-attr]
    assert result.model(x[:3]).shape == (3, 3)  # proved already


def test_the_class_says_its_kernel() -> None:
    result = ap.prune(Sentence(), list(SENTENCES.split(8)), keep={"embed": 5}, method="l2")
    assert [conv.kernel_size for conv in result.model.filters] == [(2, 5), (3, 5)]  # type: ignore[attr-defined]


def test_its_readers_are_refitted() -> None:
    """Units that are copies of others cost nothing: what they did, the refit gives to those."""
    model = Rows().eval()
    with torch.no_grad():
        model.embed.weight[4:], model.embed.bias[4:] = model.embed.weight[:4], model.embed.bias[:4]
    result = ap.prune(model, list(SERIES.split(8)), keep={"embed": 4}, method="sgd-ap")
    assert torch.allclose(result.model(SERIES), model(SERIES), atol=1e-3)


@pytest.mark.parametrize("padding", [(1, 1), (1, 0)])
def test_padding_leaves_the_dimension_whole(padding: Any) -> None:
    graph = ap.capture(Rows(padding), SERIES)
    assert [group.name for group in graph.groups] == ["conv"]
