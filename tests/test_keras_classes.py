"""Functional models of the user's own class, as those of keras_hub: backbones, and tasks that hold one."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import pytest
import torch

import actprune
from actprune.errors import UnsupportedModelError
from actprune.keras3.network import KerasNetwork

keras = pytest.importorskip("keras")
kl: Any = keras.layers
RNG = np.random.default_rng(0)


class Attentive(kl.Layer):
    """Its config doesn't make it again, as several in keras_hub: only the model that holds it can."""

    def __init__(self, heads: int, **others: Any) -> None:
        super().__init__(**others)
        self.heads = heads

    def build(self, shape: Any) -> None:
        self.attention = kl.MultiHeadAttention(self.heads, shape[-1] // self.heads)
        self.attention.build(shape, shape)

    def call(self, x: Any) -> Any:
        return x + self.attention(x, x)

    def get_config(self) -> dict[str, Any]:
        raise AttributeError("hidden_dim")


@keras.saving.register_keras_serializable("classes")
class Backbone(keras.Model):
    def __init__(self, width: int = 8, heads: int = 4, **others: Any) -> None:
        inputs = keras.Input((5, 6), name="rows")
        first, blocks = kl.Dense(width, name="first"), [Attentive(heads, name=f"block_{i}") for i in range(1)]
        x = first(inputs)
        for block in blocks:
            x = block(x)
        super().__init__(inputs, x, **others)
        self.width, self.heads, self.first, self.blocks, self.levels = width, heads, first, blocks, {"low": x}

    def get_config(self) -> dict[str, Any]:
        return {"width": self.width, "heads": self.heads, "name": self.name}


@keras.saving.register_keras_serializable("classes")
class Classifier(keras.Model):
    def __init__(self, backbone: Any, classes: int = 3, **others: Any) -> None:
        pooled = kl.GlobalAveragePooling1D()(backbone(backbone.input))
        head = kl.Dense(classes, name="logits")
        super().__init__(backbone.input, head(kl.Dense(10, activation="relu", name="wide")(pooled)), **others)
        self.backbone, self.classes, self.head = backbone, classes, head

    def get_config(self) -> dict[str, Any]:
        return {"backbone": keras.saving.serialize_keras_object(self.backbone), "classes": self.classes}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return cls(keras.saving.deserialize_keras_object(config.pop("backbone")), **config)

    def labels(self, x: Any) -> Any:
        return self(x).argmax(-1)


def _random(model: Any) -> Any:
    for weight in model.weights:
        weight.assign(RNG.normal(size=weight.shape) / 2)
    return model


def test_a_functional_class_comes_back_as_itself(tmp_path: Path) -> None:
    model, x = _random(Classifier(Backbone())), RNG.normal(size=(16, 5, 6)).astype("float32")
    result = actprune.prune(model, x, keep="units=50%", method="l2")
    small: Any = result.model
    assert result.proof is not None and result.proof.passed
    assert isinstance(small, Classifier) and small.labels(x).shape == (16,)
    backbone, (block,) = small.backbone, small.backbone.blocks
    # its attributes are the layers and tensors that it calls
    assert (block, backbone, small.head) == (backbone.layers[-1], small.layers[1], small.layers[-1])
    assert (
        isinstance(block, Attentive) and block.attention.num_heads == 2 and small.count_params() < model.count_params()
    )
    assert keras.Model(backbone.input, backbone.levels)(x)["low"].shape == (16, 5, 4)
    small.save(tmp_path / "small.keras")
    result.save(tmp_path / "run")
    for again in (
        keras.models.load_model(tmp_path / "small.keras"),
        actprune.load(tmp_path / "run", Classifier(Backbone())),
    ):
        assert isinstance(again, Classifier) and isinstance(again.backbone, Backbone)
        assert torch.equal(again(x), small(x))
    small.compile("sgd", "mse")
    small.fit(x, np.zeros(small(x).shape), verbose=0)
    assert not torch.equal(again(x), small(x))
    network = copy.deepcopy(KerasNetwork(again))  # what is cut already, once more
    assert isinstance(network.model, Classifier) and torch.equal(network.model(x), again(x))


def test_a_class_without_a_config_comes_back_as_itself(tmp_path: Path) -> None:
    class Closed(keras.Model):
        def __init__(self, settings: Any) -> None:
            inputs = keras.Input((6,))
            hidden = kl.Dense(settings.units)
            super().__init__(inputs, kl.Dense(2)(hidden(inputs)))
            self.hidden, self.levels, self.told = hidden, [self.output], lambda: self.count_params()

    def made() -> Any:
        return Closed(SimpleNamespace(units=8))

    result = actprune.prune(made(), RNG.normal(size=(16, 6)), keep="units=50%", method="l2")
    small: Any = result.model
    assert isinstance(small, Closed) and small.hidden is small.layers[1] and small.hidden.units == 4
    assert small.levels == [small.output] and small.told() == small.count_params() == 38
    result.save(tmp_path / "run")
    assert isinstance(actprune.load(tmp_path / "run", made()), Closed)
    with pytest.raises(NotImplementedError, match="does not make it again"):  # it would make a larger one
        small.save(tmp_path / "small.keras")
    assert isinstance(actprune.prune(small, np.zeros((4, 6)), keep="units=50%", method="l2").model, Closed)


def test_a_class_that_computes_more_than_its_graph_is_refused() -> None:
    class Twice(keras.Model):
        def call(self, inputs: Any, **others: Any) -> Any:
            return 2 * super().call(inputs, **others)

    inputs = keras.Input((6,))
    with pytest.raises(UnsupportedModelError, match="whose `call` is its own"):
        actprune.prune(Twice(inputs, kl.Dense(2)(inputs)), np.zeros((4, 6)), keep=0.5)


class Stepping(keras.Model):
    """Made of inputs and outputs, with a training step of its own."""

    def compile(self, optimizer: Any, own: float, **others: Any) -> None:
        super().compile(optimizer, "mse", **others)
        self.own = own

    def train_step(self, data: Any) -> Any:
        return {**super().train_step(data), "own": self.own}


def test_a_class_made_of_inputs_and_outputs_is_what_keras_reads(tmp_path: Path) -> None:
    inputs = keras.Input((4,))
    hidden = kl.Dense(8, activation="relu")(inputs)
    model, x = Stepping(inputs, kl.Dense(2)(hidden)), RNG.normal(size=(16, 4)).astype("float32")
    model.compile("adam", 1.0)
    small = actprune.prune(model, x, keep="units=50%", method="l2").model
    assert type(small) is Stepping and small.layers[1].units == 4
    assert small.fit(x, x[:, :2], verbose=0).history["own"] == [1.0]
    small.save(tmp_path / "small.keras")
    with keras.saving.custom_object_scope({"Stepping": Stepping}):
        found = keras.models.load_model(tmp_path / "small.keras", compile=False)
    np.testing.assert_allclose(found.predict(x, verbose=0), small.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


class Both(NamedTuple):
    first: Any
    second: Any


class Adversary(keras.Model):
    """Made of inputs and outputs; its `compile` keeps metrics, lists and one optimizer under several names."""

    def compile(self, own: Any, seen: Any, weights: list[float]) -> None:
        super().compile()
        self.own, self.both, self.seen, self.weights_of = own, {"first": own}, seen, weights
        self.nothing, self.named = None, Both(own, weights)


def test_what_an_own_compile_keeps_comes_back() -> None:
    inputs = keras.Input((4,))
    hidden = kl.Dense(8, activation="relu")(inputs)
    model, x = Adversary(inputs, kl.Dense(2)(hidden)), RNG.normal(size=(16, 4)).astype("float32")
    model.compile(keras.optimizers.Adam(), keras.metrics.Mean(name="seen"), [1.0, 2.0])
    small = actprune.prune(model, x, keep="units=50%", method="l2").model
    assert small.own is small.both["first"] and small.own is not model.own
    assert type(small.seen) is keras.metrics.Mean and small.seen is not model.seen
    assert small.weights_of == [1.0, 2.0] and small.nothing is None and small.named.first is small.own


class SaysBuilt(keras.Model):
    """As generators are often written: nothing tells what it is called on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = keras.Sequential([keras.Input((6,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(3)])
        self.built = True

    def call(self, x: Any) -> Any:
        return self.net(x)


def test_a_class_that_says_of_itself_that_it_is_built_is_loaded_with_inputs(tmp_path: Path) -> None:
    x = RNG.normal(size=(32, 6)).astype("float32")
    result = actprune.prune(SaysBuilt(), x, keep="units=50%", method="l2")
    result.save(tmp_path / "run")
    with pytest.raises(UnsupportedModelError, match=r"load\(folder, model, inputs\)"):
        actprune.load(tmp_path / "run", SaysBuilt())
    loaded = actprune.load(tmp_path / "run", SaysBuilt(), x[:2])
    assert torch.equal(loaded(x), result.model(x))


class Even(keras.regularizers.Regularizer):
    def __init__(self, rate: float = 0.01) -> None:
        self.rate = rate

    def __call__(self, x: Any) -> Any:
        return self.rate * keras.ops.sum(x * x)

    def get_config(self) -> dict[str, float]:
        return {"rate": self.rate}


class Clipped(keras.constraints.Constraint):
    def __call__(self, w: Any) -> Any:
        return keras.ops.clip(w, -1, 1)


def doubled(x: Any) -> Any:
    return 2 * keras.ops.relu(x)


def test_what_a_layer_is_made_with_need_not_be_registered() -> None:
    hidden = keras.layers.Dense(16, doubled, kernel_regularizer=Even(0.1), bias_constraint=Clipped())
    model = keras.Sequential([keras.Input((6,)), hidden, keras.layers.Dense(3)])
    small = actprune.prune(model, RNG.normal(size=(32, 6)).astype("float32"), keep="units=50%", method="l2").model
    own = small.layers[0]
    assert own.units == 8 and own.activation is doubled
    assert type(own.kernel_regularizer) is Even and own.kernel_regularizer.rate == 0.1
    assert type(own.bias_constraint) is Clipped


class Gated(kl.Layer):
    """Its sublayers are named by Keras."""

    def __init__(self, units: int = 8, **others: Any) -> None:
        super().__init__(**others)
        self.units, self.up, self.down = units, kl.Dense(units, activation="relu"), kl.Dense(6)

    def call(self, x: Any) -> Any:
        return x + self.down(self.up(x))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


def test_layers_and_weights_keep_their_names() -> None:
    """Optimizers leave weights out by their paths."""
    inputs = keras.Input((6,))
    model = keras.Model(inputs, kl.Dense(2)(Gated(name="block")(inputs)))
    small: Any = actprune.prune(model, RNG.normal(size=(16, 6)), keep="units=50%", method="l2").model
    assert [weight.path for weight in small.weights] == [weight.path for weight in model.weights]
    assert small.layers[1].up.units == 4 and small.layers[1].up.name == model.layers[1].up.name
