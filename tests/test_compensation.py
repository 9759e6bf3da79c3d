"""Refits against regressions on explicit rows, the shortcut target, the rectified loss, and what must stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actprune.axes.capture import Graph, capture
from actprune.compensation.batchnorm import reestimate
from actprune.compensation.equations import part
from actprune.compensation.near import Near
from actprune.compensation.rectified import Rectified, rectified_fit
from actprune.compensation.refit import compensate
from actprune.compensation.ridge import RIDGES, Fit, Ridge, choose_ridge, merged_all, normal, solve
from actprune.compensation.schedule import schedule
from actprune.compensation.streams import Streams
from actprune.data.samples import Calibration
from actprune.data.take import fit
from actprune.errors import PlanError
from actprune.graph.run import run, run_all
from actprune.plan import Plan, make_plan
from actprune.rewrite import Rewrite, mask_values, zero_columns
from actprune.stats.moments import Few, centred
from actprune.surgery.slicing import cut
from nets import NETS, build

pytestmark = pytest.mark.accurate

SAMPLES = 96
BATCH = 16


class Net(nn.Module):
    """Parts by name, and a function that joins them."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        for name, child in parts.items():
            self.add_module(name, child)
        self.join = forward

    def forward(self, x: Tensor) -> Any:
        return self.join(self, x)


def made(forward: Callable[[Any, Tensor], Any], shape: tuple[int, ...], **parts: nn.Module) -> tuple[Graph, Tensor]:
    """The graph of a network in eval mode with statistics as after training, and inputs of `shape`."""
    model = Net(forward, **parts).eval()
    for child in parts.values():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d) and child.running_mean is not None:
            nn.init.normal_(child.running_mean, std=0.3)
            nn.init.uniform_(child.running_var, 0.5, 2.0)
            if child.affine:
                nn.init.uniform_(child.weight, 0.5, 1.5)
                nn.init.normal_(child.bias, std=0.3)
    x = torch.randn(SAMPLES, *shape)
    return capture(model, x[:BATCH]), x


def tensor(graph: Graph, rewrite: Rewrite, name: str) -> Tensor:
    return rewrite.tensors.get(name, graph.program.tensors[name]).detach().double()


def by_hand(x: Tensor, t: Tensor, start: Tensor, ridge: float, intercept: bool) -> Fit:
    """Least squares on explicit rows x (n, k), t (n, o); λ as rows that pull towards `start`."""
    x, t = x.double(), t.double()
    mean_x, mean_t = (v.mean(0) if intercept else torch.zeros(v.shape[1]) for v in (x, t))
    x, t = x - mean_x, t - mean_t
    n, k = x.shape
    root = (n * ridge * float((x**2).mean())) ** 0.5
    rows = torch.cat([x, root * torch.eye(k, dtype=torch.float64)])
    targets = torch.cat([t, root * start.double().T])
    weight = torch.linalg.lstsq(rows, targets, driver="gelsd").solution.T
    return Fit(weight, mean_t - weight @ mean_x if intercept else torch.zeros(len(weight)))


def patches(x: Tensor, **how: Any) -> Tensor:
    """(rows, channels · kernel) by `F.unfold`."""
    return F.unfold(x, **how).transpose(1, 2).flatten(0, 1)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> None:
    error = float((a.double() - b.double()).abs().max()) / max(float(b.abs().max()), 1e-30)
    assert error < tolerance, error


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# ---- least squares, against explicit rows


@pytest.mark.parametrize("bias", [True, False])
def test_linear_consumers_front_to_back(bias: bool) -> None:
    """The second consumer is fitted to what the first one, already refitted, gives; what is cut isn't fitted."""
    graph, x = made(
        lambda m, x: m.c(torch.tanh(m.b(torch.tanh(m.a(x))))), (6,),
        a=nn.Linear(6, 8), b=nn.Linear(8, 7, bias=bias), c=nn.Linear(7, 3, bias=bias),
    )  # fmt: skip
    kept = {"a": [0, 2, 3, 7], "b": [1, 2, 4, 6]}
    rewrite = compensate(graph, make_plan(graph, kept), [x])
    weights = {name: held.detach() for name, held in graph.program.tensors.items()}
    hidden = torch.tanh(F.linear(x, weights["a.weight"], weights["a.bias"]))
    dense = F.linear(hidden, weights["b.weight"], weights.get("b.bias"))
    record = rewrite.record["consumers"]
    start = weights["b.weight"][kept["b"]][:, kept["a"]]
    first = by_hand(hidden[:, kept["a"]], dense[:, kept["b"]], start, record["linear_1"]["ridge"], bias)
    found = tensor(graph, rewrite, "b.weight")
    close(found[kept["b"]][:, kept["a"]], first.weight)
    assert torch.equal(found[[0, 3, 5]][:, kept["a"]], weights["b.weight"][[0, 3, 5]][:, kept["a"]].double())
    assert not found[:, [1, 4, 5, 6]].any()
    if bias:
        close(tensor(graph, rewrite, "b.bias")[kept["b"]], first.bias)
        assert torch.equal(rewrite.tensors["b.bias"][[0, 3, 5]], weights["b.bias"][[0, 3, 5]])
    second = by_hand(
        torch.tanh(hidden[:, kept["a"]].double() @ first.weight.T + first.bias),
        F.linear(torch.tanh(dense), weights["c.weight"], weights.get("c.bias")),
        weights["c.weight"][:, kept["b"]],
        record["linear_2"]["ridge"],
        bias,
    )
    close(tensor(graph, rewrite, "c.weight")[:, kept["b"]], second.weight)


class Transposed(nn.Module):
    """A linear layer that keeps its weight as (inputs, outputs)."""

    def __init__(self, like: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(like.weight.detach().T.clone()), like.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.T, self.bias)


def test_refits_see_what_was_made_of_a_weight_before() -> None:
    """A weight may be transposed long before its refit; what comes behind that one reads the new weight."""
    layers = [nn.Linear(6, 12), nn.Linear(12, 10), nn.Linear(10, 8), nn.Linear(8, 3)]
    outputs: list[Tensor] = []
    for second in (layers[1], Transposed(layers[1])):
        torch.manual_seed(0)
        graph, x = made(
            lambda m, x: m.d(torch.tanh(m.c(torch.tanh(m.b(torch.tanh(m.a(x))))))), (6,),
            a=layers[0], b=second, c=layers[2], d=layers[3],
        )  # fmt: skip
        plan = make_plan(graph, {"a": [0, 2, 3, 7, 8]})
        rewrite = compensate(graph, plan, list(x.split(BATCH)))
        outputs.append(run(graph.program, (x[:BATCH],), zero_columns(graph, plan, rewrite))[0])
    close(outputs[1], outputs[0])


@pytest.mark.parametrize("how", [{}, {"padding": 1}, {"padding": 2, "stride": 2, "dilation": 2}], ids=str)
@pytest.mark.parametrize("bias", ["own", "norm", "none"])
def test_convolutions(bias: str, how: dict[str, int]) -> None:
    """The new bias goes into the convolution, or from the running mean of the norm behind it, or nowhere."""
    graph, x = made(
        lambda m, x: m.bn(m.b(torch.sigmoid(m.a(x)))) if bias == "norm" else m.b(torch.sigmoid(m.a(x))), (6, 7, 7),
        a=nn.Conv2d(6, 5, 1), b=nn.Conv2d(5, 4, 3, bias=bias == "own", **how), bn=nn.BatchNorm2d(4),
    )  # fmt: skip
    kept = [0, 3, 4]
    rewrite = compensate(graph, make_plan(graph, {"a": kept}), [x], batchnorm=False)
    weights = {name: held.detach() for name, held in graph.program.tensors.items()}
    hidden = torch.sigmoid(F.conv2d(x, weights["a.weight"], weights["a.bias"]))
    dense = F.conv2d(hidden, weights["b.weight"], weights.get("b.bias"), **how)
    expected = by_hand(
        patches(hidden[:, kept], kernel_size=3, **how),
        dense.transpose(0, 1).flatten(1).T,
        weights["b.weight"][:, kept].flatten(1),
        rewrite.record["consumers"]["conv2d_1"]["ridge"],
        bias != "none",
    )
    close(tensor(graph, rewrite, "b.weight")[:, kept].flatten(1), expected.weight)
    if bias == "own":
        close(tensor(graph, rewrite, "b.bias"), expected.bias)
    if bias == "norm":
        close(tensor(graph, rewrite, "bn.running_mean"), weights["bn.running_mean"] - expected.bias)
        assert "bn.running_var" not in rewrite.tensors


@pytest.mark.parametrize("name", ["channel_slowest", "channel_fastest"])
def test_a_flatten_between_convolution_and_linear(name: str) -> None:
    model, _ = build(name)
    x = torch.randn(400, 3, 5, 5)
    graph = capture(model, x[:50])
    rewrite = compensate(graph, make_plan(graph, {"conv": [1, 2]}), [x])
    hidden = torch.relu(model.conv(x)).detach()
    stays = torch.zeros(4, dtype=torch.bool)
    stays[[1, 2]] = True
    if name == "channel_slowest":
        rows, columns = hidden.flatten(1), stays.repeat_interleave(9)
    else:
        rows, columns = hidden.permute(0, 2, 3, 1).flatten(1), stays.repeat(9)
    expected = by_hand(
        rows[:, columns], model.fc(rows), model.fc.weight[:, columns].detach(),
        rewrite.record["consumers"]["linear"]["ridge"], True,
    )  # fmt: skip
    close(tensor(graph, rewrite, "fc.weight")[:, columns], expected.weight.detach())
    assert not tensor(graph, rewrite, "fc.weight")[:, ~columns].any()


def test_a_bias_that_others_read_stays_and_is_taken_off_the_target() -> None:
    model = Net(
        lambda m, x: torch.cat([F.linear(torch.tanh(m.a(x)), m.b.weight, m.shared.bias), m.shared(x)], 1),
        a=nn.Linear(6, 8), b=nn.Linear(8, 4), shared=nn.Linear(6, 4),
    ).eval()  # fmt: skip
    nn.init.constant_(model.get_parameter("shared.bias"), 5.0)
    x = torch.randn(SAMPLES, 6)
    graph = capture(model, x[:BATCH])
    kept = [0, 1, 5]
    rewrite = compensate(graph, make_plan(graph, {"a": kept}), [x])
    assert "shared.bias" not in rewrite.tensors
    hidden = torch.tanh(model.get_submodule("a")(x)).detach()
    weight = model.get_parameter("b.weight").detach()
    ridge = rewrite.record["consumers"]["linear_1"]["ridge"]
    expected = by_hand(hidden[:, kept], hidden @ weight.T, weight[:, kept], ridge, False)
    close(tensor(graph, rewrite, "b.weight")[:, kept], expected.weight)


@pytest.mark.parametrize("name", ["dense", "depthwise", "grouped", "in_place", "auxiliary", "zero_gain", "lenet"])
def test_whatever_the_architecture_zero_columns_are_worse(name: str) -> None:
    model, inputs = build(name, BATCH)
    graph = capture(model, inputs)
    data = fit(graph.program, [NETS[name].inputs(BATCH) for _ in range(8)])
    plan = make_plan(graph, {g.name: range(max(1, g.width // 2)) for g in graph.groups})
    dense = run_all(graph.program, data.batches)
    errors: list[float] = []
    for method in ("least_squares", "bias", "none"):
        rewrite = compensate(graph, plan, data, method=method, batchnorm=False)
        found = run_all(graph.program, data.batches, rewrite.tensors)
        errors.append(sum(float(((a[0] - b[0]) ** 2).sum()) for a, b in zip(dense, found, strict=True)))
    assert errors[0] < errors[1] < errors[2]


# ---- the shortcut target


def residual(downsample: bool, shortcut_first: bool = False) -> tuple[Graph, Tensor]:
    """Two residual blocks, the second of them perhaps with a convolution in its shortcut."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = torch.tanh(m.stem(x))
        x = x + m.n1(m.b1(torch.relu(m.a1(x))))
        if not downsample:
            return m.head((x + m.n2(m.b2(torch.relu(m.a2(x))))).mean((2, 3)))
        if shortcut_first:
            s = m.ns(m.s(x))
            return m.head((s + m.n2(m.b2(torch.relu(m.a2(x))))).mean((2, 3)))
        y = m.n2(m.b2(torch.relu(m.a2(x))))
        return m.head((y + m.ns(m.s(x))).mean((2, 3)))

    return made(forward, (3, 6, 6), **residual_parts())


def residual_parts() -> dict[str, nn.Module]:
    return {
        "stem": nn.Conv2d(3, 6, 1), "head": nn.Linear(6, 4),
        "a1": nn.Conv2d(6, 8, 3, padding=1), "b1": nn.Conv2d(8, 6, 3, padding=1, bias=False), "n1": nn.BatchNorm2d(6),
        "a2": nn.Conv2d(6, 8, 3, padding=1), "b2": nn.Conv2d(8, 6, 3, padding=1, bias=False), "n2": nn.BatchNorm2d(6),
        "s": nn.Conv2d(6, 6, 1, bias=False), "ns": nn.BatchNorm2d(6),
    }  # fmt: skip


def stream(graph: Graph, x: Tensor, rewrite: Rewrite) -> Tensor:
    """The last sum of a residual network."""
    found: list[Tensor] = []
    for batch in fit(graph.program, [x]).batches:
        sums: list[Tensor] = []

        def note(node: Any, args: Any, value: Any, sums: list[Tensor] = sums) -> None:
            if "add.Tensor" in str(node.target):
                sums.append(value)

        run(graph.program, batch, rewrite.tensors, observe=note)
        found.append(sums[-1])
    return torch.cat(found)


@pytest.mark.parametrize("downsample", [False, True])
@pytest.mark.parametrize("shortcut_first", [False, True])
def test_the_target_sum_repairs_the_stream(downsample: bool, shortcut_first: bool) -> None:
    graph, x = residual(downsample, shortcut_first)
    plan = make_plan(graph, {"a1": [0, 3], "a2": [1, 2, 5, 7]})
    dense = stream(graph, x, Rewrite({}))
    error = {}
    for target in ("sum", "own"):
        rewrite = compensate(graph, plan, [x], target=target, rounds=0, batchnorm=False)
        error[target] = float(((stream(graph, x, rewrite) - dense) ** 2).sum())
    assert error["sum"] < error["own"]


def test_the_target_sum_by_hand() -> None:
    """T = W X + (s_dense − s_cut) / a with the gain a = γ/σ of the norm between."""
    graph, x = residual(False)
    kept = [1, 2, 5, 7]
    rewrite = compensate(graph, make_plan(graph, {"a1": [0, 3], "a2": kept}), [x], rounds=0, batchnorm=False)
    model, refitted = dense_of(graph), dense_of(graph)
    refitted.load_state_dict(dict(rewrite.tensors), strict=False)

    def first_block(m: Any) -> Tensor:
        s = torch.tanh(m.stem(x))
        return s + m.n1(m.b1(torch.relu(m.a1(s))))

    dense, now = first_block(model), first_block(refitted)
    gain = (model.n2.weight / (model.n2.running_var + model.n2.eps).sqrt())[:, None, None]
    target = model.b2(torch.relu(model.a2(dense))) + (dense - now) / gain
    expected = by_hand(
        patches(torch.relu(refitted.a2(now))[:, kept], kernel_size=3, padding=1),
        target.transpose(0, 1).flatten(1).T,
        model.b2.weight[:, kept].flatten(1),
        next(record["ridge"] for record in rewrite.record["consumers"].values() if record["module"] == "b2"),
        True,
    )
    close(refitted.b2.weight[:, kept].flatten(1), expected.weight, 1e-3)
    close(refitted.n2.running_mean, model.n2.running_mean - expected.bias, 1e-3)


def dense_of(graph: Graph) -> Any:
    """The parts of a network made by `residual`, with the graph's tensors, without gradients."""
    model = Net(lambda m, x: x, **residual_parts()).eval()
    model.load_state_dict({name: held.detach().clone() for name, held in graph.program.tensors.items()})
    return model.requires_grad_(False)


def test_only_one_side_of_a_sum_repairs_it() -> None:
    """Each of the two convolutions would have to wait for the other: the first one in the program waits."""
    for shortcut_first, waiting, free in ((False, "b2", "s"), (True, "s", "b2")):
        graph, _ = residual(True, shortcut_first)
        order = schedule(graph)
        partner = {
            s.module: order.paths[node].partner for node in order.nodes for s in graph.sites if s.node == node.name
        }
        assert partner[free] is None
        assert partner[waiting] is not None
        positions = {node.name: i for i, node in enumerate(order.nodes)}
        site = next(s for s in graph.sites if s.module == waiting)
        assert positions[partner[waiting].name] < positions[site.node]
        assert sorted(positions) == sorted(n.name for n in graph.program.nodes if n.op == "call_function")


@pytest.mark.parametrize("name", NETS)
def test_the_schedule_is_an_order_of_the_program(name: str) -> None:
    graph = capture(*build(name))
    done = {node for node in graph.program.nodes if node.op != "call_function"}
    for node in schedule(graph).nodes:
        assert all(source in done for source in node.all_input_nodes)
        done.add(node)
    assert done == set(graph.program.nodes)


def test_paths_that_are_not_affine_keep_their_own_target() -> None:
    """A norm with the statistics of its batch, a sum with another shape, a scaled sum, two readers."""
    bare = nn.BatchNorm1d(6, track_running_stats=False)
    forwards: list[Callable[[Any, Tensor], Tensor]] = [
        lambda m, x: m.c(x + m.bn(m.b(torch.relu(m.a(x))))),
        lambda m, x: m.c(x[:1] + m.b(torch.relu(m.a(x)))),
        lambda m, x: m.c(torch.add(m.b(torch.relu(m.a(x))), x, alpha=2)),
        lambda m, x: m.c(x + (y := m.b(torch.relu(m.a(x)))) + torch.tanh(y)),
        lambda m, x: m.c((y := m.b(torch.relu(m.a(x)))) + y),
        lambda m, x: m.c(x + torch.tanh(m.b(torch.relu(m.a(x))))),
    ]
    for forward in forwards:
        graph, _ = made(forward, (6,), a=nn.Linear(6, 8), b=nn.Linear(8, 6), bn=bare, c=nn.Linear(6, 3))
        paths = {site.module: schedule(graph).paths[node] for site in graph.sites for node in graph.program.nodes
                 if node.name == site.node}  # fmt: skip
        assert paths["b"].partner is None and not paths["b"].rectified
        assert paths["a"].rectified


def test_outputs_behind_a_tiny_gain_keep_their_own_target() -> None:
    """To aim at the stream through a gain of zero would need infinite weights."""
    graph, x = residual(False)
    model = dense_of(graph)
    gains = graph.program.tensors["n2.weight"].detach()
    gains[[0, 3]] = torch.tensor([0.0, 1e-5])
    rewrite = compensate(graph, make_plan(graph, {"a1": [0, 3], "a2": [1, 2, 5, 7]}), [x], batchnorm=False)
    weight = tensor(graph, rewrite, "b2.weight")
    assert bool(torch.isfinite(weight).all())
    assert float(weight[[0, 3]].abs().max()) < 10 * float(model.b2.weight.abs().max())
    gains.zero_()  # all of them
    rewrite = compensate(graph, make_plan(graph, {"a1": [0, 3], "a2": [1, 2, 5, 7]}), [x], batchnorm=False)
    assert all(bool(torch.isfinite(t).all()) for t in rewrite.tensors.values())


# ---- λ


def test_the_ridge_is_the_best_on_held_out_folds() -> None:
    for noise, rows in ((0.0, 60), (0.3, 30), (3.0, 15)):
        x = torch.randn(rows, 8, dtype=torch.float64)
        truth = torch.randn(2, 8, dtype=torch.float64)
        t = x @ truth.T + noise * torch.randn(rows, 2, dtype=torch.float64)
        start = truth + 0.1 * torch.randn(2, 8, dtype=torch.float64)
        for intercept in (True, False):
            errors = dict.fromkeys(RIDGES, 0.0)
            for f in range(3):
                held = torch.arange(rows) % 3 == f
                for ridge in RIDGES:
                    fitted = by_hand(x[~held], t[~held], start, ridge, intercept)
                    errors[ridge] += float(((x[held] @ fitted.weight.T + fitted.bias - t[held]) ** 2).sum(1).mean())
            folds = [normal(x[f::3], t[f::3]) for f in range(3)]
            assert choose_ridge(folds, start, intercept) == min(errors, key=errors.__getitem__)
    assert choose_ridge(folds[:1], start, True) == 1e-3


def test_fewer_samples_than_columns_hardly_move_weights_that_they_say_little_of() -> None:
    """The fits are worse than the weights as they are, on other samples, up to a λ of ten variances."""
    start = torch.randn(1, 60, dtype=torch.float64)

    def drawn(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(rows, 60, dtype=torch.float64)
        return x, x @ start.T + 8 * torch.randn(rows, 1, dtype=torch.float64)

    folds = [normal(*drawn(15)) for _ in range(3)]
    x, t = drawn(2000)

    def error(ridge: float) -> float:
        found = solve(merged_all(folds), start, ridge, True)
        return float((x @ found.weight.T + found.bias - t).square().mean())

    chosen = choose_ridge(folds, start, True)
    assert chosen >= 1
    assert error(chosen) < 1.1 * float((x @ start.T - t).square().mean()) < 0.9 * error(0.1)


def test_useless_columns_shrink_to_the_weights_that_are_there() -> None:
    x = torch.randn(50, 4, dtype=torch.float64)
    x[:, 2] = 0
    start = torch.randn(3, 4, dtype=torch.float64)
    for intercept in (True, False):
        found = solve(normal(x, x @ torch.randn(4, 3, dtype=torch.float64)), start, 1e-3, intercept)
        close(found.weight[:, 2], start[:, 2], 1e-9)


def test_samples_are_dealt_to_the_folds_whole() -> None:
    """Few batches of images: were their positions dealt, the folds would know each other's patches."""
    graph, _ = made(
        lambda m, x: m.b(torch.relu(m.a(x))), (2, 5, 5), a=nn.Conv2d(2, 4, 1), b=nn.Conv2d(4, 3, 1)
    )  # fmt: skip
    x = torch.randn(2 * BATCH, 2, 1, 1).expand(-1, -1, 5, 5) + 0.01 * torch.randn(2 * BATCH, 2, 5, 5)
    rewrite = compensate(graph, make_plan(graph, {"a": [0, 1, 2]}), [x])
    ridge = rewrite.record["consumers"]["conv2d_1"]["ridge"]
    model = graph.program.tensors
    hidden = torch.relu(F.conv2d(x, model["a.weight"], model["a.bias"])).detach()
    target = F.conv2d(hidden, model["b.weight"], model["b.bias"]).detach()
    rows, targets = (v.permute(0, 2, 3, 1) for v in (hidden[:, :3], target))
    folds = [normal(rows[f::3].flatten(0, 2), targets[f::3].flatten(0, 2)) for f in range(3)]
    assert ridge == choose_ridge(folds, model["b.weight"].detach()[:, :3].flatten(1).double(), True)


# ---- in front of a ReLU


def problem(rows: int = 200, columns: int = 6, outputs: int = 5) -> tuple[Tensor, Rectified]:
    """Rows, and targets that are linear in them where the ReLU is on, but far beyond that where it is off."""
    x = torch.randn(rows, columns, dtype=torch.float64)
    sign = torch.tensor([1.0, -1.0] * outputs)[:outputs]
    t = x @ torch.randn(columns, outputs, dtype=torch.float64) + 0.3 * torch.randn(rows, outputs, dtype=torch.float64)
    bound = 0.3 * torch.randn(rows, outputs, dtype=torch.float64)
    off = torch.where(sign > 0, t <= bound, t >= bound)
    return x, Rectified(torch.where(off, 2 * t - sign, t), off, bound, sign)


def loss_of(x: Tensor, wanted: Rectified, weight: Tensor, bias: Tensor) -> Tensor:
    """(o,) Σ_{v > 0} (ŷ − t)² + Σ_{v ≤ 0} max(ŷ − θ, 0)², the other way round where the gain is negative."""
    y = x @ weight.T + bias
    beyond = (wanted.sign * (y - wanted.bound)).clamp_min(0)
    return torch.where(wanted.off, beyond**2, (y - wanted.target) ** 2).sum(0)


def smallest(loss: Callable[[Tensor, Tensor], Tensor], weight: Tensor, bias: Tensor) -> float:
    """By L-BFGS from a given point."""
    weight, bias = weight.clone().requires_grad_(True), bias.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=1000, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(weight, bias).sum()
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[arg-type]
    return float(loss(weight.detach(), bias.detach()).sum())


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("ridge", [1e-6, 1e-3, 0.1])
def test_a_refit_of_few_rows_is_that_of_their_equations(
    ridge: float, intercept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """λ by fold too, and on a part of the columns."""
    x, start = torch.randn(24, 100, dtype=torch.float64) + 2, torch.randn(5, 100, dtype=torch.float64)
    t, columns = x @ start.T + torch.randn(24, 5, dtype=torch.float64), torch.arange(0, 100, 2)
    found: list[list[Tensor | float]] = []
    for few in (False, True):
        monkeypatch.setattr("actprune.stats.moments.LONG", 1 if few else 1000)
        folds = [normal(x[fold::3], t[fold::3]) for fold in range(3)]
        assert isinstance(folds[0].inner, Few) is few
        fits = [solve(equations, own, ridge, intercept) for equations, own in (
            (merged_all(folds), start / 2), (part(merged_all(folds), columns), start[:, columns] / 2))]  # fmt: skip
        found.append(
            [*(value for fit in fits for value in (fit.weight, fit.bias)), choose_ridge(folds, start / 2, intercept)]
        )
    for a, b in zip(*found, strict=True):
        assert torch.allclose(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("intercept", [True, False])
def test_the_rectified_loss_is_minimised(intercept: bool) -> None:
    x, wanted = problem()
    equations = normal(x, wanted.target)
    start = torch.zeros(5, 6, dtype=torch.float64)
    ridge = Ridge(equations.inner, 1e-9, intercept)
    plain = ridge.fit(equations.outer, start)

    def fitted(rounds: int, batches: int = 4) -> Tensor:
        parts = [
            Rectified(t, o, b, wanted.sign)
            for t, o, b in zip(*(v.chunk(batches) for v in (wanted.target, wanted.off, wanted.bound)), strict=True)
        ]
        found = rectified_fit(lambda: map(centred, x.chunk(batches)), parts, ridge, plain, start, rounds)
        assert intercept or not found.bias.any()
        return loss_of(x, wanted, found.weight, found.bias)

    before = loss_of(x, wanted, plain.weight, plain.bias)
    for rounds in (1, 2, 3, 12):
        assert bool((fitted(rounds) <= before * (1 + 1e-12)).all())
    bias = torch.zeros(5, dtype=torch.float64)
    free = lambda w, b: loss_of(x, wanted, w, b if intercept else bias)  # noqa: E731
    best = smallest(free, plain.weight, plain.bias)
    assert best < 0.9 * float(before.sum())
    assert float(fitted(200).sum()) == pytest.approx(best, rel=1e-3)
    assert float(fitted(12).sum()) < best + 0.1 * (float(before.sum()) - best)


def test_a_rectified_fit_of_no_rounds_or_no_rows() -> None:
    x, wanted = problem()
    equations = normal(x, wanted.target)
    ridge = Ridge(equations.inner, 1e-3, True)
    plain = ridge.fit(equations.outer, torch.zeros(5, 6, dtype=torch.float64))
    found = rectified_fit(lambda: [centred(x)], [wanted], ridge, plain, plain.weight, 0)
    assert torch.equal(found.weight, plain.weight) and torch.equal(found.bias, plain.bias)


def rectified_net(kind: str) -> tuple[Graph, Tensor]:
    """A convolution in front of a ReLU: bare, behind a norm with negative gains, or in a sum with its own input."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = torch.tanh(m.stem(x))
        h = torch.sigmoid(m.a0(x))
        s = x + m.b0(h)  # the stream that the sum joins, cut as well
        y = m.b(torch.sigmoid(m.a(s)))
        y = m.bn(y) if kind != "bare" else y
        y = s + y if kind == "sum" else y
        return m.head(torch.relu(y).mean((2, 3)))

    graph, x = made(
        forward, (3, 4, 4),
        stem=nn.Conv2d(3, 4, 1), a0=nn.Conv2d(4, 6, 1), b0=nn.Conv2d(6, 4, 1), a=nn.Conv2d(4, 8, 1),
        b=nn.Conv2d(8, 4, 1), bn=nn.BatchNorm2d(4), head=nn.Linear(4, 3),
    )  # fmt: skip
    if kind != "bare":
        weights = {name: graph.program.tensors[f"bn.{name}"].detach() for name in ("weight", "bias", "running_mean")}
        weights["weight"][[1, 2]] *= -1
        values = inputs_of(graph, x, {}, "b", True)  # so that the ReLU is off about half of the time
        weights["running_mean"].copy_(values.mean((0, 2, 3)))
        graph.program.tensors["bn.running_var"].copy_(values.var((0, 2, 3)))
        weights["bias"].zero_()
    return graph, x


def relu_inputs(graph: Graph, x: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    found: list[Tensor] = []

    def note(node: Any, args: Any, value: Any) -> None:
        if "relu" in str(node.target):
            found.append(args[0])

    for batch in fit(graph.program, [x]).batches:
        run(graph.program, batch, tensors, observe=note)
    return torch.cat(found).double()


@pytest.mark.parametrize("kind", ["bare", "norm", "sum"])
def test_the_rectified_loss_in_a_network(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actprune.compensation.ridge.RIDGES", (1e-9,) * 3)
    graph, x = rectified_net(kind)
    plan = make_plan(graph, {"a0": [0, 4], "a": [0, 2, 5]})
    dense = relu_inputs(graph, x, {})
    gain = torch.ones(4, dtype=torch.float64)
    if kind != "bare":
        held = {name: graph.program.tensors[f"bn.{name}"].detach().double() for name in ("weight", "running_var")}
        gain = held["weight"] / (held["running_var"] + 1e-5).sqrt()

    def loss(tensors: dict[str, Tensor]) -> Tensor:
        now = relu_inputs(graph, x, tensors)
        error = torch.where(dense > 0, now - dense, now.clamp_min(0)) / gain[:, None, None]
        return (error**2).sum((0, 2, 3))

    found = {n: dict(compensate(graph, plan, [x], rounds=n, batchnorm=False).tensors) for n in (0, 3, 12, 300)}
    losses = {rounds: loss(tensors) for rounds, tensors in found.items()}
    for rounds in (3, 12, 300):
        assert bool((losses[rounds] <= losses[0] * (1 + 1e-4)).all())
    assert float(losses[12].sum()) < 0.99 * float(losses[0].sum())
    # the same loss as a function of the last convolution, minimised from its plain fit
    base = found[0]
    hidden = inputs_of(graph, x, base, "b")[:, [0, 2, 5]].double()
    now = relu_inputs(graph, x, base)
    weight = base["b.weight"][:, [0, 2, 5], 0, 0].double()
    rest = now - gain[:, None, None] * torch.einsum("oc,nchw->nohw", weight, hidden)

    def free(w: Tensor, b: Tensor) -> Tensor:
        value = rest + gain[:, None, None] * (torch.einsum("oc,nchw->nohw", w, hidden) + b[:, None, None])
        error = torch.where(dense > 0, value - dense, value.clamp_min(0)) / gain[:, None, None]
        return (error**2).sum((0, 2, 3))

    best = smallest(free, weight, torch.zeros(4, dtype=torch.float64))
    assert float(losses[300].sum()) == pytest.approx(best, rel=1e-3)


def inputs_of(graph: Graph, x: Tensor, tensors: dict[str, Tensor], module: str, result: bool = False) -> Tensor:
    """What a module's convolution gets, or gives."""
    site = next(site for site in graph.sites if site.module == module)
    found: list[Tensor] = []

    def note(node: Any, args: Any, value: Any) -> None:
        if node.name == site.node:
            found.append(value if result else args[0])

    for batch in fit(graph.program, [x]).batches:
        run(graph.program, batch, tensors, observe=note)
    return torch.cat(found)


# ---- identities


@pytest.mark.parametrize("rounds", [0, 12])
@pytest.mark.parametrize("kind", ["dead", "constant", "duplicate"])
def test_what_carries_nothing_of_its_own_is_lost_without_a_trace(kind: str, rounds: int) -> None:
    """A dead, a constant or a duplicate channel in front of an unpadded convolution."""
    graph, x = made(
        lambda m, x: m.c(torch.relu(m.b(torch.relu(m.a(x)))).mean((2, 3))), (3, 7, 7),
        a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(6, 5, 3), c=nn.Linear(5, 4),
    )  # fmt: skip
    weight, bias = (graph.program.tensors[f"a.{name}"].detach() for name in ("weight", "bias"))
    if kind == "duplicate":
        weight[4], bias[4] = weight[1], bias[1]
    else:
        weight[4], bias[4] = 0.0, (-1.0 if kind == "dead" else 2.0)
    plan = make_plan(graph, {"a": [0, 1, 2, 3, 5]})
    batch = fit(graph.program, [x]).batches[1]
    (dense,) = run(graph.program, batch)
    (found,) = run(graph.program, batch, compensate(graph, plan, [x], rounds=rounds).tensors)
    close(found, dense, 1e-6)
    (zeroed,) = run(graph.program, batch, zero_columns(graph, plan))
    assert kind == "dead" or float((zeroed - dense).abs().max()) > 1e-2


@pytest.mark.parametrize("bias", ["own", "norm", "none"])
def test_method_bias_restores_the_mean_of_every_output(bias: str) -> None:
    graph, x = made(
        lambda m, x: m.bn(m.b(torch.relu(m.a(x)))) if bias == "norm" else m.b(torch.relu(m.a(x))), (2, 5, 5),
        a=nn.Conv2d(2, 5, 1), b=nn.Conv2d(5, 4, 3, padding=1, bias=bias == "own"), bn=nn.BatchNorm2d(4),
    )  # fmt: skip
    plan = make_plan(graph, {"a": [0, 3]})
    rewrite = compensate(graph, plan, [x], method="bias", batchnorm=False)
    zeros = zero_columns(graph, plan)
    assert torch.equal(rewrite.tensors["b.weight"], zeros["b.weight"])
    data = fit(graph.program, [x])
    means = [
        torch.cat([out[0] for out in run_all(graph.program, data.batches, tensors)]).double().mean((0, 2, 3))
        for tensors in ({}, rewrite.tensors, zeros)
    ]
    if bias == "none":
        assert set(rewrite.tensors) == {"b.weight"}
    else:
        close(means[1], means[0], 1e-5)
        assert float((means[2] - means[0]).abs().max()) > 1e-2


def test_method_bias_puts_dense_means_in_the_place_of_what_goes() -> None:
    """FLAP's equation 6: whatever was cut in front of a layer, its bias gets W · mean of its own inputs that go."""
    graph, x = made(
        lambda m, x: m.c(torch.relu(m.b(torch.relu(m.a(x))))),
        (6,),
        a=nn.Linear(6, 8),
        b=nn.Linear(8, 7),
        c=nn.Linear(7, 3),
    )
    rewrite = compensate(graph, make_plan(graph, {"a": [0, 3, 4], "b": [1, 2, 6]}), [x], method="bias")
    weights = {name: value.detach().double() for name, value in graph.program.tensors.items()}
    hidden = torch.relu(F.linear(x.double(), weights["a.weight"], weights["a.bias"]))
    for name, goes in (("b", [1, 2, 5, 6, 7]), ("c", [0, 3, 4, 5])):
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        close(tensor(graph, rewrite, f"{name}.bias"), bias + weight[:, goes] @ hidden[:, goes].mean(0), 1e-5)
        hidden = torch.relu(F.linear(hidden, weight, bias))


def test_method_none_is_zero_columns() -> None:
    model, inputs = build("chain")
    graph = capture(model, inputs)
    plan = make_plan(graph, {"fc1": [0, 1], "fc2": [3]})
    zeros = zero_columns(graph, plan)
    for method in ("none", None):
        rewrite = compensate(graph, plan, (), method=method)  # no data needed
        assert rewrite.tensors.keys() == zeros.keys()
        assert all(torch.equal(rewrite.tensors[name], zeros[name]) for name in zeros)


class Twins(nn.Module):
    """One tower for two inputs, in two calls or in one."""

    def __init__(self, calls: int, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.calls = calls
        self.tower = nn.Sequential(nn.Conv1d(3, 8, 2), nn.ReLU(), nn.Conv1d(8, 4, 2, bias=bias), nn.Flatten())
        self.far = nn.Linear(16, 2, bias=bias)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if self.calls == 1:
            one, two = self.far(self.tower(torch.cat([a, b]))).chunk(2)
        else:
            one, two = self.far(self.tower(a)), self.far(self.tower(b))
        return one - 2 * two


@pytest.mark.parametrize("bias", [True, False])
def test_a_weight_of_several_calls_is_refitted_for_all_of_them(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actprune.compensation.ridge.RIDGES", (1e-3,) * 3)
    a, b = torch.randn(2, 96, 3, 6)
    data = list(zip(a.split(8), b.split(8), strict=True))
    rewrites = []
    for calls in (1, 2):
        graph = capture(Twins(calls, bias).eval(), data[0])
        plan = make_plan(graph, {"tower.0": [0, 2, 3]})
        batches = Calibration(tuple((x, y) for x, y in data), 96)
        rewrites.append(compensate(graph, plan, batches, rounds=0, scope="cut"))
    joined, apart = rewrites
    assert apart.tensors.keys() == joined.tensors.keys() == {"tower.2.weight", *(["tower.2.bias"] if bias else [])}
    for name, tensor in joined.tensors.items():
        torch.testing.assert_close(apart.tensors[name], tensor, rtol=1e-3, atol=1e-4)
    assert [one["columns"] for one in apart.record["consumers"].values()] == [6, 6]


@pytest.mark.parametrize(
    ("name", "changing", "method"),
    [
        ("tied", {"middle.weight", "middle.bias"}, "least_squares"),
        ("tied", {"middle.weight", "middle.bias"}, "bias"),
        ("tied_heads", set(), "bias"),
        ("reused", {"head.weight", "head.bias"}, "bias"),
    ],
)
def test_weights_that_are_read_twice_are_only_cut(name: str, changing: set[str], method: str) -> None:
    model, inputs = build(name, BATCH)
    graph = capture(model, inputs)
    plan = make_plan(graph, {g.name: range(g.width // 2) for g in graph.groups})
    zeros = zero_columns(graph, plan)
    rewrite = compensate(graph, plan, [NETS[name].inputs(64)], method=method)
    for tensor_name, held in rewrite.tensors.items():
        if tensor_name not in changing:
            assert torch.equal(held, zeros[tensor_name]), tensor_name
    assert changing & rewrite.tensors.keys() or not changing


def test_a_scaled_product_is_only_cut() -> None:
    graph, x = made(
        lambda m, x: torch.addmm(m.b.bias, torch.relu(m.mid(torch.relu(m.a(x)))), m.b.weight.t(), beta=0.5, alpha=2.0),
        (6,), a=nn.Linear(6, 8), mid=nn.Linear(8, 7), b=nn.Linear(7, 3),
    )  # fmt: skip
    rewrite = compensate(graph, make_plan(graph, {"a": [0, 1, 2]}), [x])
    assert not {"b.weight", "b.bias"} & rewrite.tensors.keys()


def test_the_scope() -> None:
    model, _ = build("chain")
    x = torch.randn(64, 6)
    graph = capture(model, x[:BATCH])
    plan = make_plan(graph, {"fc1": [0, 1, 2]})
    assert set(compensate(graph, plan, [x], scope="cut").tensors) == {"fc2.weight", "fc2.bias"}
    assert set(compensate(graph, plan, [x]).tensors) == {"fc2.weight", "fc2.bias", "fc3.weight", "fc3.bias"}
    assert compensate(graph, make_plan(graph, {}), [x]).tensors == {}


@pytest.mark.parametrize("batches", [[1], [2], [1] * 9, [5]], ids=str)
def test_few_samples(batches: Sequence[int]) -> None:
    """One sample, fewer than folds, many batches of one: always finite."""
    model, _ = build("residual")
    for size in dict.fromkeys(batches):
        graph = capture(model, torch.randn(size, 3, 5, 5))
        data = [torch.randn(n, 3, 5, 5) for n in batches]
        rewrite = compensate(graph, make_plan(graph, {"conv1": [0, 1], "stem": [0, 3, 4]}), data)
        assert all(bool(torch.isfinite(held).all()) for held in rewrite.tensors.values())


def test_many_positions_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a number of rows positions are skipped, other ones in every batch; the fit hardly changes."""
    graph, x = made(
        lambda m, x: m.b(torch.relu(m.a(x))), (2, 8, 8), a=nn.Conv2d(2, 5, 1), b=nn.Conv2d(5, 3, 1)
    )  # fmt: skip
    plan = make_plan(graph, {"a": [0, 1, 3]})
    full = compensate(graph, plan, [x])
    monkeypatch.setattr("actprune.stats.patches.LEAST_COLUMNS", 1000)
    monkeypatch.setattr("actprune.compensation.rows.HELD", 0)  # rows are made again for every round
    thin = compensate(graph, plan, [x], rows=1)
    counts = [r.record["consumers"]["conv2d_1"]["rows"] for r in (full, thin)]
    assert counts[0] == SAMPLES * 64 and 1000 <= counts[1] < 1300
    close(thin.tensors["b.weight"], full.tensors["b.weight"], 0.3)


def test_half_precision() -> None:
    model, _ = build("residual")
    x = torch.randn(64, 3, 5, 5).bfloat16()
    graph = capture(model.bfloat16(), x[:BATCH])
    plan = make_plan(graph, {"conv1": [0, 1, 4], "stem": [0, 3, 4, 6]})
    data = fit(graph.program, [x])
    dense = [out[0].float() for out in run_all(graph.program, data.batches)]

    def error(tensors: dict[str, Tensor]) -> float:
        found = run_all(graph.program, data.batches, tensors)
        return sum(float(((a - b[0]) ** 2).sum()) for a, b in zip(dense, found, strict=True))

    rewrite = compensate(graph, plan, data)
    assert all(held.dtype == torch.bfloat16 for held in rewrite.tensors.values())
    assert error(dict(rewrite.tensors)) < 0.5 * error(zero_columns(graph, plan))


def test_nothing_of_the_callers_changes() -> None:
    """Parameters that require gradients, other modes, hooks, the random state; the result has no gradients."""
    model, _ = build("residual")
    model.train()
    model.bn.eval()
    x = torch.randn(64, 3, 5, 5, requires_grad=True)
    before = {name: held.clone() for name, held in model.state_dict().items()}
    graph = capture(model, x[:BATCH].detach())
    state = torch.get_rng_state()
    rewrite = compensate(graph, make_plan(graph, {"conv1": [0, 1], "stem": [0, 3]}), [x])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(held, before[name]) for name, held in model.state_dict().items())
    assert model.training and not model.bn.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(held.requires_grad for held in rewrite.tensors.values())
    assert x.grad is None


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("method", "least-squares", "did you mean 'least_squares'?"),
        ("target", "summ", "did you mean 'sum'?"),
        ("scope", "every", "expected: one of all, cut"),
        ("batchnorm", "yes", "expected: one of auto"),
        ("distance", "klm", "did you mean 'kl'?"),
    ],
)
def test_unknown_settings(setting: str, value: str, words: str) -> None:
    model, inputs = build("residual")
    graph = capture(model, inputs)
    with pytest.raises(PlanError) as caught:
        compensate(graph, make_plan(graph, {"conv1": [0]}), [inputs], **{setting: value})
    assert words in str(caught.value)


# ---- BatchNorm


def test_reestimated_statistics_are_those_of_the_cut_stream() -> None:
    graph, x = residual(False)
    plan = make_plan(graph, {"a1": [0, 3], "a2": [1, 2, 5]})
    overrides = compensate(graph, plan, [x], batchnorm=False).tensors
    data = fit(graph.program, [x])
    found = reestimate(graph.program, data.batches, overrides)
    assert set(found) == {"n1.running_mean", "n1.running_var", "n2.running_mean", "n2.running_var"}
    for norm, before in (("n1", {}), ("n2", {n: t for n, t in found.items() if n.startswith("n1")})):
        values: list[Tensor] = []

        def note(node: Any, args: Any, value: Any, norm: str = norm, values: list[Tensor] = values) -> None:
            if "batch_norm" in str(node.target) and graph.program.bindings[node.args[3].name].startswith(norm):
                values.append(args[0])

        for batch in data.batches:
            run(graph.program, batch, {**overrides, **before}, observe=note)
        rows = torch.cat(values).double().transpose(0, 1).flatten(1)
        close(found[f"{norm}.running_mean"], rows.mean(1), 1e-5)
        close(found[f"{norm}.running_var"], rows.var(1), 1e-5)


def test_norms_in_front_of_the_cut_and_shared_ones_keep_their_statistics() -> None:
    graph, x = made(
        lambda m, x: m.c(torch.relu(m.twice(m.twice(m.b(torch.relu(m.first(m.a(x)))))))), (6,),
        a=nn.Linear(6, 8), first=nn.BatchNorm1d(8), b=nn.Linear(8, 7), twice=nn.BatchNorm1d(7), c=nn.Linear(7, 3),
    )  # fmt: skip
    plan = make_plan(graph, {"a": [0, 1, 2]})
    assert reestimate(graph.program, fit(graph.program, [x]).batches, zero_columns(graph, plan)) == {}


@pytest.mark.parametrize("method", ["least_squares", "bias", "none"])
@pytest.mark.parametrize("helps", [True, False])
def test_reestimation_is_kept_where_the_held_out_distance_falls(helps: bool, method: str) -> None:
    graph, x = residual(False)
    plan = make_plan(graph, {"a1": [0, 3]})
    given = iter([1.0, 0.5 if helps else 1.0])
    rewrite = compensate(graph, plan, [x], method=method, distance=lambda dense, now: next(given))
    expected = {"distance_before": 1.0, "distance_after": 0.5 if helps else 1.0, "kept": helps}
    assert rewrite.record["batchnorm"] == expected
    assert ("n2.running_var" in rewrite.tensors) == helps
    never = compensate(graph, plan, [x], method=method, batchnorm=False)
    always = compensate(graph, plan, [x], method=method, batchnorm=True)
    assert "n2.running_var" not in never.tensors and "batchnorm" not in never.record
    assert "n2.running_var" in always.tensors and always.record["batchnorm"]["kept"]


def test_a_network_without_norms_has_none_to_reestimate() -> None:
    model, inputs = build("chain")
    graph = capture(model, inputs)
    rewrite = compensate(graph, make_plan(graph, {"fc1": [0]}), [inputs], batchnorm=True)
    assert "batchnorm" not in rewrite.record


# ---- the two streams


class Views(nn.Module):
    """Writes into a view of a value that both streams share, what only the cut stream changes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.side, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(torch.relu(self.a(x)))
        k = self.side(x).clone()
        k[:, :4] += h[:, :4]
        return self.c(torch.relu(k))


@pytest.mark.parametrize("name", [*NETS, "views"])
def test_streams_agree_with_the_interpreter_and_hold_little(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = (Views().eval(), torch.randn(4, 6)) if name == "views" else build(name)
    graph = capture(model, inputs)
    program = graph.program
    batches = [program.example, tuple(v * 0.5 if isinstance(v, Tensor) else v for v in program.example)]
    overrides = zero_columns(graph, make_plan(graph, {g.name: [0] for g in graph.groups}))
    order = schedule(graph).nodes
    streams = Streams(program, batches, order)
    streams.overrides = dict(overrides)
    most = 0
    for node in order:
        streams.step(node)
        most = max(most, sum(held.op == "call_function" for held in streams._dense))
    outputs = [out for out in program.outputs if isinstance(out, torch.fx.Node)]
    for i, batch in enumerate(batches):
        for expected, found in ((run(program, batch), streams.dense), (run(program, batch, overrides), streams.cut)):
            values = [v for v, out in zip(expected, program.outputs, strict=True) if out in outputs]
            for value, out in zip(values, outputs, strict=True):
                torch.testing.assert_close(found(out)[i], value)
    left = {held for held in streams._dense if held.op == "call_function"}
    unread = {node for node in order if not node.users}
    assert left <= {*outputs, *unread}
    assert most < len(order) or len(order) < 4


def test_compensation_in_a_network_that_writes_into_views() -> None:
    torch.manual_seed(0)
    model = Views().eval()
    x = torch.randn(SAMPLES, 6)
    graph = capture(model, x[:BATCH])
    plan = make_plan(graph, {"a": [0, 1, 2]})
    rewrite = compensate(graph, plan, [x])
    small = cut(model, plan, rewrite)
    plain = cut(model, plan)
    with torch.no_grad():
        dense = model(x)
        assert float(((small(x) - dense) ** 2).sum()) < 0.7 * float(((plain(x) - dense) ** 2).sum())


@pytest.mark.parametrize("method", ["least_squares", "bias", "none"])
@pytest.mark.parametrize("name", [*NETS, "views"])
def test_candidates_of_one_group_are_made_from_a_shared_run(
    name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the order in which they are asked for, they are what a refit of the whole network gives."""
    monkeypatch.setattr("actprune.compensation.ridge.RIDGES", (1e-3,) * 3)  # λ is chosen once, not for every width
    torch.manual_seed(0)
    model, inputs = (Views().eval(), torch.randn(4, 6)) if name == "views" else build(name)
    graph = capture(model, inputs)
    example = graph.program.example
    batches = [tuple(v * (1 - i / 8) if isinstance(v, Tensor) and v.is_floating_point() else v for v in example)
               for i in range(6)]  # fmt: skip
    samples = graph.program.batch_size
    fitted, held = Calibration(tuple(batches[:4]), 4 * samples), Calibration(tuple(batches[4:]), 2 * samples)
    near = Near(graph, fitted, held, method=method)
    for group in [*graph.groups, graph.groups[0]]:
        alone = len({site.weight for site in group.consumers}) == 1
        for kept in {1, group.width // 2} - {0, group.width}:
            plan = make_plan(graph, {group.name: range(kept)})
            rewrite = compensate(graph, plan, fitted, method=method, rounds=0, batchnorm=False, scope="cut")
            candidate = {**rewrite.tensors, **mask_values(graph, plan)}
            near_zero = zero_columns(graph, plan)
            wanted, plain = (run_all(graph.program, held.batches, network) for network in (candidate, near_zero))
            dense = run_all(graph.program, held.batches)
            found = near(plan)
            if alone or method != "least_squares":
                assert distance(found, wanted) <= 1e-4 * distance(plain, dense) + 1e-9
            else:  # one reader behind another: the second one is refitted on what it got before
                assert distance(found, dense) <= 1.05 * distance(plain, dense) + 1e-9


def test_candidates_without_room_for_equations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their refits pass over the samples, and come to the same."""
    monkeypatch.setattr("actprune.compensation.ridge.RIDGES", (1e-3,) * 3)
    torch.manual_seed(0)
    graph = capture(*build("lenet", 8))
    batches = [tuple(v * (1 - i / 8) for v in graph.program.example) for i in range(4)]
    data = Calibration(tuple(batches), 4 * graph.program.batch_size)
    whole = make_plan(graph, {group.name: range(max(1, group.width // 2)) for group in graph.groups})
    plan = make_plan(graph, {**{n: g.kept for n, g in whole.groups.items()}, graph.groups[1].name: range(3)})
    found = [
        near(plan)
        for room in (0, 10**6)
        for near in [Near(graph, data, data, method="least_squares", collected=room, around=whole)]
        if bool(near.equations) is bool(room)
    ]
    assert distance(*found) <= 1e-4 * distance(found[0], run_all(graph.program, data.batches))


class Experts(nn.Module):
    """Their hidden units are read by a product of three operands, which has no refit."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.head = nn.Linear(6, 12), nn.Linear(12, 4)
        self.up, self.down = (nn.Parameter(torch.randn(3, 12, 12) * 0.3) for _ in range(2))
        self.share = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.into(x))
        inner = F.relu(torch.einsum("bd,edh->beh", x, self.up))
        return self.head(x + torch.einsum("beh,ehd,e->bd", inner, self.down, self.share))


class Attending(nn.Module):
    """Called twice; what reads its queries has no refit, and what lies behind has one for both calls."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        one, two = (self.o((self.q(x) @ self.k(x).mT).softmax(-1) @ self.v(x)) for x in (a, b))
        return one + 2 * two


def test_candidates_with_a_shared_weight_behind_scores() -> None:
    torch.manual_seed(0)
    model, x = Attending().eval(), torch.randn(2, 48, 5, 6)
    data = Calibration(tuple(zip(*(half.split(8) for half in x), strict=True)), 48)
    graph = capture(model, data.batches[0])
    dims, values = (next(g.name for g in graph.groups if g.name.startswith(start)) for start in ("q", "v"))
    plan = make_plan(graph, {dims: range(2), values: range(2)})
    whole = compensate(graph, plan, data, method="least_squares", rounds=0, batchnorm=False)
    wanted = run_all(graph.program, data.batches, {**whole.tensors, **mask_values(graph, plan)})
    dense, found = run_all(graph.program, data.batches), Near(graph, data, data, method="least_squares")(plan)
    assert distance(found, dense) < 1.1 * distance(wanted, dense)
    assert not Near(graph, data, data, method="least_squares", collected=0).equations


def test_candidates_are_refitted_behind_a_reader_that_has_no_refit() -> None:
    torch.manual_seed(0)
    model, x = Experts().eval(), torch.randn(96, 6)
    graph = capture(model, x[:16])
    data = fit(graph.program, x.split(16))
    plan = make_plan(graph, {"up#2": range(4)})
    dense = run_all(graph.program, data.batches)
    whole = compensate(graph, plan, data, method="least_squares", rounds=0, batchnorm=False)
    assert "head.weight" in whole.tensors
    wanted = run_all(graph.program, data.batches, {**whole.tensors, **mask_values(graph, plan)})
    found = Near(graph, data, data, method="least_squares")(plan)
    plain = run_all(graph.program, data.batches, zero_columns(graph, plan))
    assert distance(found, dense) < 1.1 * distance(wanted, dense) < 0.3 * distance(plain, dense)
    around = make_plan(graph, {"up#2": range(8)})
    near = Near(graph, data, data, method="least_squares", around=around)
    assert distance(near(plan), dense) < 1.3 * distance(wanted, dense)


def distance(a: Sequence[Sequence[Any]], b: Sequence[Sequence[Any]]) -> float:
    """Sum of squares between the outputs of two networks."""
    pairs = ((x, y) for first, second in zip(a, b, strict=True) for x, y in zip(first, second, strict=True))
    return sum(float(((x.double() - y.double()) ** 2).sum()) for x, y in pairs if isinstance(x, Tensor))


@pytest.mark.parametrize("method", ["least_squares", "bias", "none"])
@pytest.mark.parametrize("name", ["chain", "lenet"])
def test_candidates_near_a_cut_network(name: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That network itself, and what is wider in its last group, are what a refit of the whole network gives."""
    monkeypatch.setattr("actprune.compensation.ridge.RIDGES", (1e-3,) * 3)
    torch.manual_seed(0)
    model, inputs = build(name)
    graph = capture(model, inputs)
    batches = [tuple(v * (1 - i / 8) for v in graph.program.example) for i in range(6)]
    samples = graph.program.batch_size
    fitted, held = Calibration(tuple(batches[:4]), 4 * samples), Calibration(tuple(batches[4:]), 2 * samples)

    def rewritten(plan: Plan) -> Rewrite:
        return compensate(graph, plan, fitted, method=method, rounds=0, batchnorm=False)

    kept = {group.name: range(max(1, group.width // 2)) for group in graph.groups}
    plan = make_plan(graph, kept)
    near = Near(graph, fitted, held, method=method, around=plan)
    alone, whole = near.itself(), {**rewritten(plan).tensors, **mask_values(graph, plan)}
    wanted, dense = (run_all(graph.program, held.batches, network) for network in (whole, {}))
    assert distance(alone, wanted) <= 1e-4 * distance(wanted, dense) + 1e-9
    assert distance(near(plan), alone) <= 1e-4 * distance(wanted, dense) + 1e-9
    assert distance(near.itself(), near(plan)) <= 1e-9
    last = graph.groups[-1]
    for width in (last.width // 2, last.width - 1, last.width):
        candidate = make_plan(graph, {**kept, last.name: range(width)})
        whole = {**rewritten(candidate).tensors, **mask_values(graph, candidate)}
        wanted, dense = (run_all(graph.program, held.batches, network) for network in (whole, {}))
        assert distance(near(candidate), wanted) <= 1e-4 * distance(wanted, dense) + 1e-9


def test_the_order_of_units_does_not_matter() -> None:
    """The refit of a permuted model is the permuted refit."""
    model, _ = build("chain")
    x = torch.randn(64, 6)
    other, _ = build("chain")
    order = torch.randperm(8)
    with torch.no_grad():
        other.fc1.weight.copy_(model.fc1.weight[order])
        other.fc1.bias.copy_(model.fc1.bias[order])
        other.fc2.weight.copy_(model.fc2.weight[:, order])
    kept = [0, 3, 4]
    place = {int(unit): i for i, unit in enumerate(order)}
    outputs = []
    for network, units in ((model, kept), (other, [place[unit] for unit in kept])):
        graph = capture(network, x[:BATCH])
        plan: Plan = make_plan(graph, {"fc1": units})
        outputs.append(cut(network, plan, compensate(graph, plan, [x]))(x).detach())
    close(outputs[0], outputs[1], 1e-4)


@pytest.mark.parametrize("how", [{}, {"stride": 2, "padding": 1, "output_padding": 1}], ids=str)
def test_transposed_convolutions(how: dict[str, int]) -> None:
    """Against rows of the identity: what each weight of the kernel adds to the output."""
    graph, x = made(
        lambda m, x: m.b(torch.sigmoid(m.a(x))), (6, 4, 4), a=nn.Conv2d(6, 5, 1), b=nn.ConvTranspose2d(5, 4, 3, **how)
    )
    kept = [0, 3, 4]
    rewrite = compensate(graph, make_plan(graph, {"a": kept}), [x])
    weights = {name: held.detach() for name, held in graph.program.tensors.items()}
    hidden = torch.sigmoid(F.conv2d(x, weights["a.weight"], weights["a.bias"]))
    dense = F.conv_transpose2d(hidden, weights["b.weight"], weights["b.bias"], **how)
    taps = torch.eye(27).reshape(3, 9, 27).permute(0, 2, 1).reshape(3, 27, 3, 3)
    rows = F.conv_transpose2d(hidden[:, kept], taps, **how).transpose(0, 1).flatten(1).T
    start = weights["b.weight"][kept].transpose(0, 1).flatten(1)
    ridge = rewrite.record["consumers"]["conv_transpose2d"]["ridge"]
    expected = by_hand(rows, dense.transpose(0, 1).flatten(1).T, start, ridge, True)
    close(tensor(graph, rewrite, "b.weight")[kept].transpose(0, 1).flatten(1), expected.weight)
    close(tensor(graph, rewrite, "b.bias"), expected.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_grouped_convolutions(bias: bool) -> None:
    """Every group is fitted for itself on its own channels."""
    graph, x = made(
        lambda m, x: m.b(torch.sigmoid(m.a(x))), (6, 5, 5),
        a=nn.Conv2d(6, 8, 1), b=nn.Conv2d(8, 6, 3, groups=2, bias=bias),
    )  # fmt: skip
    within = next(group for group in graph.groups if group.width == 4)
    kept = [0, 2, 3]
    rewrite = compensate(graph, make_plan(graph, {within.name: kept}), [x])
    weights = {name: held.detach() for name, held in graph.program.tensors.items()}
    hidden = torch.sigmoid(F.conv2d(x, weights["a.weight"], weights["a.bias"]))
    dense = F.conv2d(hidden, weights["b.weight"], weights.get("b.bias"), groups=2)
    found = tensor(graph, rewrite, "b.weight")
    assert not found[:, 1].any()
    errors = []
    for name in ("least_squares", "bias", "none"):
        held = compensate(graph, make_plan(graph, {within.name: kept}), [x], method=name)
        own, shift = (tensor(graph, held, n).float() if n in weights else None for n in ("b.weight", "b.bias"))
        errors.append(float(((F.conv2d(hidden, own, shift, groups=2) - dense) ** 2).sum()))
    assert errors[0] < 0.7 * errors[1]
    assert errors[1] <= errors[2]
    for group in range(2):
        outputs, own = slice(3 * group, 3 * group + 3), hidden[:, 4 * group : 4 * group + 4]
        target = dense[:, outputs].transpose(0, 1).flatten(1).T
        start = weights["b.weight"][outputs][:, kept].flatten(1)
        fits = [by_hand(patches(own[:, kept], kernel_size=3), target, start, ridge, bias) for ridge in RIDGES]
        differences = [float((found[outputs][:, kept].flatten(1) - fit.weight).abs().max()) for fit in fits]
        assert min(differences) < 1e-4


class Filled(nn.Module):
    """Writes its states into memory that it has made, as solvers of differential equations do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 12), nn.Linear(12, 8), nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        states = torch.full((2, len(x), 8), torch.nan)
        states[0] = self.b(self.a(x).relu())
        states[1] = states[0].sin()
        return self.d(self.c(states[-1]).relu())


def test_memory_that_calls_fill_is_not_made_anew() -> None:
    """It depends on no input where it is made: a refit read it without what had been written."""
    torch.manual_seed(0)
    x = torch.randn(32, 6)
    graph = capture(Filled(), x)
    plan = make_plan(graph, {group.name: range(5) for group in graph.groups})
    found = compensate(graph, plan, [x], method="reconstruct")
    assert all(tensor.isfinite().all() for tensor in found.tensors.values())
