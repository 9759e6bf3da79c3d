"""Classes that train by steps of their own, which call layers that no `call` reaches."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

import actprune
from actprune.graph.trace import trace
from actprune.keras3.network import KerasNetwork
from actprune.keras3.stepping import in_training

keras = pytest.importorskip("keras")
kl: Any = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 8)).astype("float32")
# Keras says it of every model that calls layers which nobody has built yet
pytestmark = pytest.mark.filterwarnings(r"ignore:`build\(\)` was called on layer:UserWarning")
Y = RNG.normal(size=(32, 3)).astype("float32")


def _encoder() -> Any:
    return keras.Sequential([keras.Input((8,)), kl.Dense(16, activation="relu"), kl.Dense(12, activation="relu")])


class Stepping(keras.Model):
    def _descend(self, loss: Any) -> dict[str, Any]:
        self.zero_grad()
        loss.backward()
        with torch.no_grad():
            self.optimizer.apply([weight.value.grad for weight in self.trainable_weights], self.trainable_weights)
        return {"loss": loss}


class Contrastive(Stepping):
    """Projects, in training, what its head reads: by a model, and by layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head, self.wide = _encoder(), kl.Dense(3), [kl.Dense(5)]
        self.projection = keras.Sequential([keras.Input((12,)), kl.Dense(6, activation="relu"), kl.Dense(4)])

    def call(self, x: Any) -> Any:
        return self.head(self.encoder(x))

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        told = self.encoder(x)
        loss = keras.ops.mean((self.head(told) - y) ** 2)
        return self._descend(loss + sum(keras.ops.mean(one(told) ** 2) for one in (self.projection, *self.wide)))


class Averaged(Stepping):
    """Keeps a moving average of its student, and compares with it."""

    def __init__(self) -> None:
        super().__init__()
        self.student = keras.Sequential([keras.Input((8,)), *_encoder().layers, kl.Dense(8)])
        self.teacher = keras.models.clone_model(self.student)
        self.teacher.trainable = False

    def call(self, x: Any) -> Any:
        return self.student(x)

    def train_step(self, x: Any) -> dict[str, Any]:
        told = self._descend(keras.ops.mean((self.student(x) - self.teacher(x)) ** 2))
        for mine, other in zip(self.student.weights, self.teacher.weights, strict=True):
            other.assign(0.9 * other + 0.1 * mine)
        return told


def _contrastive() -> Any:
    model = Contrastive()
    model(X)
    model.wide[0].build((None, 12))
    return model


def test_what_a_step_alone_calls_is_cut_along(tmp_path: Path) -> None:
    model = _contrastive()
    model.compile("adam", "mse")
    model.fit(X, Y, verbose=0)
    before = [np.array(weight) for weight in model.get_weights()]
    result = actprune.prune(model, X, keep="units=50%", method="l2")
    small: Any = result.model
    assert all(map(np.array_equal, before, model.get_weights()))
    # what training alone makes stays, as a teacher does
    assert [one.shape for one in small.projection.weights[::2]] == [(6, 6), (6, 4)]
    assert small.wide[0].kernel.shape == (6, 5)
    small.fit(X, Y, verbose=0)
    result.save(tmp_path / "run")
    again: Any = actprune.load(tmp_path / "run", _contrastive())  # never compiled
    assert again.projection.layers[0].kernel.shape == (6, 6)


def test_a_moving_average_is_cut_like_what_it_follows() -> None:
    model = Averaged()
    model(X)
    model.compile("adam")
    small: Any = actprune.prune(model, X, keep="macs=50%", method="l2").model
    assert [w.shape for w in small.teacher.weights] == [w.shape for w in small.student.weights]
    assert small.count_params() < 0.7 * model.count_params()
    small.fit(X, verbose=0)


def test_a_step_that_does_not_run_is_told() -> None:
    result = actprune.prune(_contrastive(), X, keep="units=50%", method="l2")
    told = next(note for note in result.report.notes if "train_step" in note)
    assert "no attribute 'optimizer'" in told and "alone calls (dense" in told


class Remembering(Stepping):
    """Its step keeps what it sees, and takes weights of the samples, gradients by a call of torch's, and an optimizer
    that an object holds."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head, self.probe = kl.Dense(16, activation="relu"), kl.Dense(3), kl.Dense(5)
        self.seen, self.count, self.replay = [], 0, SimpleNamespace(items=deque(), best={}, table=np.zeros(2))
        self.by = SimpleNamespace(optimizer=keras.optimizers.Adam())

    def call(self, x: Any) -> Any:
        return self.head(self.trunk(x))

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y, weight = data
        loss = keras.ops.mean(weight) * keras.ops.mean((self(x) - y) ** 2) + keras.ops.mean(self.probe(self.trunk(x)))
        self.seen.append(loss)
        self.replay.items.append(x)
        self.replay.best["loss"], self.count, self.last = loss, self.count + 1, loss
        self.replay.table += 1
        weights = self.trainable_weights
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss, [weight.value for weight in weights])
        self.by.optimizer.apply([keras.ops.clip(gradient, -1, 1) for gradient in gradients], weights)
        return {"loss": loss}


def test_a_step_leaves_what_the_user_holds_as_it_was() -> None:
    model = Remembering()
    model(X)
    model.probe.build((None, 16))
    for weight in model.trainable_weights:
        weight.value.grad = torch.ones_like(weight.value)
    before = [np.array(weight) for weight in model.get_weights()]
    small: Any = actprune.prune(model, X, keep="units=50%", method="l2").model
    assert small.probe.kernel.shape == (8, 5)
    assert all(map(np.array_equal, before, model.get_weights()))
    assert all(bool((weight.value.grad == 1).all()) for weight in model.trainable_weights)
    assert (model.seen, model.count, hasattr(model, "last")) == ([], 0, False)
    assert not model.replay.items and not model.replay.best and not model.replay.table.any()


class Deciding(Contrastive):
    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        loss = keras.ops.mean((self.head(self.encoder(x)) - y) ** 2)
        return self._descend(loss * 2 if float(loss) > 0.5 else loss + keras.ops.mean(self.projection(self.encoder(x))))


class InPlace(Averaged):
    def train_step(self, x: Any) -> dict[str, Any]:
        for mine, other in zip(self.student.weights, self.teacher.weights, strict=True):
            other.value.mul_(0.9).add_(mine.value, alpha=0.1)
        return self._descend(keras.ops.mean((self.student(x) - self.teacher(x)) ** 2))


@pytest.mark.parametrize(("kind", "told"), [(InPlace, "writes to weights"), (Deciding, "reads a number off a tensor")])
def test_a_step_that_no_capture_follows_is_told_and_undone(kind: Any, told: str) -> None:
    model = kind()
    model(X)
    model.compile("adam")
    before = [np.array(weight) for weight in model.get_weights()]
    result = actprune.prune(model, X, keep="units=50%", method="l2")
    assert all(map(np.array_equal, before, model.get_weights()))
    assert any(f"it {told}" in note for note in result.report.notes)


class Auxiliary(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head, self.aux = kl.Dense(16, activation="relu"), kl.Dense(3), kl.Dense(3)

    def call(self, x: Any, training: bool = False) -> Any:
        hidden = self.trunk(x)
        if training:
            self.add_loss(keras.ops.mean(self.aux(hidden) ** 2))
        return self.head(hidden)


def test_losses_that_a_call_adds_in_training() -> None:
    model = Auxiliary()
    model(X, training=True)
    model.compile("adam", "mse")
    small: Any = actprune.prune(model, X, keep="macs=50%", method="l2").model
    assert small.trunk.units == 8 and small.aux.kernel.shape == (8, 3)
    small.fit(X, Y, verbose=0)


class Calls(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.made: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.made.append(func)
        return func(*args, **(kwargs or {}))


def test_statistics_that_are_assigned_do_not_turn_gradients_off_once_more() -> None:
    norm = keras.Sequential([keras.Input((8,)), kl.BatchNormalization()])
    with torch.no_grad(), Calls() as calls, keras.StatelessScope():
        in_training(norm, (torch.tensor(X),), {}, None)
    assert calls.made and torch._C._set_grad_enabled not in calls.made


class Untrainable(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head, self.aux = kl.Dense(16), kl.Dense(3), kl.Dense(3)

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            raise NotImplementedError
        return self.head(self.trunk(x))


def _adapted() -> Any:
    model = keras.Sequential([keras.Input((8,)), kl.Normalization(), kl.Dense(4)])
    model.layers[0].adapt(X)
    return model


def _untrainable() -> Any:
    model = Untrainable()
    model(X)
    model.aux.build((None, 16))
    return model


@pytest.mark.parametrize(("make", "modes"), [(_adapted, [False]), (_untrainable, [False, True])])
def test_training_mode_is_captured_no_more_often_than_it_tells(
    make: Any, modes: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def noted(*args: Any, training: bool = False, **kwargs: Any) -> Any:
        seen.append(training)
        return trace(*args, training=training, **kwargs)

    for where in ("capture", "trained"):
        monkeypatch.setattr(f"actprune.axes.{where}.trace", noted)
    actprune.capture(KerasNetwork(make()), (torch.tensor(X),))
    assert seen == modes


class Tied(keras.Model):
    """A loss of training decodes with the weight of the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.code, self.head = kl.Dense(16, activation="relu"), kl.Dense(12, activation="relu"), kl.Dense(3)

    def call(self, x: Any, training: bool = False) -> Any:
        hidden = self.trunk(x)
        code = self.code(hidden)
        if training:
            decoded = keras.ops.matmul(code, keras.ops.transpose(self.code.kernel))
            self.add_loss(keras.ops.mean((self.unused(decoded)) ** 2))
        return self.head(code)


def _spectral() -> Any:
    inner = kl.Dense(12, activation="relu")
    layers = kl.Dense(16, activation="relu"), kl.SpectralNormalization(inner), kl.Dense(3)
    return keras.Sequential([keras.Input((8,)), *layers])


def _tied() -> Any:
    model = Tied()
    model.unused = kl.Dense(2)
    model(X, training=True)
    return model


@pytest.mark.parametrize("make", [_spectral, _tied])
def test_weights_that_training_reads_along_another_dimension(make: Any) -> None:
    model = make()
    model.compile("adam", "mse")
    result = actprune.prune(model, X, keep="units=50%", method="l2")
    small: Any = result.model
    assert small.count_params() < 0.5 * model.count_params()
    assert {group.kind for group in result.graph.groups} == {"neurons"}
    small.fit(X, Y, verbose=0)


class ByTorch(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = kl.Dense(16), kl.Dense(3)

    def call(self, x: Any) -> Any:
        return self.head(self.trunk(x))

    def train_step(self, data: Any) -> dict[str, Any]:
        self.held["by"].zero_grad()
        loss = keras.ops.mean((self(data[0]) - data[1]) ** 2)
        loss.backward()
        self.held["by"].step()
        return {"loss": loss}


def test_an_optimizer_of_torch_steps_the_weights_of_its_own_model() -> None:
    model = ByTorch()
    model(X)
    model.held = {"by": torch.optim.SGD([w.value for w in model.trainable_weights], 0.1, momentum=0.9)}
    model.compile()
    model.fit(X, Y, verbose=0)
    before = [np.array(weight) for weight in model.get_weights()]
    small: Any = actprune.prune(model, X, keep="units=50%", method="l2").model
    moments = small.held["by"].state
    assert [moments[w.value]["momentum_buffer"].shape for w in small.weights] == [w.shape for w in small.weights]
    after = [np.array(weight) for weight in small.get_weights()]
    small.fit(X, Y, verbose=0)
    assert all(map(np.array_equal, before, model.get_weights()))
    assert not any(map(np.array_equal, after, small.get_weights()))


class ByClosure(ByTorch):
    def train_step(self, data: Any) -> dict[str, Any]:
        def closure() -> Any:
            self.held["by"].zero_grad()
            loss = keras.ops.mean((self(data[0]) - data[1]) ** 2)
            loss.backward()
            return loss

        return {"loss": self.held["by"].step(closure)}


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.Adafactor])
def test_optimizers_of_torch_whose_state_is_of_several_weights_at_once(kind: Any) -> None:
    """A history of all weights in one, and means over the inputs of a layer: they begin anew where units went."""
    model = ByClosure()
    model(X)
    model.held = {"by": kind([w.value for w in model.trainable_weights], 0.01)}
    model.compile()
    model.fit(X, Y, verbose=0)
    small: Any = actprune.prune(model, X, keep="units=50%", method="l2").model
    dense, before = model.get_weights(), small.get_weights()
    small.fit(X, Y, verbose=0)
    assert all(map(np.array_equal, dense, model.get_weights()))
    assert not any(map(np.array_equal, before, small.get_weights()))
