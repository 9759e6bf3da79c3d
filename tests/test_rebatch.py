"""Calibration batches of a better size than they came in, and candidates that are judged on samples of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import actprune as ap
from actprune import forms
from actprune.compensation.crossed import compared, pairs
from actprune.data import rebatch
from actprune.data.samples import Calibration
from actprune.data.take import take


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4))


class Fixed(nn.Module):
    """Takes no batch but one of 64."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.reshape(64, 8))


class Centred(Fixed):
    """Every sample looks at all others."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x - x.mean(0))


class States(nn.Module):
    """Several outputs, of which one has its samples in the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.out = nn.GRU(4, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found, state = self.rnn(x)
        return self.out(found[:, -1]), state, found.argmax(-1)


def size(model: nn.Module, batches: list[Tensor]) -> int:
    return rebatch.rebatched(model, take(model, batches, 2048)).batch_size


def test_one_batch_is_divided_so_that_some_can_be_held_out() -> None:
    x = torch.randn(64, 8)
    assert size(mlp(), [x]) == 8
    assert size(mlp(), [x[:40], x[40:60]]) == 6
    assert size(mlp(), [x[:6]]) == 2  # in the statistics a single sample would look like one entry of a batch
    assert size(mlp(), [x[:1]]) == 1
    assert size(States(), [torch.randn(48, 5, 4)]) == 6


def test_a_network_is_cut_as_if_its_batch_had_come_divided() -> None:
    x = torch.randn(64, 8)
    whole, parts = (ap.prune(mlp(), data, keep="macs=50%", seed=0) for data in ([x], list(x.split(8))))
    assert whole.plan.groups == parts.plan.groups
    assert torch.equal(whole.model(x), parts.model(x))
    assert whole.report.calibration["batch_size"] == 8
    assert whole.report.latency["batch_size"] == 64  # milliseconds are those of the batches as they came


class Running(Fixed):
    """Causal along the first dimension: the first steps are what they are in the whole, later ones are not."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.cumsum(0))


class Listed(Fixed):
    """Returns what can't be compared."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).relu().to_sparse()


@pytest.mark.parametrize("kind", [Fixed, Centred, Running, Listed])
def test_batches_stay_where_a_part_is_not_what_it_is_in_the_whole(kind: type[Fixed]) -> None:
    assert size(kind(), [torch.randn(64, 8)]) == 64


class Pairs(Fixed):
    """A table of all pairs of samples, as contrastive models return one."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) @ self.net(x).T


def test_batches_whose_pairs_are_compared_do_not_grow() -> None:
    x = torch.randn(256, 8)
    assert size(Pairs(), list(x.split(8))) == 8
    assert size(Pairs(), [x]) == 32  # some are held out for that


def test_so_few_samples_that_batches_of_another_size_would_only_lose_some() -> None:
    x = torch.randn(5, 8)
    assert size(mlp(), [x[:3]]) == 3
    assert [size(mlp(), list(x[:count].split(1))) for count in (2, 3, 5)] == [1, 1, 1]


def test_small_batches_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(256, 8)
    assert size(mlp(), list(x.split(1))) == size(mlp(), list(x.split(8))) == 32  # eight of them
    assert size(mlp(), list(x[:80].split(2))) == 10
    assert size(mlp(), list(x.split(20))) == 20  # not even twice as many
    assert size(mlp(), list(x.repeat(4, 1).split(32))) == 64
    assert size(mlp(), list(x.repeat(4, 1).split(48))) == 48
    assert size(Centred(), list(x.split(2))) == 2
    monkeypatch.setattr(rebatch, "ROOM", 32 * sum((24, 24, 16, 16, 4)) * 4 - 1)
    assert size(mlp(), list(x.split(1))) == 1


class Branching(Fixed):
    """Recorded in a run: the branch is that of a batch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if bool((x.abs().sum() > 0).item()) else self.net(-x)


class Paired(Fixed):
    """Two samples make one, so that they are no axis of their own."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.view(-1, 2, 8)).flatten(0, 1)


@pytest.mark.parametrize("kind", [Branching, Paired])
def test_batches_stay_where_a_run_is_recorded_or_samples_are_fused(kind: type[Fixed]) -> None:
    x = torch.randn(64, 8)
    assert size(kind(), [x]) == 8
    result = ap.prune(kind(), [x], keep="units=50%", method="l2")
    assert result.report.calibration["batch_size"] == 64


class Losing(Fixed):
    """Returns the loss of a batch beside what it makes of samples."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"loss": logits.square().mean(), "logits": logits}


def test_a_loss_beside_the_outputs_is_of_no_sample() -> None:
    assert size(Losing(), [torch.randn(64, 8)]) == 8


@pytest.mark.parametrize("count", [1, 6, 64])
def test_a_graph_is_made_again_with_a_batch_of_any_size(count: int, tmp_path: Path) -> None:
    x, net = torch.randn(64, 8), mlp()
    result = ap.prune(net, [x], keep="units=50%", method="l2", form="graph")
    result.save(tmp_path / "run")
    found = ap.load(tmp_path / "run", mlp(), x[:count])
    assert torch.equal(found(x), result.model(x))


@pytest.mark.parametrize("t", [torch.tensor(0.5), torch.rand(1, 3)])
def test_a_graph_is_made_again_where_another_input_comes_first(t: Tensor) -> None:
    x = torch.randn(64, 8)
    shapes = [list(t.shape), [8, 8]]
    found, again = forms._resized((t, x), shapes)
    assert found is t and torch.equal(again, x[:8])
    assert forms._resized((t, x[:, :4]), shapes)[1].shape == (64, 4)


def test_the_model_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 2)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    assert size(net, [torch.randn(32, 8, generator=torch.Generator().manual_seed(0))]) == 4
    assert net.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def numbered(samples: int, batch: int) -> Calibration:
    return Calibration(tuple((x,) for x in torch.arange(samples).split(batch)), samples)


@pytest.mark.parametrize(("samples", "folds", "left_out"), [(16, 4, 4), (6, 3, 2), (4, 2, 2)])
def test_of_few_samples_every_one_is_compared_on_once(samples: int, folds: int, left_out: int) -> None:
    among = pairs(numbered(samples, 2), 512, 3)
    assert len(among) == folds
    for fitted, held in among:
        assert (fitted.samples, held.samples) == (samples - left_out, left_out)
        seen = torch.cat([batch[0] for batch in (*fitted.batches, *held.batches)])
        assert sorted(seen.tolist()) == list(range(samples))
    assert sorted(torch.cat([batch[0] for batch in compared(among).batches]).tolist()) == list(range(samples))


def test_of_many_samples_or_where_work_is_dear_a_quarter_is_held_out() -> None:
    for data, most in ((numbered(64, 8), 512), (numbered(16, 2), 2)):
        ((fitted, held),) = pairs(data, most, 3)
        assert held.samples == min(data.samples // 4, most) and fitted.samples == 3 * held.samples


def test_four_samples_do_not_make_a_network_that_interpolates_them() -> None:
    """The only batch was fitted on and judged by: three channels in front of the last layers were enough for it."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 6),
    )  # fmt: skip
    x, other = torch.randn(4, 3, 16, 16), torch.randn(256, 3, 16, 16)
    found = ap.prune(net, [x], keep="macs=50%", seed=0)
    assert found.plan.note["distance"] > 1e-3  # nothing was left of it
    with torch.no_grad():
        assert float((found.model(other) - net(other)).var() / net(other).var()) < 1
