"""Streaming moments: merged equals one shot equals NumPy, also where the mean dwarfs the deviations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from actprune.stats import moments as module
from actprune.stats.moments import Few, Moments, absorb, cross, merge, merge_all, moments
from actprune.stats.spread import Spread, spread

SPLITS = [[100], [1, 99], [50, 50], [0, 40, 0, 60], [10] * 10, [1] * 100]


def data(columns: int, mean: float = 0.0, rows: int = 100) -> Tensor:
    """Correlated columns whose mean may be large against their deviations."""
    generator = torch.Generator().manual_seed(columns)
    x = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return x @ torch.randn(columns, columns, generator=generator, dtype=torch.float64) + mean


def in_parts(x: Tensor, sizes: list[int]) -> list[Tensor]:
    assert sum(sizes) == len(x)
    return list(x.split(sizes))


def assert_same(a: Moments, b: Moments, tolerance: float) -> None:
    assert a.count == b.count
    scale = float(b.scatter.abs().max())
    assert torch.allclose(a.mean, b.mean, rtol=1e-14, atol=0)
    assert torch.allclose(a.scatter, b.scatter, rtol=0, atol=tolerance * scale)
    if b.other is not None:
        assert a.other is not None
        assert torch.allclose(a.other, b.other, rtol=1e-14, atol=0)


@pytest.mark.parametrize("sizes", SPLITS, ids=str)
@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_merged_equals_one_shot(sizes: list[int], mean: float) -> None:
    x = data(5, mean)
    assert_same(merge_all(map(moments, in_parts(x, sizes))), moments(x), 1e-12)


def test_one_shot_equals_numpy() -> None:
    x = data(5, 7.0)
    found = moments(x)
    assert np.allclose(found.mean, x.numpy().mean(0), rtol=1e-14)
    assert np.allclose(found.covariance, np.cov(x.numpy(), rowvar=False, bias=True), rtol=1e-12)
    assert np.allclose(found.second, x.numpy().T @ x.numpy() / 100, rtol=1e-12)


@pytest.mark.parametrize("mean", [1e2, 1e4, 1e6])
def test_float32_values_with_a_large_mean_keep_their_deviations(mean: float) -> None:
    x = data(4, mean).float()
    exact = x.double().numpy()
    found = merge_all(map(moments, in_parts(x, [30, 30, 40])))
    covariance = np.cov(exact, rowvar=False, bias=True)
    assert np.allclose(found.mean, exact.mean(0), rtol=1e-11)
    assert np.allclose(found.covariance, covariance, atol=2e-6 * covariance.max())


@pytest.mark.parametrize("value", [0.1, 3.3, 1e4])
def test_a_constant_column_has_no_variance(value: float) -> None:
    x = torch.full((1000, 1), value)
    found = merge_all(map(moments, in_parts(x, [300, 700])))
    assert float(found.covariance) <= 1e-20 * value**2
    assert float(found.mean) == pytest.approx(float(x[0]), rel=1e-12)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.int64])
def test_narrow_types_are_widened_before_they_are_multiplied(kind: torch.dtype) -> None:
    x = (data(3) * 30).to(kind)
    covariance = np.cov(x.double().numpy(), rowvar=False, bias=True)
    found = moments(x)
    assert found.scatter.dtype == torch.float64
    assert np.allclose(found.covariance, covariance, atol=1e-5 * covariance.max())


def test_moments_do_not_change_the_rows() -> None:
    x = data(3)
    before = x.clone()
    moments(x)
    cross(x, x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("sizes", SPLITS, ids=str)
def test_cross_moments(sizes: list[int]) -> None:
    x, y = data(4, 1e3), data(3, -50.0)
    parts = [cross(a, b) for a, b in zip(in_parts(x, sizes), in_parts(y, sizes), strict=True)]
    assert_same(merge_all(parts), cross(x, y), 1e-12)
    exact = np.cov(x.numpy(), y.numpy(), rowvar=False, bias=True)[:4, 4:]
    assert np.allclose(merge_all(parts).covariance, exact, rtol=1e-9)
    assert np.allclose(merge_all(parts).second, x.numpy().T @ y.numpy() / 100, rtol=1e-12)


def test_cross_moments_with_itself_are_the_moments() -> None:
    x = data(4, 3.0)
    assert torch.allclose(cross(x, x).scatter, moments(x).scatter, rtol=1e-13)


def test_nothing_merges_to_the_other() -> None:
    x = data(3)
    empty, full = moments(x[:0]), moments(x)
    assert empty.count == 0
    assert torch.equal(empty.covariance, torch.zeros(3, 3, dtype=torch.float64))
    assert merge(None, full) is full
    assert merge(empty, full) is full
    assert merge(full, empty) is full
    with pytest.raises(ValueError, match="no moments"):
        merge_all([])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.integers(1, 4), st.floats(-1e4, 1e4))
def test_the_order_of_merging_does_not_matter(sizes: list[int], columns: int, mean: float) -> None:
    x = data(columns, mean, sum(sizes))
    parts = list(map(moments, in_parts(x, sizes)))
    forth, back = merge_all(parts), merge_all(parts[::-1])
    assert forth.count == back.count == len(x)
    if len(x):
        scale = float(forth.scatter.abs().max()) + 1e-9
        assert torch.allclose(forth.scatter, back.scatter, rtol=0, atol=1e-10 * scale)
        assert torch.allclose(forth.scatter, moments(x).scatter, rtol=0, atol=1e-10 * scale)


# ---- Spread


@pytest.mark.parametrize("sizes", SPLITS, ids=str)
def test_a_merged_spread_equals_one_shot(sizes: list[int]) -> None:
    x = data(6, 1e4).reshape(100, 2, 3)
    parts = [spread(part) for part in in_parts(x, sizes) if len(part)]
    total = parts[0]
    for part in parts[1:]:
        total = total.merge(part)
    assert total.count == 100
    assert np.allclose(total.mean, x.numpy().mean(0), rtol=1e-14)
    assert np.allclose(total.std, x.numpy().std(0), rtol=1e-11)


def test_the_spread_of_one_value_and_of_none() -> None:
    one = spread(torch.tensor([[3.0]]))
    assert (float(one.mean), float(one.std)) == (3.0, 0.0)
    nothing = Spread(0, torch.zeros(1).double(), torch.zeros(1).double())
    for a, b in itertools.permutations([nothing, one]):
        assert float(a.merge(b).mean) == 3.0
    assert float(nothing.merge(nothing).std) == 0.0


# ---- fewer vectors than entries


@pytest.mark.parametrize("sizes", [[5, 7, 1], [0, 13], [40, 60], [90, 5, 5]])
def test_few_vectors_say_what_their_scatter_says(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept while there are few, and given up for the scatter once there are more."""
    x = torch.randn(sum(sizes), 160, dtype=torch.float64) * torch.rand(160) + 3
    monkeypatch.setattr(module, "LONG", 160)
    found, parts = None, in_parts(x, sizes)
    for part in parts:
        found = absorb(found, part)
    merged = merge_all(map(moments, parts))
    assert found is not None
    assert all(isinstance(each, Few) is (len(x) * module.FEW <= 160) for each in (found, merged))
    monkeypatch.setattr(module, "LONG", 161)
    wanted, columns, weight = moments(x), torch.tensor([0, 5, 159]), torch.randn(4, 160, dtype=torch.float64)
    assert type(wanted) is Moments
    for each in (found, merged):
        assert_same(each, wanted, 1e-12)
        assert_same(each.part(columns), wanted.part(columns), 1e-12)
        assert torch.allclose(each.second, wanted.second, rtol=1e-12)
        assert torch.allclose(each.variances, wanted.variances, rtol=1e-12)
        assert torch.allclose(each.variances, each.covariance.diagonal(), rtol=1e-12)
        assert each.spread_along(weight) == pytest.approx(wanted.spread_along(weight), rel=1e-12)
        moved = each.holding(each.mean.clone(), each.held.clone())
        assert type(moved) is type(each)
        assert_same(moved, each, 1e-15)
