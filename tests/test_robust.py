"""What must not happen to the caller: a run that never ends, a state that is not put back, settings found late."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import actprune as ap
from actprune.allocation.budget import Budget
from actprune.allocation.cost import COSTS, cost
from actprune.allocation.sensitivity import Curve
from actprune.allocation.solve import solve, solve_from
from actprune.allocation.space import make_space
from actprune.allocation.starts import best_start
from actprune.errors import BudgetError, CaptureError, DataError
from actprune.graph.keep import copied
from actprune.proof.difference import relative_error
from actprune.recovery.batchnorm import reestimate_batchnorm
from nets import build

CPU = torch.device("cpu")


def chain() -> tuple[Any, list[Tensor]]:
    model, inputs = build("chain")
    return model, [inputs, *(torch.randn_like(inputs) for _ in range(3))]


@pytest.mark.parametrize("method", ["l2", "sgd-ap"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_later_batch_that_is_not_finite(method: str, value: float) -> None:
    model, batches = chain()
    batches[2][1, 0] = value
    with pytest.raises(DataError, match="finite"):
        ap.prune(model, batches, keep="macs=50%", method=method, compensate="least_squares")


def test_equations_that_are_not_finite_have_no_fit() -> None:
    model, batches = chain()
    graph = ap.capture(model, batches[0])
    plan = ap.prune(model, batches, keep="macs=50%", method="l2", compensate="none").plan
    batches[1][0, 0] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        ap.compensate(graph, plan, batches)


def test_a_sweep_leaves_the_caller_alone_between_results() -> None:
    model, batches = chain()
    model.train()
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    drawn: list[Tensor] = []
    for _ in ap.sweep(model, batches, ["macs=60%", "macs=50%"], method="l2"):
        drawn.append(torch.rand(2))
        model.eval()
    assert torch.equal(torch.cat(drawn), expected) and not model.training


@pytest.mark.parametrize(
    "call",
    [
        lambda model, data: ap.sweep(model, data, ["nonsense=3"]),
        lambda model, data: ap.prune_in_rounds(model, data, keep="macs=50%", rounds=0),
    ],
)
def test_what_is_iterated_over_is_checked_when_it_is_called(call: Any) -> None:
    with pytest.raises((BudgetError, DataError)):
        call(*chain())


def test_norms_that_no_batch_reaches_keep_their_statistics() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle, self.frozen = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.frozen(self.used(x))

    model = Branches()
    means = [norm.get_buffer("running_mean") for norm in (model.used, model.idle, model.frozen)]
    for mean in means:
        mean.fill_(7.0)
    model.frozen.eval()
    batch = torch.randn(8, 3)
    reestimate_batchnorm(model, (lambda m, x: m(x), [batch], CPU))
    assert torch.allclose(means[0], batch.mean(0), atol=1e-6)
    assert all(bool((mean == 7).all()) for mean in means[1:])
    with pytest.raises(RuntimeError):
        reestimate_batchnorm(model, (lambda m, x: m(x), [batch + 1, torch.randn(8, 4)], CPU))
    assert torch.allclose(means[0], batch.mean(0), atol=1e-6)


class Refusing(nn.Linear):
    """Its hint can't follow a cut."""


@ap.hint(Refusing)
def _refuse(module: Refusing) -> None:
    raise RuntimeError("no")


def test_a_cut_in_place_that_fails_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Refusing(8, 3))
    x = torch.randn(16, 6)
    graph = ap.capture(model, x)
    plan = ap.allocate(graph, ap.guide(graph, None, method="l2"), keep={"0": 4})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="no"):
        ap.cut(model, plan, inplace=True)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert model[0].out_features == 8 and model[2].in_features == 8


@pytest.mark.parametrize(
    "make",
    [
        lambda: ap.SGD([], F.cross_entropy, lr=-1),
        lambda: ap.SGD([], F.cross_entropy, epochs=-1),
        lambda: ap.SGD([], F.cross_entropy, temperature=0),
        lambda: ap.SGD([], F.cross_entropy, distill=3),
        lambda: ap.Distill(lr=-1),
        lambda: ap.Distill(steps="400"),  # type: ignore[arg-type]
        lambda: ap.Distill(holdout=5),
        lambda: ap.Distill(warmup=-3),
    ],
)
def test_settings_of_trainings_are_checked_when_they_are_made(make: Any) -> None:
    with pytest.raises(DataError, match=r"is no setting of (SGD|Distill)") as caught:
        make()
    assert "expected: a" in str(caught.value)


def test_another_fine_tune_is_another_run(tmp_path: Path) -> None:
    model, batches = chain()
    pairs = [(x, torch.zeros(len(x), dtype=torch.long)) for x in batches]

    def asked(**how: Any) -> Any:
        return ap.sweep(
            model, pairs, ["macs=50%"], method="l2", save_to=tmp_path / "runs", resume=True,
            finetune=ap.SGD(pairs, F.cross_entropy, **how), round_to=1,
        )  # fmt: skip

    list(asked(lr=0.01, epochs=1))
    assert [type(one).__name__ for one in asked(lr=0.01, epochs=1)] == ["Finished"]
    with pytest.raises(ap.ArtifactError, match="another one"):
        list(asked(lr=0.02, epochs=1))


def test_a_model_is_let_go_of_after_its_cut() -> None:
    model, batches = chain()
    gone = weakref.ref(model.fc1.weight)
    ap.prune(model, batches, keep="macs=50%", method="l2")
    del model
    gc.collect()
    assert gone() is None


def test_errors_of_outputs_do_not_hide_nan() -> None:
    good, bad = torch.ones(3), torch.full((3,), float("nan"))
    assert relative_error((good, good), (good, bad)) == float("inf")
    assert relative_error((bad, good), (good, good)) == float("inf")
    assert relative_error((good,), (torch.ones(2),)) == float("inf")
    assert relative_error((good.half(),), (good.half(),)) == 0


@pytest.mark.parametrize("name", ["chain", "lenet", "residual"])
@pytest.mark.parametrize("budget", COSTS)
def test_costs_along_a_width_are_the_costs(name: str, budget: str) -> None:
    model, inputs = build(name)
    graph = ap.capture(model, inputs)
    space = make_space(graph, Budget(budget, 0.9))
    draw = np.random.default_rng(0)
    widths = {group: int(draw.choice(options)) for group, options in space.options.items()}
    for group, options in space.options.items():
        expected = [cost(graph, {**widths, group: k})[budget] for k in options]
        assert space.costs_along(group, widths, options).tolist() == expected
    for tied in ({}, dict.fromkeys(space.options, tuple(space.options))):  # each for itself, and all of one width
        tried = replace(space, tied=tied)
        steps = {group: options[0] for group, options in space.options.items()}
        assert tried.with_each(widths, steps) == {
            group: tried.cost({**tried.every(widths), **tried.every({group: k})}) for group, k in steps.items()
        }


def test_wide_groups_are_allocated_in_a_moment() -> None:
    """Counted, not timed: a cost is asked for some hundred times, not once for every width and multiplier."""
    model = nn.Sequential(nn.Linear(4, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 2))
    graph = ap.capture(model, torch.randn(2, 4))
    space = make_space(graph, Budget("params", 0.5))
    curves = {
        name: Curve(options, tuple(((1 - np.array(options) / options[-1]) ** 2).tolist()), {})
        for name, options in space.options.items()
    }
    asked: list[int] = []
    counted = type(space).cost
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(space), "cost", lambda self, widths: (asked.append(1), counted(self, widths))[1])
        found = solve_from(space, curves, {name: options[len(options) // 2] for name, options in space.options.items()})
    assert space.fits(found) and len(asked) < 4000


def test_a_fine_tune_that_diverges_leaves_what_was_proved() -> None:
    model, batches = chain()
    pairs = [(x, torch.zeros(len(x), dtype=torch.long)) for x in batches]
    train = ap.SGD(pairs, lambda outputs, targets: outputs.sum() * float("nan"), lr=0.1, epochs=1, distill=0.0)
    with pytest.warns(UserWarning, match="diverged"):
        result = ap.prune(model, pairs, keep="macs=50%", method="l2", finetune=train)
    assert result.proof.passed and all(bool(p.isfinite().all()) for p in result.model.parameters())
    assert any("diverged" in note for note in result.report.notes)


def test_a_function_that_ruins_the_weights_leaves_what_was_proved() -> None:
    model, batches = chain()

    def ruin(small: nn.Module) -> None:
        with torch.no_grad():
            next(small.parameters()).fill_(float("nan"))

    with pytest.warns(UserWarning, match="diverged"):
        result = ap.prune(
            model,
            batches,
            keep="macs=50%",
            method="l2",
            finetune=ruin,
            evaluate=lambda m: float(m(batches[0]).detach().sum()),
        )
    assert result.proof.passed and all(bool(p.isfinite().all()) for p in result.model.parameters())
    assert any("NaN or infinite values in" in note for note in result.report.notes)


def test_threads_wait_for_each_other() -> None:
    """torch's tracers change `nn.Module` for all threads; of two at a time the second put back what the first did."""
    call, (model, batches) = nn.Module.__call__, chain()

    def names(_: int) -> list[str]:
        return [group.name for group in ap.capture(copied(model), batches[0]).groups]

    before = names(0)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(names, range(4))) == [before] * 4
    assert nn.Module.__call__ is call


def test_what_a_function_moves_comes_back() -> None:
    """`model.to("cuda")` in a metric moved the dense network as well; here it is the precision that changes."""
    model, batches = chain()
    model.register_buffer("mask", torch.ones(3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def metric(network: nn.Module) -> float:
        return float(network.to(torch.bfloat16)(batches[0].bfloat16()).detach().sum())

    def train(network: nn.Module) -> None:
        out = network.to(torch.bfloat16)(batches[0].bfloat16())
        out.square().sum().backward()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(0.5)

    result = ap.prune(model, batches, keep="macs=50%", method="l2", evaluate=metric, finetune=train)
    assert all(torch.equal(t, before[name]) and t.dtype == torch.float32 for name, t in model.state_dict().items())
    tuned = ap.prune(model, batches, keep="macs=50%", method="l2", finetune=train).model
    assert {t.dtype for one in (result.model, tuned) for t in one.state_dict().values()} == {torch.float32}
    assert all(bool((p == 0.5).all()) and p.grad is None for p in tuned.parameters())


def test_one_batch_that_cannot_be_divided_is_told_of() -> None:
    class Centred(nn.Module):
        """Samples look at each other."""

        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x - x.mean(0))

    model, batches = chain()
    pairs = (Centred(model), batches[:1]), (model, batches[:1]), (model, batches)
    notes = [ap.prune(net, data, keep="macs=50%").report.notes for net, data in pairs]
    assert [any("one batch" in note for note in some) for some in notes] == [True, False, False]


def test_a_caller_in_inference_mode() -> None:
    model, batches = chain()
    with torch.inference_mode():
        result = ap.prune(model, [x + 0 for x in batches], keep="macs=50%", recover=ap.Distill(steps=3))
    assert result.proof.passed


def test_numbers_of_folds_and_resamples() -> None:
    model, batches = chain()
    graph = ap.capture(model, batches[0])
    with pytest.raises(DataError, match="number of folds"):
        ap.collect(graph, batches, folds=0)
    stats = ap.collect(graph, batches)
    with pytest.raises(ap.PlanError, match="resample"):
        ap.confidence(graph, stats, ap.guide(graph, stats), {"fc1": 4}, resamples=0)


class Outputs(dict[str, Tensor]):
    """As those of transformers: an object with `logits`, and with a loss where there are labels."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Outputs:
        logits = self.b(torch.relu(self.a(x)))
        return (
            Outputs(logits=logits) if labels is None else Outputs(loss=F.cross_entropy(logits, labels), logits=logits)
        )


def labelled() -> list[dict[str, Tensor]]:
    return [{"x": torch.randn(8, 6), "labels": torch.randint(3, (8,))} for _ in range(4)]


def test_a_fine_tune_on_dicts_with_labels() -> None:
    model, batches = Classifier(), labelled()
    train = ap.SGD(batches, lambda outputs, labels: outputs.loss, lr=0.05, epochs=2)
    result = ap.prune(model, batches, keep="macs=60%", method="l2", finetune=train)
    assert result.report.finetuned is not None and result.before_finetune is not None


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"loss": F.cross_entropy}, "loss can't be taken"),
        ({"loss": lambda outputs, labels: outputs.logits}, "no scalar"),
        ({"loss": F.cross_entropy, "forward": lambda model, batch: model(batch["y"])}, "does not run"),
    ],
)
def test_a_fine_tune_that_can_not_run_is_told_before_the_work(how: dict[str, Any], words: str) -> None:
    stages: list[str] = []
    with pytest.raises(DataError, match=words):
        ap.prune(
            Classifier(), labelled(), keep="macs=60%", method="l2", finetune=ap.SGD(labelled(), **how),
            progress=lambda stage, done, total: stages.append(stage),
        )  # fmt: skip
    assert set(stages) == {"capture"}


def test_a_loss_beside_the_outputs_is_not_compared() -> None:
    torch.manual_seed(0)
    model, batches = Classifier(), labelled()
    with_labels, without = (
        ap.prune(model, data, keep="macs=60%", method="l2").report.calibration["distance"]
        for data in (batches, [{"x": batch["x"]} for batch in batches])
    )
    assert with_labels == without


class Ensemble(nn.Module):
    """Five small networks at once: their matrices in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(5, 6, 16)), nn.Parameter(torch.randn(5, 1, 16))
        self.w2 = nn.Parameter(torch.randn(5, 16, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(torch.relu(x @ self.w1 + self.b1), self.w2).mean(0)


def test_matrices_of_an_ensemble_are_cut() -> None:
    result = ap.prune(Ensemble(), torch.randn(64, 6), keep="macs=50%")
    assert result.proof.passed and result.model.w1.shape[2] == result.model.w2.shape[1] < 16
    assert not any("ranked by weights alone" in note for note in result.report.notes)


class Speech(nn.Module):
    """Masks parts of its input in training mode, by NumPy's random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.idle = nn.Linear(6, 8), nn.Linear(8, 3), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            drawn = torch.from_numpy(np.random.permutation(6)[:3])
            x = x.index_copy(1, drawn, self.idle[drawn].expand(len(x), -1))
        return self.b(torch.relu(self.a(x)))


def test_branches_of_training_that_draw_at_random_are_proved() -> None:
    assert ap.prune(Speech(), [torch.randn(8, 6) for _ in range(3)], keep="macs=50%", method="l2").proof.passed


class LeavesOut(nn.Module):
    """Masks its input in training mode, and leaves out half of its layers by chance, as speech models do."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.randn(8))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 8)) for _ in range(6)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.mask if self.training else x
        for layer in self.layers:
            if not (self.training and torch.rand([]) < 0.5):
                x = x + layer(x)
        return x


def test_layers_that_training_leaves_out_by_chance_are_cut() -> None:
    torch.manual_seed(0)
    result = ap.prune(LeavesOut(), torch.randn(64, 8), keep="macs=50%", method="l2")
    assert result.graph.training is not None and set(result.plan.widths.values()) == {12}


class Dropping(nn.Module):
    """Drops at random in eval mode too: inside, in its attention, and in its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout(torch.relu(self.a(x)), 0.3, True)
        h = F.scaled_dot_product_attention(h[:, None], h[:, None], h[:, None], dropout_p=0.3)[:, 0]
        return F.dropout(self.b(h) + 0.1 * torch.randn(len(x), 1), 0.3, True)


def test_dropout_that_is_on_in_eval_mode_is_proved() -> None:
    proof = ap.prune(Dropping(), [torch.randn(8, 6) for _ in range(3)], keep="macs=50%", method="l2").proof
    assert proof.passed and proof.eager_error < 1e-6


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Any, y: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x + y)))


def test_inputs_that_lack_one_or_are_no_tensors_are_told() -> None:
    pairs = [[torch.randn(8, 6), torch.randn(8, 6)] for _ in range(3)]
    with pytest.raises(CaptureError, match=r"forward=lambda model, batch: model\(\*batch\)"):
        ap.prune(Sum(), [x for x, _ in pairs], keep="macs=50%", method="l2")
    batches = [SimpleNamespace(x=x) for x, _ in pairs]
    with pytest.raises(DataError, match="has to be called with tensors, tuples or dicts"):
        ap.prune(Sum(), batches, keep="macs=50%", method="l2", forward=lambda model, batch: model(batch))
    forward = lambda model, batch: model(*batch)  # noqa: E731
    assert ap.prune(Sum(), pairs, keep="macs=50%", method="l2", forward=forward).proof.passed


def test_inspect_wants_a_graph() -> None:
    with pytest.raises(DataError, match="no captured graph"):
        ap.inspect(nn.Linear(2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", ["Attention", len])
def test_a_hint_wants_a_class(cls: Any) -> None:
    with pytest.raises(TypeError, match="class of modules"):
        ap.hint(cls)


def test_groups_that_one_layer_reads_are_tried_whole_as_well() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    graph = ap.capture(model, torch.randn(4, 6))
    space = make_space(graph, Budget("macs", 0.3))
    curves = {name: Curve(o, tuple(1 - k / o[-1] for k in o), {}) for name, o in space.options.items()}
    plain = solve(space, curves)

    def around(widths: Any) -> Any:
        return lambda changed: 0.5 if widths["0"] == 16 else 1.0

    assert plain["0"] < 16 and best_start(space, curves, around, 8) == plain
    best = best_start(space, curves, around, 8, 8)
    assert best["0"] == 16 and space.fits(best)


def test_a_drop_that_forbids_nothing_is_told() -> None:
    model, batches = chain()
    notes = ap.prune(model, batches, max_drop=5, evaluate=lambda net: 0.9, method="l2").report.notes
    assert any("forbids nothing" in note for note in notes)


class Normed(nn.Module):
    """Most of it is a stream that a layer norm runs over."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.norm, self.more = nn.Linear(6, 64), nn.LayerNorm(64), nn.Linear(64, 64)
        self.small, self.out = nn.Linear(64, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        x = x + self.more(self.norm(x))
        return self.out(torch.relu(self.small(x)))


def test_a_budget_out_of_reach_names_what_would_free_it() -> None:
    with pytest.raises(BudgetError, match="norms=True cuts what norms") as told:
        ap.prune(Normed(), torch.randn(32, 6), keep="params=20%", method="l2")
    assert "protect less" not in str(told.value) and "round_to" not in str(told.value)
    with pytest.raises(BudgetError, match="lower round_to"):
        ap.prune(Normed(), torch.randn(32, 6), keep="params=20%", method="l2", round_to=2)


class Shut(nn.Module):
    """Its widest layer makes a size that the class takes from out of reach."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.small, self.out = nn.Linear(6, 64), nn.Linear(64, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.small(torch.relu(self.into(x)).view(torch.Size([32, 64])))))


def test_a_budget_that_the_class_keeps_out_of_reach_names_the_other_form() -> None:
    with pytest.raises(BudgetError, match='form="graph" cuts what the class') as told:
        ap.prune(Shut(), torch.randn(32, 6), keep="params=20%", method="l2")
    assert "norms=True" not in str(told.value)
    assert ap.prune(Shut(), torch.randn(32, 6), keep="params=20%", method="l2", form="graph").proof.passed


class Thinned(nn.Module):
    """Goes on with as many tokens as a draw leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        stays = (torch.rand(x.shape[1]) < 0.5).nonzero()[:, 0]
        drawn = torch.relu(self.into(x))[:, stays].reshape(x.shape[0], len(stays.tolist()), 8)
        return self.out(drawn.mean(1))


def test_sizes_that_are_drawn_are_refused() -> None:
    with pytest.raises(CaptureError, match="don't run again") as told:
        ap.prune(Thinned(), torch.randn(8, 500, 6), keep=0.5, method="l2")
    assert "calibration batch 1" in str(told.value) and "random numbers" in str(told.value)


@pytest.mark.parametrize("method", ["greedy", "grail"])
def test_units_may_be_of_any_size(method: str) -> None:
    """The network with its hidden units in other units of measurement is the same one, and so is what is left of it."""

    def pruned(size: float) -> Tensor:
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)), torch.randn(64, 6)
        with torch.no_grad():
            model[0].weight *= size
            model[0].bias *= size
            model[2].weight /= size
        result = ap.prune(model, x.split(16), keep={"0": 5}, method=method)
        return result.model(x).detach()

    plain = pruned(1.0)
    for size in (2.0**-40, 2.0**30):
        assert relative_error(plain, pruned(size)) < 1e-5
    assert pruned(2.0**-73).isfinite().all()  # squares of 1e-44 have one digit in float32
