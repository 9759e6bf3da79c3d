"""The steps of a recovery without labels: their sizes, and what it does where a rate is too high."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from actprune import Distill, capture
from actprune.data.take import fit
from actprune.recovery.relative import LEAST, RelativeSteps, centred, matrix_of, orthogonal, size


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


def test_a_wide_matrix_moves_by_centred_gradients() -> None:
    weight = nn.Parameter(torch.randn(300, 300))
    before, optimizer = weight.detach().clone(), RelativeSteps([weight])
    weight.grad = torch.randn(300, 300) + 5
    optimizer.step(0.01)
    moved = (weight.detach() - before) / optimizer.sizes[0]
    assert abs(float(moved.mean())) < 1e-3 and float(moved.abs().mean()) == pytest.approx(0.01, rel=1e-2)


def test_singular_values_become_equal() -> None:
    for shape in ((6, 6), (3, 20), (20, 3)):
        found = torch.linalg.svdvals(orthogonal(torch.randn(shape) * torch.tensor(1e-3)))
        assert ((found > 0.5) & (found < 1.3)).all()
    assert (orthogonal(torch.zeros(3, 4)) == 0).all()


@pytest.mark.parametrize(
    ("shape", "matrix"),
    [
        ((16, 8, 3, 3), (16, 72)),
        ((3, 64, 5, 5), (3, 1600)),
        ((5, 7), (5, 7)),
        ((5, 1), None),
        ((1, 5), None),
        ((5,), None),
        ((), None),
        ((0, 3), None),
        ((257, 300), None),  # too wide
        ((9000, 64), (9000, 64)),
    ],
)
def test_the_matrix_of_a_weight(shape: tuple[int, ...], matrix: tuple[int, int] | None) -> None:
    assert matrix_of(torch.zeros(shape)) == matrix


def test_the_matrix_of_a_weight_of_keras() -> None:
    assert matrix_of(torch.zeros(5, 5, 64, 3), outputs_last=True) == (1600, 3)
    assert matrix_of(torch.zeros(5, 5, 64, 1), outputs_last=True) is None  # depthwise


def test_of_a_table_only_what_was_read_moves_and_not_too_far() -> None:
    table = nn.Parameter(torch.randn(400, 8))
    before = table.detach().clone()
    optimizer = RelativeSteps([table])
    table.grad = torch.zeros(400, 8)
    table.grad[:3] = torch.randn(3, 8)
    optimizer.step(0.01)
    moved = ((table.detach() - before) / optimizer.sizes[0]).square().mean(1).sqrt()
    assert (moved[3:] == 0).all() and (moved[:3] < 0.0101).all() and (moved[:3] > 0.001).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_small_steps_add_up_in_every_precision(dtype: torch.dtype) -> None:
    weight, bias = (nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in ((4, 6), (3,)))
    optimizer = RelativeSteps([weight, bias])
    for _ in range(100):
        weight.grad, bias.grad = torch.ones_like(weight), torch.ones_like(bias)
        optimizer.step(1e-4)
    assert weight.dtype == dtype
    assert torch.allclose(bias.double(), torch.tensor(0.99).double(), atol=0.003)
    assert ((weight < 0.995) & (weight > 0.97)).all()


def test_a_step_moves_by_the_rate() -> None:
    weight = nn.Parameter(torch.outer(torch.tensor([1.0, 10.0]), torch.tensor([1.0, -2.0])))
    bias, idle = nn.Parameter(torch.full((3,), 3.0)), nn.Parameter(torch.ones(2))
    before, own = weight.detach().clone(), size(weight)
    optimizer = RelativeSteps([weight, bias, idle])  # the last one has no gradient
    weight.grad, bias.grad = torch.tensor([[1e-4, -1.0], [50.0, -3.0]]), torch.tensor([1e-4, -2.0, 0.0])
    optimizer.step(0.01)
    moved = (weight.detach() - before) / own
    assert float(moved.square().mean().sqrt()) > 0.008 and (moved.square().mean(1).sqrt() < 0.0101).all()
    assert float(moved[1, 0]) < 0 < float(moved[0, 1])
    assert torch.allclose(bias.detach(), 3 - 0.03 * torch.tensor([1.0, -1.0, 0.0]), rtol=1e-5)
    assert weight.grad is None and bias.grad is None and (idle == 1).all()


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(40, 40) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        return x[:, :5]


@pytest.mark.parametrize("lr", [0.005, 3.0])
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


def test_values_of_a_regressor_come_back_not_their_softmax() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    x = torch.randn(256, 5)
    graph = capture(dense, x[:32])
    model = copy.deepcopy(dense)
    with torch.no_grad():
        model[2].bias += 0.5  # which a softmax doesn't see
    found = Distill(steps=60, lr=0.02).run(model, dense, graph.program, fit(graph.program, x.split(32)))
    with torch.no_grad():
        assert float((model(x) - dense(x)).abs().mean()) < 0.1
    assert found.distance_after < 0.05 * found.distance_before
