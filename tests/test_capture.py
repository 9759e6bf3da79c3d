"""Capture: groups derived by hand for every tiny network, the account, and a model that is left as it was."""

from __future__ import annotations

import copy
import gc
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from actprune.axes.capture import Graph, capture
from actprune.axes.groups import Group
from actprune.errors import CaptureError, DataError
from actprune.graph.program import op_name
from actprune.graph.purify import writes
from actprune.graph.run import run
from actprune.graph.trace import call_arguments
from nets import NETS, build

# ---- groups: name → (width, the tensor dimensions that hold it, what makes it, what reads it)

GROUPS: dict[str, dict[str, tuple[int, str, str, str]]] = {
    "chain": {
        "fc1": (8, "fc1.weight[0] fc1.bias[0] fc2.weight[1]", "fc1", "fc2"),
        "fc2": (7, "fc2.weight[0] fc2.bias[0] fc3.weight[1]", "fc2", "fc3"),
    },
    "lenet": {
        "conv1": (6, "conv1.weight[0] conv1.bias[0] conv2.weight[1]", "conv1", "conv2"),
        "conv2": (16, "conv2.weight[0] conv2.bias[0] fc1.weight[1]", "conv2", "fc1"),
        "fc1": (120, "fc1.weight[0] fc1.bias[0] fc2.weight[1]", "fc1", "fc2"),
        "fc2": (84, "fc2.weight[0] fc2.bias[0] fc3.weight[1]", "fc2", "fc3"),
    },
    "residual": {
        "stem": (
            8,
            "stem.weight[0] stem.bias[0] bn.weight[0] bn.bias[0] bn.running_mean[0] bn.running_var[0] conv1.weight[1]"
            " conv2.weight[0] conv2.bias[0] bn2.weight[0] bn2.bias[0] bn2.running_mean[0] bn2.running_var[0]"
            " fc.weight[1]",
            "stem conv2",
            "conv1 fc",
        ),
        "conv1": (
            6,
            "conv1.weight[0] conv1.bias[0] bn1.weight[0] bn1.bias[0] bn1.running_mean[0] bn1.running_var[0]"
            " conv2.weight[1]",
            "conv1",
            "conv2",
        ),
    },
    "in_place": {
        "stem": (
            8,
            "stem.weight[0] stem.bias[0] conv1.weight[1] conv2.weight[0] conv2.bias[0] fc.weight[1]",
            "stem conv2",
            "conv1 fc",
        ),
        "conv1": (6, "conv1.weight[0] conv1.bias[0] conv2.weight[1]", "conv1", "conv2"),
    },
    "dense": {
        "conv1": (
            4,
            "conv1.weight[0] conv1.bias[0] conv2.weight[1] bn.weight[0] bn.bias[0] bn.running_mean[0]"
            " bn.running_var[0] conv3.weight[1] fc.weight[1]",
            "conv1",
            "conv2 conv3 fc",
        ),
        "conv2": (
            5,
            "conv2.weight[0] conv2.bias[0] bn.weight[0] bn.bias[0] bn.running_mean[0] bn.running_var[0]"
            " conv3.weight[1] fc.weight[1]",
            "conv2",
            "conv3 fc",
        ),
        "conv3": (6, "conv3.weight[0] conv3.bias[0] fc.weight[1]", "conv3", "fc"),
    },
    "depthwise": {
        "expand": (
            8,
            "expand.weight[0] expand.bias[0] depthwise.weight[0] bn.weight[0] bn.bias[0] bn.running_mean[0]"
            " bn.running_var[0] project.weight[1]",
            "expand depthwise",
            "project",
        ),
        "project": (5, "project.weight[0] project.bias[0] fc.weight[1]", "project", "fc"),
    },
    "grouped": {
        # 8 channels are 2 groups × 4 in each; 12 are the same 2 groups × 6
        "conv1#1": (4, "conv1.weight[0] conv1.bias[0] conv2.weight[1]", "conv1", "conv2"),
        "conv1#2": (
            2,
            "conv1.weight[0] conv1.bias[0] conv2.weight[0] conv2.bias[0] conv3.weight[1]",
            "conv1 conv2",
            "conv3",
        ),
        "conv2": (6, "conv2.weight[0] conv2.bias[0] conv3.weight[1]", "conv2", "conv3"),
    },
    "tied": {
        # the decoder reads with the encoder's weight, whose first name is decoder_weight: columns are rows
        "encoder": (
            8,
            "decoder_weight[0] encoder.bias[0] middle.weight[0] middle.weight[1] middle.bias[0]",
            "encoder middle",
            "middle <root>",
        ),
    },
    "tied_heads": {"stem": (8, "stem.weight[0] stem.bias[0] left.weight[1]", "stem", "left right")},
    "reused": {
        "stem": (
            8,
            "stem.weight[0] stem.bias[0] block.weight[0] block.weight[1] block.bias[0] head.weight[1]",
            "stem block again",
            "block again head",
        ),
    },
    "reused_depthwise": {
        "stem": (
            8,
            "stem.weight[0] stem.bias[0] block.weight[0] block.bias[0] head.weight[1]",
            "stem block again",
            "head",
        ),
    },
    "unused": {"fc1": (8, "fc1.weight[0] fc1.bias[0] fc2.weight[1]", "fc1", "fc2")},
    "channel_fastest": {"conv": (4, "conv.weight[0] conv.bias[0] fc.weight[1]", "conv", "fc")},
    "channel_slowest": {"conv": (4, "conv.weight[0] conv.bias[0] fc.weight[1]", "conv", "fc")},
    "auxiliary": {
        "stem": (
            8,
            "stem.weight[0] stem.bias[0] bn.weight[0] bn.bias[0] bn.running_mean[0] bn.running_var[0] head.weight[1]"
            " aux.weight[1]",
            "stem",
            "head aux",
        ),
    },
    "keywords": {
        "words": (
            8,
            "words.weight[0] words.bias[0] sizes.weight[0] sizes.bias[0] head.weight[1]",
            "words sizes",
            "head",
        ),
    },
    "two_inputs": {
        "left": (5, "left.weight[0] left.bias[0] head.weight[1]", "left", "head"),
        "right": (4, "right.weight[0] right.bias[0] head.weight[1]", "right", "head"),
    },
}
GROUPS["zero_gain"] = GROUPS["residual"]

PRUNABLE = {
    # parameters with some cuttable dimension, of all: what stays are the biases of the last layers and what is unused
    "chain": (56 + 63 + 21, 56 + 63 + 24),
    "lenet": (44_416, 44_426),
    "residual": (224 + 16 + 438 + 12 + 440 + 16 + 32, 224 + 16 + 438 + 12 + 440 + 16 + 36),
    "tied": (48 + 8 + 72, 48 + 8 + 72),
    "unused": (56 + 24, 56 + 27 + 42 + 4),
    "depthwise": (32 + 72 + 16 + 45 + 20, 32 + 72 + 16 + 45 + 24),
}
"""Network → (prunable parameters, parameters), by hand."""


def captured(name: str) -> Graph:
    return capture(*build(name))


@pytest.mark.parametrize("name", NETS)
def test_groups(name: str) -> None:
    graph = captured(name)
    assert {group.name: described(group) for group in graph.groups} == {
        key: (width, set(members.split()), set(made.split()), set(read.split()))
        for key, (width, members, made, read) in GROUPS[name].items()
    }
    assert graph.unknown_ops == ()


def described(group: Group) -> tuple[int, set[str], set[str], set[str]]:
    made, read = ({site.module or "<root>" for site in sites} for sites in (group.producers, group.consumers))
    return group.width, {f"{member.tensor}[{member.dim}]" for member in group.members}, made, read


@pytest.mark.parametrize("name", ["lenet", "depthwise", "tied"])
def test_convolutions_make_channels_and_linear_layers_neurons(name: str) -> None:
    for group in captured(name).groups:
        assert group.kind == ("channels" if "conv" in group.producers[0].kind else "neurons")


@pytest.mark.parametrize("name", NETS)
def test_every_dimension_has_a_group_or_a_reason(name: str) -> None:
    model, inputs = build(name)
    account = capture(model, inputs).account()
    known = {(entry.tensor, entry.dim): entry for entry in account}
    distinct = {id(t): n for n, t in reversed([*model.named_parameters(), *model.named_buffers()])}
    expected = {(n, d): s for n in distinct.values() for d, s in enumerate(model.state_dict()[n].shape)}
    assert {key: entry.size for key, entry in known.items()} == expected
    for entry in account:
        assert entry.groups or entry.frozen
        assert all(entry.frozen)
        assert entry.prunable == bool(entry.groups)
    assert account.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", PRUNABLE)
def test_prunable_parameters(name: str) -> None:
    account = captured(name).account()
    assert (account.prunable, account.parameters) == PRUNABLE[name]


def test_reasons() -> None:
    account = {f"{e.tensor}[{e.dim}]": e.frozen for e in captured("unused").account()}
    assert account["fc1.weight[1]"] == ("model input",)
    assert account["fc2.weight[0]"] == account["fc2.bias[0]"] == ("model output",)
    assert account["spare.weight[0]"] == account["scale[0]"] == ("not used by the forward pass",)
    lenet = {f"{e.tensor}[{e.dim}]": e.frozen for e in captured("lenet").account()}
    assert lenet["conv1.weight[1]"] == ("it has a single unit",)
    assert re.fullmatch(r"a kernel size by aten.conv2d.default at conv1, nets.py:\d+", lenet["conv1.weight[2]"][0])
    assert re.fullmatch(
        r"a spatial size by aten.max_pool2d.default at the model, nets.py:\d+", lenet["fc1.weight[1]"][0]
    )


def test_the_account_can_be_read() -> None:
    lines = str(captured("unused").account()).splitlines()
    assert lines[0] == "scale[0]              4  frozen: not used by the forward pass"
    assert lines[1].split() == ["fc1.weight[0]", "8", "fc1"]
    assert lines[-1] == "62.0 % of 129 parameters prunable"
    assert str(captured("unused")).splitlines() == ["Unused: 1 groups", "fc1       8 neurons"]


def test_a_message_has_one_line_for_each_reason() -> None:
    first, *others, whole = captured("unused").account().briefly(2).splitlines()
    assert first.split(maxsplit=2) == ["scale[0]", "4", "frozen: not used by the forward pass"]
    assert [line.split(maxsplit=2)[2] for line in others] == ["frozen: model input"]
    assert whole == "(1 further reasons: print(actprune.capture(model, x).account()) has all 10 dimensions)"


def test_groups_by_name() -> None:
    graph = captured("chain")
    assert graph["fc2"].width == 7
    with pytest.raises(KeyError, match="fc9"):
        graph["fc9"]


class Sliced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        act = nn.ReLU()  # shared: export then writes the path by which a module was reached, slices too
        self.list = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), act) for _ in range(4))
        self.row = nn.Sequential(nn.Linear(8, 8), act, nn.Linear(8, 8), act, nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.list[1:][:2]:
            x = layer(x)
        return self.row[2:](self.row[:2](x))


def test_modules_in_slices_have_their_own_names() -> None:
    graph = capture(nn.Sequential(Sliced()), torch.randn(2, 8))
    assert [group.name for group in graph.groups] == ["0.list.1.0", "0.list.2.0", "0.row.0", "0.row.2"]


def test_tied_tensors_are_listed_once_under_all_their_names() -> None:
    program = captured("reused").program
    assert program.aliases["block.weight"] == ("block.weight", "again.weight")
    assert "again.weight" not in program.tensors
    assert captured("tied_heads").program.aliases["left.weight"] == ("left.weight", "right.weight")


# ---- the program computes what the model computes


@pytest.mark.parametrize("name", NETS)
def test_the_interpreter_agrees_with_the_model(name: str) -> None:
    model, inputs = build(name)
    assert_runs_like(model, inputs)


def assert_runs_like(model: nn.Module, inputs: Any) -> Graph:
    """The program's outputs are the model's, bit by bit; running it changes neither the model nor the inputs."""
    graph = capture(model, inputs)
    args, kwargs = call_arguments(model, inputs)
    batch = graph.program.flatten(args, kwargs)
    before = copy.deepcopy((model.state_dict(), batch))
    found = [run(graph.program, batch) for _ in range(2)]
    assert_same((model.state_dict(), batch), before)
    with torch.no_grad():
        expected = tuple(pytree.tree_leaves(model(*copy.deepcopy(args), **copy.deepcopy(kwargs))))
    assert_same(found, [expected, expected])
    return graph


def assert_same(found: Any, expected: Any) -> None:
    leaves, others = pytree.tree_leaves(found), pytree.tree_leaves(expected)
    for a, b in zip(leaves, others, strict=True):
        assert torch.equal(a, b) if isinstance(b, Tensor) else a == b


class Around(nn.Module):
    """Linear(6, 8), any function of the module and the hidden values, Linear(8, 3)."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor], **buffers: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)
        self.middle = middle
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.middle(self, self.fc1(x)))


def in_place_after_a_view(m: Any, x: Tensor) -> Tensor:
    first = x[:, :4]
    x.relu_()
    return torch.cat([first, x[:, 4:]], 1)


def write_into_a_view(m: Any, x: Tensor) -> Tensor:
    x.view(-1, 2, 4).mul_(2)
    return x


def write_into_the_view_that_is_read(m: Any, x: Tensor) -> Tensor:
    y = x.view(-1, 2, 4).transpose(1, 2)
    y.mul_(2)
    return y.flatten(1)


def read_a_view_of_what_was_written(m: Any, x: Tensor) -> Tensor:
    y = x.view(-1, 2, 4)
    first = y[:, 0]
    y.mul_(2)
    return torch.cat([first, y[:, 1]], 1)


def assign_a_slice(m: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 2:4] = x[:, 6:] * 2
    return y


def chained(m: Any, x: Tensor) -> Tensor:
    return x.add_(1).mul_(2).relu_().pow_(2) + x


def keeps_its_dtype(m: Any, x: Tensor) -> Tensor:
    small = x.to(torch.bfloat16).clone()
    small += x
    return small.float()


def counts(m: Any, x: Tensor) -> Tensor:
    m.calls += 1
    m.average.mul_(0.9).add_(x.mean(0), alpha=0.1)
    return x + m.average * m.calls


def remembers(m: Any, x: Tensor) -> Tensor:
    m.last.copy_(x.detach().mean(0))
    return x + m.last


def through_a_constant(m: Any, x: Tensor) -> Tensor:
    gains = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8])
    gains.add_(1)
    gains[0] = 7.0
    return x * gains


def returns_itself(m: Any, x: Tensor) -> Tensor:
    same = x.type_as(x)
    same.relu_()
    return x


IN_PLACE = [in_place_after_a_view, write_into_a_view, assign_a_slice, chained, keeps_its_dtype, through_a_constant]
IN_PLACE += [returns_itself, write_into_the_view_that_is_read, read_a_view_of_what_was_written]


@pytest.mark.parametrize("middle", IN_PLACE)
def test_in_place_calls(middle: Callable[[Any, Tensor], Tensor]) -> None:
    assert_runs_like(Around(middle).eval(), torch.randn(4, 6))


class _RunsOn(nn.Module):
    """Statistics that go on in eval mode as well."""

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, training=self.momentum > 0, momentum=self.momentum)


@pytest.mark.parametrize("momentum", [0.0, 0.1])
def test_a_batch_norm_that_runs_on_writes_into_its_statistics(momentum: float) -> None:
    program = capture(_RunsOn(momentum), torch.randn(5, 4)).program
    (norm,) = (node for node in program.nodes if op_name(node).startswith("aten.batch_norm"))
    assert writes(norm) is (momentum > 0)


@pytest.mark.parametrize("middle", [counts, remembers])
def test_state_is_not_written(middle: Callable[[Any, Tensor], Tensor]) -> None:
    """A forward pass that updates buffers: the program starts from the same ones each time."""
    model = Around(middle, calls=torch.tensor(3), average=torch.randn(8), last=torch.zeros(8)).eval()
    graph = assert_runs_like(model, torch.randn(4, 6))
    assert [group.name for group in graph.groups] == ["fc1"]


def test_inputs_are_not_written() -> None:
    class Centre(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x[:, 0] -= 1
            return self.fc2(self.fc1(x.relu_()))

    assert_runs_like(Centre().eval(), torch.randn(4, 6))


def test_a_pure_twin_is_used_where_there_is_one() -> None:
    graph = captured("in_place")
    assert not [node for node in graph.program.nodes if op_name(node).split(".")[1:2] == ["relu_"]]
    graph = capture(Around(write_into_the_view_that_is_read).eval(), torch.randn(4, 6))
    assert not [node for node in graph.program.nodes if op_name(node) == "aten.mul_.Tensor"]


def without_gradients(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = torch.sin(x)
    with torch.enable_grad():
        first, second = torch.cos(x), torch.tanh(y)
        with torch.autocast("cpu", enabled=False):
            first = first * 2
    return first + second


def mixed_precision(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = F.linear(x, m.fc2.weight)
    return x + y.sum(1, keepdim=True)


def branches(m: Any, x: Tensor) -> Tensor:
    return torch.cond(m.flag, torch.sin, torch.cos, (x,))


@pytest.mark.parametrize("middle", [without_gradients, mixed_precision])
def test_regions_without_meaning_are_inlined(middle: Callable[[Any, Tensor], Tensor]) -> None:
    graph = assert_runs_like(Around(middle).eval().double(), torch.randn(4, 6).double())  # autocast leaves those alone
    assert graph.unknown_ops == ()
    assert [group.name for group in graph.groups] == ["fc1"]


def test_regions_with_meaning_stay_and_freeze() -> None:
    graph = assert_runs_like(Around(branches, flag=torch.tensor(True)).eval(), torch.randn(4, 6))
    assert len(graph.unknown_ops) == 1
    assert graph.groups == ()
    frozen = {f"{e.tensor}[{e.dim}]": e.frozen for e in graph.account()}["fc1.weight[0]"]
    assert "an op without a rule" in frozen[0]
    assert graph.unknown_ops[0] in frozen[0]


def filled_with_a_number_that_is_read(m: Any, x: Tensor) -> Tensor:
    return x * torch.full((1,), m.strides[1])


def test_an_op_without_a_rule_is_told_only_where_it_freezes_something() -> None:
    model = Around(filled_with_a_number_that_is_read, strides=torch.tensor([8.0, 16.0])).eval()
    graph = capture(model, torch.randn(4, 6))
    assert any(op_name(node) == "aten.item.default" for node in graph.program.nodes)
    assert graph.unknown_ops == ()
    assert [group.name for group in graph.groups] == ["fc1"]


def sorted_values(m: Any, x: Tensor) -> Tensor:
    return torch.sort(x, dim=1).values


def odd_slice(m: Any, x: Tensor) -> Tensor:
    return x.view(4, 8)[:, -100:]


def computed_weight(m: Any, x: Tensor) -> Tensor:
    return F.linear(x, torch.tanh(m.square), None)


def scaled_product(m: Any, x: Tensor) -> Tensor:
    return torch.addmm(m.row, x, m.square, beta=2.0)


def bilinear_pooling(m: Any, x: Tensor) -> Tensor:
    return F.linear((x[:, :, None] * x[:, None, :]).flatten(1), m.wide)


def loose_groups(m: Any, x: Tensor) -> Tensor:
    return F.group_norm(x, 4)


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (sorted_values, "mixed by aten.sort.default at the model, test_capture.py:"),
        (scaled_product, "scaled and contracted by aten.addmm.default"),
        (bilinear_pooling, "stands twice in a dimension of wide"),
        (loose_groups, "grouped without a weight by aten.group_norm.default"),
    ],
)
def test_what_is_not_understood_is_frozen(middle: Callable[[Any, Tensor], Tensor], reason: str) -> None:
    model = Around(middle, square=torch.randn(8, 8), row=torch.randn(8), wide=torch.randn(8, 64)).eval()
    graph = assert_runs_like(model, torch.randn(4, 6))
    frozen = {f"{e.tensor}[{e.dim}]": e.frozen for e in graph.account()}["fc1.weight[0]"]
    assert [text for text in frozen if reason in text]


def test_the_input_of_a_computed_weight_is_masked() -> None:
    model = Around(computed_weight, square=torch.randn(8, 8)).eval()
    graph = assert_runs_like(model, torch.randn(4, 6))
    assert "fc1" in {group.name for group in graph.groups}
    assert len(graph.masks) == 1


def test_a_rule_that_does_not_cover_a_use_freezes() -> None:
    """Vectors that become the columns of a matrix: the rule is for matrices side by side."""
    model = Around(lambda m, x: x + torch.column_stack([x.flatten(), x.flatten()]).sum()).eval()
    graph = assert_runs_like(model, torch.randn(4, 6))
    assert any("whose rule doesn't cover this use" in reason for reason in graph.frozen.values())


def test_slices_reach_beyond_the_end() -> None:
    assert [group.name for group in assert_runs_like(Around(odd_slice).eval(), torch.randn(4, 6)).groups] == ["fc1"]


# ---- what the model and its surroundings look like afterwards


class Hidden(nn.Module):
    """What no tracer can follow: a branch on the value of a tensor, and what runs out of their sight."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.drop, self.bn = nn.Linear(6, 8), nn.Dropout(0.5), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.drop(self.fc(x)))
        with _disable_current_modes():
            y = torch.sin(x if float(x.sum()) > 0 else -x)
        return y + 1


class Branching(Hidden):
    """What export can't follow, but a run can."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.drop(self.fc(x)))
        return x if float(x.sum()) > 0 else -x


class Straight(Hidden):
    """The same without the branch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.drop(self.fc(x)))


@pytest.mark.parametrize("kind", [Straight, Branching, Hidden])
def test_the_model_is_left_as_it_was(kind: type[Hidden]) -> None:
    """Also after an error: modes (mixed ones), hooks, dtypes, values, attributes and the random state."""
    model = kind()
    model.double().train()
    model.drop.eval()
    calls: list[int] = []
    handle = model.fc.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(4, 6, dtype=torch.float64)
    before = snapshot(model)
    if kind is Hidden:
        with pytest.raises(CaptureError):
            capture(model, x)
    else:
        capture(model, x)
    assert_same(snapshot(model), before)
    assert [*model.fc._forward_hooks] == [handle.id]


def snapshot(model: nn.Module) -> Any:
    return copy.deepcopy(
        [
            [module.training for module in model.modules()],
            [sorted(vars(module)) for module in model.modules()],
            [(name, str(tensor.dtype), tensor.requires_grad) for name, tensor in model.state_dict().items()],
            list(model.state_dict().values()),
            torch.random.get_rng_state(),
            torch.is_grad_enabled(),
        ]
    )


def test_a_model_that_can_not_be_captured() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Hidden(), torch.randn(4, 6))
    error = caught.value
    assert error.problem == "Hidden could not be captured."
    assert error.expected == "a forward pass that runs on these inputs"
    own, export = str(error.got).split("; ")
    assert re.fullmatch(
        r"what aten.add.Tensor at the model, test_capture.py:\d+ reads is computed out of sight .*", own
    )
    assert export.startswith("torch.export: GuardOnDataDependentSymNode: ")
    assert error.where == "forward with inputs of shape (4, 6)"
    assert "check that the model runs" in str(error.hint)
    for label in ("expected: ", "got: ", "where: ", "next: "):
        assert f"\n  {label}" in str(error)


def test_what_the_caller_has_put_aside_from_the_collector_stays_so() -> None:
    """And what is computed out of sight is found all the same."""
    gc.freeze()
    try:
        with pytest.raises(CaptureError, match="computed out of sight"):
            capture(Hidden(), torch.randn(4, 6))
        assert gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()


def test_inputs_of_the_wrong_shape() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(NETS["chain"].make(), torch.randn(4, 5))
    assert "[4, 5]" in str(caught.value.got)
    assert caught.value.where == "forward with inputs of shape (4, 5)"


@pytest.mark.parametrize("inputs", [3.0, (), [None], {"x": 2}])
def test_inputs_without_a_tensor(inputs: Any) -> None:
    with pytest.raises(CaptureError, match="given no tensor") as caught:
        capture(NETS["chain"].make(), inputs)
    assert caught.value.where == "example_inputs"
    assert caught.value.hint


def test_keywords_that_the_model_does_not_take() -> None:
    with pytest.raises(DataError, match=r"No key of the batch is an argument of Chain\.forward") as caught:
        capture(NETS["chain"].make(), {"image": torch.randn(4, 6)})
    assert (caught.value.expected, caught.value.got) == ("keys among x", "image")


def test_batches_of_another_structure() -> None:
    program = captured("two_inputs").program
    with pytest.raises(DataError, match="structure that TwoInputs was captured with"):
        program.flatten((torch.randn(4, 6),), {})


# ---- training branches


def test_a_batch_of_one_is_doubled_for_the_training_branches() -> None:
    """BatchNorm refuses to train on one value per channel."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.bn = nn.Linear(6, 8), nn.BatchNorm1d(8)
            self.head, self.aux = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Any:
            x = self.bn(self.stem(x))
            return (self.head(x), self.aux(x)) if self.training else self.head(x)

    graph = capture(Small(), torch.randn(1, 6))
    assert graph.training is not None
    assert graph.training.batch_size == 2
    assert {site.module for site in graph["stem"].consumers} == {"head", "aux"}


def test_training_branches_that_can_not_be_captured_are_spoken_of() -> None:
    class Blind(nn.Module):
        """An auxiliary head that nobody can follow."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head, self.aux = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Any:
            x = self.stem(x)
            if self.training:
                raise RuntimeError("labels are missing")
            return self.head(x)

    graph = capture(Blind(), torch.randn(4, 6))
    assert graph.training is None
    reasons = {f"{e.tensor}[{e.dim}]": e.frozen for e in graph.account()}
    expected = "not used by the forward pass (that of training mode can't be captured with these inputs)"
    assert reasons["aux.weight[1]"] == (expected,)


def test_a_failing_export_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    """Torch logs and prints its partial graph; the error says what is worth saying."""
    with pytest.raises(CaptureError):
        capture(Hidden(), torch.randn(4, 6))
    capture(Branching(), torch.randn(4, 6))
    assert capfd.readouterr() == ("", "")


def test_training_branches_have_node_names_of_their_own() -> None:
    graph = captured("auxiliary")
    names = [site.node for site in (*graph.sites, *graph.training_sites)]
    assert len(set(names)) == len(names)
    assert [site.node for site in graph.training_sites] == ["training/linear_1"]


def test_constants_of_the_two_modes_do_not_mix() -> None:
    """Both modes lift a constant under the same name, of another size."""

    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head, self.aux = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Any:
            x = self.stem(x)
            if self.training:
                return self.head(x), self.aux(x) * torch.tensor([1.0, 2])
            return self.head(x) * torch.tensor([1.0, 2, 3, 4])

    graph = capture(Moody(), torch.randn(4, 6))
    assert graph.training is not None
    assert {site.module for site in graph["stem"].consumers} == {"head", "aux"}


def test_dropout_within_an_attention_is_off_in_the_training_branches() -> None:
    """The op takes a probability; with it two runs of one program would differ, and nothing could be proved."""

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head, self.aux = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Any:
            x = self.stem(x)
            x = F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if self.training else 0.0)
            return (self.head(x), self.aux(x)) if self.training else self.head(x)

    program = capture(Attending(), torch.randn(3, 4, 6)).training
    assert program is not None
    first, second = (run(program, program.example) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ---- tensors of all kinds


class Kinds(nn.Module):
    """Parameters of all kinds, of which the state dict is full in real models."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)
        self.fc1.weight = nn.Parameter(torch.randn(6, 8).t())  # not contiguous
        self.fc2.weight.requires_grad_(False)
        self.phases = nn.Parameter(torch.randn(8, dtype=torch.complex64))
        self.levels = nn.Parameter(torch.arange(8), requires_grad=False)
        self.register_buffer("steps", torch.tensor(2.5))
        self.mask = nn.Buffer(torch.ones(8, dtype=torch.bool))
        self.register_buffer("empty", torch.zeros(0, 8))
        self.register_buffer("loose", torch.ones(8), persistent=False)
        self.nothing = nn.Parameter(torch.zeros(0))

    def forward(self, x: Tensor) -> list[Any]:
        x = self.fc1(x) * self.steps + self.levels
        x = torch.where(self.mask, x, -x)
        return [self.fc2((x * self.phases).abs()), [x.shape[0], None], {"mask": self.mask}]


def test_tensors_of_all_kinds() -> None:
    graph = assert_runs_like(Kinds().eval(), torch.randn(4, 6))
    account = {f"{e.tensor}[{e.dim}]": e for e in graph.account()}
    assert account["loose[0]"].frozen == ("not used by the forward pass",)
    assert account["nothing[0]"].frozen and account["empty[0]"].frozen
    assert account["mask[0]"].frozen == ("model output",)


class Phases(nn.Module):
    @torch.autocast("cuda", enabled=False)
    def forward(self, x: Tensor) -> Tensor:
        return torch.arange(x.shape[1]).float()


class OnlyTheSize(nn.Module):
    """Tokens are cut out only for their number, which is read where autocast is off."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.drop, self.phases, self.fc2 = nn.Linear(6, 8), nn.Dropout(), Phases(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.fc1(x))
        phases = self.phases(x[:, 1:])
        return self.fc2(x)[:, 1:] + phases[:, None]


def test_what_is_read_only_for_its_size() -> None:
    assert [group.name for group in assert_runs_like(OnlyTheSize().eval(), torch.randn(2, 5, 6)).groups] == ["fc1"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    model, x = build("residual")
    assert_runs_like(model.to(dtype), x.to(dtype))


def test_one_sample() -> None:
    model, x = build("dense", batch=1)
    assert [group.name for group in assert_runs_like(model, x).groups] == ["conv1", "conv2", "conv3"]


def test_nothing_heavy_runs_on_the_meta_device() -> None:
    with torch.device("meta"):
        model, x = NETS["residual"].make(), torch.empty(2, 3, 5, 5)
    assert [group.name for group in capture(model.eval(), x).groups] == ["stem", "conv1"]
