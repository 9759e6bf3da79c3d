"""Surgery: the same class, smaller; ties stay tied; the original is untouched, or nothing is changed at all."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import actprune as ap
from actprune.artifacts.checkpoint import proved_folder
from actprune.axes.capture import Graph, capture
from actprune.errors import PlanError, UnsupportedModelError
from actprune.plan import Plan, make_plan
from actprune.proof.check import verify
from actprune.rewrite import Rewrite
from actprune.surgery.modules import attributes, stated
from actprune.surgery.slicing import cut
from actprune.surgery.tensors import sliced, tensor_slots
from nets import NETS, build


def random_plan(graph: Graph, seed: int = 0) -> Plan:
    """A random half of every group."""
    chosen = random.Random(seed)
    return make_plan(graph, {g.name: chosen.sample(range(g.width), (g.width + 1) // 2) for g in graph.groups})


def smaller(model: nn.Module, plan: Plan, rewrite: Rewrite | None = None, *, inplace: bool = False) -> Any:
    """`cut`, whose result a test may look into."""
    return cut(model, plan, rewrite, inplace=inplace)


def content(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in tensors(model).items()}


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


# ---- what comes back


@pytest.mark.parametrize("name", NETS)
def test_a_smaller_model_of_the_same_class(name: str) -> None:
    model, inputs = build(name)
    plan = random_plan(capture(model, inputs))
    before = content(model)
    small = smaller(model, plan)
    assert type(small) is type(model)
    assert list(small.state_dict()) == list(model.state_dict())
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert [name for name, _ in small.named_modules()] == [name for name, _ in model.named_modules()]
    assert content(model) == before
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    for tensor, own in tensors(small).items():
        canonical = next((n for n, names in plan.aliases.items() if tensor in names), None)
        assert tuple(own.shape) == (plan.shape(canonical) if canonical else tuple(tensors(model)[tensor].shape))
        assert own.is_contiguous()


@pytest.mark.parametrize("name", NETS)
def test_every_torch_module_states_its_true_sizes(name: str) -> None:
    model, inputs = build(name)
    small = smaller(model, random_plan(capture(model, inputs)))
    for module in small.modules():
        assert set(stated(module)) == set(attributes(module))


def test_in_place_and_copy_agree() -> None:
    model, inputs = build("residual")
    plan = random_plan(capture(model, inputs))
    copied = smaller(model, plan)
    assert copied is not model
    assert smaller(model, plan, inplace=True) is model
    assert content(model) == content(copied)


def test_slices_by_hand() -> None:
    model, inputs = build("channel_fastest")
    small = smaller(model, make_plan(capture(model, inputs), {"conv": [1, 3]}))
    assert torch.equal(small.conv.weight, model.conv.weight[[1, 3]])
    assert torch.equal(small.conv.bias, model.conv.bias[[1, 3]])
    columns = model.fc.weight.view(5, 9, 4)[:, :, [1, 3]].reshape(5, 18)
    assert torch.equal(small.fc.weight, columns)
    assert torch.equal(small.fc.bias, model.fc.bias)


def test_a_plan_that_keeps_everything_changes_nothing() -> None:
    model, inputs = build("dense")
    small = smaller(model, make_plan(capture(model, inputs), {}))
    assert content(small) == content(model)


def test_grouped_convolutions_lose_groups() -> None:
    model, inputs = build("grouped")
    small = smaller(model, make_plan(capture(model, inputs), {"conv1#2": [1], "conv1#1": [0, 1, 3]}))
    assert (small.conv2.groups, small.conv2.in_channels, small.conv2.out_channels) == (1, 3, 6)
    assert (small.conv1.out_channels, small.conv3.in_channels) == (3, 6)


def test_a_depthwise_convolution_with_two_names_is_updated_once() -> None:
    model, inputs = build("reused_depthwise")
    small = smaller(model, make_plan(capture(model, inputs), {"stem": [0, 1, 4, 5, 7]}))
    assert small.again is small.block
    assert (small.block.groups, small.block.in_channels, small.block.out_channels) == (5, 5, 5)
    assert small(inputs).shape == (4, 3, 5, 5)


class Mixed(nn.Module):
    """Groups of a convolution and of a norm over the concatenation of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.conv, self.norm, self.head = nn.Conv2d(8, 8, 3, groups=4), nn.GroupNorm(4, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(torch.cat([self.a(x), self.b(x)], 1)))))


def test_groups_across_a_concatenation_are_counted() -> None:
    """4 groups are 2 of a's and 2 of b's; keep one of a's and both of b's, in the norm as well."""
    model, x = Mixed().eval(), torch.randn(2, 3, 5, 5)
    graph = capture(model, x)
    of_a = next(g for g in graph.groups if g.width == 2 and "a.weight" in str(g.members) and "norm" in str(g.members))
    small = smaller(model, make_plan(graph, {of_a.name: [1]}))
    assert (small.conv.groups, small.norm.num_groups, small.norm.num_channels) == (3, 3, 6)
    assert small(x).shape == (2, 2, 3, 3)


class Misaligned(nn.Module):
    """As MENet and ShuffleNet join what they pool and what they compute: 2 | 10 channels, in three groups of four."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.side = nn.Conv2d(3, 2, 3), nn.Conv2d(2, 10, 1)
        self.grouped, self.head = nn.Conv2d(12, 6, 1, groups=3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.relu(self.grouped(torch.cat([x, self.side(x)], 1))).mean((2, 3)))


def test_a_concatenation_may_end_within_a_group() -> None:
    """2 | 10 read as three groups of 2 | 2: in each of them the same units of both go."""
    model, x = Misaligned().eval(), torch.randn(2, 3, 5, 5)
    graph = capture(model, x)
    plan = random_plan(graph)
    assert plan.widths == {"stem": 1, "side": 1, "grouped": 1}
    small = smaller(model, plan)
    assert verify(model, small, plan, x, graph=graph).passed
    assert (small.side.out_channels, small.grouped.in_channels, small.grouped.groups) == (5, 6, 3)


# ---- ties


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("tied", "encoder.weight", "decoder_weight"),
        ("tied_heads", "left.weight", "right.weight"),
        ("reused", "block.weight", "again.weight"),
    ],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_ties_stay_tied(name: str, first: str, second: str, inplace: bool) -> None:
    model, inputs = build(name)
    small = smaller(model, random_plan(capture(model, inputs)), inplace=inplace)
    assert tensors(small)[first] is tensors(small)[second]


def test_a_rewrite_keeps_ties_of_tensors_that_are_not_cut() -> None:
    """The two heads' outputs can't be cut, so the plan doesn't know their biases."""
    model, inputs = build("tied_heads")
    model.right.bias = model.left.bias
    graph = capture(model, inputs)
    small = smaller(model, random_plan(graph), Rewrite({"left.bias": torch.tensor([1.0, 2, 3])}))
    assert small.left.bias is small.right.bias
    assert small.right.bias.tolist() == [1, 2, 3]


def test_two_parameters_that_share_their_memory_become_one() -> None:
    model, inputs = build("tied_heads")
    model.right.weight = nn.Parameter(model.left.weight.data)
    small = smaller(model, random_plan(capture(model, inputs)), inplace=True)
    assert small.right.weight is small.left.weight


# ---- what a tensor carries along


def test_flags_dtypes_and_marks_stay() -> None:
    model, inputs = build("residual")
    model.conv1.weight.requires_grad_(False)
    model.conv1.weight.decay = 0.1
    model.half()
    small = smaller(model, random_plan(capture(model, inputs.half())), inplace=True)
    assert not small.conv1.weight.requires_grad
    assert small.conv2.weight.requires_grad
    assert small.conv1.weight.decay == 0.1
    assert {t.dtype for t in small.state_dict().values()} == {torch.float16, torch.int64}
    assert isinstance(small.bn.running_mean, Tensor) and not isinstance(small.bn.running_mean, nn.Parameter)


def test_kernels_stay_channels_last() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    model, x = model.to(memory_format=torch.channels_last), torch.randn(2, 3, 8, 8)
    plan = make_plan(capture(model, x), {"0": [0, 2, 5]})
    for rewrite in (None, Rewrite({"2.weight": torch.ones(4, 8, 3, 3)})):
        for layer in (smaller(model, plan, rewrite)[0], smaller(model, plan, rewrite)[2]):
            assert layer.weight.is_contiguous(memory_format=torch.channels_last) and not layer.weight.is_contiguous()


def test_strided_complex_and_whole_tensors() -> None:
    class Kinds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)
            self.fc1.weight = nn.Parameter(torch.randn(6, 8).t())
            self.phases = nn.Parameter(torch.randn(8, dtype=torch.complex64))
            self.levels = nn.Parameter(torch.arange(8), requires_grad=False)
            self.register_buffer("steps", torch.tensor(2.5))
            self.mask = nn.Buffer(torch.arange(8) % 2 > 0)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.where(self.mask, self.fc1(x) * self.steps + self.levels, 0.5)
            return self.fc2((x * self.phases).abs())

    model = Kinds().eval()
    small = smaller(model, make_plan(capture(model, torch.randn(4, 6)), {"fc1": [1, 2, 6]}))
    assert torch.equal(small.fc1.weight, model.fc1.weight[[1, 2, 6]])
    assert torch.equal(small.phases, model.phases[[1, 2, 6]])
    assert small.levels.tolist() == [1, 2, 6]
    assert small.levels.dtype == torch.int64 and not small.levels.requires_grad
    assert small.mask.tolist() == [True, False, False]
    assert small.steps.shape == ()


def test_modes_and_hooks_stay() -> None:
    model, inputs = build("residual")
    plan = random_plan(capture(model, inputs))
    model.train()
    model.bn1.eval()
    seen: list[int] = []
    model.fc.register_forward_hook(lambda *_: seen.append(1))
    small = smaller(model, plan)
    assert (small.training, small.bn.training, small.bn1.training) == (True, True, False)
    small(inputs)
    assert seen == [1]


class Closing(nn.Module):
    """Functions that refer to the model: a lambda over its modules as in minGPT, one by a default, and a hook."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mlp = nn.ModuleDict({"fc": nn.Linear(6, 8), "proj": nn.Linear(8, 6)})
        mlp, self.features = self.mlp, dict[str, Tensor]()
        run = lambda x: mlp.proj(torch.tanh(mlp.fc(x)))  # noqa: E731
        self.mlpf = lambda x: x + run(x)
        self.out, self.side = nn.Linear(6, 10), nn.Linear(10, 3)
        self.last = lambda x, *, side=self.side: side(x)
        self.out.register_forward_hook(self.keep("out"))

    def keep(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.features[name] = output

        return hook

    def forward(self, x: Tensor) -> Tensor:
        self.out(self.mlpf(x))
        return self.last(torch.relu(self.features["out"]))


def test_functions_that_close_over_the_model_run_the_cut_one() -> None:
    model, x = Closing().eval(), torch.randn(4, 6)
    before = model(x)
    kept = model.features["out"]
    graph = capture(model, x)
    assert [g.name for g in graph.groups] == ["mlp.fc", "out"]
    small = smaller(model, random_plan(graph))
    assert (small.mlp.fc.out_features, small.out.out_features) == (4, 5)
    small(x).sum().backward()
    assert small.mlp.fc.weight.grad is not None and model.mlp.fc.weight.grad is None
    assert small.features["out"].shape == (4, 5) and model.features["out"] is kept
    assert torch.equal(model(x), before)


def test_a_function_that_calls_itself_and_one_without_a_value_are_copied() -> None:
    class Calling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)

            def run(x: Tensor, times: int) -> Tensor:
                return self.fc1(x) if times == 0 else run(x, times - 1).tanh()

            def unused() -> Any:
                return missing, self  # pyright: ignore[reportPossiblyUnbound]

            self.run, self.unused = run, unused
            if not self.fc1:
                missing = 1

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.run(x, 2))

    model = Calling().eval()
    small = smaller(model, make_plan(capture(model, torch.randn(4, 6)), {"fc1": [1, 2, 6]}))
    assert small.run is not model.run and small.unused is not model.unused
    assert small(torch.randn(2, 6)).shape == (2, 3)


def test_a_subclass_with_its_own_idea_of_sizes_keeps_it() -> None:
    class Packed(nn.Linear):
        """Says it has as many features as the user thinks, not as many as its weight."""

        def __init__(self) -> None:
            super().__init__(6, 8)
            self.out_features = 80

    model = nn.Sequential(Packed(), nn.Linear(8, 3)).eval()
    small = smaller(model, make_plan(capture(model, torch.randn(4, 6)), {"0": [0, 1]}))
    assert (small[0].out_features, small[0].in_features, small[1].in_features) == (80, 6, 2)


# ---- rewrites


def test_a_rewrite_is_sliced_instead() -> None:
    model, inputs = build("chain")
    graph = capture(model, inputs)
    weight, bias = torch.randn(7, 8, dtype=torch.float64), torch.randn(7)
    small = smaller(model, make_plan(graph, {"fc1": [0, 5]}), Rewrite({"fc2.weight": weight, "fc2.bias": bias}))
    assert torch.equal(small.fc2.weight, weight[:, [0, 5]].float())
    assert torch.equal(small.fc2.bias, bias)
    assert torch.equal(small.fc1.weight, model.fc1.weight[[0, 5]])


@pytest.mark.parametrize("tensors", [{"fc9.weight": torch.zeros(7, 8)}, {"fc2.weight": torch.zeros(7, 2)}])
def test_a_rewrite_for_another_model_is_refused(tensors: dict[str, Tensor]) -> None:
    model, inputs = build("chain")
    before = content(model)
    with pytest.raises(PlanError, match="The rewrite does not fit this model") as caught:
        smaller(model, random_plan(capture(model, inputs)), Rewrite(tensors), inplace=True)
    assert next(iter(tensors)) in str(caught.value.got)
    assert content(model) == before


# ---- refusals


@pytest.mark.parametrize("inplace", [False, True])
def test_another_model_is_refused(inplace: bool) -> None:
    plan = random_plan(capture(*build("chain")))
    other, _ = build("unused")
    before = content(other)
    with pytest.raises(PlanError, match="The plan does not fit this model") as caught:
        smaller(other, plan, inplace=inplace)
    assert caught.value.expected == "a dense Chain with the parameter names, shapes and dtypes of the plan"
    assert caught.value.got == "Unused with other ones"
    assert content(other) == before


def test_a_model_that_was_cut_before_is_refused() -> None:
    model, inputs = build("chain")
    plan = random_plan(capture(model, inputs))
    with pytest.raises(PlanError, match="The plan does not fit this model"):
        smaller(smaller(model, plan), plan)


def test_a_plan_with_other_axes_is_refused() -> None:
    """Edited by hand: the names and the hash are those of the model, the axes are not."""
    model, inputs = build("chain")
    plan = random_plan(capture(model, inputs))
    edited = copy.deepcopy(dict(plan.dims))
    edited["fc2.weight"] = edited["fc2.weight"][::-1]
    with pytest.raises(PlanError, match="The plan does not fit this model") as caught:
        smaller(model, Plan(plan.groups, edited, plan.aliases, plan.architecture))
    assert caught.value.got == "axes of sizes (8, 7) for fc2.weight"


def test_a_group_that_no_tensor_holds_is_refused() -> None:
    model, inputs = build("chain")
    plan = random_plan(capture(model, inputs))
    with pytest.raises(PlanError) as caught:
        smaller(model, Plan(plan.groups, {}, {}, plan.architecture))
    assert caught.value.got == "a group fc1 of 8 units that no tensor holds"


def test_a_model_that_can_not_be_copied() -> None:
    class Attached(nn.Module):
        """Keeps a lock, which deepcopy refuses."""

        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)
            self.lock = threading.Lock()

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.fc1(x))

    model = Attached().eval()
    plan = random_plan(capture(model, torch.randn(4, 6)))
    with pytest.raises(UnsupportedModelError, match="Attached can't be copied") as caught:
        smaller(model, plan)
    assert "deepcopy" in str(caught.value.expected)
    assert "inplace=True" in str(caught.value.hint)
    assert smaller(model, plan, inplace=True)(torch.randn(2, 6)).shape == (2, 3)


def test_what_was_computed_with_gradients_is_copied_by_value() -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.seen = nn.Linear(6, 8), nn.Linear(8, 3), list[Tensor]()

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.fc1(x)
            self.seen.append(self.last)
            return self.fc2(self.last)

    model, x = Remembering().eval(), torch.randn(4, 6)
    model(x)
    small = smaller(model, random_plan(capture(model, x)))
    assert torch.equal(small.last, model.last) and small.last is small.seen[0] and not small.last.requires_grad


# ---- parts


def test_sliced_copies() -> None:
    tensor = torch.arange(12.0).view(3, 4).t()
    found = sliced(tensor, [torch.tensor([0, 2]).numpy(), None])
    assert found.tolist() == [[0, 4, 8], [2, 6, 10]]
    assert sliced(tensor, []).is_contiguous()
    assert sliced(tensor, []).data_ptr() != tensor.data_ptr()


def test_slots_cover_every_name() -> None:
    model, _ = build("reused")
    assert set(tensor_slots(model)) == set(model.state_dict())


def test_slots_leave_out_what_is_absent() -> None:
    assert set(tensor_slots(nn.Sequential(nn.Linear(2, 3, bias=False)))) == {"0.weight"}


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Linear(2, 3), {"in_features": 2, "out_features": 3}),
        (nn.Bilinear(2, 3, 4), {"in1_features": 2, "in2_features": 3, "out_features": 4}),
        (nn.Conv1d(4, 6, 3, groups=2), {"in_channels": 4, "out_channels": 6, "kernel_size": (3,)}),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), {"in_channels": 4, "out_channels": 6}),
        (nn.BatchNorm2d(5), {"num_features": 5}),
        (nn.BatchNorm2d(5, affine=False), {"num_features": 5}),
        (nn.InstanceNorm1d(5), {}),
        (nn.LayerNorm([2, 3]), {"normalized_shape": (2, 3)}),
        (nn.LayerNorm(3, elementwise_affine=False), {}),
        (nn.RMSNorm(4), {"normalized_shape": (4,)}),
        (nn.GroupNorm(2, 6), {"num_channels": 6}),
        (nn.GroupNorm(2, 6, affine=False), {}),
        (nn.Embedding(7, 5), {"num_embeddings": 7, "embedding_dim": 5}),
        (nn.PReLU(4), {"num_parameters": 4}),
        (nn.ReLU(), {}),
    ],
)
def test_size_attributes(module: nn.Module, expected: dict[str, Any]) -> None:
    assert attributes(module) == expected
    assert set(stated(module)) == set(expected)


# ---- nn.MultiheadAttention, which asserts its sizes


class Attending(nn.Module):
    """The stock attention between two layers."""

    def __init__(self, into: int | None = None) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, kdim=into, vdim=into)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        other = y if self.attention.kdim == 8 else x
        return self.head(self.attention(y, other, other, need_weights=False)[0])


@pytest.mark.parametrize("into", [None, 6])
def test_any_size_of_an_attention_may_be_cut_alone(into: int | None) -> None:
    torch.manual_seed(0)
    model, x = Attending(into).eval(), torch.randn(3, 5, 6)
    graph = capture(model, x)
    assert {"stem", "attention#1"} <= {group.name for group in graph.groups}
    for group in graph.groups:
        plan = make_plan(graph, {name: range(group.width // 2) for name in graph.peers[group.name]})
        small = smaller(model, plan)
        assert isinstance(small.attention, nn.MultiheadAttention)
        assert verify(model, small, plan, x, graph=graph).passed
        small.train()(torch.randn(2, 4, 6)).sum().backward()


def test_a_parametrized_layer_states_its_sizes() -> None:
    """Its tensors are held by modules below it; where only its columns are cut it holds nothing that changes itself."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), parametrizations.weight_norm(nn.Linear(8, 5))).eval()
    x = torch.randn(3, 6)
    graph = capture(model, x)
    plan = make_plan(graph, {"0": [1, 4, 5]})
    small = smaller(model, plan)
    assert (small[1].in_features, small[1].out_features) == (3, 5)
    assert verify(model, small, plan, x, graph=graph).passed


def normed_net(norm: Callable[[nn.Module], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    first, second, last = nn.Conv1d(3, 8, 3, padding=1), nn.ConvTranspose1d(8, 12, 4, 2, 1), nn.Linear(192, 4)
    return nn.Sequential(norm(first), nn.ReLU(), norm(second), nn.ReLU(), nn.Flatten(), norm(last))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.weight_norm])
def test_a_weight_norm_is_cut_and_refitted_as_the_weight_that_it_computes(norm: Callable[..., nn.Module]) -> None:
    model, plain, x = normed_net(norm).eval(), normed_net(lambda layer: layer).eval(), torch.randn(96, 3, 8)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith(("original0", "weight_g")):
                tensor *= torch.rand_like(tensor) * 2 - 0.5  # of either sign
        model(x)  # the older kind makes its weight then
        for own, other in zip(model, plain, strict=True):
            if hasattr(own, "weight"):
                other.weight.copy_(own.weight)
                other.bias.copy_(own.bias)
    found, expected = (ap.prune(one, x, keep="macs=50%", seed=0) for one in (model, plain))
    assert found.plan.widths == expected.plan.widths
    torch.testing.assert_close(found.model(x), expected.model(x), rtol=1e-4, atol=1e-5)
    assert Plan.from_json(found.plan.to_json()).digest == found.plan.digest
    found.model.train()(x).sum().backward()


def trained(model: nn.Module, x: Tensor) -> nn.Module:
    """After two steps, in which directions and lengths move apart."""
    steps = torch.optim.SGD(model.train().parameters(), lr=0.1)
    for _ in range(2):
        steps.zero_grad()
        model(x).square().mean().backward()
        steps.step()
    return model.eval()


@pytest.mark.parametrize("form", ["class", "graph"])
def test_a_weight_norm_is_proved_after_training(form: str, tmp_path: Path) -> None:
    """Its directions are no longer the weight then, but for a graph, which holds the weight itself."""
    model, x = normed_net(parametrizations.weight_norm).eval(), torch.randn(32, 3, 8)
    found = ap.prune(model, x, keep="macs=50%", seed=0, form=form)
    before = found.model(x)
    trained(found.model, x)
    assert not torch.allclose(found.model(x), before)
    assert all(weight.requires_grad for weight in found.model.parameters())
    again = ap.load(found.save(tmp_path / "run"), model, x)
    assert torch.equal(again(x), found.model(x))
    assert proved_folder(tmp_path / "run", model, again, x).passed


class SharedDirections(nn.Module):
    """Two weight norms of the same directions: no weight of one can be put in their place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.v, self.last = nn.Linear(6, 12), nn.Parameter(torch.randn(12, 12)), nn.Linear(12, 3)
        self.g, self.h = nn.Parameter(torch.rand(12, 1) + 0.5), nn.Parameter(torch.rand(12, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        for lengths in (self.g, self.h):
            x = F.linear(x, torch.ops.aten._weight_norm(self.v, lengths, 0)).relu()
        return self.last(x)


def test_rows_that_are_cut_from_what_forward_norms_are_not_put_back_as_zeros(tmp_path: Path) -> None:
    """Their norm would be 0 / 0 in the proof of a saved network."""
    torch.manual_seed(0)
    model, x = SharedDirections().eval(), torch.randn(32, 6)
    found = ap.prune(model, x, keep="params=50%", seed=0)
    assert found.plan.shape("g") < (12, 1) and not found.plan.normed
    again = ap.load(found.save(tmp_path / "run"), model)
    assert proved_folder(tmp_path / "run", model, again, x).passed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_weight_norm_in_half_precision(dtype: torch.dtype) -> None:
    """Torch rounds the weight otherwise than the directions, and lengths that are near the directions' own count."""
    model, x = normed_net(parametrizations.weight_norm).eval().to(dtype), torch.randn(64, 3, 8).to(dtype)
    with torch.no_grad():
        dict(model.named_parameters())["0.parametrizations.weight.original0"] *= 1.02
    weight = capture(model, x).program.tensors["0.parametrizations.weight.original1"]
    torch.testing.assert_close(weight, model.get_submodule("0").weight, rtol=0.008, atol=1e-3)
    found = ap.prune(model, x, keep="macs=50%", seed=0)
    assert found.proof.passed
    assert found.model(x).dtype is dtype


def test_a_weight_norm_that_is_not_cut_stays_as_it_is() -> None:
    """With a length below zero, of which the weight's own would be the opposite."""
    model, x = normed_net(parametrizations.weight_norm).eval(), torch.randn(4, 3, 8)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor *= -0.5 if name.endswith("original0") else 1
    graph = capture(model, x)
    plan = make_plan(graph, {"0": [1, 4, 5]})  # the rows of 0 and the columns of 2
    small = cut(model, plan)
    assert verify(model, small, plan, x, graph=graph).passed
    left = [name for name, tensor in small.state_dict().items() if torch.equal(tensor, model.state_dict()[name])]
    assert left == ["2.bias", "5.bias", *(f"5.parametrizations.weight.original{i}" for i in (0, 1))]


def test_rows_of_a_weight_norm_that_lose_all_their_columns() -> None:
    model, x = (
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), parametrizations.weight_norm(nn.Linear(4, 3))),
        torch.randn(5, 3),
    )
    with torch.no_grad():
        model[2].weight = torch.eye(3, 4)
    graph = capture(model.eval(), x)
    plan = make_plan(graph, {"0": [1, 3]})
    small = cut(model, plan)
    assert bool(small(x).isfinite().all())
    assert verify(model, small, plan, x, graph=graph).passed


class Shadowing(nn.Module):
    """A submodule under the name of a method of `nn.Module`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.add_module("apply_", nn.Linear(4, 8))
        self._modules["parameters"] = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self._modules["parameters"](self.apply_(x).relu())


def test_a_submodule_may_be_called_like_a_method() -> None:
    model, x = Shadowing().eval(), torch.randn(2, 4)
    graph = capture(model, x)
    plan = make_plan(graph, {"apply_": [0, 2, 5]})
    assert verify(model, cut(model, plan), plan, x, graph=graph).passed


NORMS = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "old weight norm": nn.utils.weight_norm,
    "old spectral norm": nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", NORMS)
def test_convolutions_with_computed_weights_state_their_sizes(kind: str) -> None:
    """Depthwise and in groups, after a training step: the older norms left a weight of the dense sizes."""
    torch.manual_seed(0)
    norm = NORMS[kind]
    middle = [norm(nn.Conv1d(8, 8, 3, groups=8)), norm(nn.Conv1d(8, 8, 3, groups=4)), norm(nn.Conv1d(8, 6, 1))]
    model, x = nn.Sequential(nn.Conv1d(3, 8, 1), *middle, nn.Conv1d(6, 2, 1)), torch.randn(2, 3, 9)
    model(x).sum().backward()
    graph = capture(model.eval(), x)
    plan = make_plan(graph, {group.name: range(group.width // 2) for group in graph.groups})
    small = smaller(model, plan)
    assert [(m.in_channels, m.out_channels, m.groups) for m in small] == [
        (3, 2, 1), (2, 2, 2), (2, 2, 2), (2, 3, 1), (3, 2, 1)
    ]  # fmt: skip
    assert [tuple(m.weight.shape) for m in small[1:4]] == [(2, 1, 3), (2, 1, 3), (3, 2, 1)]
    assert verify(model, small, plan, x, graph=graph).passed
    small.train()(x).sum().backward()


class Products(nn.Module):
    """Written out, with weights that are scaled, squashed and cast first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(6, 2)
        self.scaled, self.gain = nn.Parameter(torch.randn(8, 10)), nn.Parameter(torch.rand(10) + 0.5)
        self.squashed = nn.Parameter(torch.randn(10, 12))
        self.turned = nn.Parameter(torch.randn(6, 6))
        self.exact = nn.Parameter(torch.randn(12, 6).double())

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(torch.relu(self.first(x)) @ (self.scaled * self.gain))
        x = torch.relu(torch.addmm(x.new_zeros(()), x, torch.tanh(self.squashed)))
        return self.last(torch.relu(torch.relu(x @ self.exact.to(x.dtype)) @ torch.tanh(self.turned).t()))


def test_products_with_computed_weights_make_units() -> None:
    torch.manual_seed(0)
    model, x = Products().eval(), torch.randn(5, 3)
    graph = capture(model, x)
    widths = {"first": 8, "scaled": 10, "squashed": 12, "exact": 6, "turned": 6}
    assert {group.name: group.width for group in graph.groups} == widths
    assert [len(group.producers) for group in graph.groups] == [1] * len(widths)
    plan = random_plan(graph)
    small = smaller(model, plan)
    assert (small.scaled.shape, small.squashed.shape, small.exact.shape) == ((4, 5), (5, 6), (6, 3))
    assert small.turned.shape == (3, 3)
    assert verify(model, small, plan, x, graph=graph).passed


class Listed(nn.Module):
    """Its forward reads tensors from lists and dicts, where they stand beside their names."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(3, 8), nn.Linear(8, 2)
        self.scale, self.shift = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))
        self.register_buffer("gate", torch.rand(8))
        self.scales, self.others = [self.scale], {"shift": (self.shift, self.gate)}

    def forward(self, x: Tensor) -> Tensor:
        shift, gate = self.others["shift"]
        return self.fc2((self.fc1(x) * self.scales[0] + shift).relu() * gate)


@pytest.mark.parametrize("inplace", [False, True])
def test_tensors_in_lists_are_those_of_the_cut_model(inplace: bool) -> None:
    torch.manual_seed(0)
    model, x = Listed().eval(), torch.randn(4, 3)
    graph = capture(model, x)
    plan = random_plan(graph)
    small: Any = cut(copy.deepcopy(model), plan, inplace=inplace)
    assert small.scales[0] is small.scale
    assert small.others["shift"][0] is small.shift
    assert small.others["shift"][1] is small.gate
    assert len(model.scales[0]) == 8
    assert verify(model, small, plan, x, graph=graph).passed


class Stacks(nn.Module):
    """N-BEATS: the blocks are in lists of lists, where no path leads to them, and their parameters are registered."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)

        def block() -> nn.Module:
            return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 6))

        self.stacks = [[block() for _ in range(2)] for _ in range(2)]
        self.held = nn.ParameterList(p for stack in self.stacks for one in stack for p in one.parameters())

    def forward(self, x: Tensor) -> Tensor:
        for stack in self.stacks:
            for one in stack:
                x = x - one(x)
        return x


def test_modules_without_a_path_have_the_tensors_that_are_registered() -> None:
    model, x = Stacks().eval(), torch.randn(4, 6)
    graph = capture(model, x)
    assert sorted(group.width for group in graph.groups) == [8] * 4 + [10] * 4
    plan = make_plan(graph, {group.name: range(1, group.width, 2) for group in graph.groups})
    small = cut(model, plan)
    assert verify(model, small, plan, x, graph=graph).passed
    first = small.stacks[0][0][0]
    assert first.out_features == 4 and first.weight is small.held[0]
    assert model.stacks[0][0][0].weight is model.held[0] and model.held[0].shape == (8, 6)


class NoisyLayer(nn.Module):
    """The noise is drawn by a method that no capture sees, of sizes that nothing else reads."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.in_features, self.out_features = into, out
        self.weight, self.sigma = nn.Parameter(torch.randn(out, into)), nn.Parameter(torch.rand(out, into))
        self.noise: Tensor
        self.register_buffer("noise", torch.randn(out, into))

    @property
    def in_channels(self) -> int:
        return self.in_features

    def draw(self) -> None:
        self.noise.copy_(torch.outer(torch.randn(self.out_features), torch.randn(self.in_features)))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + self.sigma * self.noise if self.training else self.weight)


def test_a_layer_of_the_users_says_its_sizes_under_torchs_names() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(NoisyLayer(6, 10), nn.ReLU(), NoisyLayer(10, 3)).eval(), torch.randn(4, 6)
    graph = capture(model, x)
    plan = make_plan(graph, {"0": [1, 4, 5, 9]})
    small = cut(model, plan)
    assert verify(model, small, plan, x, graph=graph).passed
    layers = [layer for layer in small if isinstance(layer, NoisyLayer)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(6, 4), (4, 3)]
    for layer in layers:
        layer.draw()
    assert small.train()(x).shape == (4, 3)


class Agent(nn.Module):
    """An agent that learns by itself, as those of reinforcement learning do."""

    def __init__(self, make: Callable[[Any], torch.optim.Optimizer]) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        first, then = {"params": self.layers[0].parameters()}, {"params": [self.layers[2].weight]}
        self.optimizers = {"policy": make([first, then])}
        self.scheduler = torch.optim.lr_scheduler.ConstantLR(self.optimizers["policy"], 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def learn(self, x: Tensor) -> None:
        def loss() -> Tensor:
            self.zero_grad()
            error = self(x).square().mean()
            error.backward()
            return error

        self.optimizers["policy"].step(loss)  # type: ignore[arg-type]


@pytest.mark.parametrize("inplace", [False, True])
def test_an_optimizer_of_the_class_steps_the_cut_weights(inplace: bool) -> None:
    model, x = Agent(torch.optim.AdamW), torch.randn(16, 4)
    model.learn(x)
    plan = make_plan(capture(model, x), {"layers.0": [0, 3, 5]})
    dense = copy.deepcopy(model)
    small = smaller(model, plan, inplace=inplace)
    mine, theirs = small.optimizers["policy"], dense.optimizers["policy"]
    assert small.scheduler.optimizer is mine
    first, then = small.layers[0].weight, small.layers[2].weight
    assert mine.param_groups[0]["params"][0] is first and mine.param_groups[1]["params"][0] is then
    assert set(mine.state) == {first, small.layers[0].bias, then}
    assert torch.equal(mine.state[first]["exp_avg"], theirs.state[dense.layers[0].weight]["exp_avg"][[0, 3, 5]])
    assert torch.equal(mine.state[then]["exp_avg_sq"], theirs.state[dense.layers[2].weight]["exp_avg_sq"][:, [0, 3, 5]])
    before, bias = first.detach().clone(), small.layers[2].bias.detach().clone()
    small.learn(x)
    assert (first != before).all() and torch.equal(small.layers[2].bias, bias)
    if not inplace:
        assert content(model) == content(dense)
        assert model.optimizers["policy"].state[model.layers[0].weight]["step"] == 1


def test_an_optimizer_of_a_class_that_load_has_resized(tmp_path: Path) -> None:
    model, x = Agent(torch.optim.Adagrad), torch.randn(16, 4)
    ap.prune(model, x, keep="units=50%", method="l2").save(tmp_path / "run")
    small: Any = ap.load(tmp_path / "run", Agent(torch.optim.Adagrad))
    before = small.layers[0].weight.detach().clone()
    small.learn(x)
    assert before.shape == (4, 4) and (small.layers[0].weight != before).any()


def test_an_optimizer_for_each_weight() -> None:
    """As hooks use them that step every weight as soon as its gradient is there."""
    model = Agent(torch.optim.AdamW)
    model.each = {weight: torch.optim.SGD([weight]) for weight in model.parameters()}  # type: ignore[assignment]
    small: Any = smaller(model, make_plan(capture(model, torch.randn(16, 4)), {"layers.0": [0, 3, 5]}))
    assert all(small.each[weight].param_groups[0]["params"][0] is weight for weight in small.parameters())
