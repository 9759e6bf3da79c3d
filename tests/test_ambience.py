"""Modes that the caller stands in, or that a forward pass enters, change neither what is cut nor what is proved."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import actprune as ap
from actprune.graph.ambience import uncast


class Cast(nn.Module):
    """A network that runs in bfloat16, in a region of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 4)
        self.region = torch.autocast("cpu", dtype=torch.bfloat16)

    def forward(self, x):
        with self.region:
            y = self.second(F.gelu(self.first(x)))
        return y.float()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 4)).eval()


X = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))


def test_a_region_of_autocast_in_the_forward_pass_is_looked_through_and_stays():
    torch.manual_seed(0)
    model, plain = Cast().eval(), network()
    plain.load_state_dict(dict(zip(plain.state_dict(), model.state_dict().values(), strict=True)))
    result, expected = (ap.prune(m, X, keep="params=50%") for m in (model, plain))
    assert list(result.plan.widths.values()) == list(expected.plan.widths.values())
    assert torch.equal(result.model.first.weight, expected.model[0].weight)
    with torch.no_grad():
        inside = F.linear(X.bfloat16(), result.model.first.weight.bfloat16(), result.model.first.bias.bfloat16())
        assert torch.equal(
            result.model(X), F.linear(F.gelu(inside), *(p.bfloat16() for p in result.model.second.parameters())).float()
        )
    assert torch.autocast.__enter__.__module__ == "torch.amp.autocast_mode"


def test_a_callers_autocast_is_left_for_our_own_arithmetic_and_kept_for_the_users_functions():
    seen = []

    def evaluate(model):
        seen.append(model(X).dtype)
        return 0.0

    expected = ap.prune(network(), X, keep="params=50%")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = ap.prune(network(), X, keep="params=50%", evaluate=evaluate)
        assert torch.is_autocast_enabled("cpu")
    assert result.plan.widths == expected.plan.widths
    assert torch.equal(result.model[0].weight, expected.model[0].weight)
    assert set(seen) == {torch.bfloat16}


def test_a_region_that_threads_share_is_not_written_to():
    """As a decorator it is one object for all: another thread that runs the model meanwhile would lose its autocast."""
    written = []

    class Watched(torch.autocast):
        def __setattr__(self, name, value):
            written.append(name)
            super().__setattr__(name, value)

    region = Watched("cpu", dtype=torch.bfloat16)
    written.clear()
    with uncast(), region:
        assert F.linear(X, X).dtype == torch.float32
    assert "_enabled" not in written
    with region:
        assert F.linear(X, X).dtype == torch.bfloat16


@pytest.mark.parametrize("recover", [None, ap.Distill(steps=2)])
def test_a_default_device_is_that_of_the_model_alone(recover, monkeypatch):
    class Watching(nn.Sequential):
        def forward(self, x):
            if not torch.compiler.is_exporting():  # to be asked for is to make a tensor, which would be in the graph
                assert torch.get_default_device().type == "meta"
            return super().forward(x)

    torch.manual_seed(0)
    model = Watching(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 4)).eval()
    expected = ap.prune(network(), X, keep="params=50%", recover=recover)
    timed = "actprune.latency.bench.side_by_side"  # torch's timer itself makes tensors, and these have no values
    monkeypatch.setattr(timed, lambda calls, *_, **__: [float(call().dim()) for call in calls])
    with torch.device("meta"):
        result = ap.prune(model, X, keep="params=50%", recover=recover, evaluate=lambda m: float(m(X).detach().mean()))
    assert result.plan.widths == expected.plan.widths
    assert torch.equal(result.model[0].weight, expected.model[0].weight)
