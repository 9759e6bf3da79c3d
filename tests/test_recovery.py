"""The steps of a recovery without labels: their sizes, and what it does where a rate is too high."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from actprune import Distill, capture
from actprune.data.take import fit
from actprune.recovery.relative import LEAST, RelativeAdam, centred, size


def test_the_size_of_a_weight_is_that_of_its_row_and_column() -> None:
    rows, columns = torch.tensor([1.0, 10.0, 100.0]), torch.tensor([2.0, 0.5])
    assert torch.allclose(size(torch.outer(rows, columns)), torch.outer(rows, columns))
    kernel = torch.randn(4, 3, 3, 3)
    assert size(kernel).shape == kernel.shape
    assert torch.allclose(size(7 * kernel), 7 * size(kernel))


def test_the_size_of_what_is_zero() -> None:
    """A row of zeros among others, a tensor of zeros, and a bias: all can leave zero."""
    found = size(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    assert (found >= LEAST * 0.5).all() and found[1, 0] == pytest.approx(1.0)
    assert (size(torch.zeros(3, 2)) > 0).all()
    assert float(size(torch.tensor([3.0, 4.0]))) == pytest.approx(12.5**0.5)
    assert float(size(torch.zeros(3))) == pytest.approx(LEAST)


def test_long_rows_are_centred() -> None:
    long, short = torch.randn(3, 8, 2, 2), torch.randn(3, 4)
    assert torch.allclose(centred(long).flatten(1).mean(1), torch.zeros(3), atol=1e-6)
    assert centred(short) is short
    bias = torch.randn(64)
    assert centred(bias) is bias


def test_a_step_moves_by_the_rate() -> None:
    weight = nn.Parameter(torch.tensor([[1.0, -2.0], [10.0, -20.0]]))
    before, own = weight.detach().clone(), size(weight)
    optimizer = RelativeAdam([weight, nn.Parameter(torch.zeros(2))])  # the other one has no gradient
    weight.grad = torch.tensor([[1e-4, -1.0], [50.0, -3.0]])
    optimizer.step(0.01)
    assert torch.allclose(weight.detach(), before - 0.01 * own * torch.tensor([[1.0, -1.0], [1.0, -1.0]]), rtol=1e-5)
    assert weight.grad is None


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(40, 40) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        return x[:, :5]


@pytest.mark.parametrize("lr", [0.01, 3.0])
def test_a_rate_that_is_too_high_is_lowered(lr: float) -> None:
    torch.manual_seed(0)
    dense = Deep().eval()
    small = copy.deepcopy(dense)
    with torch.no_grad():
        for p in small.parameters():
            p.mul_(1 + 0.1 * torch.randn_like(p))
    graph = capture(dense, torch.randn(16, 40))
    data = fit(graph.program, torch.randn(160, 40).split(16))
    done = Distill(steps=60, lr=lr).run(small, dense, graph.program, data)
    assert done.distance_after < 0.7 * done.distance_before
    assert 0 < done.best_step <= done.steps == 60
    assert all(p.grad is None for p in small.parameters())
