"""The proof passes on every correct cut, and catches each planted fault."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from actprune.axes.capture import Graph, capture
from actprune.errors import EquivalenceError, PlanError
from actprune.graph.program import place
from actprune.plan import Plan, make_plan
from actprune.proof.check import TOLERANCE, Proof, verify
from actprune.proof.difference import relative_error
from actprune.proof.reference import cut_tensors, redrawn
from actprune.proof.trial import _at, _culprits, at_fault
from actprune.repair.edits import Edits
from actprune.rewrite import Rewrite, zero_columns
from actprune.surgery.slicing import cut
from nets import NETS, build


def random_plan(graph: Graph, seed: int = 0) -> Plan:
    """Between one and all units of every group."""
    chosen = random.Random(seed)
    return make_plan(graph, {g.name: chosen.sample(range(g.width), chosen.randint(1, g.width)) for g in graph.groups})


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def content(*models: nn.Module) -> list[Any]:
    return [
        (name, id(t), t.dtype, t.detach().flatten().view(torch.uint8).numpy().tobytes() if t.dim() else t.item())
        for model in models
        for name, t in tensors(model).items()
    ]


# ---- correct cuts


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", NETS)
def test_correct_cuts_are_proved(name: str, seed: int) -> None:
    model, inputs = build(name)
    graph = capture(model, inputs)
    plan = random_plan(graph, seed)
    small = cut(model, plan)
    proof = verify(model, small, plan, inputs, graph=graph, seed=seed)
    assert proof.passed and proof.failure is None
    assert proof.max_rel_error == max(proof.real_error, proof.redrawn_error) < TOLERANCE
    assert proof.params == sum(p.numel() for p in small.parameters())
    assert proof.eager_error < 1e-6
    assert str(proof).startswith("proved: float64 error ")


@pytest.mark.parametrize("name", ["residual", "dense", "grouped", "keywords"])
def test_rewrites_are_proved(name: str) -> None:
    """Other weights in every consumer, other biases, other statistics."""
    model, inputs = build(name)
    graph = capture(model, inputs)
    plan = random_plan(graph)
    torch.manual_seed(1)
    changed = {site.weight for site in graph.sites} | {site.bias for site in graph.sites if site.bias}
    changed |= {n for n in graph.program.persistent if n.endswith("running_mean")}
    rewrite = Rewrite({n: t + torch.randn(t.shape) for n, t in graph.program.tensors.items() if n in changed})
    rewrite = Rewrite({**rewrite.tensors, **zero_columns(graph, plan, rewrite)})
    proof = verify(model, cut(model, plan, rewrite), plan, inputs, rewrite=rewrite)
    assert proof.passed


@settings(max_examples=15)
@given(st.data())
def test_any_units_may_go(data: st.DataObject) -> None:
    model, inputs = build("chain", batch=2)
    graph = capture(model, inputs)
    plan = make_plan(graph, {g.name: data.draw(st.sets(st.integers(0, g.width - 1), min_size=1)) for g in graph.groups})
    assert verify(model, cut(model, plan), plan, inputs, graph=graph).passed


@pytest.mark.parametrize("name", ["auxiliary", "residual", "in_place", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_of_the_callers_is_touched(name: str, dtype: torch.dtype) -> None:
    """Not in float64 either, where a lifted tensor is the caller's own."""
    model, inputs = build(name)
    model.to(dtype).train()
    inputs = inputs.to(dtype)
    given = inputs.clone()
    plan = random_plan(capture(model, inputs))
    small = cut(model, plan)
    before = content(model, small)
    state = torch.random.get_rng_state()
    verify(model, small, plan, inputs)
    assert content(model, small) == before
    assert torch.equal(inputs, given)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training and small.training


def test_state_that_a_call_changes_is_put_back() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)
            self.calls, self.last = nn.Buffer(torch.tensor(0)), nn.Buffer(torch.zeros(8))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            x[:, 0] *= 2
            x = self.fc1(x)
            self.last = x.detach().mean(0)
            return self.fc2(x) + self.calls

    model, x = Counting().eval(), torch.randn(4, 6)
    plan = random_plan(capture(model, x))
    small = cut(model, plan)
    before, given = content(model, small), x.clone()
    verify(model, small, plan, x)
    assert content(model, small) == before
    assert torch.equal(x, given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_proved_in_float64(dtype: torch.dtype) -> None:
    model, inputs = build("residual")
    model.to(dtype)
    inputs = inputs.to(dtype)
    plan = random_plan(capture(model, inputs))
    assert verify(model, cut(model, plan), plan, inputs).max_rel_error < TOLERANCE


def test_complex_values_are_proved_in_double() -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)
            self.phases = nn.Parameter(torch.randn(8, dtype=torch.complex64))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.fc1(x) * self.phases
            return self.fc2(x.abs()), x.sum(1)

    model, x = Spectral().eval(), torch.randn(4, 6)
    graph = capture(model, x)
    assert len(graph.masks) == 1  # their sum is returned
    plan = random_plan(graph)
    assert verify(model, cut(model, plan), plan, x).max_rel_error < TOLERANCE


def test_one_sample_with_one_output() -> None:
    """A single number is no constant output."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).eval(), torch.randn(1, 6)
    plan = random_plan(capture(model, x))
    assert verify(model, cut(model, plan), plan, x).passed


@pytest.mark.parametrize("variance", [0.0, 1e-12])
def test_channels_that_are_dead_give_no_nan(variance: float) -> None:
    model, inputs = build("residual")
    model.bn1.running_var.fill_(variance)
    plan = random_plan(capture(model, inputs))
    assert verify(model, cut(model, plan), plan, inputs).passed


def test_an_unused_layer_may_be_anything() -> None:
    model, inputs = build("unused")
    with torch.no_grad():
        model.spare.weight.fill_(float("nan"))
    plan = random_plan(capture(model, inputs))
    assert verify(model, cut(model, plan), plan, inputs).passed


# ---- planted faults


def faulty(
    name: str,
    fault: Callable[[Any], Any],
    kept: dict[str, list[int]],
    rewrite: Rewrite | None = None,
    cut_with: Rewrite | None = None,
) -> Proof:
    """What the proof says of a cut model to which `fault` was done; it must also raise the same."""
    model, inputs = build(name)
    graph = capture(model, inputs)
    plan = make_plan(graph, kept)
    good = cut(model, plan, rewrite)
    assert verify(model, good, plan, inputs, rewrite=rewrite, graph=graph).passed
    small = good if cut_with is None else cut(model, plan, cut_with)
    with torch.no_grad():
        fault(small)
    proof = verify(model, small, plan, inputs, rewrite=rewrite, graph=graph, check=False)
    assert not proof.passed
    assert str(proof).startswith(f"FAILED ({proof.failure})")
    with pytest.raises(EquivalenceError) as caught:
        verify(model, small, plan, inputs, rewrite=rewrite, graph=graph)
    error = caught.value
    assert proof.failure in (error.where, error.got)
    assert error.expected and error.got and error.hint
    figures = (proof.real_error, proof.redrawn_error, proof.eager_error)
    assert error.got == proof.failure or error.got in [
        f"relative error {figure:.3g} of the outputs" for figure in figures
    ]
    return proof


def reverse_columns(layer: str) -> Callable[[Any], Any]:
    return lambda small: small.get_submodule(layer).weight.copy_(small.get_submodule(layer).weight.flip(1))


HALF = {"fc1": [0, 3, 4, 6], "fc2": [1, 2, 5]}


def test_a_wrong_slice() -> None:
    proof = faulty("chain", reverse_columns("fc2"), HALF)
    assert proof.real_error > 1e-3
    assert "aten.linear.default at fc2, nets.py:" in str(proof.failure)
    assert "relative error" in str(proof.failure) and str(proof.failure).endswith("(on real weights)")


def test_a_wrong_slice_of_rows() -> None:
    proof = faulty("chain", lambda small: small.fc1.weight.copy_(small.fc1.weight.flip(0)), HALF)
    assert "aten.linear.default at fc1" in str(proof.failure)


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_a_wrong_slice_behind_a_batchnorm_of_zero_gain(layer: str) -> None:
    """On the real weights nothing can be seen of it; on redrawn ones it can, and the layer is named."""
    proof = faulty("zero_gain", reverse_columns(layer), {"stem": [0, 2, 5], "conv1": [1, 2, 4]})
    assert proof.real_error < TOLERANCE < proof.redrawn_error
    assert f"aten.conv2d.default at {layer}, nets.py:" in str(proof.failure)
    assert str(proof.failure).endswith("(on redrawn weights)")


@pytest.mark.parametrize("buffer", ["running_mean", "running_var"])
def test_wrong_statistics(buffer: str) -> None:
    proof = faulty(
        "zero_gain", lambda small: small.bn2.get_buffer(buffer).mul_(2), {"stem": [0, 2, 5], "conv1": [1, 2, 4]}
    )
    assert "aten.batch_norm.default at bn2" in str(proof.failure)


def compensated() -> Rewrite:
    torch.manual_seed(1)
    return Rewrite({"fc2.weight": torch.randn(7, 8), "fc2.bias": torch.randn(7), "fc3.weight": torch.randn(3, 7)})


def test_a_swapped_column_in_a_compensated_weight() -> None:
    def swap(small: Any) -> None:
        small.fc2.weight[:, [0, 1]] = small.fc2.weight[:, [1, 0]]

    proof = faulty("chain", swap, HALF, compensated())
    assert "aten.linear.default at fc2" in str(proof.failure)


def test_a_forgotten_bias() -> None:
    rewrite = compensated()
    without = Rewrite({name: tensor for name, tensor in rewrite.tensors.items() if name != "fc2.bias"})
    proof = faulty("chain", lambda small: None, HALF, rewrite, cut_with=without)
    assert "aten.linear.default at fc2" in str(proof.failure)


def test_a_forgotten_rewrite() -> None:
    proof = faulty("chain", lambda small: None, HALF, compensated(), cut_with=Rewrite({}))
    assert "aten.linear.default at fc2" in str(proof.failure)


def test_a_forgotten_bias_behind_a_batchnorm_of_zero_gain() -> None:
    proof = faulty(
        "zero_gain",
        lambda small: None,
        {"conv1": [1, 2, 4]},
        Rewrite({"conv2.bias": torch.arange(8.0)}),
        cut_with=Rewrite({}),
    )
    assert proof.real_error < TOLERANCE < proof.redrawn_error
    assert "aten.conv2d.default at conv2" in str(proof.failure)


def test_a_stale_attribute_of_a_torch_module() -> None:
    """Harmless to the values: nn.Linear never reads it."""
    proof = faulty("chain", lambda small: setattr(small.fc2, "in_features", 8), HALF)
    assert proof.failure == "fc2.in_features is 8, its tensors say 4"


def test_a_shape_that_was_not_predicted() -> None:
    proof = faulty("chain", lambda small: setattr(small.fc1, "bias", nn.Parameter(torch.zeros(1))), HALF)
    assert proof.failure == "fc1.bias has shape (1,), the plan predicts (4,)"


def test_a_tie_that_was_lost() -> None:
    def untie(small: Any) -> None:
        small.right.weight = nn.Parameter(small.left.weight.clone())

    proof = faulty("tied_heads", untie, {"stem": [1, 2, 5]})
    assert proof.failure == "measured 45 parameters and 36 MACs, predicted 36 and 36"


class NearlyEven(nn.Module):
    """The number of heads is written down, and the attention is so even that the heads hardly matter."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)
        for layer in (self.q, self.k):
            nn.init.normal_(layer.weight, std=1e-7)
            nn.init.normal_(layer.bias, std=1e-7)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(*x.shape[:2], 2, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_shapes_are_compared_where_the_outputs_agree() -> None:
    """One head of 4 is left, but the class, which isn't repaired here, makes two heads of 2 of it."""
    torch.manual_seed(0)
    model, x = NearlyEven().eval(), torch.randn(3, 5, 6)
    graph = capture(model, x)
    (heads,) = (group.name for group in graph.groups if group.kind == "heads")
    plan = replace(make_plan(graph, {heads: [0]}), edits=Edits())
    proof = verify(model, cut(model, plan), plan, x, graph=graph, check=False)
    assert proof.max_rel_error < TOLERANCE
    assert str(proof.failure).startswith("aten.view.default at the model, test_proof.py:")
    assert str(proof.failure).endswith("shape (3, 5, 2, 2), predicted (3, 5, 1, 4)")


def test_a_fault_in_a_training_branch() -> None:
    proof = faulty("auxiliary", reverse_columns("aux"), {"stem": [1, 2, 5]})
    assert max(proof.real_error, proof.redrawn_error) < TOLERANCE
    assert "(on the branches of training mode), relative error" in str(proof.failure)


def test_a_training_branch_that_is_gone() -> None:
    def replace(small: Any) -> None:
        small.aux = nn.Linear(4, 4)
        small.aux.weight = nn.Parameter(small.aux.weight[:, :3].clone())
        small.aux.in_features = 3
        small.aux.forward = lambda x: x @ torch.zeros(9, 9)

    proof = faulty("auxiliary", replace, {"stem": [1, 2, 5]})
    assert proof.failure == "the training branches of the cut model can't be captured"


def test_a_bystander_that_was_changed() -> None:
    proof = faulty("unused", lambda small: small.spare.bias.add_(1), {"fc1": [1, 2, 5]})
    assert proof.failure == "spare.bias, which the forward pass never reads, was changed"


def test_a_forward_that_was_replaced() -> None:
    def replace(small: Any) -> None:
        small.fc2.forward = lambda x: torch.tanh(F.linear(x, small.fc2.weight, small.fc2.bias))

    proof = faulty("chain", replace, HALF)
    assert proof.failure == "the outputs (the two graphs have different nodes) (on real weights)"


def test_a_forward_that_breaks() -> None:
    def replace(small: Any) -> None:
        small.fc2.forward = lambda x: x @ torch.zeros(9, 9)

    proof = faulty("chain", replace, HALF)
    assert str(proof.failure).startswith("the cut model can't be captured: RuntimeError")


def test_an_eager_model_that_is_not_its_own_graph() -> None:
    def replace(small: Any) -> None:
        small.fc2.forward = lambda x: (
            F.linear(x, small.fc2.weight, small.fc2.bias) * (1 if torch.compiler.is_exporting() else 2)
        )

    proof = faulty("chain", replace, HALF)
    assert proof.failure == "the outputs (the two graphs have different nodes) (on real weights)" or (
        proof.failure == "the eager cut model against its own graph"
    )
    assert proof.eager_error > 1e-3


def test_a_failure_is_told_with_its_own_figures() -> None:
    model, inputs = build("chain")
    plan = make_plan(capture(model, inputs), HALF)

    def message(fault: Callable[[Any], Any]) -> EquivalenceError:
        small = cut(model, plan)
        with torch.no_grad():
            fault(small)
        with pytest.raises(EquivalenceError) as caught:
            verify(model, small, plan, inputs)
        return caught.value

    def aside(small: Any) -> None:
        small.fc2.register_forward_hook(lambda module, args, out: out * (1 if torch.compiler.is_exporting() else 2))

    eager, sliced, shaped = map(
        message, (aside, reverse_columns("fc2"), lambda small: setattr(small.fc2, "in_features", 9))
    )
    assert "0.0001" in str(eager.expected) and float(str(eager.got).split()[2]) > 1e-2
    assert "1e-09" in str(sliced.expected) and " at fc2, " in str(sliced.where)
    assert shaped.got == "fc2.in_features is 9, its tensors say 4" and "shapes" in str(shaped.expected)


def test_an_eager_model_that_breaks() -> None:
    def replace(small: Any) -> None:
        def forward(x: Tensor) -> Tensor:
            if not torch.compiler.is_exporting():
                raise ValueError("no weights today")
            return F.linear(x, small.fc2.weight, small.fc2.bias)

        small.fc2.forward = forward

    assert faulty("chain", replace, HALF).failure == "the cut model does not run: ValueError: no weights today"


# ---- code that writes sizes down


class Heads(nn.Module):
    """Views its 4 heads of 4 by a number of its own; with 2 heads left, the same view gives 4 heads of 2."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.width = 4
        self.fc1, self.fc2 = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.fc1(x).view(x.shape[0], self.width, -1)
        return self.fc2(heads.softmax(-1).flatten(1))


def test_an_attribute_that_changes_the_computation_in_silence() -> None:
    """The model runs, and every shape that is stored is right."""
    model, x = Heads().eval(), torch.randn(4, 6)
    graph = capture(model, x)
    (group,) = graph.groups
    assert group.width == 4
    plan = replace(make_plan(graph, {group.name: [1, 2]}), edits=Edits())
    small: Any = cut(model, plan)
    assert small(x).shape == (4, 3)
    proof = verify(model, small, plan, x, graph=graph, check=False)
    assert not proof.passed
    assert "aten.view.default at the model, test_proof.py:" in str(proof.failure)
    assert "shape (4, 4, 2), predicted (4, 2, 4)" in str(proof.failure)
    small.width = 2
    assert verify(model, small, plan, x, graph=graph).passed


def test_a_slice_by_number() -> None:
    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.fc1(x)
            return self.fc2(x * x[:, 3:4])

    model, x = Picks().eval(), torch.randn(4, 6)
    graph = capture(model, x)
    first = graph.groups[0]
    plan = make_plan(graph, {first.name: [1]})
    assert [(edit.text, edit.value) for edit in plan.edits.sources] == [("3", 1), ("4", 2)]
    assert verify(model, cut(model, plan), plan, x, graph=graph).passed
    plan = replace(plan, edits=Edits())
    proof = verify(model, cut(model, plan), plan, x, graph=graph, check=False)
    assert "aten.slice.Tensor at the model, test_proof.py:" in str(proof.failure)


# ---- what would prove nothing


class Chaos(nn.Module):
    """A recurrent network that makes a hundred million times as much of every small change, and of rounding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.out = nn.RNN(3, 24, batch_first=True), nn.Linear(24, 2)
        with torch.no_grad():
            self.rnn.weight_hh_l0.mul_(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize("fault", [0.0, 1e-6])
def test_what_a_network_makes_of_rounding_is_no_fault(fault: float) -> None:
    model, x = Chaos().eval(), torch.randn(4, 120, 3)
    graph = capture(model, x)
    plan = make_plan(graph, {"rnn": range(2, 24)})
    small: Any = cut(model, plan)
    with torch.no_grad():
        small.rnn.weight_hh_l0[3, 3] *= 1 + fault
    proof = verify(model, small, plan, x, graph=graph, check=False)
    assert proof.passed == (not fault)
    if fault:  # where sums of products skip no lanes, zeros in between leave no trace: nothing is rounded otherwise
        assert proof.redrawn_error > TOLERANCE


def test_constant_outputs_prove_nothing() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 1), nn.Softmax(1)).eval()
    x = torch.randn(4, 6)
    plan = random_plan(capture(model, x))
    proof = verify(model, cut(model, plan), plan, x, check=False)
    assert proof.failure == "every output is constant on redrawn weights: nothing would be proved"


class Silent(nn.Module):
    """Spikes, of which the last never come."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return (self.b((self.a(x) > 0).float()) > 50).float()


@pytest.mark.parametrize("fault", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_spikes_that_never_come_are_proved_by_what_they_are_made_of(biased: bool, fault: bool) -> None:
    """Also where a layer behind them has a bias: the same for all samples."""
    torch.manual_seed(0)
    model, x = nn.Sequential(Silent(), *[nn.Linear(3, 2)] * biased).eval(), torch.randn(4, 6)
    graph = capture(model, x)
    plan = make_plan(graph, {"0.a": range(3, 9)}) if biased else random_plan(graph)
    small = cut(model, plan)
    if fault:
        with torch.no_grad():
            small[0].b.weight.copy_(small[0].b.weight.flip(1))
    assert verify(model, small, plan, x, check=False).passed == (not fault)


@pytest.mark.parametrize("fault", [False, True])
def test_a_relu_that_lets_nothing_through_is_proved_by_what_it_reads(fault: bool) -> None:
    """Depths of a network that was never trained: all zero on some redrawn weights, whatever its class."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1), nn.ReLU()).eval(), torch.randn(4, 6)
    nn.init.constant_(model[2].bias, -9)  # pyright: ignore[reportArgumentType]
    plan = random_plan(capture(model, x))
    small = cut(model, plan)
    if fault:
        with torch.no_grad():
            small[2].weight.copy_(small[2].weight.flip(1))
    assert verify(model, small, plan, x, check=False).passed == (not fault)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_prove_nothing(value: float) -> None:
    model, inputs = build("chain")
    with torch.no_grad():
        model.fc3.bias[0] = value
    plan = random_plan(capture(model, inputs))
    proof = verify(model, cut(model, plan), plan, inputs, check=False)
    assert proof.failure == "an output is not finite on real weights"


def test_a_plan_for_another_model() -> None:
    model, inputs = build("chain")
    plan = random_plan(capture(*build("unused")))
    with pytest.raises(PlanError, match="The plan does not fit this model") as caught:
        verify(model, model, plan, inputs, check=False)
    assert caught.value.got == "a plan for Unused with other ones"


# ---- parts


def test_redrawn_weights() -> None:
    model, inputs = build("zero_gain")
    program = capture(model, inputs).program
    drawn = redrawn(program, {}, seed=3)
    assert set(drawn) == {name for name, t in program.tensors.items() if t.is_floating_point()}
    assert float(drawn["bn2.weight"].abs().min()) > 0
    assert all(float(drawn[name].min()) > 0 for name in drawn if name.endswith("running_var"))
    spread = float((drawn["stem.weight"] - model.stem.weight).std().detach() / model.stem.weight.std().detach())
    assert 0.08 < spread < 0.12
    again, other = redrawn(program, {}, seed=3), redrawn(program, {}, seed=4)
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)
    assert not any(torch.equal(drawn[name], other[name]) for name in drawn)


def test_the_cut_model_is_moved_not_replaced() -> None:
    """A wrong value in a tensor of the cut model is still there after redrawing."""
    model, inputs = build("chain")
    graph = capture(model, inputs)
    plan = make_plan(graph, {"fc1": [1, 2]})
    small: Any = cut(model, plan)
    with torch.no_grad():
        small.fc1.bias[0] += 7
    drawn = redrawn(graph.program, {}, seed=0)
    moved = cut_tensors(plan, graph.program, capture(small, inputs).program, drawn, {})
    assert torch.equal(moved["fc1.weight"], drawn["fc1.weight"][[1, 2]])
    assert torch.allclose(moved["fc1.bias"] - drawn["fc1.bias"][[1, 2]], torch.tensor([7.0, 0.0]))


@pytest.mark.parametrize(
    ("expected", "found", "error"),
    [
        ((torch.tensor([2.0, -4]),), (torch.tensor([2.0, -3]),), 0.25),
        ((torch.zeros(2),), (torch.zeros(2),), 0.0),
        ((torch.zeros(2), torch.ones(1)), (torch.zeros(2), torch.ones(1) * 1.5), 0.5),
        ((torch.zeros(0),), (torch.zeros(0),), 0.0),
        ((torch.ones(2),), (torch.ones(3),), float("inf")),
        ((torch.ones(2),), (torch.tensor([1, float("nan")]),), float("inf")),
        ((torch.tensor([1, 2]),), (torch.tensor([1, 2]),), 0.0),
        ((torch.tensor([1, 2]),), (torch.tensor([1, 3]),), float("inf")),
        ((torch.tensor([3 + 4j]),), (torch.tensor([3 + 3j]),), 0.2),
        ((torch.ones(1),), (1.0,), float("inf")),
        ((None, 3, "a"), (None, 3, "a"), 0.0),
        ((3,), (4,), float("inf")),
        ((object(),), (object(),), 0.0),
        ((), (), 0.0),
        ((1,), (), float("inf")),
    ],
)
def test_relative_error(expected: tuple[Any, ...], found: tuple[Any, ...], error: float) -> None:
    assert relative_error(expected, found) == pytest.approx(error)


def test_zero_columns_by_hand() -> None:
    model, inputs = build("channel_fastest")
    graph = capture(model, inputs)
    overrides = zero_columns(graph, make_plan(graph, {"conv": [1, 3]}))
    assert set(overrides) == {"fc.weight"}
    expected = copy.deepcopy(model.fc.weight.data).view(5, 9, 4)
    expected[:, :, [0, 2]] = 0
    assert torch.equal(overrides["fc.weight"], expected.view(5, 36))


# ---- which group is at fault


def test_a_group_that_fails_only_beside_another_is_found() -> None:
    """And the one that comes after both is not blamed."""
    tried: list[tuple[str, ...]] = []

    def test(names: Sequence[str]) -> str | None:
        tried.append(tuple(names))
        return "both" if {"b", "c"} <= set(names) else None

    names = ["a", "b", "c", "d", "e"]
    assert _culprits(test, names, {name: (name,) for name in names}, list) == {"c": "both"}
    assert len(tried) <= 5


def test_the_groups_of_the_call_that_a_failure_names_are_tried_first() -> None:
    names, tried = [str(i) for i in range(64)], list[list[str]]()

    def test(cut: Sequence[str]) -> str | None:
        tried.append([*cut])
        return "at 40" if "40" in cut else None

    assert _culprits(test, names, {name: (name,) for name in names}, list, lambda failure: {"40"}) == {"40": "at 40"}
    assert [len(cut) for cut in tried] == [64, 1, 63]
    assert _culprits(test, names, {name: (name,) for name in names}, list, lambda failure: {"3"}) == {"40": "at 40"}


def test_the_groups_of_a_call_are_those_of_what_it_reads_and_makes() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    graph = capture(model, torch.randn(2, 4))
    calls = {call.name: call for call in graph.program.nodes}
    assert _at(graph, f"{place(calls['relu_1'])}: shape (2, 5), predicted (2, 6)") == {"2"}
    assert _at(graph, f"{place(calls['linear_1'])}: relative error 0.1 (on real weights)") == {"0", "2"}
    assert _at(graph, "the outputs (on real weights)") == set()


def test_nobody_is_at_fault_where_nothing_is_cut() -> None:
    model, x = build("chain")
    graph = capture(model, x)
    plan = make_plan(graph, {group.name: [0] for group in graph.groups})

    def broken(model: nn.Module, plan: Plan, rewrite: Rewrite | None) -> nn.Module:
        small = cut(model, plan, rewrite)
        with torch.no_grad():
            next(small.parameters()).add_(1)
        return small

    assert at_fault(model, graph, plan, x, cut) == {}
    assert at_fault(model, graph, plan, x, broken) == {}


class Bounded(nn.Module):
    """Bounds that are infinite until somebody sets them, as clipped layers and masks hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("low", torch.tensor(-float("inf")))
        self.register_buffer("high", torch.tensor([float("inf")] * 7 + [1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.clamp(self.a(x), self.low, self.high))


def test_infinite_entries_stay_where_weights_are_redrawn() -> None:
    torch.manual_seed(0)
    model, x = Bounded().eval(), torch.randn(4, 6)
    graph = capture(model, x)
    plan = make_plan(graph, {"a": [0, 1, 7]})
    assert verify(model, cut(model, plan), plan, x, graph=graph).passed


@pytest.mark.parametrize("given", [True, False], ids=["a graph with more groups", "a fresh capture"])
def test_a_plan_may_know_fewer_groups_than_the_graph_of_the_proof(given: bool) -> None:
    """Groups that a trial froze are groups again where the model is captured anew."""
    model, x = build("chain")
    whole = capture(model, x)
    first, *others = (group.name for group in whole.groups)
    plan = make_plan(whole.without(dict.fromkeys(others, "frozen by a trial")), {first: [0, 1]})
    assert verify(model, cut(model, plan), plan, x, graph=whole if given else None).passed
