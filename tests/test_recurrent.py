"""Recurrent calls taken apart, against steps written by hand, and their refits where a perfect one is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import actprune as ap
from actprune.axes.capture import Graph, capture
from actprune.compensation import together, unrolled
from actprune.compensation.refit import compensate
from actprune.data.take import fit
from actprune.graph.run import run_all
from actprune.guidance.ranking import guide
from actprune.plan import make_plan
from actprune.rewrite import Rewrite
from actprune.stats.collect import collect
from actprune.stats.recurrent import is_recurrent, unroll
from actprune.surgery.slicing import cut

INPUTS, WIDTH, HIDDEN, SAMPLES, STEPS = 5, 6, 8, 48, 5
DEEP: dict[str, Any] = {"num_layers": 2, "bidirectional": True}
LAYERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "rnn": (nn.RNN, {}), "relu": (nn.RNN, {"nonlinearity": "relu"}), "gru": (nn.GRU, {}), "lstm": (nn.LSTM, {}),
    "deep gru": (nn.GRU, DEEP), "deep lstm": (nn.LSTM, DEEP), "no bias": (nn.GRU, {"bias": False}),
    "steps first": (nn.LSTM, {"batch_first": False}), "projection": (nn.LSTM, {"proj_size": 3}),
    "rnn cell": (nn.RNNCell, {}), "gru cell": (nn.GRUCell, {}), "lstm cell": (nn.LSTMCell, {}),
}  # fmt: skip

pytestmark = [pytest.mark.accurate, pytest.mark.filterwarnings("ignore:LSTM with projections")]


class Net(nn.Module):
    """A layer, a recurrent layer or cell, a layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        make, how = LAYERS[kind]
        self.cell = issubclass(make, nn.RNNCellBase)
        how = how if self.cell else {"batch_first": True, **how}
        self.up, self.steps = nn.Linear(INPUTS, WIDTH), make(WIDTH, HIDDEN, **how)
        self.head = nn.Linear(how.get("proj_size", HIDDEN) * (2 if how.get("bidirectional") else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.steps(torch.tanh(self.up(x if not self.cell else x[:, 0])))
        return self.head(found[0] if isinstance(found, tuple) else found)


def copied(net: Net) -> Net:
    """The last half of the units of both layers are copies of the first."""
    with torch.no_grad():
        for tensor in net.up.parameters():
            tensor[WIDTH // 2 :] = tensor[: WIDTH // 2]
        for name, tensor in net.steps.named_parameters():
            if "weight_hr" not in name:
                gates = tensor.view(-1, HIDDEN, *tensor.shape[1:])
                gates[:, HIDDEN // 2 :] = gates[:, : HIDDEN // 2]
    return net.eval()


def inputs(kind: str) -> Tensor:
    shape = (STEPS, SAMPLES, INPUTS) if kind == "steps first" else (SAMPLES, STEPS, INPUTS)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def captured(net: nn.Module, x: Tensor) -> Graph:
    return capture(net, x)


def error(graph: Graph, x: Tensor, rewrite: Rewrite) -> float:
    """Of the outputs, as a share of their variance."""
    batches = fit(graph.program, [x]).batches
    dense, found = (torch.cat([o[0] for o in run_all(graph.program, batches, t)]) for t in (None, rewrite.tensors))
    return float(((dense - found) ** 2).sum() / ((dense - dense.mean(0)) ** 2).sum())


def outputs(graph: Graph, x: Tensor, rewrite: Rewrite) -> Tensor:
    return torch.cat([o[0] for o in run_all(graph.program, fit(graph.program, [x]).batches, rewrite.tensors)])


@pytest.mark.parametrize("kind", LAYERS)
def test_every_step_by_hand(kind: str) -> None:
    """What each weight reads, times the weight, through the gates, is the state after the step."""
    net, x = Net(kind).eval(), inputs(kind)
    graph = captured(net, x)
    node = next(node for node in graph.program.nodes if is_recurrent(node))
    source = torch.tanh(net.up(x if not net.cell else x[:, 0])).detach()
    zeros = source.new_zeros((4 if "deep" in kind else 1, SAMPLES, 3 if kind == "projection" else HIDDEN))
    states = [zeros, source.new_zeros(*zeros.shape[:2], HIDDEN)] if "lstm" in str(node.target) else zeros
    if net.cell:
        states = [state[0] for state in states] if isinstance(states, list) else states[0]
    given: list[Any] = [p.detach() for p in net.steps.parameters()]
    args = (source, states, *given) if net.cell else (source, states, given, *node.args[3:])
    found = [net.steps(source)[0]] if not net.cell else [net.steps(source)]
    wanted = (found[0][0] if isinstance(found[0], tuple) else found[0]).detach()
    wanted = wanted[:, None] if net.cell else wanted.transpose(0, 1) if kind == "steps first" else wanted
    parts = list(unroll(node, args).steps())
    for part, own, start, hidden in parts:
        rows = dict(part.reads(own, start, hidden))
        into, back, into_bias, back_bias, projection = part.params
        a, b = F.linear(rows[0], into, into_bias), F.linear(rows[1], back, back_bias)
        if part.kind == "gru":
            (r, z, n), (hr, hz, hn) = a.chunk(3, -1), b.chunk(3, -1)
            keep = torch.sigmoid(z + hz)
            after = (1 - keep) * torch.tanh(n + torch.sigmoid(r + hr) * hn) + keep * rows[1]
        elif part.kind == "lstm":
            after = part.cells(own, start, hidden) if projection is None else F.linear(rows[4], projection)
        else:
            after = torch.relu(a + b) if part.kind == "rnn_relu" else torch.tanh(a + b)
        torch.testing.assert_close(after, hidden)
    last = [h.flip(1) if part.backward else h for part, _, _, h in parts[-2 if "deep" in kind else -1 :]]
    torch.testing.assert_close(torch.cat(last, -1), wanted)


def units_of(graph: Graph) -> list[str]:
    """The groups of hidden units, one for each layer and direction."""
    return [group.name for group in graph.groups if group.name.startswith("steps") and group.width == HIDDEN]


@pytest.mark.parametrize("kind", LAYERS)
def test_copies_are_cut_without_loss(kind: str) -> None:
    """The refits of input, state and projection give what was there."""
    net, x = copied(Net(kind)), inputs(kind)
    graph = captured(net, x)
    up = {"up": range(WIDTH // 2)}
    steps = {name: range(HIDDEN // 2) for name in units_of(graph)}
    for kept in (up, steps, up | steps):
        plan = make_plan(graph, kept)
        rewrite = compensate(graph, plan, [x])
        assert error(graph, x, rewrite) < 1e-8 < 1e-3 < error(graph, x, compensate(graph, plan, [x], method="none"))
        torch.testing.assert_close(cut(net, plan, rewrite)(x), net(x), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["gru", "lstm", "deep lstm"])
def test_the_guide_keeps_one_of_each_pair(kind: str) -> None:
    net, x = copied(Net(kind)), inputs(kind)
    graph = captured(net, x)
    found = guide(graph, collect(graph, [x]))
    for name, width in (("up", WIDTH // 2), *((name, HIDDEN // 2) for name in units_of(graph))):
        assert {unit % width for unit in found.kept(name, width)} == set(range(width))


@pytest.mark.parametrize("kind", ["gru", "lstm", "deep gru", "projection", "no bias"])
@pytest.mark.parametrize("method", ["bias", "none"])
def test_refits_of_units_that_others_can_only_guess(kind: str, method: str) -> None:
    net, x = Net(kind).eval(), inputs(kind)
    with torch.no_grad():
        for tensor in net.steps.parameters():
            tensor *= 2
    graph = captured(net, x[: SAMPLES // 2])
    plan = make_plan(graph, {group.name: range(group.width // 2) for group in graph.groups})
    fitted, other = x[: SAMPLES // 2], x[SAMPLES // 2 :]
    refitted, plain = (compensate(graph, plan, [fitted], method=m) for m in ("least_squares", method))
    assert error(graph, other, refitted) < error(graph, other, plain)


@pytest.mark.parametrize("kind", ["lstm", "deep gru", "projection", "no bias"])
def test_layers_are_fitted_as_a_whole(kind: str) -> None:
    """Samples that no fit has seen come nearer than by closed-form fits; what is cut stays zero."""
    net = Net(kind).eval()
    with torch.no_grad():
        for tensor in net.steps.parameters():
            tensor *= 2
    fitted, other = torch.randn(384, STEPS, INPUTS, generator=torch.Generator().manual_seed(1)).split(192)
    graph = captured(net, fitted)
    kept = range(HIDDEN // 2)
    plan = make_plan(graph, {group.name: kept for group in graph.groups if group.width == HIDDEN})
    refitted, whole = (compensate(graph, plan, [fitted], method=m) for m in ("least_squares", "reconstruct"))
    assert error(graph, other, whole) < error(graph, other, refitted)
    steps = [told for told in whole.record["consumers"].values() if "as_a_whole" in told]
    assert steps
    assert all(told["as_a_whole"] < 1 for told in steps)
    torch.testing.assert_close(cut(net, plan, whole)(other), outputs(graph, other, whole), atol=1e-4, rtol=1e-4)


class Loop(nn.Module):
    """Cells, or a step of one's own, in a loop over time.

    Args:
        between: a layer whose result goes into the last step.
        outputs: the last state is returned as well.
        fed: every step's outputs are returned, and are the next step's inputs.
    """

    def __init__(self, kind: str, between: bool = False, outputs: bool = False, fed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.up, self.outputs, self.fed = nn.Linear(INPUTS, WIDTH), outputs, nn.Linear(3, WIDTH) if fed else None
        self.steps = LAYERS[kind][0](WIDTH, 2 * HIDDEN) if kind in LAYERS else nn.Linear(WIDTH + 2 * HIDDEN, 2 * HIDDEN)
        self.late = nn.Linear(2 * HIDDEN, 2 * HIDDEN) if between else None
        self.head = nn.Linear(2 * HIDDEN, 3)
        with torch.no_grad():
            for tensor in self.steps.parameters():
                tensor *= 3  # gates that open and close

    def forward(self, x: Tensor) -> Any:
        x, h = torch.tanh(self.up(x)), x.new_zeros(len(x), 2 * HIDDEN)
        c, made = h, list[Tensor]()
        for t in range(STEPS):
            if self.fed is not None:
                made.append(self.head(h))
                x = x + torch.tanh(self.fed(made[-1]))[:, None]
            if isinstance(self.steps, nn.LSTMCell):
                h, c = self.steps(x[:, t], (h, c))
            elif isinstance(self.steps, nn.GRUCell):
                h = self.steps(x[:, t], h)
            else:
                h = torch.tanh(self.steps(torch.cat([x[:, t], h], 1)))
            if self.late is not None and t == STEPS - 2:
                h = torch.tanh(self.late(h))
        if self.fed is not None:
            return torch.stack(made, 1)
        return (self.head(h), h) if self.outputs else self.head(h)


def flat(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else torch.cat([value.flatten(1) for value in outputs], 1)


def loop_errors(model: nn.Module) -> tuple[list[float], Rewrite]:
    """Squared errors of what comes out, on samples of their own, after refits and after steps; the latter rewrite."""
    x, unseen = torch.randn(256, STEPS, INPUTS).split(192)
    graph = capture(model.eval(), x[:48])
    plan = make_plan(graph, {group.name: range(group.width - group.width // 4) for group in graph.groups})
    rewrites = [compensate(graph, plan, x.split(48), method=method) for method in ("least_squares", "reconstruct")]
    with torch.no_grad():
        dense = flat(model(unseen))
        found = [float((flat(cut(model, plan, rewrite)(unseen)) - dense).square().sum()) for rewrite in rewrites]
    return found, rewrites[1]


@pytest.mark.parametrize("kind", ["gru cell", "lstm cell", "one's own"])
def test_the_calls_of_a_loop_are_fitted_together(kind: str) -> None:
    (refitted, stepped), rewrite = loop_errors(Loop(kind))
    assert stepped < 0.9 * refitted
    told = next(block for block in rewrite.record["blocks"].values() if block["module"] == "steps")
    assert told["left"] < 0.8
    assert told["batches"] == 3


class TwoLoops(nn.Module):
    """As two recurrent layers of Keras: the input weights are multiplied once, in front of each loop, and added to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.up, self.between = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.first, self.second = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, 3)
        with torch.no_grad():
            for layer in (self.up, self.first, self.second, self.between):
                layer.weight *= 2

    def forward(self, x: Tensor) -> Tensor:
        first = self.loop(self.first, self.up(x))
        return self.head((first + self.loop(self.second, self.between(first)))[:, -1])

    def loop(self, layer: nn.Module, x: Tensor) -> Tensor:
        states = [torch.tanh(x[:, 0])]
        for t in range(1, STEPS):
            states.append(torch.tanh(x[:, t] + layer(states[-1])))
        return torch.stack(states, 1)


def test_two_loops_with_a_layer_between_are_fitted_one_after_the_other() -> None:
    (refitted, stepped), rewrite = loop_errors(TwoLoops())
    assert stepped < 0.9 * refitted
    blocks = {block["module"]: block["left"] for block in rewrite.record["blocks"].values()}
    assert blocks["first"] < 1
    assert blocks["second"] < 1


class ThreeLoops(nn.Module):
    """Both directions of a sequence, and a decoder that starts where they end."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.there, self.back, self.decoder = (nn.GRUCell(INPUTS, HIDDEN) for _ in range(3))
        self.every, self.last = nn.Linear(2 * HIDDEN, 3), nn.Linear(HIDDEN, 3)
        with torch.no_grad():
            for cell in (self.there, self.back, self.decoder):
                cell.weight_hh *= 3

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = x.new_zeros(len(x), HIDDEN)
        there = self.loop(self.there, x, h)
        back = self.loop(self.back, x.flip(1), h)
        last = self.loop(self.decoder, x, there[-1] + back[-1])[-1]
        return self.every(torch.cat([torch.stack(there, 1), torch.stack(back, 1)], -1)), self.last(last)

    def loop(self, cell: nn.Module, x: Tensor, h: Tensor) -> list[Tensor]:
        states = list[Tensor]()
        for t in range(STEPS):
            h = cell(x[:, t], h)
            states.append(h)
        return states


def test_loops_that_meet_behind_them_are_fitted_all() -> None:
    """The first direction by its own states, the second one with the decoder that gets the sum of both."""
    x = torch.randn(192, STEPS, INPUTS)
    graph = capture(ThreeLoops().eval(), x[:48])
    plan = make_plan(graph, {group.name: range(group.width - group.width // 4) for group in graph.groups})
    blocks = compensate(graph, plan, x.split(48), method="reconstruct").record["blocks"].values()
    told = {name for block in blocks if block["left"] < 0.8 for name in block["weights"]}
    assert {"there.weight_hh", "back.weight_hh", "decoder.weight_hh"} <= told


def test_a_loop_that_is_too_much_work_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unrolled, "WORK", 0)
    monkeypatch.setattr(together, "_Run", None)
    graph = capture(Loop("gru cell").eval(), x := torch.randn(48, STEPS, INPUTS))
    rewrite = compensate(graph, make_plan(graph, {"up": range(4)}), [x, x], method="reconstruct")
    assert not any(block["module"] == "steps" for block in rewrite.record["blocks"].values())


@pytest.mark.parametrize("setting", [{"outputs": True}, {"fed": True}])
def test_outputs_that_a_loop_gives_itself_are_read_as_well(setting: dict[str, bool]) -> None:
    (refitted, stepped), rewrite = loop_errors(Loop("gru cell", **setting))
    assert stepped < 0.8 * refitted
    told = next(block for block in rewrite.record["blocks"].values() if "steps.weight_hh" in block["weights"])
    assert told["left"] < 0.8
    assert ("head.weight" in told["weights"]) is ("fed" in setting)


@pytest.mark.parametrize("masked", [0, 2])
def test_logits_that_a_loop_gives_come_nearer_by_their_probabilities(masked: int) -> None:
    """Classes that are masked out stay so, and do not count."""

    class Speaking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.words, self.cell, self.head = nn.Embedding(11, 6), nn.GRUCell(6, 16), nn.Linear(16, 11)
            with torch.no_grad():
                self.cell.weight_hh *= 3
                self.head.weight *= 8

        def forward(self, words: Tensor) -> Tensor:
            h, made = torch.zeros(len(words), 16), list[Tensor]()
            for t in range(STEPS):
                h = self.cell(self.words(words[:, t]), h)
                made.append(self.head(h).masked_fill(torch.arange(11) < masked, -torch.inf))
            return torch.stack(made, 1)

    model = Speaking().eval()
    words, unseen = torch.randint(11, (512, STEPS)).split(256)
    graph = capture(model, words[:64])
    plan = make_plan(graph, {"cell": range(8)})
    rewrites = [compensate(graph, plan, words.split(64), method="reconstruct", distance=name) for name in ("mse", "kl")]
    with torch.no_grad():
        dense = model(unseen).log_softmax(-1)[..., masked:]
        found = [cut(model, plan, rewrite)(unseen).log_softmax(-1)[..., masked:] for rewrite in rewrites]
    squares, divergence = (float(F.kl_div(one, dense, log_target=True, reduction="sum")) for one in found)
    assert divergence < 0.9 * squares


def test_calls_are_left_where_not_all_of_their_error_is_known() -> None:
    graph = capture(Loop("gru cell", between=True).eval(), x := torch.randn(48, STEPS, INPUTS))
    plan = make_plan(graph, {"up": range(4)})
    rewrite = compensate(graph, plan, [x, x], method="reconstruct")
    assert not any(name.startswith("steps") and "bias" in name for name in rewrite.tensors)


def test_the_report_says_that_layers_were_fitted_as_a_whole() -> None:
    net, x = Net("lstm").eval(), torch.randn(384, STEPS, INPUTS, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for tensor in net.steps.parameters():
            tensor *= 2
    notes = ap.prune(net, x.split(96), keep="params=50%", allocation="uniform").report.notes
    assert any("1 recurrent layer was fitted through all of their time" in note for note in notes)


@pytest.mark.parametrize("batch_first", [True, False])
def test_steps_that_are_counted_as_samples_are_told_of(batch_first: bool) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps, self.head = nn.GRU(INPUTS, 6, batch_first=batch_first), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            states, _ = self.steps(x)
            return self.head(states[:, -1] if batch_first else states[-1])

    notes = ap.prune(Last().eval(), [torch.randn(5, 4, INPUTS) for _ in range(4)], keep=0.5, method="l2").report.notes
    told = [note for note in notes if note.startswith("steps steps through the first dimension")]
    assert len(told) == (0 if batch_first else 1)


def test_the_input_of_a_layer_is_fitted_as_that_of_a_linear_one() -> None:
    net, x = Net("gru").eval(), inputs("gru")
    graph = captured(net, x)
    kept = [0, 2, 5]
    rewrite = compensate(graph, make_plan(graph, {"up": kept}), [x], scope="cut")
    record = rewrite.record["consumers"]["gru:steps.weight_ih_l0"]
    rows = torch.tanh(net.up(x)).detach().double().flatten(0, 1)
    weight, bias = (net.get_parameter(f"steps.{name}_ih_l0").detach().double() for name in ("weight", "bias"))
    target = rows @ weight.T + bias
    centred, aim = rows[:, kept] - rows[:, kept].mean(0), target - target.mean(0)
    gram = centred.T @ centred / len(rows)
    ridge = record["ridge"] * gram.diagonal().mean() * torch.eye(3)
    expected = (aim.T @ centred / len(rows) + ridge[0, 0] * weight[:, kept]) @ torch.linalg.inv(gram + ridge)
    assert (record["rows"], record["columns"]) == (SAMPLES * STEPS, 3)
    torch.testing.assert_close(rewrite.tensors["steps.weight_ih_l0"][:, kept].double(), expected, atol=1e-4, rtol=1e-3)
    shift = target.mean(0) - expected @ rows[:, kept].mean(0)
    torch.testing.assert_close(rewrite.tensors["steps.bias_ih_l0"].double(), shift, atol=1e-4, rtol=1e-3)
    assert "steps.weight_hh_l0" not in rewrite.tensors


def test_the_steps_of_a_sample_stay_in_one_fold() -> None:
    net, x = Net("steps first").eval(), inputs("steps first")
    graph = captured(net, x)
    stats = collect(graph, [x])
    rows = torch.tanh(net.up(x)).detach().double()
    for fold, found in enumerate(stats.sites["lstm:steps.weight_ih_l0"]):
        own = rows[:, fold::5].flatten(0, 1)
        assert found.count == len(own)
        torch.testing.assert_close(found.mean, own.mean(0), atol=1e-6, rtol=1e-5)


class Reader(nn.Module):
    """Two layers in both directions, of which the last states are read."""

    def __init__(self, read: Any, wide: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read, self.steps, self.head = read, nn.LSTM(INPUTS, HIDDEN, batch_first=True, **DEEP), nn.Linear(wide, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.read(self.steps(x)[1][0]))


def test_layers_and_directions_keep_units_of_their_own() -> None:
    """As many of each, for one number of the class counts them."""
    net, x = Reader(lambda h: torch.cat([h[-2], h[-1]], 1), 2 * HIDDEN).eval(), inputs("lstm")
    graph = ap.capture(net, x)
    names = [group.name for group in graph.groups]
    assert names == [f"steps#{i}" for i in range(1, 5)] == list(graph.peers["steps#3"])
    kept = [[0, 1, 2], [1, 4, 7], [2, 3, 5], [0, 6, 7]]
    plan = make_plan(graph, dict(zip(names, kept, strict=True)))
    small = cut(net, plan)
    assert small.steps.hidden_size == 3
    assert ap.verify(net, small, plan, x, graph=graph).passed
    with pytest.raises(ap.PlanError, match="different widths"):
        make_plan(graph, {"steps#1": [0, 1, 2]})
    assert not graph.without({"steps#2": "for a test"}).groups


@pytest.mark.parametrize("keep", ["macs=50%", {"steps": 5}, {"steps#2": 5}, "units=70%"], ids=str)
@pytest.mark.parametrize("form", ["class", "graph"])
def test_budgets_of_layers_that_have_one_width(keep: Any, form: str) -> None:
    net, x = Reader(lambda h: h[-1], HIDDEN).eval(), inputs("lstm")
    result = ap.prune(net, [x], keep=keep, method="l2", form=form)
    assert len(result.plan.widths) == 4
    assert len(set(result.plan.widths.values())) == 1
    assert keep == "macs=50%" or set(result.plan.widths.values()) == {5}


def test_a_state_that_is_read_as_a_whole_ties_its_slices() -> None:
    net, x = Reader(lambda h: h.transpose(0, 1).flatten(1), 4 * HIDDEN).eval(), inputs("lstm")
    graph = ap.capture(net, x)
    assert [group.name for group in graph.groups] == ["steps"]
    assert ap.prune(net, [x], keep="macs=50%", method="l2").proof.passed


def test_a_decoder_that_begins_with_the_states_of_an_encoder() -> None:
    """Layer for layer they have the same units."""

    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.encoder, self.decoder = (nn.GRU(INPUTS, HIDDEN, num_layers=2, batch_first=True) for _ in range(2))
            self.head = nn.Linear(HIDDEN, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.decoder(x, self.encoder(x)[1])[0])

    net, x = Translator().eval(), inputs("gru")
    graph = ap.capture(net, x)
    assert [group.name for group in graph.groups] == ["encoder#1", "encoder#2"]
    assert len({site.module for site in graph.groups[1].producers}) == 2
    plan = make_plan(graph, {"encoder#1": [0, 1, 2], "encoder#2": [3, 5, 7]})
    assert ap.verify(net, cut(net, plan), plan, x, graph=graph).passed


def test_what_one_number_counts_is_whole_where_a_part_of_it_is() -> None:
    """The last layer is the output; the other one could not be cut without it."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.steps = nn.GRU(INPUTS, HIDDEN, num_layers=2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.steps(x)[0]

    graph = ap.capture(Last().eval(), inputs("gru"))
    assert graph.groups == ()
    assert "model output" in graph.frozen.values()


class Beside(nn.Module):
    """A recurrent layer beside linear ones."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.a, self.b = nn.GRU(6, 8, batch_first=True), nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x[:, 0]).relu()) + self.rnn(x)[0][:, -1, :3]


def test_a_recurrent_layer_that_stays_whole_runs_its_own_weights(tmp_path: Path) -> None:
    """It had run copies of them, which neither a gradient step nor `load` changed."""
    torch.manual_seed(0)
    model, x = Beside().eval(), torch.randn(4, 5, 6)
    result = ap.prune(model, x, keep={"a": 5}, method="l2")
    result.save(tmp_path / "run")
    loaded: Any = ap.load(tmp_path / "run", Beside()).eval()
    assert torch.equal(loaded(x), result.model(x))
    for small in (result.model, loaded):
        small(x).sum().backward()
        assert all(p.grad is not None for p in small.parameters())
