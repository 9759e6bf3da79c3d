"""`fold`: BatchNorm goes into the layer in front of it, exactly, wherever that is all that reads the layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import actprune as ap
from actprune.errors import DataError, EquivalenceError
from nets import build


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actprune.deployment.SECONDS", 1e-3)


NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def trained(model: nn.Module) -> nn.Module:
    """With statistics, gains and shifts that are not those of a new norm."""
    torch.manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for held, low in (("running_mean", -1), ("running_var", 0.2), ("weight", 0.5), ("bias", -1)):
                if (tensor := getattr(module, held)) is not None:
                    nn.init.uniform_(tensor, low, 2)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, NORMS) for module in model.modules())


@torch.no_grad()
def error(model: nn.Module, folded: nn.Module, x: Tensor) -> float:
    expected = model(x)
    return float((folded(x) - expected).abs().max() / expected.abs().max())


FOLDED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolution": (lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)), (4, 3, 6, 6)),
    "without a bias": (lambda: nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5)), (4, 3, 6, 6)),
    "without a gain": (lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, affine=False)), (4, 3, 6, 6)),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (4, 4, 6, 6)),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4)), (4, 4, 6, 6)),
    "one dimension": (lambda: nn.Sequential(nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5), nn.ReLU()), (4, 3, 6)),
    "three dimensions": (lambda: nn.Sequential(nn.Conv3d(3, 5, 2), nn.BatchNorm3d(5)), (4, 3, 4, 4, 4)),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 5, 2), nn.BatchNorm2d(5)), (4, 3, 4, 4)),
    "linear": (lambda: nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU()), (4, 3)),
}


@pytest.mark.parametrize("name", FOLDED)
def test_a_norm_goes_into_the_layer_in_front(name: str) -> None:
    make, shape = FOLDED[name]
    model, x = trained(make()), torch.randn(shape)
    before = copy.deepcopy(model.state_dict())
    folded = ap.fold(model, x)
    assert norms(folded) == 0 and type(folded) is type(model) and not folded.training
    assert error(model, folded, x) < 1e-5 and error(model, folded, torch.randn(shape)) < 1e-5
    assert norms(model) == 1
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


class TwoReaders(nn.Module):
    """The norm's input is read by the residual sum, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + self.norm(y)


class Shared(nn.Module):
    """One convolution called twice, with a norm behind one of the calls; one norm behind two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other, self.norm, self.twice = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), None
        self.twice = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(self.conv(x)))
        return self.twice(self.other(self.twice(x)))


class WithReLU(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


LEFT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "read by another call": (TwoReaders, (4, 3, 6, 6)),
    "shared": (Shared, (4, 3, 6, 6)),
    "in front": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 5, 3, padding=1)), (4, 3, 6, 6)),
    "of the batch": (
        lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, track_running_stats=False)), (4, 3, 6, 6),
    ),
    "of a class of its own": (lambda: nn.Sequential(nn.Conv2d(3, 5, 3), WithReLU(5)), (4, 3, 6, 6)),
    "grouped and transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2), nn.BatchNorm2d(6)), (4, 4, 4, 4),
    ),
    "over another axis": (lambda: nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)), (4, 5, 5)),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_norms_that_can_not_go_stay(name: str) -> None:
    make, shape = LEFT[name]
    model, x = trained(make()), torch.randn(shape)
    folded = ap.fold(model, x)
    assert norms(folded) == norms(model) > 0
    assert error(model, folded, x) < 1e-6


class Peeks(nn.Module):
    """Reads the gain of its norm outside the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)
        self.scaled = False

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return y * 2 if isinstance(self.norm, nn.BatchNorm2d) else y


def test_a_class_that_looks_at_its_norms_is_refused() -> None:
    with pytest.raises(EquivalenceError, match="Peeks computes something else") as caught:
        ap.fold(trained(Peeks()), torch.randn(4, 3, 6, 6))
    assert 'form="graph"' in str(caught.value) and "where: fold" in str(caught.value)


def test_a_pruned_network_and_its_graph() -> None:
    model, _ = build("residual")
    model = trained(model)
    torch.manual_seed(0)
    data = [torch.randn(8, 3, 5, 5) for _ in range(4)]
    for form in ("class", "graph"):
        result = ap.prune(model, data, keep="macs=60%", method="l2", form=form)
        folded = result.fold()
        assert error(result.model.eval(), folded, data[0]) < 1e-5
        assert "batch_norm" not in str(getattr(folded, "graph", "")) and norms(folded) == 0
        assert sum(p.numel() for p in folded.parameters()) < sum(p.numel() for p in result.model.parameters())


def test_the_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = trained(FOLDED["convolution"][0]()), torch.randn(4, 3, 6, 6)

    def last(folded: Any) -> bool:
        return folded[0].weight.is_contiguous(memory_format=torch.channels_last)

    assert last(ap.fold(model, x, channels_last=True)) and not last(ap.fold(model, x, channels_last=False))
    for times, chosen in (([1.0, 0.9], True), ([1.0, 0.99], False), ([1.0, 1.2], False)):
        monkeypatch.setattr("actprune.deployment.side_by_side", lambda *_, times=times: times)
        folded = ap.fold(model, x)
        assert last(folded) is chosen and error(model, folded, x) < 1e-5
    with pytest.raises(DataError, match="layout is unknown") as caught:
        ap.fold(model, x, channels_last="never")
    assert 'True, False or "auto"' in str(caught.value)
