"""Capture of what export refuses, by recording a run; what models hide in attributes, arguments and outputs."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import actprune as ap
from actprune.axes.capture import capture
from actprune.data.take import fit, take
from actprune.errors import CaptureError
from actprune.graph import trace
from actprune.graph.program import module_path, op_name, place
from actprune.graph.run import run
from actprune.graph.trace import call_arguments
from test_capture import Around, assert_runs_like, assert_same, keeps_its_dtype, remembers, write_into_a_view

Middle = Callable[[Any, Tensor], Tensor]


def branched(middle: Middle) -> Middle:
    """The same after a branch on values, which export can't follow."""
    return lambda m, x: middle(m, x if float(x.sum()) > -1e9 else -x)


def itself(m: Any, x: Tensor) -> Tensor:
    return x


def around(middle: Middle, **buffers: Tensor) -> nn.Module:
    return Around(branched(middle), **buffers).eval()


# ---- a recorded run is an ordinary program


class Everything(nn.Module):
    """Composite ops of all kinds, in several modules, after a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.LayerNorm(8)
        self.up, self.group = nn.ConvTranspose2d(8, 8, 2), nn.GroupNorm(2, 8)
        self.fc, self.drop, self.words = nn.Linear(8, 8), nn.Dropout(0.5), nn.Embedding(5, 8)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.up(self.group(self.bn(self.conv(x)).relu_()))
        if x.sum() > -1e9:
            x = F.gelu(x).flatten(2).transpose(1, 2)
        x = self.drop(self.fc(self.norm(x))) + self.words(torch.arange(5)).sum(0)
        heads = x.unflatten(-1, (2, 4)).transpose(1, 2)
        x = F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).reshape(x.shape)
        return {"x": x.softmax(-1), "nothing": None, "pair": [x.matmul(x.mT), 3]}


def test_composite_ops_stay_whole() -> None:
    x = torch.randn(2, 3, 5, 5)
    graph = assert_runs_like(Everything().eval(), x)
    assert graph.program.source == "real"
    calls = [op_name(node).removeprefix("aten.") for node in graph.program.nodes if node.op == "call_function"]
    assert calls == [
        "conv2d.default", "batch_norm.default", "relu.default", "group_norm.default", "conv_transpose2d.input",
        "gelu.default", "flatten.using_ints", "transpose.int", "layer_norm.default", "linear.default",
        "arange.default", "embedding.default", "sum.dim_IntList", "add.Tensor", "unflatten.int", "transpose.int",
        "scaled_dot_product_attention.default", "transpose.int", "reshape.default", "softmax.int", "mT.default",
        "matmul.default",
    ]  # fmt: skip
    assert graph.program.outputs[1] is None and graph.program.outputs[3] == 3
    assert not [node for node in graph.program.nodes if node.op == "get_attr"]


def test_a_recorded_run_has_the_shapes_paths_and_places_of_an_export() -> None:
    recorded, exported = (capture(model.eval(), torch.randn(4, 6)) for model in (around(itself), Around(itself)))
    assert (recorded.program.source, exported.program.source) == ("real", "export")
    assert str(recorded) == str(exported)
    assert str(recorded.account()) == str(exported.account())
    known = {module_path(n): tuple(n.meta["val"].shape) for n in recorded.program.nodes if "linear" in n.name}
    assert known == {"fc1": (4, 8), "fc2": (4, 3)}
    assert all(type(n.meta["val"]).__name__ == "FakeTensor" for n in recorded.program.nodes if n.op == "call_function")
    (node,) = (n for n in capture(around(lambda m, x: x.cos()), torch.randn(4, 6)).program.nodes if "cos" in n.name)
    assert re.fullmatch(r"aten.cos.default at the model, test_capture.py:\d+", place(node))


def test_tied_tensors_and_views_of_them_are_found_by_their_storage() -> None:
    def middle(m: Any, x: Tensor) -> Tensor:
        return x + F.linear(x, m.tied.weight, m.fc1.bias.data)

    model = around(middle)
    model.tied = nn.Linear(8, 8)
    model.again = model.tied
    program = assert_runs_like(model, torch.randn(4, 6)).program
    assert program.aliases["tied.weight"] == ("tied.weight", "again.weight")
    assert set(program.bindings.values()) == {
        "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "tied.weight",
    }  # fmt: skip
    assert len(program.bindings) == 5


class Skipping(nn.Module):
    """The last block adds to a stream that nothing reads any more, as a WaveNet's does."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.head = nn.Linear(3, 8), nn.Linear(6, 2)
        self.gates = nn.ModuleList(nn.Linear(8, 10) for _ in range(2))
        self.residuals = nn.ModuleList(nn.Linear(10, 8) for _ in range(2))
        self.skips = nn.ModuleList(nn.Linear(10, 6) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        if float(x.detach().sum()) < -1e9:
            x = -x
        out = torch.zeros(6)
        for gate, residual, skip in zip(self.gates, self.residuals, self.skips, strict=True):
            h = gate(x).tanh()
            out, x = out + skip(h), x + residual(h)
        return self.head(out.relu())


def test_layers_whose_results_nothing_reads_are_cut_as_well() -> None:
    torch.manual_seed(0)
    model, x = Skipping().eval(), torch.randn(4, 3)
    result = ap.prune(model, [x, x], keep="units=50%", method="l2")
    assert result.graph.program.source == "real"
    small: Any = result.model
    assert small.into.out_features == small.residuals[1].out_features == 4
    assert small(x).shape == (4, 2)


def masked(m: Any, x: Tensor) -> Tensor:
    return x[x.sum(1) > x.sum(1).min()]


def sized(m: Any, x: Tensor) -> Tensor:
    return x[: int(m.fc1.bias.abs().sum().clamp(2, 3))]


def listed(m: Any, x: Tensor) -> Tensor:
    return torch.cat([row[None] for row in x.split(m.lengths.tolist())[0]])


def without_gradients(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        y = x.sin()
    with torch.enable_grad():
        return y.detach().cos().resolve_conj()


@pytest.mark.parametrize("middle", [masked, sized, listed, without_gradients, write_into_a_view, keeps_its_dtype])
def test_what_a_run_takes(middle: Middle) -> None:
    graph = assert_runs_like(around(middle, lengths=torch.tensor([3, 1])), torch.randn(4, 6))
    assert graph.program.source == "real"


def test_sizes_that_depend_on_values_are_those_of_the_example() -> None:
    """Export takes a mask, with a size that nobody knows."""
    x = torch.randn(4, 6)
    graph = assert_runs_like(Around(masked).eval(), x)
    assert graph.program.source == "real"
    (index,) = (node for node in graph.program.nodes if op_name(node) == "aten.index.Tensor")
    assert index.meta["val"].shape == (3, 8)


def mixed_precision(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = F.linear(x, m.fc2.weight)
    return x + y.sum(1, keepdim=True)


def test_autocast_is_off() -> None:
    graph = assert_runs_like(around(mixed_precision).double(), torch.randn(4, 6).double())
    assert graph.unknown_ops == ()


def through_numpy(m: Any, x: Tensor) -> Tensor:
    return x + torch.from_numpy(x.detach().numpy().copy())


def test_what_python_reads_is_frozen() -> None:
    graph = capture(around(through_numpy), torch.randn(4, 6))
    assert graph.groups == ()
    reason = {f"{e.tensor}[{e.dim}]": e.frozen for e in graph.account()}["fc1.weight[0]"]
    assert "read_by_python at the model, test_capture.py" in reason[0]


def through_data(m: Any, x: Tensor) -> Tensor:
    y = x.data
    y.relu_()
    return x


def clipped(m: Any, x: Tensor) -> Tensor:
    m.fc2.weight.data = torch.renorm(m.fc2.weight.data, 2, 0, 0.1)
    return x


@pytest.mark.parametrize("around_it", [lambda f: f, branched])
@pytest.mark.parametrize("middle", [through_data, clipped])
def test_data_is_seen(middle: Middle, around_it: Callable[[Middle], Middle]) -> None:
    """`.data` is no call; some networks clip their weights with it as they run."""
    model = Around(around_it(middle)).eval()
    before = copy.deepcopy(list(model.parameters())), [p.data_ptr() for p in model.parameters()]
    graph = capture(model, x := torch.randn(4, 6))
    assert_same(list(model.parameters()), before[0])
    assert [p.data_ptr() for p in model.parameters()] == before[1]
    found = run(graph.program, (x,))
    with torch.no_grad():
        assert_same(found, [model(x)])


# ---- the model is left as it was


def counting(m: Any, x: Tensor) -> Tensor:
    m.calls += 1
    m.seen.append(x)
    m.cache["mask"] = torch.ones(x.shape)
    m.last = x
    m.table.add_(1)
    m.average = m.average * 0.5
    return x * m.cache["mask"] + m.average


@pytest.mark.parametrize("around_it", [lambda f: f, branched])
def test_attributes_are_left_as_they_were(around_it: Callable[[Middle], Middle]) -> None:
    model: Any = Around(around_it(counting), average=torch.ones(8)).eval()
    model.calls, model.seen, model.cache, model.table = 3, [], {}, torch.zeros(2)
    held = dict(vars(model)), model._buffers["average"]
    capture(model, torch.randn(4, 6))
    assert vars(model) == held[0] and model._buffers["average"] is held[1]
    assert (model.calls, model.seen, model.cache) == (3, [], {})
    assert_same(model.table, torch.zeros(2))


@pytest.mark.parametrize("middle", [remembers, branched(remembers)])
def test_buffers_are_left_as_they_were(middle: Middle) -> None:
    assert_runs_like(Around(middle, last=torch.zeros(8)).eval(), torch.randn(4, 6))


@functools.cache
def positions(size: int) -> Tensor:
    return torch.arange(size) * 2.0


def remembered_by_a_function(m: Any, x: Tensor) -> Tensor:
    return x + positions(8)


@pytest.mark.parametrize("middle", [remembered_by_a_function, branched(remembered_by_a_function)])
def test_no_fake_tensor_is_left_in_the_cache_of_a_function(middle: Middle) -> None:
    positions.cache_clear()
    assert_runs_like(Around(middle).eval(), torch.randn(4, 6))
    assert type(positions(8)) is Tensor


class Tables:
    @staticmethod
    @functools.cache
    def still(size: int) -> Tensor:
        return torch.arange(size) + 2.0


class Remembering(nn.Module):
    """Caches wherever Python code can hold them: a method, a static one elsewhere, an attribute, around a function."""

    def __init__(self) -> None:
        super().__init__()
        self.own = functools.lru_cache(lambda size: torch.arange(size) + 3.0)

    @functools.cache  # noqa: B019
    def method(self, size: int) -> Tensor:
        return torch.arange(size) + 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.method(8) + Tables.still(8) + self.own(8) + wrapped_positions(8)


def _around(function: Any) -> Any:
    cache = functools.cache(function)
    return functools.wraps(function)(lambda size: cache(size) + 0)


wrapped_positions = _around(lambda size: torch.arange(size) * 3.0)


@pytest.mark.parametrize("middle", [lambda m, x: m.own(x), branched(lambda m, x: m.own(x))])
def test_nor_in_any_other_cache(middle: Middle) -> None:
    model = Around(middle)
    model.own = Remembering()
    assert_runs_like(model.eval(), torch.randn(4, 6))
    inner: Any = model.own
    assert {type(f(8)) for f in (inner.method, Tables.still, inner.own, wrapped_positions)} == {Tensor}


class Caching(nn.Module):
    """Keeps in eval mode what it computes from a parameter, as LeViT does; `train()` forgets it."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.kept = nn.Parameter(torch.randn(8)), dict[str, Tensor]()

    def train(self, mode: bool = True) -> Caching:
        super().train(mode)
        if mode:
            self.kept = {}
        return self

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and "bias" not in self.kept:
            self.kept["bias"] = self.bias * 2
        return x + (self.bias * 2 if self.training else self.kept["bias"])


@pytest.mark.parametrize("middle", [lambda m, x: m.caching(x), branched(lambda m, x: m.caching(x))])
def test_what_is_cached_in_eval_mode_is_computed_anew(middle: Middle) -> None:
    model = Around(middle)
    model.caching = Caching()
    with torch.no_grad():
        model.eval()(torch.randn(4, 6))
    kept = model.caching.kept
    graph = assert_runs_like(model, torch.randn(4, 6))
    assert "caching.bias[0]" in {f"{m.tensor}[{m.dim}]" for m in graph["fc1"].members}
    assert model.caching.kept is kept and type(kept["bias"]) is Tensor


class Merging(nn.Linear):
    """Adds its low-rank part to its weight in eval mode."""

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        with torch.no_grad():
            self.weight.add_(0.1 if not mode else -0.1)
        return self


def test_weights_that_train_rewrites_are_put_back() -> None:
    model = nn.Sequential(nn.Linear(6, 8), Merging(8, 3))
    before = copy.deepcopy(model.state_dict())
    capture(model, torch.randn(4, 6))
    assert_same(model.state_dict(), before)


# ---- what can't be captured, and what could be expected not to be


def test_a_lazy_layer() -> None:
    with pytest.raises(CaptureError, match="has a lazy layer that was never called") as caught:
        capture(nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(4, 6))
    assert caught.value.got == "0.weight is uninitialised"


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
def test_torchscript() -> None:
    model = nn.Sequential(nn.Linear(6, 8), torch.jit.script(nn.Linear(8, 3)))
    with pytest.raises(CaptureError, match="Sequential can't be cut: it holds TorchScript") as caught:
        capture(model, torch.randn(4, 6))
    assert (caught.value.where, caught.value.got) == ("1", "RecursiveScriptModule of Linear")
    with pytest.raises(CaptureError, match="it holds TorchScript"):
        ap.prune(torch.jit.script(model), [torch.randn(4, 6)], keep=0.5)  # type: ignore[arg-type]


class Opaque:
    """An output that nobody can look into."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


@dataclass
class Pair:
    first: Tensor
    rest: Any


class Map(dict[str, Any]):
    """A dict of a class of its own."""


@pytest.mark.parametrize("make", [lambda x: Pair(x, Map(a=[x, None])), lambda x: Map(b=x, c=Pair(x, 2))])
def test_outputs_of_a_class_of_their_own(make: Callable[[Tensor], Any]) -> None:
    class Boxed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Any:
            return make(self.fc2(self.fc1(x)))

    graph = assert_runs_like(Boxed().eval(), torch.randn(4, 6))
    assert {f"{e.tensor}[{e.dim}]": e.frozen for e in graph.account()}["fc2.weight[0]"] == ("model output",)


def test_outputs_that_hide_their_tensors() -> None:
    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 8)

        def forward(self, x: Tensor) -> Any:
            return Opaque(self.fc(x))

    with pytest.raises(CaptureError, match=r"the outputs hold a Opaque, whose tensors \(value\) can't be compared"):
        capture(Closed(), torch.randn(4, 6))


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "torch.compile": torch.compile,  # pyright: ignore[reportAssignmentType]
    "torch.fx": torch.fx.symbolic_trace,
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", WRAPPED)
def test_wrapped_models(kind: str) -> None:
    model = WRAPPED[kind](nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    graph = capture(model.eval(), torch.randn(4, 6))
    assert [group.width for group in graph.groups] == [8]


@pytest.mark.parametrize("middle", [itself, branched(itself)])
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex64])
def test_types_of_numbers(dtype: torch.dtype, middle: Middle) -> None:
    def safe(m: Any, x: Tensor) -> Tensor:
        return middle(m, x.abs()).to(dtype)

    graph = assert_runs_like(Around(safe).eval().to(dtype), torch.randn(4, 6, dtype=dtype))
    assert [group.name for group in graph.groups] == ["fc1"]


WEIGHTS: dict[str, tuple[Callable[[nn.Module], Any], set[str]]] = {
    "weight norm": (parametrizations.weight_norm, {f"parametrizations.weight.original{i}" for i in (0, 1)}),
    "spectral norm": (parametrizations.spectral_norm, {"parametrizations.weight.original"}),
    "old weight norm": (nn.utils.weight_norm, {"weight_g", "weight_v"}),
    "old spectral norm": (nn.utils.spectral_norm, {"weight_orig"}),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("middle", [itself, branched(itself)])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_computed_weights_have_the_names_of_their_parameters(kind: str, middle: Middle) -> None:
    change, names = WEIGHTS[kind]
    model = Around(middle).eval()
    change(model.fc1)
    program = assert_runs_like(model, torch.randn(4, 6)).program
    assert {f"fc1.{name}" for name in names} <= set(program.bindings.values())


# ---- arguments


class Nested(nn.Module):
    """Takes its tensors in a dict of lists, and numbers, strings and None."""

    def __init__(self, branch: bool) -> None:
        super().__init__()
        self.words, self.fc, self.branch = nn.Embedding(5, 8), nn.Linear(8, 3), branch

    def forward(self, x: Any, factor: Any = 2, kind: str = "sum", mask: Any = None, flag: bool = False) -> Tensor:
        words, table = x["words"][0], x["words"][1]
        if self.branch and float(table.sum()) < -1e9:
            return table
        y = self.words(words) * factor
        return self.fc(y.sum(1) if kind == "sum" else y[:, 0]) if flag and mask is None else table


@pytest.mark.parametrize("branch", [False, True])
def test_arguments_of_all_kinds(branch: bool) -> None:
    words, table = torch.randint(5, (4, 7)), torch.randn(8, 3, requires_grad=True)
    graph = assert_runs_like(Nested(branch).eval(), ({"words": [words, table]}, 3.0, "sum", None, True))
    assert graph.program.source == ("real" if branch else "export")
    assert graph.program.batch_size == 4


class Decoder(nn.Module):
    """Returns a cache unless it is told not to; `config` says that it would."""

    def __init__(self, branch: bool = False) -> None:
        super().__init__()
        self.stem, self.fc, self.branch = nn.Linear(6, 8), nn.Linear(8, 3), branch

    def forward(self, x: Tensor, use_cache: bool | None = None, scale: float = 1.0) -> dict[str, Any]:
        x = self.stem(x)
        if self.branch and float(x.sum()) < -1e9:
            x = -x
        return {"logits": self.fc(x) * scale, "cache": Opaque(x) if use_cache is not False else None}


FORMS: list[Callable[[Tensor], Any]] = [
    lambda x: x,
    lambda x: (x,),
    lambda x: {"x": x},
    lambda x: {"scale": 2.0, "x": x},
]


@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_decoders_return_no_cache(form: Callable[[Tensor], Any], branch: bool) -> None:
    model, x = Decoder(branch).eval(), torch.randn(4, 6)
    graph = assert_runs_like(model, form(x))
    assert call_arguments(model, form(x))[1]["use_cache"] is False
    assert graph.program.added == {"use_cache": False}
    assert [group.name for group in graph.groups] == ["stem"]
    batches = [form(torch.randn(4, 6)) for _ in range(3)]
    assert fit(graph.program, batches).samples == take(model, batches, 12).count == 12
    assert fit(graph.program, take(model, batches, 12)).samples == 12


def test_a_cache_that_is_asked_for() -> None:
    x = torch.randn(4, 6)
    assert call_arguments(Decoder(), {"x": x, "use_cache": True}) == ((), {"x": x, "use_cache": True})
    assert call_arguments(Decoder(), (x, None)) == ((), {"x": x, "use_cache": None})
    with pytest.raises(CaptureError, match="the outputs hold a Opaque"):
        capture(Decoder(), {"x": x, "use_cache": True})


@pytest.mark.parametrize("nested", [False, True])
def test_a_decoder_that_only_its_configuration_speaks_of(nested: bool) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.config = Decoder(), SimpleNamespace()
            vars(self.inner if nested else self)["config"] = SimpleNamespace(use_cache=True)

        def forward(self, x: Tensor, **anything: Any) -> Any:
            return self.inner(x, **anything)

    x = torch.randn(4, 6)
    assert_runs_like(Wrapped().eval(), x)
    assert call_arguments(Wrapped(), x) == ((), {"x": x, "use_cache": False})


def test_tensors_in_the_layers_of_a_cache_are_seen() -> None:
    class Layers:
        def __init__(self, value: Tensor) -> None:
            self.layers = [Opaque(value)]

    class Model(nn.Linear):
        def forward(self, input: Tensor) -> Any:
            return super().forward(input), Layers(input)

    with pytest.raises(CaptureError, match=r"the outputs hold a Layers, whose tensors \(layers\) can't be compared"):
        capture(Model(4, 3), torch.randn(2, 4))


class Below(nn.Module):
    """A branch on a value and a `vmap`: neither export nor a record of whole calls is enough."""

    def __init__(self, lstm: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True) if lstm else None
        self.q, self.v, self.fc = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.v))
        y = (
            self.lstm(x)[0]
            if self.lstm
            else F.scaled_dot_product_attention(q, q, v, scale=0.5).transpose(1, 2).flatten(2)
        )
        return self.fc(torch.vmap(torch.tanh)(y if float(y.sum()) > -1e9 else -y))


@pytest.mark.parametrize("lstm", [True, False])
def test_lstms_and_attentions_below_autograd_are_products(lstm: bool) -> None:
    model, x = Below(lstm).eval(), torch.randn(4, 2, 6)
    graph = capture(model, x)
    assert graph.unknown_ops == ()
    assert {group.name: group.kind for group in graph.groups} == (
        {"lstm": "neurons"} if lstm else {"q#1": "heads", "q#2": "head dims", "v": "head dims"}
    )
    plan = ap.make_plan(graph, {group.name: range(1) for group in graph.groups})
    assert ap.verify(model, ap.cut(model, plan), plan, x, graph=graph).passed


class Joined(nn.Module):
    """A linear layer whose weight has three dimensions: `how` makes a matrix (inputs, outputs) of it."""

    def __init__(self, how: Callable[[Tensor], Tensor], *sizes: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 12)
        self.w, self.how, self.c = nn.Parameter(torch.randn(*sizes) / 3), how, nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return self.c(torch.relu(x @ self.how(self.w)))


@pytest.mark.parametrize("method", ["taylor", "sgd-ap"])
@pytest.mark.parametrize(
    ("how", "sizes"),
    [
        (lambda w: w.reshape(12, 12), (3, 4, 12)),
        (lambda w: w.reshape(12, 12).t(), (3, 4, 12)),
        (lambda w: w.reshape(12, 12).permute(0, 1), (3, 4, 12)),
        (lambda w: w.reshape(12, 12).transpose(1, 0).t(), (3, 4, 12)),
        (lambda w: w.reshape(12, 12), (12, 3, 4)),
    ],
    ids=["inputs", "outputs", "no swap", "two swaps", "last two"],
)
def test_weights_with_joined_dimensions(how: Callable[[Tensor], Tensor], sizes: tuple[int, ...], method: str) -> None:
    result = ap.prune(Joined(how, *sizes), [torch.randn(16, 6)] * 4, keep="macs=60%", method=method)
    assert result.proof.passed and result.report.pruned.macs <= 0.6 * result.report.dense.macs


class Branching(nn.Module):
    """A branch on a value, and a layer for training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.aside = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = torch.relu(self.a(x))
        x = x if float(x.sum()) > -1e9 else -x
        return (self.b(x), self.aside(x)) if self.training else (self.b(x),)


def _counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    calls, original = list[int](), getattr(trace, name)
    monkeypatch.setattr(trace, name, lambda *given, **named: calls.append(1) or original(*given, **named))
    return calls


def test_what_export_refuses_is_exported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    exports, model, x = _counted(monkeypatch, "_exported"), Branching().eval(), torch.randn(4, 6)
    graph = capture(model, x)
    assert graph.program.source == "real" and graph.training is not None
    plan = ap.make_plan(graph, {"a": range(4)})
    assert ap.verify(model, ap.cut(model, plan), plan, x, graph=graph).passed
    assert len(exports) == 1


def test_a_model_that_does_not_run_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    exports, records = _counted(monkeypatch, "_exported"), _counted(monkeypatch, "recorded")
    with pytest.raises(CaptureError, match="mat1 and mat2 shapes cannot be multiplied"):
        capture(Branching(), torch.randn(4, 5))
    assert (len(exports), len(records)) == (1, 0)
