"""The SGD fine-tune: its schedule, what it leaves alone, what it learns from, and what it refuses."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from math import cos, pi
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import actprune
from actprune.errors import DataError
from actprune.recovery.batchnorm import reestimate_batchnorm
from actprune.recovery.distillation import distillation
from actprune.recovery.modes import training
from actprune.recovery.sgd import SGD
from nets import build


def says(error: DataError, *words: str) -> None:
    """The message has all four parts, and these words."""
    text = str(error)
    for label in ("expected: ", "got: ", "where: ", "next: "):
        assert label in text, text
    for word in words:
        assert word in text, text


class Net(nn.Module):
    """A bit of everything; notes in which mode its parts are called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop, self.last = (
            nn.Linear(4, 16),
            nn.BatchNorm1d(16),
            nn.Dropout(0.5),
            nn.Linear(16, 3),
        )
        self.modes: list[tuple[bool, bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append((self.training, self.norm.training, self.drop.training))
        return self.last(self.drop(torch.relu(self.norm(self.first(x)))))


def made() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def batches(count: int = 6, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    """Three classes, told by the largest of the first three inputs."""
    draw = torch.Generator().manual_seed(1)
    found = [torch.randn(size, 4, generator=draw) for _ in range(count)]
    return [(x, x[:, :3].argmax(1)) for x in found]


def accuracy(model: nn.Module) -> float:
    pairs = batches()
    with torch.no_grad():
        return float(torch.cat([model(x).argmax(1) == y for x, y in pairs]).float().mean())


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: held.clone() for name, held in model.state_dict().items()}


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(held, before[name]) for name, held in model.state_dict().items())


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The settings of the optimizer, and the norm of the gradients, at every step."""
    seen: list[dict[str, Any]] = []
    taken = torch.optim.SGD.step

    def step(self: torch.optim.SGD, *args: Any, **how: Any) -> Any:
        grads = [p.grad.norm() for group in self.param_groups for p in group["params"] if p.grad is not None]
        seen.append({
            "lr": [group["lr"] for group in self.param_groups],
            "decay": [(len(group["params"]), group["weight_decay"]) for group in self.param_groups],
            "nesterov": self.param_groups[0]["nesterov"],
            "momentum": self.param_groups[0]["momentum"],
            "norm": float(torch.stack(grads).norm()),
            "dims": [sorted({p.dim() for p in group["params"]}) for group in self.param_groups],
        })  # fmt: skip
        return taken(self, *args, **how)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    return seen


# ---- how it trains


def test_it_learns() -> None:
    model = made()
    before = accuracy(model)
    assert SGD(batches(), F.cross_entropy, lr=0.1, epochs=10)(model) is model
    assert accuracy(model) > max(before, 0.9)
    assert all(p.grad is None for p in model.parameters())


def test_the_rate_rises_and_then_falls_along_a_cosine(steps: list[dict[str, Any]]) -> None:
    SGD(batches(10), F.cross_entropy, lr=0.4, epochs=4, warmup=0.1).run(made())
    rates = [step["lr"][0] for step in steps]
    assert all(step["lr"] == [step["lr"][0]] * 2 for step in steps)
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rates[4:] == pytest.approx([0.2 * (1 + cos(pi * i / 36)) for i in range(36)])
    assert 0 < rates[-1] < 0.002


@pytest.mark.parametrize("count", [1, 2, 3])
def test_short_schedules(count: int, steps: list[dict[str, Any]]) -> None:
    SGD(batches(count), F.cross_entropy, lr=0.4, epochs=1).run(made())
    assert len(steps) == count
    assert steps[0]["lr"][0] == 0.4 and all(step["lr"][0] > 0 for step in steps)


def test_norms_and_biases_do_not_decay(steps: list[dict[str, Any]]) -> None:
    SGD(batches(1), F.cross_entropy, epochs=1, weight_decay=0.01).run(made())
    assert steps[0]["decay"] == [(2, 0.01), (4, 0.0)]
    assert steps[0]["dims"] == [[2], [1]]
    assert steps[0]["nesterov"] and steps[0]["momentum"] == 0.9


def test_no_momentum_no_nesterov(steps: list[dict[str, Any]]) -> None:
    SGD(batches(1), F.cross_entropy, epochs=1, momentum=0.0).run(made())
    assert not steps[0]["nesterov"]


def test_gradients_are_clipped(steps: list[dict[str, Any]]) -> None:
    big = lambda outputs, targets: 1e3 * F.cross_entropy(outputs, targets)  # noqa: E731
    SGD(batches(2), big, lr=1e-6, epochs=1, clip=0.5).run(made())
    SGD(batches(2), big, lr=1e-6, epochs=1, clip=None).run(made())
    assert [step["norm"] for step in steps[:2]] == pytest.approx([0.5, 0.5], rel=1e-4)
    assert min(step["norm"] for step in steps[2:]) > 10


def test_frozen_parameters_stay() -> None:
    model = made()
    model.first.requires_grad_(False)
    before = state(model)
    SGD(batches(), F.cross_entropy, lr=0.1, epochs=1).run(model)
    assert torch.equal(model.first.weight, before["first.weight"])
    assert not torch.equal(model.last.weight, before["last.weight"])


def test_no_epochs_change_nothing() -> None:
    model = made()
    before = state(model)
    assert SGD([], F.cross_entropy, epochs=0).run(model) is model
    assert same(model, before)


@pytest.mark.parametrize("dropout", [False, True])
def test_dropout_is_off_unless_asked_for(dropout: bool) -> None:
    model = made()
    SGD(batches(2), F.cross_entropy, epochs=1, dropout=dropout, batchnorm=False).run(model)
    assert set(model.modes) == {(True, True, dropout)}


def test_the_modes_are_put_back() -> None:
    model = made()
    model.train()
    model.norm.eval()
    SGD(batches(2), F.cross_entropy, epochs=1).run(model)
    assert model.training and model.drop.training and not model.norm.training
    teacher = made()
    teacher.drop.train()
    with pytest.raises(DataError):
        SGD(batches(2), lambda outputs, targets: outputs.sum() * float("nan"), epochs=1).run(model, teacher)
    assert model.training and model.drop.training and not model.norm.training
    assert not teacher.training and teacher.drop.training


def test_it_trains_inside_no_grad() -> None:
    model = made()
    before = state(model)
    with torch.no_grad():
        SGD(batches(2), F.cross_entropy, epochs=1).run(model)
    assert not torch.equal(model.last.weight, before["last.weight"])


def test_progress_is_told() -> None:
    told: list[tuple[int, int, str]] = []
    SGD(batches(30), F.cross_entropy, epochs=2).run(made(), progress=lambda *state: told.append(state))
    assert [(done, total) for done, total, _ in told] == [(50, 60), (60, 60)]
    assert told[0][2].startswith("epoch 2, loss ")


# ---- loaders


def test_a_generator_serves_every_epoch(steps: list[dict[str, Any]]) -> None:
    def given() -> Iterator[tuple[Tensor, Tensor]]:
        yield from batches(3)

    model = made()
    SGD(given(), F.cross_entropy, epochs=2, lr=0.1).run(model)
    other = made()
    SGD(batches(3), F.cross_entropy, epochs=2, lr=0.1).run(other)
    assert len(steps) == 12
    assert same(model, state(other))


def test_a_loader_without_a_length(steps: list[dict[str, Any]]) -> None:
    class Endless:
        """May be iterated over again and again, but doesn't know how long it is."""

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter(batches(3))

    SGD(Endless(), F.cross_entropy, lr=0.4, epochs=2, warmup=0.5).run(made())
    assert [step["lr"][0] for step in steps[:3]] == pytest.approx([0.4 / 3, 0.8 / 3, 0.4])


def test_batches_of_any_form() -> None:
    Pair = namedtuple("Pair", "images labels")
    (x, y), *_ = batches(1)
    for batch in ([x, y], (x, y), Pair(x, y), (x, y, "a name")):
        SGD([batch], F.cross_entropy, epochs=1).run(made())
    SGD([(x.numpy(), y.numpy())], F.cross_entropy, epochs=1).run(made())
    deep = [({"x": x, "names": ["a"]}, y)]
    SGD(deep, F.cross_entropy, epochs=1, forward=lambda model, batch: model(batch[0]["x"])).run(made())


def test_a_model_that_needs_two_inputs() -> None:
    class Sum(Net):
        def forward(self, x: Tensor, more: Tensor) -> Tensor:
            return super().forward(x + more)

    trained = []
    for batch in ((x, 0 * x, y) for x, y in batches(1)), (((x, 0 * x), y) for x, y in batches(1)):
        torch.manual_seed(0)
        trained.append(SGD(list(batch), F.cross_entropy, epochs=1, accumulate=2).run(Sum()))
    torch.manual_seed(0)
    alone = state(SGD(batches(1), F.cross_entropy, epochs=1).run(Net()))
    for model in trained:
        assert same(model, alone)
    with pytest.raises(DataError, match="no targets") as caught:
        SGD([(x, x) for x, _ in batches(1)], F.cross_entropy).run(Sum())
    says(caught.value, "expected: (a, b, targets)", "the model takes 2 inputs", "got: 2 of them")


@pytest.mark.parametrize("empty", [[], iter(()), (batch for batch in ())], ids=["list", "iterator", "generator"])
def test_an_empty_loader(empty: Any) -> None:
    model = made()
    before = state(model)
    with pytest.raises(DataError, match="loader is empty") as caught:
        SGD(empty, F.cross_entropy).run(model)
    says(caught.value, "where: SGD.loader", "used up")
    assert same(model, before)


@pytest.mark.parametrize("batch", [torch.randn(4, 4), (torch.randn(4, 4),), {"x": torch.randn(4, 4)}], ids=type)
def test_batches_without_targets(batch: Any) -> None:
    with pytest.raises(DataError, match="no targets") as caught:
        SGD([batch], F.cross_entropy).run(made())
    says(caught.value, "(inputs, targets)", "where: SGD.loader")


def test_nothing_to_train() -> None:
    with pytest.raises(DataError, match="nothing to fine-tune") as caught:
        SGD(batches(1), F.cross_entropy).run(made().requires_grad_(False))
    says(caught.value, "got: Net without one", "requires_grad_")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(value: float) -> None:
    """The step is not taken: the weights are those of the last finite one."""
    model = made()
    before = state(model)
    with pytest.raises(DataError, match="diverged") as caught:
        SGD(batches(2), lambda outputs, targets: value + 0 * outputs.sum(), lr=0.3).run(model)
    says(caught.value, f"got: {value} in epoch 1", "where: SGD", "learning rate (now 0.3)")
    assert torch.equal(model.first.weight, before["first.weight"])


def test_a_rate_that_is_far_too_high() -> None:
    with pytest.raises(DataError, match="diverged"):
        SGD(batches(), F.cross_entropy, lr=1e25, epochs=3, clip=None).run(made())


# ---- distillation


def test_the_teacher_is_left_as_it_is() -> None:
    teacher, model = made(), made()
    teacher.train()
    teacher.norm.eval()
    before = state(teacher)
    SGD(batches(2), F.cross_entropy, epochs=2).run(model, teacher)
    assert same(teacher, before)
    assert set(teacher.modes) == {(False, False, False)} and len(teacher.modes) == 4
    assert teacher.training and not teacher.norm.training
    assert all(p.grad is None for p in teacher.parameters())


def test_without_distillation_the_teacher_is_not_asked() -> None:
    teacher = made()
    SGD(batches(2), F.cross_entropy, epochs=1, distill=0.0).run(made(), teacher)
    assert teacher.modes == []


def test_distillation_by_hand() -> None:
    """T² · Σ p log(p/q), p and q at temperature T."""
    outputs, wanted = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    p, q = (torch.softmax(v / 2, 1) for v in (wanted, outputs))
    expected = 4 * float((p * (p / q).log()).sum(1).mean())
    assert float(distillation(outputs, wanted, 2.0)) == pytest.approx(expected)
    assert float(distillation(wanted, wanted, 2.0)) == pytest.approx(0, abs=1e-6)
    assert float(distillation(outputs, wanted, 2.0, classes=False)) == pytest.approx((4 + 16) / 4)
    one = torch.tensor([[1.0], [3.0]])
    assert float(distillation(one, 0 * one, 2.0)) == pytest.approx(5.0)


def test_the_two_losses_are_weighed() -> None:
    """With the weight 1 the labels do not matter, with 0 only they do."""
    teacher = made()
    with torch.no_grad():
        teacher.last.weight *= 20
    wrong = [(x, (y + 1) % 3) for x, y in batches()]
    pupils = {}
    for distill in (0.0, 1.0):
        pupils[distill] = SGD(wrong, F.cross_entropy, lr=0.1, epochs=15, distill=distill).run(made(), teacher)
    with torch.no_grad():
        x = torch.cat([x for x, _ in wrong])
        agree = {d: float((pupil(x).argmax(1) == teacher(x).argmax(1)).float().mean()) for d, pupil in pupils.items()}
        obey = float((pupils[0.0](x).argmax(1) == torch.cat([y for _, y in wrong])).float().mean())
    assert agree[1.0] > 0.9 > agree[0.0]
    assert obey > 0.9


def test_targets_that_are_numbers_are_distilled_by_their_squares() -> None:
    """For a regression with several outputs a divergence between "classes" would say nothing about their size."""
    teacher = made()
    pairs = [(x, torch.zeros(len(x), 3)) for x, _ in batches()]
    with torch.no_grad():
        teacher.last.bias += 5.0  # a softmax doesn't see it
    model = SGD(pairs, F.mse_loss, lr=0.05, epochs=30, distill=1.0).run(made(), teacher)
    with torch.no_grad():
        x = torch.cat([x for x, _ in pairs])
        assert float((model(x) - teacher(x)).abs().mean()) < 1.0


def test_the_logits_of_a_dict_are_distilled() -> None:
    class Named(Net):
        def forward(self, x: Tensor) -> Any:
            return {"logits": super().forward(x), "count": len(x)}

    def named(outputs: Any, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs["logits"], targets)

    trained = []
    for kind, loss in ((Named, named), (Net, F.cross_entropy)):
        torch.manual_seed(0)
        trained.append(SGD(batches(2), loss, epochs=1).run(kind(), kind()))
    assert same(trained[0], state(trained[1]))


def test_each_of_several_outputs_is_distilled() -> None:
    logits, wanted, maps = torch.randn(4, 3), torch.randn(4, 3), torch.randn(4, 2, 5, 5)
    one, two = distillation(logits, wanted, 4.0), F.mse_loss(maps, 2 * maps)
    for student, dense in (
        ((logits, maps), (wanted, 2 * maps)),
        ({"a": logits, "b": maps}, {"a": wanted, "b": 2 * maps}),
    ):
        assert torch.allclose(distillation(student, dense, 4.0), (one + two) / 2)


def test_distillation_compares_tensors_of_one_shape() -> None:
    class Two(Net):
        def forward(self, x: Tensor) -> Any:
            return (super().forward(x), x) if self.training else super().forward(x)

    loss = lambda outputs, targets: F.cross_entropy(outputs[0], targets)  # noqa: E731
    with pytest.raises(DataError, match="of the same shapes") as caught:
        SGD(batches(1), loss, epochs=1).run(Two(), Two())
    says(caught.value, "distill=0")
    SGD(batches(1), loss, epochs=1).run(Two())
    with pytest.raises(DataError) as caught:
        distillation({"logits": None}, {"logits": None}, 2.0)
    assert (caught.value.expected, caught.value.got) == ("at least one tensor of numbers", "no tensor of numbers")


# ---- BatchNorm


def test_running_statistics_are_averages_over_the_batches() -> None:
    model = made()
    model.norm.momentum = 0.3
    SGD(batches(5), F.cross_entropy, lr=0.1, epochs=2).run(model)
    with torch.no_grad():
        values = [model.first(x) for x, _ in batches(5)]
    assert torch.allclose(model.norm.running_mean, torch.stack([v.mean(0) for v in values]).mean(0), atol=1e-6)
    assert torch.allclose(model.norm.running_var, torch.stack([v.var(0) for v in values]).mean(0), atol=1e-5)
    assert model.norm.momentum == 0.3


def test_reestimation_can_be_left_out_and_looks_at_so_many_batches() -> None:
    model = made()
    SGD(batches(5), F.cross_entropy, lr=0.0, epochs=1, batchnorm=False).run(model)
    assert int(model.norm.num_batches_tracked) == 5  # the usual moving average
    seen: list[int] = []
    reestimate_batchnorm(
        model, (lambda m, batch: seen.append(len(batch[0])), batches(5), torch.device("cpu")), batches=3
    )  # fmt: skip
    assert seen == [16] * 3


def test_the_momentum_is_put_back_after_an_error() -> None:
    model = made()

    def fails(m: nn.Module, batch: Any) -> Any:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        reestimate_batchnorm(model, (fails, batches(1), torch.device("cpu")))
    assert model.norm.momentum == 0.1 and not model.training


def test_networks_without_norms_are_not_run_again() -> None:
    seen: list[int] = []
    model = nn.Linear(4, 3)
    reestimate_batchnorm(model, (lambda m, batch: seen.append(1), batches(3), torch.device("cpu")))
    assert seen == []


class Dropping(nn.Module):
    """Everything that drops at random, but `nn.Dropout`."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 6, num_layers=2, dropout=0.5, batch_first=True)
        self.mha = nn.MultiheadAttention(6, 2, dropout=0.5, batch_first=True)
        self.noise, self.out = DropPath(), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, _ = self.rnn(x[:, None].expand(-1, 3, -1))
        h = self.mha(h, h, h)[0]
        h = F.scaled_dot_product_attention(h, h, h, dropout_p=0.5 if self.training else 0.0)
        return self.out(F.dropout(self.noise(h.mean(1)), 0.5, self.training))


class DropPath(nn.Module):
    """As in timm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rand(len(x), 1).gt(0.5) if self.training else x


@pytest.mark.parametrize("dropout", [False, True])
def test_dropout_in_functions_and_layers_is_off_as_well(dropout: bool) -> None:
    torch.manual_seed(0)
    model, x = Dropping(), torch.randn(8, 4)
    with torch.no_grad(), training(model, dropout):
        first, second = model(x), model(x)
    assert torch.equal(first, second) is not dropout
    assert model.rnn.dropout == model.mha.dropout == 0.5 and model.noise.training


def test_a_fine_tune_is_of_the_seed_alone() -> None:
    """Whatever was drawn before, and whether or not the stages are kept."""

    def tuned(drawn: int, **how: Any) -> torch.Tensor:
        torch.manual_seed(drawn)
        net, x = build("chain")
        torch.manual_seed(drawn)
        data = torch.utils.data.TensorDataset(x.repeat(8, 1), torch.arange(8 * len(x)) % 3)
        loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
        train = SGD(loader, F.cross_entropy, lr=0.1, epochs=1, dropout=True)
        return actprune.prune(net, [x], keep="macs=60%", method="l2", finetune=train, **how).model.fc3.weight

    assert torch.equal(tuned(1), tuned(2)) and not torch.equal(tuned(1), tuned(1, seed=3))
