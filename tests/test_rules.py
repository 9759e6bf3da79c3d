"""Every op rule, in a tiny network: a layer makes 8 units, the op passes them on, a layer reads them; half are cut.

The proof then says whether the rule was right, since nothing else would make the two networks agree. Where an op
mixes the units, the rule has to freeze them instead.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from actprune.allocation.budget import parse
from actprune.allocation.space import make_space
from actprune.axes.account import over_norms
from actprune.axes.call import RULES
from actprune.axes.capture import Graph, capture
from actprune.axes.rules.elementwise import BROADCASTING, UNARY
from actprune.axes.rules.spectral import FFT
from actprune.axes.twins import TWINS
from actprune.errors import PlanError
from actprune.graph.program import op_name
from actprune.plan import make_plan
from actprune.proof.check import verify
from actprune.surgery.slicing import cut

ATEN = torch.ops.aten
UNITS = 8

Op = Callable[[Any, Tensor], Tensor]
"""Of the network and the values of the first layer: rows (N, C), tokens (N, T, C) or maps (N, C, space…)."""


@dataclass(frozen=True)
class Case:
    """One use of one op.

    Attributes:
        op: what lies between the two layers.
        kind: what the first layer gives: "rows", "tokens", or "maps" of one to three dimensions.
        last: whether the second layer reads the last dimension (a Linear), not the second (a convolution).
        frozen: whether the first layer's units can't be cut.
        parts: parameters and modules that the op uses.
    """

    op: Op
    kind: str = "rows"
    last: bool = True
    frozen: bool = False
    parts: Callable[[], dict[str, Any]] = dict


class Between(nn.Module):
    """First layer, op, second layer."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.op = case.op
        self.x = inputs(case.kind)
        space = self.x.dim() - 2 if case.kind.startswith("maps") else 0
        self.first: nn.Module = convolution(space, 3, UNITS) if space else nn.Linear(6, UNITS)
        for name, part in case.parts().items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)
        values = self.between(self.x)
        if case.last:
            self.second: nn.Module = nn.Linear(values.shape[-1], 3)
        else:
            self.second = convolution(values.dim() - 2, values.shape[1], 3)

    def between(self, x: Tensor) -> Tensor:
        return self.op(self, self.first(x)).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(x))


def inputs(kind: str) -> Tensor:
    if kind.startswith("maps"):
        return torch.randn(2, 3, *[6] * int(kind[4:] or 2))
    return torch.randn(4, 6) if kind == "rows" else torch.randn(2, 5, 6)


def convolution(space: int, into: int, out: int) -> nn.Module:
    return {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[space](into, out, 1)


def halved(graph: Graph) -> dict[str, list[int]]:
    """Half of the units of every group, at random."""
    chosen = random.Random(0)
    return {g.name: sorted(chosen.sample(range(g.width), g.width // 2)) for g in graph.groups}


def assert_cut(model: nn.Module, x: Tensor) -> Graph:
    """Half of every group is cut, and proved."""
    graph = capture(model, x)
    plan = make_plan(graph, halved(graph))
    verify(model, cut(model, plan), plan, x, graph=graph)
    assert any("first.weight" in {m.tensor for m in group.members} for group in graph.groups)
    return graph


# ---- the table: rule → case

CASES: dict[str, Case] = {}


def case(*names: str, **settings: Any) -> Callable[[Op], Op]:
    """Register one use of these rules."""

    def register(op: Op) -> Op:
        CASES.update({f"aten.{name}": Case(op, **settings) for name in names})
        return op

    return register


def _unary(name: str) -> Op:
    values = {
        "clamp": (0.2, 0.8), "threshold": (0.5, 0.1), "fill": (2.0,), "to": (torch.bfloat16,),
    }  # fmt: skip
    function = getattr(ATEN, name)

    def op(m: Any, x: Tensor) -> Tensor:
        x = torch.sigmoid(x)  # between 0 and 1, where all of them are defined
        if name == "arccosh":
            return function(1 + x)
        if name == "bitwise_not":
            return x * function(x > 0.5)
        if name == "type_as":
            return x + function(x, m.v)
        return x + function(x, *values.get(name, ()))

    return op


def _broadcasting(name: str) -> Op:
    slopes = {
        "hardshrink_backward": (0.5,), "hardtanh_backward": (0.2, 0.8),
        "leaky_relu_backward": (0.1, False), "softplus_backward": (1.0, 20.0), "softshrink_backward": (0.5,),
    }  # fmt: skip
    packet, _, overload = name.partition(".")
    function = getattr(getattr(ATEN, packet), overload) if overload else getattr(ATEN, packet)

    def op(m: Any, x: Tensor) -> Tensor:
        x, v = torch.sigmoid(x), torch.sigmoid(m.v)
        if name.startswith(("logical", "bitwise", "__")):
            return x * function(x > 0.5, v > 0.5)
        if name == "complex":
            return function(x, v).abs()
        if name == "polar":
            return function(x, v + 0 * x).abs()
        if name == "elu_backward":
            return x + function(x, 1.0, 1.0, 1.0, False, v + 0 * x)
        if name.endswith("_backward"):  # of x, the gradient, at a point: both have one shape
            return x + function(x, v + 0 * x, *slopes.get(name, ()))
        if name == "isclose" or name.startswith(("greater", "less", "not_equal")):
            return x * function(x, v)
        if name == "where":
            return function(x > 0.5, x, v)
        if name == "masked_fill":
            return function(x, v > 0.5, 0.25)
        if name in ("lerp", "addcmul", "addcdiv"):
            return function(x, v, v + x)
        return x + function(x, v)

    return op


VECTOR: Callable[[], dict[str, Any]] = lambda: {"v": torch.randn(UNITS)}  # noqa: E731
ELEMENTWISE = {name: _unary(name) for name in UNARY} | {name: _broadcasting(name) for name in BROADCASTING}


def tagged() -> list[Any]:
    """Every op that torch tags as element-wise, is pure and gives a tensor (`equal` gives a bool)."""
    names = [name[6:] for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")]
    ops = (getattr(getattr(ATEN, n.partition(".")[0]), n.partition(".")[2] or "default") for n in sorted(names))
    pure = [op for op in ops if torch.Tag.pointwise in op.tags and not op._schema.is_mutable]
    return [op for op in pure if str(op._schema.returns[0].type) == "Tensor"]


def slot(argument: Any, tensors: list[Tensor], whole: bool) -> Any:
    """A value for one argument of a schema; tensors are taken from the list."""
    kind = str(argument.type)
    if kind in ("Tensor", "Optional[Tensor]"):
        return tensors.pop(0)
    if kind == "int":
        return 1
    if kind in ("number", "float", "Optional[number]", "Optional[float]"):
        return argument.default_value if argument.default_value is not None else 1 if whole else 0.5
    return argument.default_value if argument.default_value is not None else {"bool": False}.get(kind)


def elementwise(op: Any, dtype: torch.dtype) -> bool | None:
    """Whether a slice of the op's result is the op of the slices; None where it doesn't take such tensors."""
    torch.manual_seed(0)
    drawn = [torch.rand(4, 6), torch.rand(4, 6), torch.rand(6), torch.rand(4, 6)]
    tensors = [(2 * x).to(dtype) if dtype != torch.bool else x > 0.5 for x in drawn]
    results: list[Any] = []
    for given in ([*tensors], [x[..., ::2] for x in tensors]):
        values = {a.name: slot(a, given, not dtype.is_floating_point) for a in op._schema.arguments}
        named = {a.name: values.pop(a.name) for a in op._schema.arguments if a.kwarg_only}
        try:
            results.append(op(*values.values(), **named))
        except (RuntimeError, IndexError):
            return None
    full, some = ([result] if isinstance(result, Tensor) else result for result in results)
    return all(torch.allclose(a[..., ::2], b, equal_nan=True) for a, b in zip(full, some, strict=True))


def test_what_torch_tags_as_elementwise_is() -> None:
    """The rule for ops without one rests on that tag: every op that has it is tried."""
    untried: set[str] = set()
    for op in tagged():
        results = [elementwise(op, dtype) for dtype in (torch.float32, torch.int64, torch.bool)]
        assert False not in results, op
        if results == [None] * 3:
            untried.add(str(op))
    assert untried == set()


@pytest.mark.parametrize("start", range(0, len(ELEMENTWISE), 9))
def test_elementwise_ops(start: int) -> None:
    """Nine at a time: they are many, all under two rules, and a proof that fails names the op."""
    names = [*ELEMENTWISE][start : start + 9]
    model = Between(Case(lambda m, x: sum(ELEMENTWISE[name](m, x) for name in names) + m.v, parts=VECTOR)).eval()
    graph = assert_cut(model, model.x)
    found = {op_name(node) for node in graph.program.nodes}
    assert [name for name in names if not any(f"{op}.".startswith(f"aten.{name}.") for op in found)] == []
    assert graph.unknown_ops == ()


# -- linear layers and products

SQUARE: Callable[[], dict[str, Any]] = lambda: {"w": torch.randn(UNITS, 6), "b": torch.randn(6)}  # noqa: E731


@case("linear", parts=SQUARE)
def _(m: Any, x: Tensor) -> Tensor:
    return F.linear(x, m.w.t(), m.b)


@case("addmm", parts=SQUARE)
def _(m: Any, x: Tensor) -> Tensor:
    return torch.addmm(m.b, x, m.w)


@case("mm", parts=SQUARE)
def _(m: Any, x: Tensor) -> Tensor:
    return torch.mm(x, m.w)


@case("_sparse_mm", parts=lambda: {"edges": torch.rand(4, 4)})
def _(m: Any, x: Tensor) -> Tensor:
    return torch.sparse.mm(m.edges, x)  # either side may be dense


@case("linalg_matmul", parts=SQUARE, kind="tokens")
def _(m: Any, x: Tensor) -> Tensor:
    return torch.linalg.matmul(x, m.w)


@case("matmul", parts=SQUARE, kind="tokens")
def _(m: Any, x: Tensor) -> Tensor:
    return x @ m.w


@case("_grouped_mm", kind="tokens", parts=lambda: {"w": torch.randn(3, UNITS, 8)})
def _(m: Any, x: Tensor) -> Tensor:
    """Three experts of four rows each, but for the last one, to which one row less belongs."""
    rows = F.pad(x.flatten(0, 1), (0, 0, 0, 2))
    ends = torch.tensor([4, 8, 11], dtype=torch.int32)
    return F.grouped_mm(rows, m.w, offs=ends)[:10].unflatten(0, (2, 5))


@case("bmm", parts=lambda: {"mix": torch.randn(2, 5, 5)}, kind="tokens")
def _(m: Any, x: Tensor) -> Tensor:
    return torch.bmm(m.mix, x)


def reading(*shape: int) -> Callable[[], dict[str, Any]]:
    """A parameter `w` of this shape."""
    return lambda: {"w": torch.randn(*shape)}


case("einsum", parts=reading(6, UNITS))(lambda m, x: torch.einsum("ni,oi->no", x, m.w))
case("bilinear", parts=lambda: {"layer": nn.Bilinear(UNITS, UNITS, 6)})(lambda m, x: m.layer(x, x.relu()))
case("baddbmm", kind="tokens")(lambda m, x: torch.baddbmm(x, x @ x.mT, x, beta=2, alpha=0.5))
case("addbmm", kind="tokens")(lambda m, x: torch.addbmm(x[0], x @ x.mT, x))
case("mv", parts=VECTOR)(lambda m, x: x * torch.mv(x, m.v)[:, None])
case("addmv", parts=VECTOR)(lambda m, x: x * torch.addmv(x[:, :1].sum(1), x, m.v)[:, None])
case("dot", parts=VECTOR)(lambda m, x: x * torch.dot(x[1], m.v))
case("vdot", parts=VECTOR)(lambda m, x: x * torch.vdot(m.v, x[1]))
case("outer", parts=VECTOR)(lambda m, x: torch.outer(x @ m.v, m.v) + torch.outer(torch.ones(4), x[1]))
case("ger", parts=VECTOR)(lambda m, x: x + torch.ger(x @ m.v, m.v))
case("inner", parts=VECTOR)(lambda m, x: torch.inner(torch.inner(x, x), x.t()))
case("linalg_vecdot", kind="tokens", parts=VECTOR)(lambda m, x: x * torch.linalg.vecdot(x, m.v)[:, :, None])
case("tensordot", parts=reading(UNITS, 6))(lambda m, x: torch.tensordot(x, m.w, dims=([1], [0])))
case("kron")(lambda m, x: torch.kron(x, torch.ones(1, 3)))
case("cdist", kind="tokens")(lambda m, x: torch.cdist(x, x.flip(1)) @ x)

EINSUMS: dict[str, Case] = {
    "the product of two activations": Case(lambda m, x: torch.einsum("nti,nsi->nts", x, x.relu()) @ x, "tokens"),
    "two letters of one operand": Case(lambda m, x: x * torch.einsum("nti,nti->n", x, x)[:, None, None], "tokens"),
    "an ellipsis": Case(lambda m, x: torch.einsum("...i,io->...o", x, m.w), "tokens", parts=reading(UNITS, 6)),
    "an ellipsis on both sides": Case(lambda m, x: torch.einsum("...ti,...si->...ts", x, x) @ x, "tokens"),
    "an implicit output": Case(lambda m, x: torch.einsum("bi,ia", x, m.w).t(), parts=reading(UNITS, 6)),
    "three operands": Case(lambda m, x: torch.einsum("ni,io,ni->no", x, m.w, x.relu()), parts=reading(UNITS, 6)),
    "a sum": Case(lambda m, x: x * torch.einsum("nti->t", x)[:, None], "tokens"),
    "heads of one parameter": Case(
        lambda m, x: torch.einsum("bthk,hkd->btd", torch.einsum("bti,ihk->bthk", x, m.w).relu(), m.u), "tokens",
        parts=lambda: {"w": torch.randn(UNITS, 4, 6), "u": torch.randn(4, 6, 10)},
    ),
    "a layer per head": Case(
        lambda m, x: torch.einsum("bthi,hio->btho", x.view(2, 5, *m.w.shape[:2]), m.w).flatten(2), "tokens",
        parts=reading(4, 2, 3),
    ),
    "a diagonal": Case(
        lambda m, x: torch.einsum("tii->ti", (x[:, :, None] + x[:, None])), frozen=True,
    ),
}  # fmt: skip


# -- convolutions and pooling


def called(function: Callable[..., Any], *values: Any, **settings: Any) -> Op:
    """The op that calls `function` on the maps, and takes the first of several results."""

    def op(m: Any, x: Tensor) -> Tensor:
        result = function(x, *values, **settings)
        return result[0] if isinstance(result, tuple) else result

    return op


def layer(kind: Callable[..., nn.Module], *arguments: Any, **settings: Any) -> Callable[[], dict[str, Any]]:
    """A layer of this kind as the part `layer`."""
    return lambda: {"layer": kind(*arguments, **settings)}


def through_layer(m: Any, x: Tensor) -> Tensor:
    return m.layer(x)


for _n in (1, 2, 3):
    _maps: dict[str, Any] = {"kind": f"maps{_n}", "last": False}
    _convolution = layer(getattr(nn, f"Conv{_n}d"), UNITS, 6, 3, padding="same")
    _transposed = layer(getattr(nn, f"ConvTranspose{_n}d"), UNITS, 6, 3, stride=2)
    case(f"conv{_n}d", **_maps, parts=_convolution)(through_layer)
    case(f"conv_transpose{_n}d", **_maps, parts=_transposed)(through_layer)
    for _name in (f"max_pool{_n}d", f"avg_pool{_n}d", f"adaptive_avg_pool{_n}d"):
        case(_name, **_maps)(called(getattr(F, _name), 2))
    case(f"upsample_nearest{_n}d", **_maps)(called(F.interpolate, scale_factor=2))
    for _mode in {1: ["linear"], 2: ["bilinear", "bicubic"], 3: ["trilinear"]}[_n]:
        case(f"upsample_{_mode}{_n}d", **_maps)(called(F.interpolate, scale_factor=2, mode=_mode))

_maps = {"kind": "maps", "last": False}
for _mode in ("bilinear", "bicubic"):
    case(f"_upsample_{_mode}2d_aa", **_maps)(called(F.interpolate, size=(4, 4), mode=_mode, antialias=True))
for _n in (1, 2, 3):
    _maps = {"kind": f"maps{_n}", "last": False}
    _pads = [1, 0] * _n
    for _name in ("reflection", "replication"):
        case(f"{_name}_pad{_n}d", **_maps)(called(getattr(ATEN, f"{_name}_pad{_n}d"), _pads))
    case(f"adaptive_max_pool{_n}d", **_maps)(called(getattr(ATEN, f"adaptive_max_pool{_n}d"), [2] * _n))
    case(f"max_pool{_n}d_with_indices", **_maps)(called(getattr(ATEN, f"max_pool{_n}d_with_indices"), [2] * _n))
    case(f"_upsample_nearest_exact{_n}d", **_maps)(called(F.interpolate, scale_factor=2, mode="nearest-exact"))
    if _n > 1:
        case(f"_adaptive_avg_pool{_n}d", **_maps)(called(getattr(ATEN, f"_adaptive_avg_pool{_n}d"), [2] * _n))
        case(f"fractional_max_pool{_n}d", **_maps, frozen=True)(
            called(getattr(F, f"fractional_max_pool{_n}d"), 2, output_size=[3] * _n)
        )
        case(f"max_unpool{_n}d", **_maps)(
            lambda m, x, n=_n: getattr(F, f"max_unpool{n}d")(*getattr(F, f"max_pool{n}d")(x, 2, return_indices=True), 2)
        )
_maps = {"kind": "maps", "last": False}
_weight = {"w": torch.randn(6, UNITS, 3, 3), "b": torch.randn(6)}
case("convolution", **_maps, parts=lambda: _weight)(
    lambda m, x: ATEN.convolution(x, m.w, m.b, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
)
case("_convolution", **_maps, parts=lambda: {"w": _weight["w"].transpose(0, 1)})(
    lambda m, x: ATEN._convolution(x, m.w, None, [2, 2], [0, 0], [1, 1], True, [0, 0], 1, False, False, False, False)
)
case("conv_tbc", kind="tokens", parts=lambda: {"w": torch.randn(3, UNITS, 6), "b": torch.randn(6)})(
    lambda m, x: torch.conv_tbc(x, m.w, m.b)
)


# -- norms


NORMS: dict[str, Callable[[], dict[str, Any]]] = {
    "batch_norm": layer(nn.BatchNorm2d, UNITS),
    "instance_norm": layer(nn.InstanceNorm2d, UNITS, affine=True),
    "group_norm": layer(nn.GroupNorm, 4, UNITS),
    "layer_norm": layer(nn.LayerNorm, 6),
    "rms_norm": layer(nn.RMSNorm, (6, 6)),
    "prelu": layer(nn.PReLU, UNITS),
}
for _name, _parts in NORMS.items():
    case(_name, **_maps, parts=_parts)(through_layer)


CHANNELS: Callable[[], dict[str, Any]] = lambda: {"w": torch.rand(UNITS), "b": torch.rand(UNITS)}  # noqa: E731

case("native_batch_norm", **_maps, parts=CHANNELS)(
    lambda m, x: ATEN.native_batch_norm(x, m.w, None, m.b.detach(), m.w.detach(), False, 0.1, 1e-5)[0]
)
case("_native_batch_norm_legit", **_maps, parts=CHANNELS)(
    lambda m, x: ATEN._native_batch_norm_legit.no_stats(x, m.w, m.b, True, 0.1, 1e-5)[0]
)
case("_native_batch_norm_legit_no_training", **_maps, parts=CHANNELS)(
    lambda m, x: ATEN._native_batch_norm_legit_no_training(x, m.w, m.b, m.b.detach(), m.w.detach(), 0.1, 1e-5)[0]
)
case("_batch_norm_with_update", **_maps, parts=CHANNELS)(
    lambda m, x: ATEN._batch_norm_with_update(x, m.w, m.b, m.b.detach().clone(), m.w.detach().clone(), 0.1, 1e-5)[0]
)
case("native_layer_norm", **_maps)(lambda m, x: ATEN.native_layer_norm(x, [6, 6], None, None, 1e-5)[0])
case("_fused_rms_norm", **_maps)(lambda m, x: ATEN._fused_rms_norm(x, [6, 6], None, 1e-5)[0])
case("native_group_norm", **_maps, parts=CHANNELS)(
    lambda m, x: ATEN.native_group_norm(x, m.w, m.b, len(x), x.shape[1], 36, x.shape[1] // 2, 1e-5)[0]
)
case("native_dropout")(lambda m, x: ATEN.native_dropout(x, 0.5, False)[0])


LENGTHS: Callable[[], dict[str, Any]] = lambda: {"v": torch.randn(6, UNITS), "g": torch.rand(6, 1)}  # noqa: E731

case("_weight_norm", parts=LENGTHS)(lambda m, x: F.linear(x, torch._weight_norm(m.v + 1, m.g, 0)))
case("_weight_norm_interface", parts=LENGTHS)(lambda m, x: F.linear(x, ATEN._weight_norm_interface(m.v + 1, m.g, 0)[0]))


@case("embedding", kind="tokens", parts=lambda: {"table": nn.Embedding(10, UNITS)})
def _(m: Any, x: Tensor) -> Tensor:
    return x + m.table(torch.arange(5))


def test_a_table_that_is_computed_makes_its_units() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.read = nn.Embedding(10, UNITS), nn.Linear(UNITS, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.read(F.embedding(x, 2 * self.first.weight))

    (group,) = assert_cut(Scaled().eval(), torch.arange(5)).groups
    assert [(site.weight, site.kind) for site in group.producers] == [("first.weight", "computed")]


@case("scaled_dot_product_attention", kind="tokens")
def _(m: Any, x: Tensor) -> Tensor:
    """The default scale is that of the tensors as they are, so it changes with the cut."""
    return F.scaled_dot_product_attention(x.unsqueeze(1), 2 * x.unsqueeze(1), x.unsqueeze(1)).squeeze(1)


# -- recurrent networks

RECURRENT: dict[str, Callable[..., nn.Module]] = {
    "lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN,
    "rnn_relu": lambda *a, **k: nn.RNN(*a, **k, nonlinearity="relu"),
}  # fmt: skip


def stepped(m: Any, x: Tensor) -> Tensor:
    return m.layer(x)[0]


def in_packs(m: Any, x: Tensor) -> Tensor:
    """Samples of unequal lengths."""
    packed = pack_padded_sequence(x, torch.tensor([4, 5]), batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(m.layer(packed)[0], batch_first=True)[0]


case("_pack_padded_sequence", "_pad_packed_sequence", kind="tokens", parts=layer(nn.LSTM, UNITS, 6))(in_packs)

for _name, _kind in RECURRENT.items():
    case(f"{_name}.input", kind="tokens", parts=layer(_kind, UNITS, 6, batch_first=True))(stepped)
    case(f"{_name}.data", kind="tokens", parts=layer(_kind, UNITS, 6, batch_first=True, bidirectional=True))(in_packs)
case("lstm_cell", parts=layer(nn.LSTMCell, UNITS, 6))(lambda m, x: m.layer(x)[1])
case("gru_cell", parts=layer(nn.GRUCell, UNITS, UNITS))(lambda m, x: m.layer(x, m.layer(x)))
case("rnn_tanh_cell", parts=layer(nn.RNNCell, UNITS, 6, bias=False))(lambda m, x: m.layer(x))
case("rnn_relu_cell", parts=layer(nn.RNNCell, UNITS, 6, nonlinearity="relu"))(lambda m, x: m.layer(x))

DEEP: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "batch_first": True}
STEPPED: dict[str, Case] = {
    "two layers in both directions": Case(stepped, "tokens", parts=layer(nn.LSTM, UNITS, 6, **DEEP)),
    "a projection": Case(stepped, "tokens", parts=layer(nn.LSTM, UNITS, 6, proj_size=4, **DEEP)),
    "no biases": Case(stepped, "tokens", parts=layer(nn.GRU, UNITS, 6, bias=False, **DEEP)),
    "steps first": Case(stepped, "tokens", parts=layer(nn.LSTM, UNITS, 6)),
    "the last state": Case(
        lambda m, x: torch.cat(list(m.layer(x)[1]), -1)[-1], "tokens", parts=layer(nn.LSTM, UNITS, 6, **DEEP)
    ),
    "a state that a layer makes": Case(
        lambda m, x: m.layer(x, m.state(x.sum(1)).unsqueeze(0))[0], "tokens",
        parts=lambda: {"layer": nn.GRU(UNITS, 6, batch_first=True), "state": nn.Linear(UNITS, 6)},
    ),
    "steps of one sample": Case(lambda m, x: m.layer(x)[0], "rows", parts=layer(nn.GRU, UNITS, 6)),
}  # fmt: skip


# -- lookups and writes by number

_tokens: dict[str, Any] = {"kind": "tokens"}
ROWS = torch.tensor([[0, 2], [1, 1], [4, 0]])


def rows_of(x: Tensor) -> Tensor:
    """(2, 3, C) numbers of tokens, the same for every unit."""
    return torch.arange(3).view(1, 3, 1).expand(x.shape[0], 3, x.shape[2])


case("index.Tensor", **_tokens)(lambda m, x: x[:, torch.tensor([3, 0, 0])])
case("_unsafe_index.Tensor", **_tokens)(lambda m, x: ATEN._unsafe_index(x, [None, torch.tensor([3, 0])]))
case("index_put", **_tokens)(lambda m, x: x.index_put((torch.tensor([0, 1]), torch.tensor([3, 0])), x[:, 1]))
case("_unsafe_index_put", **_tokens)(
    lambda m, x: ATEN._unsafe_index_put(x, [None, torch.tensor([3, 0])], x[:, :2], True)
)
case("gather", **_tokens)(lambda m, x: x.gather(1, rows_of(x)))
case("take_along_dim", **_tokens)(lambda m, x: x.take_along_dim(torch.arange(3).view(1, 3, 1), 1))
case("index_select", **_tokens)(lambda m, x: x.index_select(1, torch.tensor([3, 0])))
case("take", **_tokens, frozen=True)(lambda m, x: x * x.take(torch.tensor([3, 0]))[0])
case("scatter", **_tokens)(lambda m, x: x.scatter(1, rows_of(x), 2 * x) + x.scatter(1, rows_of(x), 0.5))
case("scatter_add", **_tokens)(lambda m, x: x.scatter_add(1, rows_of(x), x))
case("scatter_reduce", **_tokens)(lambda m, x: x.scatter_reduce(1, rows_of(x), x, "amax"))
case("index_add", **_tokens)(lambda m, x: x.index_add(1, torch.tensor([3, 0]), x[:, :2]))
case("index_copy", **_tokens)(lambda m, x: x.index_copy(1, torch.tensor([3, 0]), x[:, :2]))
case("index_fill", **_tokens)(lambda m, x: x.index_fill(1, torch.tensor([3, 0]), 0.5))
case("select_scatter", **_tokens)(lambda m, x: x.select_scatter(x[:, 1], 1, 0))
case("masked_scatter", **_tokens)(
    lambda m, x: x.masked_scatter((torch.arange(5) < 2)[:, None].expand_as(x), x.flip(1) * 2)
)
case("repeat_interleave.self_Tensor", **_tokens)(
    lambda m, x: x.repeat_interleave(torch.tensor([1, 0, 2, 0, 1]), 1, output_size=4)
)
case("topk", **_tokens)(lambda m, x: x.topk(2, 1).values)
case("one_hot")(lambda m, x: x * F.one_hot((x[:, :1] > 0).long(), 3)[..., 1])
case("isin")(lambda m, x: x + torch.isin(x.round(), torch.tensor([0.0, 1.0])))
case("bucketize")(lambda m, x: x + torch.bucketize(x, torch.tensor([0.0, 1.0])))
case("searchsorted")(lambda m, x: x + torch.searchsorted(torch.tensor([0.0, 1.0]), x))


@case("embedding_bag", parts=lambda: {"table": nn.EmbeddingBag(10, UNITS, mode="max")})
def _(m: Any, x: Tensor) -> Tensor:
    return x + m.table(torch.arange(9), torch.tensor([0, 3, 5, 6]))


def places() -> nn.Module:
    """Where each unit goes, in a buffer, as the masks of coupling layers do."""
    held = nn.Module()
    held.register_buffer("at", torch.tensor([9, 1, 2, 4, 5, 6, 7, 8]))
    return held


INDEXED: dict[str, Case] = {
    "written to places in a buffer": Case(
        lambda m, x: m.layer(x) + ATEN.index_put(torch.ones(len(x), 10), [None, m.places.at], x),
        frozen=True, parts=lambda: {"places": places(), "layer": nn.Linear(UNITS, 10)},
    ),
    "a relative position table": Case(
        lambda m, x: x + m.w[torch.arange(25).view(5, 5) % 9].sum(1), "tokens", parts=reading(9, UNITS)
    ),
    "units of a table": Case(
        lambda m, x: m.w.index_select(0, torch.tensor([0, 3, 5])).relu() @ m.layer(x).mT, "tokens",
        parts=lambda: {"w": torch.randn(9, UNITS), "layer": nn.Linear(UNITS, UNITS)},
    ),
    "indices that a colon separates": Case(
        lambda m, x: x.unsqueeze(1).expand(-1, 3, -1, -1)[torch.tensor([0, 1]), :, torch.tensor([3, 0])], "tokens"
    ),
    "indices side by side": Case(
        lambda m, x: x.unsqueeze(1).expand(-1, 3, -1, -1)[:, torch.tensor([[0, 1]]), torch.tensor([[3], [0]])],
        "tokens",
    ),
    "permuted units": Case(lambda m, x: x[:, torch.arange(7, -1, -1)], frozen=True),
    "written under a mask": Case(lambda m, x: torch.index_put(x, (x > 0.5,), torch.tensor(0.1))),
    "rows written under a mask": Case(lambda m, x: torch.index_put(x, (x.sum(1) > 0.5,), m.v), parts=VECTOR),
    "gathered over units": Case(lambda m, x: x.gather(1, torch.arange(8).flip(0).expand(4, 8)), frozen=True),
    "fewer units gathered": Case(lambda m, x: x.gather(0, torch.zeros(4, 7, dtype=torch.long)), frozen=True),
    "taken along everything": Case(lambda m, x: x * x.take_along_dim(torch.tensor([1, 2]))[0], frozen=True),
    "the largest units": Case(lambda m, x: x.topk(3, 1).values, frozen=True),
    "rows of sorted units": Case(
        lambda m, x: x + torch.searchsorted(x.detach().sort(1).values, x), frozen=True,
    ),
}  # fmt: skip


# -- reductions: over the tokens the units pass, over the units they freeze

SUMS: dict[str, Op] = {
    "sum.dim_IntList": lambda d, x: x.sum(d),
    "nansum": lambda d, x: x.nansum(d),
    "count_nonzero": lambda d, x: x.relu().count_nonzero(d),
    "any.dim": lambda d, x: (x > 0.5).any(d),
    "any.dims": lambda d, x: ATEN.any.dims(x > 0.5, [d]),
    "linalg_vector_norm": lambda d, x: torch.linalg.vector_norm(x, dim=d),
    "norm": lambda d, x: ATEN.norm.ScalarOpt_dim(x, 2, [d]),
    "linalg_norm.default": lambda d, x: torch.linalg.norm(x, dim=d),
    "linalg_matrix_norm.str_ord": lambda d, x: torch.linalg.matrix_norm(x.unsqueeze(0), dim=(0, d + 1)),
    "frobenius_norm": lambda d, x: ATEN.frobenius_norm.dim(x, [d]),
}
"""Units of zero count for nothing in these, so they are cut whatever the sum runs over."""
REDUCTIONS: dict[str, Op] = {
    "mean.dim": lambda d, x: x.mean(d),
    "nanmean": lambda d, x: x.nanmean(d),
    "amax": lambda d, x: x.amax(d),
    "amin": lambda d, x: x.amin(d),
    "var.dim": lambda d, x: x.var(d),
    "std.dim": lambda d, x: x.std(d),
    "var.correction": lambda d, x: x.var(d, correction=0),
    "std.correction": lambda d, x: x.std(d, correction=0),
    "logsumexp": lambda d, x: x.logsumexp(d),
    "special_logsumexp": lambda d, x: torch.special.logsumexp(x, d),
    "prod.dim_int": lambda d, x: x.prod(d),
    "argmax": lambda d, x: x.argmax(d),
    "argmin": lambda d, x: x.argmin(d),
    "all.dim": lambda d, x: (x > -0.5).all(d),
    "all.dims": lambda d, x: ATEN.all.dims(x > -0.5, [d]),
    "max.dim": lambda d, x: x.max(d).values,
    "min.dim": lambda d, x: x.min(d).values,
    "median.dim": lambda d, x: x.median(d).values,
    "nanmedian.dim": lambda d, x: x.nanmedian(d).values,
    "mode": lambda d, x: x.mode(d).values,
    "kthvalue": lambda d, x: x.kthvalue(2, d).values,
    "var_mean": lambda d, x: torch.var_mean(x, d)[0],
    "std_mean": lambda d, x: torch.std_mean(x, d)[1],
    "aminmax": lambda d, x: torch.aminmax(x, dim=d)[1],
    "quantile.scalar": lambda d, x: x.quantile(0.3, d),
    "nuclear_norm": lambda d, x: ATEN.nuclear_norm.dim(x.unsqueeze(0), [0, d + 1]),
    "linalg_matrix_norm.default": lambda d, x: torch.linalg.matrix_norm(x.unsqueeze(0), 2, dim=(0, d + 1)),
    "linalg_norm.ord_str": lambda d, x: torch.linalg.norm(x.unsqueeze(0), "nuc", dim=(0, d + 1)),
}
ALONG: dict[str, Op] = {
    "softmax": lambda d, x: x.softmax(d),
    "log_softmax": lambda d, x: x.log_softmax(d),
    "_softmax": lambda d, x: ATEN._softmax(x, d, False),
    "_log_softmax": lambda d, x: ATEN._log_softmax(x, d, False),
    "_safe_softmax": lambda d, x: ATEN._safe_softmax(x, d),
    "special_softmax": lambda d, x: torch.special.softmax(x, d),
    "special_log_softmax": lambda d, x: torch.special.log_softmax(x, d),
    "cumprod": lambda d, x: x.cumprod(d),
    "logcumsumexp": lambda d, x: x.logcumsumexp(d),
    "cummax": lambda d, x: x.cummax(d).values,
    "cummin": lambda d, x: x.cummin(d).values,
    "sort": lambda d, x: x.sort(d).values,
    "argsort": lambda d, x: x.argsort(d),
    "flip": lambda d, x: x.flip(d),
    "roll": lambda d, x: x.roll(1, d),
}
for _name, _op in {**SUMS, **REDUCTIONS, **ALONG}.items():
    case(_name, kind="tokens")(lambda m, x, f=_op: f(1, x))
case("cumsum", kind="tokens")(lambda m, x: x.cumsum(1) + x.cumsum(2))
case("renorm", kind="tokens", parts=lambda: {"v": torch.randn(6, UNITS)})(
    lambda m, x: F.linear(x.renorm(2, 2, 0.5), (m.v + 0).renorm(2, 0, 0.5))
)
case("fliplr", kind="tokens")(lambda m, x: x.fliplr())
case("flipud")(lambda m, x: x.flipud())
case("msort")(lambda m, x: x.msort())
case("cosine_similarity", kind="tokens", parts=VECTOR)(
    lambda m, x: x * (F.cosine_similarity(x, x.relu(), -1) + F.cosine_similarity(x, x[:, :1], 2)).unsqueeze(2)
)
case("pairwise_distance", kind="tokens")(lambda m, x: F.pairwise_distance(x.mT, x.mT.relu()).unsqueeze(1))
case("diff", kind="tokens")(lambda m, x: x.diff(dim=1, append=x[:, :1]))
case("sum.default")(lambda m, x: x * x.sum())
case("any.default")(lambda m, x: x * (x > 9).any())
for _name in ("mean", "max", "min", "median", "prod", "all"):
    case(f"{_name}.default", frozen=True)(lambda m, x, f=_name: x * getattr(x if f != "all" else x > 0, f)())


@pytest.mark.parametrize("name", SUMS)
def test_units_that_are_summed_are_masked(name: str) -> None:
    model = Between(Case(lambda m, x: x * SUMS[name](2, x).unsqueeze(2), kind="tokens")).eval()
    assert len(assert_cut(model, model.x).masks) == 1


@pytest.mark.parametrize("name", [*REDUCTIONS, *ALONG])
def test_units_that_are_mixed_freeze(name: str) -> None:
    op = {**REDUCTIONS, **ALONG}[name]
    shaped = (lambda m, x: op(2, x)) if name in ALONG else (lambda m, x: x * op(2, x).unsqueeze(2))
    model = Between(Case(shaped, kind="tokens")).eval()
    reason = "mixed by" if name in ALONG else "reduced by"
    graph = capture(model, model.x, norms=False)
    assert graph.groups == ()
    assert reason in str(graph.account())


OF_WHAT_STAYS = {
    **{name: op for name, op in REDUCTIONS.items() if f"aten.{name}" in TWINS},
    "amax": REDUCTIONS["amax"],
    "amin": REDUCTIONS["amin"],
}


@pytest.mark.parametrize("name", OF_WHAT_STAYS)
def test_what_is_reduced_within_a_branch_is_that_of_the_units_that_stay(name: str) -> None:
    model = Between(Case(lambda m, x: x * OF_WHAT_STAYS[name](2, x).unsqueeze(2), kind="tokens")).eval()
    (group,) = assert_cut(model, model.x).groups
    assert group.kind == "neurons"


@pytest.mark.parametrize("extreme", [torch.max, torch.min])
def test_the_place_of_an_extreme_is_no_number_of_a_unit(extreme: Callable[..., Any]) -> None:
    model = Between(Case(lambda m, x: x * extreme(x, 2, keepdim=True).indices, kind="tokens")).eval()
    assert capture(model, model.x).groups == ()


@pytest.mark.parametrize("norm", [nn.LayerNorm(UNITS), nn.RMSNorm(UNITS)])
def test_units_that_are_normalised_over_freeze(norm: nn.Module) -> None:
    model = Between(Case(lambda m, x: m.norm(x), parts=lambda: {"norm": norm})).eval()
    graph = capture(model, model.x, norms=False)
    assert graph.groups == ()
    assert "normalised over by" in str(graph.account())
    assert_cut(model, model.x)


@pytest.mark.parametrize("op", [lambda m, x: x - x.logsumexp(1, True), lambda m, x: nn.GroupNorm(2, UNITS)(x)])
def test_what_no_norms_frees_is_not_said_to_be_under_a_norm(op: Op) -> None:
    model = Between(Case(op)).eval()
    frozen = capture(model, model.x, norms=False).frozen.values()
    assert any(why.startswith(("reduced by", "normalised within a group by")) for why in frozen)
    assert not any(map(over_norms, frozen))


# -- rearranging

case("view.default", kind="maps")(lambda m, x: x.view(x.shape[0], -1))
case("reshape", kind="maps")(lambda m, x: x.reshape(x.shape[0], -1))
case("flatten", kind="maps")(lambda m, x: x.flatten(1))
case("_unsafe_view", kind="maps", last=False)(lambda m, x: ATEN._unsafe_view(x, [x.shape[0], x.shape[1], 36]))
case("unflatten", kind="maps", last=False)(lambda m, x: x.flatten(2).unflatten(2, (6, 6)))
# the methods are captured as `view(x.shape)` and the like where sizes are recorded
case("view_as", kind="maps", last=False)(lambda m, x: torch.ops.aten.view_as.default(x.flatten(2), x))
case("reshape_as", kind="maps", last=False)(lambda m, x: torch.ops.aten.reshape_as.default(x.flatten(2), x))
case("squeeze", kind="rows")(lambda m, x: x.view(1, x.shape[0], 1, -1).squeeze())
case("unsqueeze", kind="rows", last=False)(lambda m, x: x.unsqueeze(-1))
case("transpose.int", kind="maps")(lambda m, x: x.transpose(1, -1))
case("swapaxes", kind="maps")(lambda m, x: x.swapaxes(1, 3))
case("permute", kind="maps")(lambda m, x: x.permute(0, 2, -1, 1).flatten(1))
case("t")(lambda m, x: (x.t() * 2).t())
case("numpy_T", kind="rows")(lambda m, x: (x.T * 2).T)
case("expand")(lambda m, x: x.unsqueeze(1).expand(-1, 3, -1))
case("expand_as", parts=VECTOR)(lambda m, x: x + torch.ops.aten.expand_as.default(m.v, x))
case("broadcast_to")(lambda m, x: torch.broadcast_to(x.unsqueeze(1), (x.shape[0], 3, x.shape[1])))
for _join in (torch.cat, torch.concat, torch.concatenate):
    case(_join.__name__)(lambda m, x, f=_join: f([x, torch.relu(x)], 1))
case("stack")(lambda m, x: torch.stack([x, torch.relu(x)], 1).flatten(1))
case("pad_sequence", kind="tokens")(lambda m, x: pad_sequence([x[0], x[1, :2]], batch_first=True, padding_value=0.5))
case("split.Tensor")(lambda m, x: torch.cat(x.split(x.shape[1] // 2, 1)[::-1], 1))
case("split.sizes")(lambda m, x: torch.cat(ATEN.split.sizes(x, [x.shape[1] // 2] * 2, 1)[::-1], 1))
case("split_with_sizes")(lambda m, x: torch.cat(x.split_with_sizes([x.shape[1] // 2] * 2, 1)[::-1], 1))
case("chunk")(lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1))
case("tensor_split.sections")(lambda m, x: torch.cat(x.tensor_split(2, 1)[::-1], 1))
case("tensor_split.indices")(lambda m, x: torch.cat(x.tensor_split([x.shape[1] // 2], 1)[::-1], 1))
case("slice.Tensor")(lambda m, x: torch.cat([x[:, x.shape[1] // 2 :], x[:, : x.shape[1] // 2] * 2], 1))
case("narrow")(lambda m, x: x.narrow(1, 0, x.shape[1] // 2) + 2 * x.narrow(1, x.shape[1] // 2, x.shape[1] // 2))
case("select.int", kind="tokens")(lambda m, x: x[:, 2])
case("unbind", kind="tokens")(lambda m, x: x.unbind(1)[2])
case("pad", kind="maps", last=False)(lambda m, x: F.pad(x, (1, 2, 0, 1)))
case("constant_pad_nd", kind="maps", last=False)(lambda m, x: ATEN.constant_pad_nd(x, [1, 2, 0, 1], 0.5))
case("repeat")(lambda m, x: x.repeat(1, 3))
case("tile")(lambda m, x: x.tile(3))

for _name in ("hsplit", "vsplit", "dsplit"):
    _d = {"hsplit": 1, "vsplit": 0, "dsplit": 2}[_name]
    for _kind, _how in (("array", lambda n: [n // 2]), ("int", lambda n: 2)):
        case(f"{_name}.{_kind}", kind="tokens" if _d == 2 else "rows")(
            lambda m, x, f=_name, d=_d, g=_how: torch.cat(getattr(torch, f)(x, g(x.shape[d]))[::-1], d)
        )
case("unsafe_split")(lambda m, x: torch.cat(x.unsafe_split(x.shape[1] // 2, 1)[::-1], 1))
case("unsafe_split_with_sizes")(lambda m, x: torch.cat(ATEN.unsafe_split_with_sizes(x, [x.shape[1] // 2] * 2, 1), 1))
case("split_copy")(lambda m, x: torch.cat(ATEN.split_copy(x, x.shape[1] // 2, 1)[::-1], 1))
case("split_with_sizes_copy")(lambda m, x: torch.cat(ATEN.split_with_sizes_copy(x, [x.shape[1] // 2] * 2, 1), 1))
case("unsafe_chunk")(lambda m, x: torch.cat(x.unsafe_chunk(2, 1)[::-1], 1))
case("narrow_copy")(lambda m, x: torch.cat([x, ATEN.narrow_copy(x, 1, 0, x.shape[1] // 2)], 1))
case("slice_copy")(lambda m, x: torch.cat([x, ATEN.slice_copy(x, 1, 0, x.shape[1] // 2)], 1))
case("slice_scatter")(lambda m, x: x.slice_scatter(x[:, : x.shape[1] // 2] * 2, 1, 0, x.shape[1] // 2))
case("select_copy", kind="tokens")(lambda m, x: ATEN.select_copy(x, 1, 2))
case("unbind_copy", kind="tokens")(lambda m, x: ATEN.unbind_copy(x, 1)[2])
case("hstack")(lambda m, x: torch.hstack([x, x.relu()]))
case("vstack")(lambda m, x: torch.vstack([x, x.relu()]))
case("column_stack")(lambda m, x: torch.column_stack([x, x.relu()]))
case("block_diag")(lambda m, x: torch.block_diag(x, x[:1, : x.shape[1] // 2].relu()))
case("movedim", kind="maps")(lambda m, x: x.movedim(1, -1).movedim((-1, 0), (0, 2)).movedim(0, -1))
case("moveaxis", kind="maps")(lambda m, x: torch.moveaxis(x, [1], [-1]))
case("swapdims", kind="maps")(lambda m, x: x.swapdims(1, 3))
for _name in ("mT", "mH", "adjoint", "matrix_H"):
    _batches: dict[str, Any] = {"last": False, "kind": "rows" if _name == "matrix_H" else "tokens"}
    case(_name, **_batches)(lambda m, x, f=_name: getattr(ATEN, f)(x).reshape(-1, x.shape[-1], x.shape[-2]))
for _name, _arguments in (("transpose", (0, 1)), ("t", ()), ("permute", ([1, 0],))):
    case(f"{_name}_copy")(lambda m, x, f=f"{_name}_copy", a=_arguments: (getattr(ATEN, f)(x, *a) * 2).t())
case("expand_copy")(lambda m, x: ATEN.expand_copy(x.unsqueeze(1), [-1, 3, -1]))
case("view_copy.default", kind="maps")(lambda m, x: ATEN.view_copy(x, [x.shape[0], -1]))
case("squeeze_copy")(lambda m, x: ATEN.squeeze_copy(x.view(1, x.shape[0], 1, -1)))
case("unsqueeze_copy", last=False)(lambda m, x: ATEN.unsqueeze_copy(x, -1))
case("ravel")(lambda m, x: x.ravel())
for _n in (1, 2, 3):
    case(f"atleast_{_n}d.default")(lambda m, x, f=f"atleast_{_n}d": getattr(torch, f)(x).reshape(-1, x.shape[1]))
case("repeat_interleave.self_int")(lambda m, x: x.repeat_interleave(3, 1))
case("diagonal", kind="maps")(lambda m, x: x.diagonal(dim1=2, dim2=3).mT)
case("linalg_diagonal", kind="maps")(lambda m, x: torch.linalg.diagonal(x).mT)
case("tril", kind="maps", last=False)(lambda m, x: x.tril())
case("triu", kind="maps", last=False)(lambda m, x: x.triu(1))
case("rot90", kind="maps", last=False)(lambda m, x: x.rot90(1, (2, 3)))
case("meshgrid", kind="rows")(lambda m, x: torch.meshgrid(x[:, :1].sum(1), x.sum(0), indexing="ij")[1])
case("broadcast_tensors", parts=VECTOR)(lambda m, x: torch.broadcast_tensors(x[:1], m.v, x)[1] + x)
case("glu")(lambda m, x: F.glu(x, 1))
case("fake_quantize_per_tensor_affine")(lambda m, x: torch.fake_quantize_per_tensor_affine(x, 0.05, 3, -128, 127))

# -- windows and shuffles

case("im2col", kind="maps", last=False)(lambda m, x: F.unfold(x, 3, padding=1))
case("col2im", kind="maps", last=False)(lambda m, x: F.fold(F.unfold(x, 2, stride=2).relu(), (6, 6), 2, stride=2))
case("unfold", kind="maps", last=False)(lambda m, x: x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(3))
case("unfold_copy", kind="maps", last=False)(lambda m, x: ATEN.unfold_copy(x, 2, 2, 2).flatten(3))
case("pixel_shuffle", kind="maps", last=False)(lambda m, x: F.pixel_shuffle(x, 2))
case("pixel_unshuffle", kind="maps", last=False)(lambda m, x: F.pixel_unshuffle(x, 2))
case("channel_shuffle", kind="maps", last=False)(lambda m, x: F.channel_shuffle(x, 2))
case("native_channel_shuffle", kind="maps", last=False)(lambda m, x: ATEN.native_channel_shuffle(x, 2))


def sampled(m: Any, x: Tensor, name: str) -> Tensor:
    """At a grid that the first channel gives."""
    space = x.dim() - 2
    grid = x[:, :1, ..., :3].sigmoid().expand(-1, space, *[-1] * space).movedim(1, -1)
    return getattr(ATEN, name)(x, grid, 0, 0, True)


for _n, _name in ((2, "grid_sampler"), (2, "grid_sampler_2d"), (3, "grid_sampler_3d")):
    case(_name, kind=f"maps{_n}", last=False)(lambda m, x, f=_name: sampled(m, x, f))
case("affine_grid_generator", kind="maps", last=False)(
    lambda m, x: F.grid_sample(
        x, F.affine_grid(torch.eye(2, 3).expand(2, 2, 3), [2, 1, 4, 4], align_corners=False), align_corners=False
    )
)

# -- transforms and complex numbers

for _name in FFT:
    for _how, _dim in (("", 1), ("2", (0, 1)), ("n", (1,))):
        case(f"{_name}{_how}", kind="tokens")(
            lambda m, x, f=f"{_name[4:]}{_how}", d=_dim: getattr(torch.fft, f)(x, dim=d).abs()
        )
case("fft_fftshift", kind="tokens")(lambda m, x: torch.fft.fftshift(x, 1))
case("fft_ifftshift", kind="tokens")(lambda m, x: torch.fft.ifftshift(x, 1))
case("istft", frozen=True)(
    lambda m, x: torch.istft(
        torch.complex(x, x).unflatten(1, (-1, 1)).expand(-1, -1, 3)[:, :5], 8, window=torch.ones(8)
    )
)
case("stft", frozen=True)(
    lambda m, x: torch.stft(x, 4, center=False, window=torch.ones(4), return_complex=True).abs().flatten(1)
)
case("view_as_real")(lambda m, x: torch.view_as_real(torch.complex(x, x.relu())).flatten(1))
case("view_as_complex")(lambda m, x: torch.view_as_complex(torch.stack([x, x.relu()], -1)).abs())
case("imag")(lambda m, x: torch.complex(x, x.relu()).imag)
case("_conj")(lambda m, x: x + ATEN._conj(torch.complex(x, x.relu())).imag)


# -- what is frozen whole


def square(x: Tensor) -> Tensor:
    """(C, C) positive definite."""
    return x.t() @ x + torch.eye(UNITS)


WHOLE: dict[str, Callable[[Tensor], Any]] = {
    "cross_entropy_loss": lambda x: F.cross_entropy(x, torch.arange(4)),
    "nll_loss": lambda x: ATEN.nll_loss(x, torch.arange(4)),
    "nll_loss_nd": lambda x: F.nll_loss(x, torch.arange(4)),
    "nll_loss2d": lambda x: ATEN.nll_loss2d(x.view(4, -1, 1, 1), torch.arange(4).view(4, 1, 1)),
    "poisson_nll_loss": lambda x: F.poisson_nll_loss(x, x),
    "multi_margin_loss": lambda x: F.multi_margin_loss(x, torch.arange(4)),
    "multilabel_margin_loss": lambda x: F.multilabel_margin_loss(x, torch.zeros(4, UNITS, dtype=torch.long)),
    "ctc_loss": lambda x: F.ctc_loss(x.view(4, 1, -1), torch.ones(1, 2, dtype=torch.long), (4,), (2,)),
    "cosine_embedding_loss": lambda x: F.cosine_embedding_loss(x, x.relu(), torch.ones(4)),
    "triplet_margin_loss": lambda x: F.triplet_margin_loss(x, x.relu(), x.sin()),
    "margin_ranking_loss": lambda x: F.margin_ranking_loss(x, x.relu(), x.sign()),
    "hinge_embedding_loss": lambda x: F.hinge_embedding_loss(x, x.sign()),
    "soft_margin_loss": lambda x: F.soft_margin_loss(x, x.detach().sign()),
    "binary_cross_entropy": lambda x: F.binary_cross_entropy(x.sigmoid(), x.relu().tanh()),
    "binary_cross_entropy_with_logits": lambda x: F.binary_cross_entropy_with_logits(x, x.sigmoid()),
    "kl_div": lambda x: F.kl_div(x, x.sigmoid(), reduction="sum"),
    "linalg_pinv": lambda x: torch.linalg.pinv(x),
    "pinverse": lambda x: x.pinverse(),
    "linalg_solve": lambda x: torch.linalg.solve(square(x), x.t()),
    "linalg_solve_triangular": lambda x: torch.linalg.solve_triangular(square(x), x.t(), upper=True),
    "linalg_lstsq": lambda x: torch.linalg.lstsq(square(x), x.t())[0],
    "cholesky_solve": lambda x: torch.cholesky_solve(x.t(), square(x)),
    "linalg_matrix_power": lambda x: torch.linalg.matrix_power(square(x), 2),
    "matrix_power": lambda x: square(x).matrix_power(2),
    "linalg_cross": lambda x: torch.linalg.cross(square(x)[:, :3], square(x)[:, 1:4]),
    "histc": lambda x: x.histc(3),
    "multinomial": lambda x: x.sigmoid().multinomial(2),
    "nonzero_static": lambda x: ATEN.nonzero_static(x, size=4),
    "as_strided": lambda x: x.as_strided((4, 2), (1, 1)),
    "as_strided_copy": lambda x: ATEN.as_strided_copy(x, (4, 2), (1, 1)),
    "as_strided_scatter": lambda x: ATEN.as_strided_scatter(x, x[:, 0], (4,), (1,)),
    "combinations": lambda x: torch.combinations(x.sum(0)),
    "cartesian_prod": lambda x: torch.cartesian_prod(x.sum(0), x.sum(1)),
    "put": lambda x: ATEN.put(x, torch.tensor([0, 3]), x[:2, 0]),
    "diag_embed": lambda x: torch.diag_embed(x),
}
for _name in ("mse", "l1", "smooth_l1", "huber"):
    WHOLE[f"{_name}_loss"] = lambda x, f=f"{_name}_loss": getattr(F, f)(x, x.relu())
for _name in ("inv", "inv_ex", "qr", "svd", "svdvals", "eigh", "eigvalsh", "cholesky", "cholesky_ex", "det", "slogdet",
              "lu", "matrix_exp", "cond"):  # fmt: skip
    WHOLE[f"linalg_{_name}"] = lambda x, f=_name: getattr(torch.linalg, f)(square(x))
for _name in ("inverse", "det", "logdet", "slogdet", "cholesky_inverse", "svd", "matrix_exp", "cov",
              "corrcoef"):  # fmt: skip
    WHOLE[_name] = lambda x, f=_name: getattr(torch, f)(square(x))


def touched(m: Any, x: Tensor, name: str) -> Tensor:
    """x, and the sum of what the op gives."""
    result = WHOLE[name](x)
    several = result if isinstance(result, tuple) else [result]
    return x + sum(one.float().sum() for one in several)


for _name in WHOLE:
    case(_name, frozen=True)(lambda m, x, f=_name: touched(m, x, f))


# -- creation

CREATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "arange": lambda x: torch.arange(4.0),
    "zeros": lambda x: torch.zeros(4),
    "ones": lambda x: torch.ones(4),
    "full": lambda x: torch.full((4,), 3.0),
    "new_zeros": lambda x: x.new_zeros(4),
    "new_ones": lambda x: x.new_ones(4),
    "new_full": lambda x: x.new_full((4,), 2.0),
    "scalar_tensor": lambda x: ATEN.scalar_tensor(2.0).expand(4),
    "linspace": lambda x: torch.linspace(0, 1, 4),
    "empty": lambda x: ATEN.zero(torch.empty(4)),
    "new_empty": lambda x: ATEN.zero(x.new_empty(4)),
    "eye": lambda x: torch.eye(4)[1],
    "empty_permuted": lambda x: ATEN.zero(ATEN.empty_permuted([4], [0])),
    "empty_strided": lambda x: ATEN.zero(torch.empty_strided([4], [1])),
    "new_empty_strided": lambda x: ATEN.zero(x.new_empty_strided([4], [1])),
    "logspace": lambda x: torch.logspace(0, 1, 4),
    "range": lambda x: ATEN.range(1, 4),
    "tril_indices": lambda x: torch.tril_indices(1, 4, 3)[1] + x.sum(1),
    "triu_indices": lambda x: torch.triu_indices(1, 4)[1] + x.sum(1),
    "fft_fftfreq": lambda x: torch.fft.fftfreq(4),
    "fft_rfftfreq": lambda x: torch.fft.rfftfreq(6),
    "rand": lambda x: 0 * torch.rand(4),
    "randn": lambda x: 0 * torch.randn(4),
    "randint": lambda x: 0 * torch.randint(3, (4,)),
    "randperm": lambda x: 0 * torch.randperm(4),
    "normal.float_float": lambda x: 0 * torch.normal(0.0, 1.0, (4,)),
}
for _name in ("hann", "hamming", "blackman", "bartlett", "kaiser"):
    CREATIONS[f"{_name}_window"] = lambda x, f=f"{_name}_window": getattr(torch, f)(4)
for _name, _like in {
    "zeros_like": torch.zeros_like,
    "ones_like": torch.ones_like,
    "full_like": lambda x: torch.full_like(x, 2.0),
    "empty_like": lambda x: ATEN.zero(torch.empty_like(x)),
}.items():
    case(_name)(lambda m, x, f=_like: x.relu() + f(x))
for _name, _make in CREATIONS.items():
    case(_name)(lambda m, x, f=_make: x * (1 + f(x)).unsqueeze(1))
DRAWN: dict[str, Callable[[Tensor], Tensor]] = {
    "rand_like": torch.rand_like,
    "randn_like": torch.randn_like,
    "randint_like": lambda x: torch.randint_like(x, 3),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "normal.Tensor_float": lambda x: ATEN.normal.Tensor_float(x, 1.0),
    "normal.Tensor_Tensor": lambda x: ATEN.normal.Tensor_Tensor(x, x.abs()),
    "normal.float_Tensor": lambda x: ATEN.normal.float_Tensor(1.0, x.abs()),
    "normal_functional": lambda x: ATEN.normal_functional(x),
    "uniform": lambda x: ATEN.uniform(x),
    "exponential": lambda x: ATEN.exponential(x),
    "poisson": lambda x: torch.poisson(x.sigmoid()),
}
for _name, _make in DRAWN.items():
    case(_name, frozen=True)(lambda m, x, f=_make: x + f(x))


# ---- the tests


case("fake_quantize_per_channel_affine", parts=lambda: {"v": torch.rand(UNITS)})(
    lambda m, x: ATEN.fake_quantize_per_channel_affine(
        x, m.v.detach() / 50 + 0.01, torch.zeros_like(m.v, dtype=torch.int32), 1, -128, 127
    )
)
case("fused_moving_avg_obs_fake_quant", parts=lambda: {"v": nn.BatchNorm1d(UNITS)})(
    lambda m, x: ATEN.fused_moving_avg_obs_fake_quant(
        x, m.v.num_batches_tracked, torch.ones(1, dtype=torch.int64), m.v.running_mean, m.v.running_var,
        m.v.running_var / 50, torch.zeros_like(m.v.running_var, dtype=torch.int32), 0.01, -128, 127, 1, True, True,
    )
)  # fmt: skip

# -- what autograd calls

INSIDE = [True, False, False]
"""The gradient of the input alone."""

_maps = {"kind": "maps", "last": False}
_steps = {"kind": "maps1", "last": False}


@case("convolution_backward", **_maps, parts=lambda: {"v": torch.randn(2, 5, 6, 6), "w": torch.randn(UNITS, 5, 3, 3)})
def _(m: Any, x: Tensor) -> Tensor:
    return ATEN.convolution_backward(x, m.v, m.w, [5], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, INSIDE)[0]


@case("native_layer_norm_backward", **_maps)
def _(m: Any, x: Tensor) -> Tensor:
    _, mean, spread = ATEN.native_layer_norm(x, [6, 6], None, None, 1e-5)
    return ATEN.native_layer_norm_backward(x * x, x, [6, 6], mean, spread, None, None, INSIDE)[0]


@case("native_group_norm_backward", **_maps, parts=CHANNELS)
def _(m: Any, x: Tensor) -> Tensor:
    n, c = x.shape[:2]
    _, mean, spread = ATEN.native_group_norm(x, m.w, m.b, n, c, 36, c // 2, 1e-5)
    return ATEN.native_group_norm_backward(x * x, x, mean, spread, m.w, n, c, 36, c // 2, INSIDE)[0]


@case("native_batch_norm_backward", **_maps, parts=CHANNELS)
def _(m: Any, x: Tensor) -> Tensor:
    mean, spread = m.b.detach(), m.w.detach()
    none = torch.empty(0)
    return ATEN.native_batch_norm_backward(x * x, x, m.w, mean, spread, none, none, False, 1e-5, INSIDE)[0]


case("avg_pool2d_backward", **_maps)(
    lambda m, x: ATEN.avg_pool2d_backward(F.avg_pool2d(x, 2), x, [2, 2], [2, 2], [0, 0], False, True, None)
)
case("avg_pool3d_backward", kind="maps3", last=False)(
    lambda m, x: ATEN.avg_pool3d_backward(F.avg_pool3d(x, 2), x, [2] * 3, [2] * 3, [0] * 3, False, True, None)
)
case("_adaptive_avg_pool2d_backward", **_maps)(
    lambda m, x: ATEN._adaptive_avg_pool2d_backward(F.adaptive_avg_pool2d(x, 3), x)
)


@case("max_pool2d_with_indices_backward", **_maps)
def _(m: Any, x: Tensor) -> Tensor:
    made, where = ATEN.max_pool2d_with_indices(x, [2, 2], [2, 2], [0, 0], [1, 1], False)
    return ATEN.max_pool2d_with_indices_backward(made, x, [2, 2], [2, 2], [0, 0], [1, 1], False, where)


@case("adaptive_max_pool2d_backward", **_maps)
def _(m: Any, x: Tensor) -> Tensor:
    made, where = ATEN.adaptive_max_pool2d(x, [3, 3])
    return ATEN.adaptive_max_pool2d_backward(made, x, where)


case("reflection_pad1d_backward", **_steps)(
    lambda m, x: ATEN.reflection_pad1d_backward(ATEN.reflection_pad1d(x, [1, 1]), x, [1, 1])
)
case("reflection_pad2d_backward", **_maps)(
    lambda m, x: ATEN.reflection_pad2d_backward(ATEN.reflection_pad2d(x, [1] * 4), x, [1] * 4)
)
for _d, _kinds in ((1, ("nearest", "linear")), (2, ("nearest", "bilinear", "bicubic")), (3, ("nearest",))):
    for _how in _kinds:
        _name, _corners = f"upsample_{_how}{_d}d_backward", () if _how == "nearest" else (False,)
        case(_name, kind=f"maps{_d}", last=False)(
            lambda m, x, f=_name, d=_d, c=_corners: getattr(ATEN, f)(x, [6] * d, [*x.shape[:2], *[3] * d], *c)
        )


@case("log_sigmoid_forward", "log_sigmoid_backward")
def _(m: Any, x: Tensor) -> Tensor:
    made, held = ATEN.log_sigmoid_forward(x)
    return made + ATEN.log_sigmoid_backward(x, x, held)


case("_softmax_backward_data", kind="tokens")(
    lambda m, x: ATEN._softmax_backward_data(x, x.softmax(1), 1, torch.float32)
)
case("_log_softmax_backward_data", kind="tokens")(
    lambda m, x: ATEN._log_softmax_backward_data(x, x.log_softmax(1), 1, torch.float32)
)
case("select_backward", kind="tokens")(lambda m, x: x + ATEN.select_backward(x[:, 1], x.shape, 1, 1))
case("slice_backward")(lambda m, x: x + ATEN.slice_backward(x[:, : x.shape[1] // 2], x.shape, 1, 0, x.shape[1] // 2, 1))


def test_every_rule_has_a_case() -> None:
    cases = set(CASES) | {f"aten.{name}" for name in ELEMENTWISE}
    assert {name for name in RULES if name.startswith("aten.")} - cases == set()
    assert cases - set(RULES) == set()


def test_every_rule_is_for_an_op_that_exists() -> None:
    for name in (name for name in RULES if name.startswith("aten.")):
        _, packet, *overload = name.split(".")
        assert hasattr(ATEN, packet), name
        assert not overload or overload[0] in getattr(ATEN, packet).overloads(), name


@pytest.mark.parametrize("name", CASES)
def test_rule(name: str) -> None:
    model = Between(CASES[name]).eval()
    if CASES[name].frozen:
        graph = capture(model, model.x)
        assert graph.groups == ()
    else:
        graph = assert_cut(model, model.x)
    names = {op_name(node) for node in graph.program.nodes}
    assert any(found == name or found.startswith(f"{name}.") for found in names), names
    assert graph.unknown_ops == ()
    assert not any("doesn't cover" in reason for reason in graph.frozen.values())


# ---- uses of ops that a rule could get wrong, although the plain use is right


def doubled(m: Any, x: Tensor) -> Tensor:
    return m.layer(torch.cat([x, torch.relu(x)], 1))


def shuffled(m: Any, x: Tensor) -> Tensor:
    """ShuffleNet's channel shuffle between two halves."""
    n, c = x.shape[:2]
    return torch.cat([x, torch.relu(x)], 1).view(n, 2, c, *x.shape[2:]).transpose(1, 2).flatten(1, 2)


def one_of_two(m: Any, x: Tensor) -> Tensor:
    """An ELU by hand: what each mask takes is written back where it was, and one mask is written twice."""
    out, mask = torch.empty_like(x), x > 0
    out[mask] = torch.log(x[mask] + 1)
    out[~mask] = -1 + torch.exp(x[~mask])
    out[out > 0.5] *= 0.5
    out[x < -1] = 0.2 * x[x < -1]
    return out


def scaled_by_a_mean(m: Any, x: Tensor) -> Tensor:
    out, mask = torch.zeros_like(x), x > 0
    out[mask] = x[mask] / x[mask].mean()
    return out


def masked_in_place(m: Any, x: Tensor) -> Tensor:
    rows = x.view(x.shape[0], -1)
    rows.masked_fill_(rows > 0.5, -1.0)
    return x


def padded_channels(m: Any, x: Tensor) -> Tensor:
    """ResNet's shortcut of option A: a stride in space, and zero channels on both sides."""
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 3))


def padded_sum(m: Any, x: Tensor) -> Tensor:
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, m.front, m.back)) + m.layer(x)


def attended(m: Any, x: Tensor) -> Tensor:
    """One head whose values can be cut, while queries and keys are contracted with each other."""
    q, k = m.q(x), m.k(x)
    return torch.softmax(q @ k.mT, -1) @ x


def standardised(m: Any, x: Tensor) -> Tensor:
    """Weight standardisation by a batch norm over the weight."""
    weight = F.batch_norm(m.w.reshape(1, 6, -1), None, None, training=True)
    return F.conv2d(x, weight.reshape_as(m.w))


USES: dict[str, Case] = {
    **EINSUMS,
    **INDEXED,
    "entries written under a mask": Case(lambda m, x: x.masked_scatter(x > 0.5, x.relu()), frozen=True),
    "entries written back under a mask": Case(one_of_two),
    "entries mixed under a mask": Case(scaled_by_a_mean, frozen=True),
    "as many rows": Case(lambda m, x: torch.cat([torch.full_like(x[:, 0], 0.3).unsqueeze(1), x], 1)),
    "differences of units": Case(lambda m, x: x.diff(dim=1), frozen=True),
    "a distance between units": Case(lambda m, x: x * F.pairwise_distance(x, x.relu()).unsqueeze(1), frozen=True),
    "similar to one number": Case(lambda m, x: x * F.cosine_similarity(x, x[:, :1]).unsqueeze(1), frozen=True),
    "a single row": Case(lambda m, x: x * F.linear(x, m.v).unsqueeze(1), parts=VECTOR),
    "padded in a named way": Case(lambda m, x: F.pad(x, (1, 1, 1, 1), mode="circular"), "maps", False),
    **STEPPED,
    "two ones squeezed": Case(lambda m, x: ATEN.squeeze.dims(x.view(1, x.shape[0], 1, -1), [0, 2])),
    "zeros that follow": Case(lambda m, x: torch.cat([x, x.new_zeros(4, x.shape[1]).relu() + x.relu()], 1)),
    "columns of vectors": Case(lambda m, x: x * torch.column_stack([x[0], x[1]])[:, 0], frozen=True),
    "a diagonal of channels": Case(lambda m, x: x.diagonal(dim1=1, dim2=2), "maps", frozen=True),
    "none with a step": Case(lambda m, x: x + x[:, UNITS::2].sum()),
    "written with a step": Case(lambda m, x: x.slice_scatter(x[:, ::2], 1, 0, 8, 2), frozen=True),
    "a grid of both": Case(lambda m, x: torch.meshgrid(x.sum(0), x.sum(1), indexing="xy")[0]),
    "every unit thrice": Case(lambda m, x: x[0].repeat_interleave(3)),
    "the number of a row for all its entries": Case(
        lambda m, x: x.new_zeros(4, x.shape[1]).scatter_add(
            0, torch.tensor([0, 1, 1, 3]).repeat_interleave(torch.tensor(x.shape[1:]).prod()).view(x.shape), x
        )
    ),
    "depthwise on a concatenation": Case(doubled, "maps", False, parts=layer(nn.Conv2d, 16, 16, 3, groups=16)),
    "grouped on a concatenation": Case(doubled, "maps", False, parts=layer(nn.Conv2d, 16, 16, 3, groups=8)),
    "a filter repeated for every channel": Case(
        lambda m, x: F.conv2d(x, m.f.repeat(x.shape[1], 1, 1, 1), groups=x.shape[1]),
        "maps",
        False,
        parts=lambda: {"f": torch.randn(2, 1, 3, 3)},
    ),
    "a part of a kernel": Case(
        lambda m, x: F.relu(F.conv2d(x, m.k[:, :, 1:])), "maps", False, parts=lambda: {"k": torch.randn(12, 8, 4, 3)}
    ),
    "a group across a concatenation": Case(doubled, "maps", False, parts=layer(nn.Conv2d, 16, 12, 3, groups=2)),
    "every place by itself": Case(
        lambda m, x: m.other(m.layer(x).relu()),
        "tokens",
        parts=lambda: {"layer": nn.Conv1d(5, 7, 1), "other": nn.ConvTranspose1d(7, 5, 1)},
    ),
    "places that are moved": Case(through_layer, "tokens", frozen=True, parts=layer(nn.Conv1d, 5, 7, 1, padding=1)),
    "depthwise with a multiplier": Case(through_layer, "maps", False, parts=layer(nn.Conv2d, 8, 24, 3, groups=8)),
    "grouped transposed convolution": Case(
        through_layer, "maps", False, parts=layer(nn.ConvTranspose2d, UNITS, 12, 2, groups=4)
    ),
    "GroupNorm on a concatenation": Case(doubled, "maps", False, parts=layer(nn.GroupNorm, 4, 16)),
    "channel shuffle": Case(shuffled, "maps", False),
    "zero channels": Case(padded_channels, "maps", False),
    "zero channels in a sum": Case(
        padded_sum, "maps", False, parts=lambda: {"front": 2, "back": 3, "layer": nn.Conv2d(UNITS, 13, 1, 2)}
    ),
    "in place on a view": Case(masked_in_place, "maps", False),
    "blocks of four, the outer factor": Case(lambda m, x: x.view(x.shape[0], -1, 4).softmax(-1).flatten(1)),
    "one value on the right": Case(lambda m, x: x * (x @ m.v).sigmoid().unsqueeze(1) + x, parts=VECTOR),
    "a scale of one's own": Case(
        lambda m, x: F.scaled_dot_product_attention(x.unsqueeze(1), x.unsqueeze(1), x.unsqueeze(1), scale=0.3)[:, 0],
        "tokens",
    ),
    "a product of activations": Case(lambda m, x: torch.relu(x) @ (x.transpose(1, 2) @ x), "tokens"),
    "attention over tokens": Case(
        attended, "tokens", parts=lambda: {"q": nn.Linear(UNITS, 4), "k": nn.Linear(UNITS, 4)}
    ),
    "an outer sum": Case(lambda m, x: (x[:, :, None] + x[:, None, :]).amax(1)),
    "a step": Case(lambda m, x: x[:, ::2]),
    "a step that leaves a rest": Case(lambda m, x: x[:, ::3], frozen=True),
    "a gate beside every unit": Case(lambda m, x: x[:, 1::2].sigmoid() * x[..., ::2]),
    "the third of four": Case(lambda m, x: x[:, 2:7:4]),
    "cropped": Case(lambda m, x: F.pad(x, (-1, 1)), frozen=True),
    "reflected": Case(lambda m, x: F.pad(x, (1, 1), mode="reflect"), "tokens", frozen=True),
    "copies that follow": Case(lambda m, x: x * torch.ones(1, 1).expand(1, x.shape[1])),
    "batches joined": Case(lambda m, x: torch.cat([x, x.flip(0)], 0)),
    "nothing joined": Case(lambda m, x: torch.cat([x, torch.zeros(0)], 1)),
    "nothing taken": Case(lambda m, x: x + x[:, :0].sum(1, keepdim=True)),
    "a bias row": Case(lambda m, x: torch.addmm(m.b.view(1, -1), x, m.w), parts=SQUARE),
    "bounds per unit": Case(lambda m, x: torch.clamp(x, m.v - 1, m.v + 1), parts=VECTOR),
    "a power per unit": Case(lambda m, x: 2**m.v * x, parts=VECTOR),
    "a choice per unit": Case(lambda m, x: torch.where(m.v > 0, x, 0.5), parts=VECTOR),
    "one slope": Case(through_layer, parts=layer(nn.PReLU)),
    "a norm without weights": Case(through_layer, "maps", False, parts=layer(nn.BatchNorm2d, UNITS, affine=False)),
    "a norm of negative order": Case(lambda m, x: x * x.norm(-1, 1, keepdim=True), frozen=True),
    "a spectral norm": Case(lambda m, x: x / torch.linalg.norm(x, 2), frozen=True),
    "normalised": Case(lambda m, x: F.normalize(x, dim=1)),
    "a standardised weight": Case(standardised, "maps", False, parts=reading(6, UNITS, 1, 1)),
    "a weight norm that gives two tensors": Case(
        lambda m, x: F.linear(x, ATEN._weight_norm_interface(m.v, m.g, 0)[0]), parts=LENGTHS
    ),
    "a weight norm whose lengths are read": Case(
        lambda m, x: F.linear(x, ATEN._weight_norm_interface(m.v, m.g, 0)[0]) * m.g.view(1, -1), parts=LENGTHS
    ),
    "a weight of norm one": Case(
        lambda m, x: F.linear(x, torch._weight_norm(m.v, m.g, -1)),
        parts=lambda: {"v": torch.randn(6, UNITS), "g": torch.tensor(2.0)},
    ),
    "response normalised": Case(lambda m, x: F.local_response_norm(x, 3), "maps", False, frozen=True),
    "statistics of the batch": Case(through_layer, parts=layer(nn.BatchNorm1d, UNITS, track_running_stats=False)),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("use", USES)
def test_use(use: str) -> None:
    model = Between(USES[use]).eval()
    if USES[use].frozen:
        assert all("first.weight" not in str(group.members) for group in capture(model, model.x).groups)
    else:
        assert_cut(model, model.x)


LEFT: dict[str, tuple[Op, tuple[int, ...]]] = {
    "whole": (lambda m, x: (m.w @ x.mT).relu().mT, (6, UNITS)),
    "moved": (lambda m, x: (m.w.clone().to(torch.float64).to(x.dtype) @ x.mT).relu().mT, (6, UNITS)),
    "one of several": (lambda m, x: (m.w[1].t() @ x.mT).relu().mT, (2, UNITS, 6)),
    "all of several": (lambda m, x: (m.w @ x.mT.unsqueeze(1)).relu().sum(1).mT, (2, 6, UNITS)),
    "of one vector": (lambda m, x: torch.stack([m.w @ row for row in x.flatten(0, 1)]).relu(), (6, UNITS)),
}


@pytest.mark.parametrize("name", LEFT)
def test_rows_of_a_weight_on_the_left_are_units(name: str) -> None:
    op, sizes = LEFT[name]
    model = Between(Case(op, "tokens", parts=lambda: {"w": torch.randn(sizes)})).eval()
    graph = assert_cut(model, model.x)
    assert any("w" in {m.tensor for m in group.members} and group.width == 6 for group in graph.groups)
    assert name == "one of several" or {site.kind for site in graph.sites if site.weight == "w"} <= {
        "linear",
        "stacked",
    }


@pytest.mark.parametrize(("dtype", "multiple"), [(torch.float32, 4), (torch.bfloat16, 8)])
def test_rows_of_experts_stay_aligned(dtype: torch.dtype, multiple: int) -> None:
    """16 bytes: a kernel's demand is a fact about the group, that plans, budgets and trials keep to."""
    model = Between(CASES["aten._grouped_mm"]).eval().to(dtype)
    graph = capture(model, model.x.to(dtype))
    if multiple == UNITS:
        assert graph.groups == ()
        assert any("multiple of 8" in reason for reason in graph.frozen.values())
        return
    group = graph["first"]
    assert (group.multiple, [*group.widths]) == (multiple, [4])
    with pytest.raises(PlanError, match="multiple of 4"):
        make_plan(graph, {group.name: range(5)})
    assert make_space(graph, parse("macs=90%"), round_to=2).options["first"] == (4, UNITS)


def test_chunks_lose_as_many_units() -> None:
    """Two halves by `chunk` stay halves only if they stay equal: two groups of one width."""
    model = Between(Case(lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1))).eval()
    graph = capture(model, model.x)
    assert [(group.name, group.width) for group in graph.groups] == [("first#1", 4), ("first#2", 4)]
    assert graph.peers["first#1"] == ("first#1", "first#2")
    with pytest.raises(PlanError, match="can't have different widths"):
        make_plan(graph, {"first#1": [0, 1, 3]})
    plan = make_plan(graph, {"first#1": [0, 1, 3], "first#2": [1, 2, 3]})
    small: Any = cut(model, plan)
    assert small.first.out_features == 6
    assert verify(model, small, plan, model.x, graph=graph).passed


def test_a_chunk_that_nothing_reads_loses_the_same_units() -> None:
    """By itself it could not be cut, nor then the other half."""
    model = Between(Case(lambda m, x: x.chunk(2, 1)[0])).eval()
    graph = capture(model, model.x)
    assert [(group.name, group.width) for group in graph.groups] == [("first", 4)]
    plan = make_plan(graph, {"first": [0, 1, 3]})
    small: Any = cut(model, plan)
    assert small.first.out_features == 6
    assert verify(model, small, plan, model.x, graph=graph).passed


def test_uneven_chunks_freeze() -> None:
    model = Between(Case(lambda m, x: torch.cat(x.chunk(3, 1)[::-1], 1))).eval()
    graph = capture(model, model.x)
    assert graph.groups == ()
    assert "divided unevenly by aten.chunk.default" in str(graph.account())


def test_a_batch_may_be_absent() -> None:
    """A convolution of one image without a batch: its first dimension is the channels."""

    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, UNITS, 3), nn.Conv2d(UNITS, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.max_pool2d(self.first(x), 2))

    assert_cut(Single().eval(), torch.randn(3, 6, 6))


def test_what_a_part_of_a_kernel_makes_can_be_cut() -> None:
    model = Between(USES["a part of a kernel"]).eval()
    graph = assert_cut(model, model.x)
    assert [(group.width, group.producers[0].weight) for group in graph.groups] == [(8, "first.weight"), (12, "k")]
