"""Layers of the user's own class whose code compares or fixes widths, or has no config, as in keras_hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import pytest
import torch

import actprune
from actprune.errors import UnsupportedModelError
from actprune.graph.refusal import first_line
from actprune.keras3.files import load_keras
from actprune.proof.eager import EAGER_TOLERANCE, eager_against_graph

keras = pytest.importorskip("keras")
kl: Any = keras.layers
RNG = np.random.default_rng(0)


@keras.saving.register_keras_serializable("layers")
class Separable(kl.Layer):
    """It adds its inputs if its numbers are equal; its convolution reads no other width than the first."""

    def __init__(self, width: int, filters: int, **others: Any) -> None:
        super().__init__(**others)
        self.width, self.filters = width, filters
        self.each = kl.Conv1D(width, 3, padding="same", groups=width, name="each")
        self.point = kl.Conv1D(filters, 1, name="point")

    def build(self, shape: Any) -> None:
        self.each.build(shape)
        self.point.build(shape)

    def call(self, x: Any) -> Any:
        made = self.point(self.each(x))
        return x + made if self.width == self.filters else made

    def get_config(self) -> dict[str, Any]:
        return {"width": self.width, "filters": self.filters, "name": self.name}


def test_a_number_that_is_compared_stays_in_the_config(tmp_path: Path) -> None:
    inputs = keras.Input((5, 3))
    x = kl.Dense(8, name="first")(inputs)
    x = Separable(8, 8, name="same")(x)
    x = Separable(8, 6, name="other")(x)
    model, x = keras.Model(inputs, kl.Dense(2)(x)), RNG.normal(size=(4, 5, 3)).astype("float32")
    result = actprune.prune(model, x, keep={"first": 6, "other.*": 4}, method="l2")
    small: Any = result.model
    same, other = small.get_layer("same"), small.get_layer("other")
    assert (same.point.kernel.shape, same.filters, same.each.groups) == ((1, 6, 6), 8, 6)
    assert (other.point.kernel.shape, other.filters, other.each.groups) == ((1, 6, 4), 4, 6)
    assert result.proof is not None and result.proof.passed
    small.save(tmp_path / "small.keras")
    assert torch.equal(load_keras(tmp_path / "small.keras")(x), small(x))


class Hidden(kl.Layer):
    """Only the model that holds it makes it again, and not without values: it looks at its weights as it is built."""

    def build(self, shape: Any) -> None:
        self.up, self.down = kl.Dense(8, name="up"), kl.Dense(shape[-1], name="down")
        self.up.build(shape)
        self.down.build((*shape[:-1], 8))
        self.bound = float(np.abs(keras.ops.convert_to_numpy(self.up.kernel)).max())

    def call(self, x: Any) -> Any:
        return x + self.down(keras.ops.relu(self.up(x)))

    def get_config(self) -> dict[str, Any]:
        raise TypeError("a class in its config")


@keras.saving.register_keras_serializable("layers")
class Tagger(keras.Model):
    """It calls a functional model that has no class of its own."""

    def __init__(self, width: int = 3, **others: Any) -> None:
        inputs = keras.Input((5, width))
        encoder = keras.Model(inputs, Hidden(name="hidden")(inputs), name="encoder")
        super().__init__(inputs, kl.Dense(2, name="head")(encoder(inputs)), **others)
        self.width, self.encoder = width, encoder

    def get_config(self) -> dict[str, Any]:
        return {"width": self.width, "name": self.name}


def test_layers_in_a_functional_model_within_a_class() -> None:
    model, x = Tagger(), RNG.normal(size=(4, 5, 3)).astype("float32")
    result = actprune.prune(model, x, keep={"*up": 5}, method="l2")
    small: Any = result.model
    assert isinstance(small, Tagger)
    assert small.encoder.get_layer("hidden").up.kernel.shape == (3, 5)
    assert result.proof is not None and result.proof.passed


class Cell(kl.Layer):
    """A step of a recurrent layer that is made of layers."""

    def __init__(self, units: int, **others: Any) -> None:
        super().__init__(**others)
        self.units = self.state_size = units
        self.read, self.again = kl.Dense(units), kl.Dense(units)

    def build(self, shape: Any) -> None:
        self.read.build(shape)
        self.again.build((shape[0], self.units))
        self.built = True

    def call(self, x: Any, states: Any) -> Any:
        new = keras.ops.tanh(self.read(x) + self.again(states[0]))
        return new, [new]


class Recurrent(keras.Model):
    """Behind a `TimeDistributed`, which turns steps and samples around as the recurrent layer does, no size of its
    input can be read off the graph as the class sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.each = kl.RNN(Cell(8), return_sequences=True), kl.TimeDistributed(kl.Dense(10))
        self.second, self.last = kl.RNN(Cell(6)), kl.Dense(2)
        self.unnamed = self.add_weight(shape=(2,), initializer="ones")

    def call(self, x: Any) -> Any:
        return self.last(self.second(self.each(self.first(x)))) * self.unnamed


def test_cells_with_layers_in_a_class(tmp_path: Path) -> None:
    """`RNN` keeps the sizes of their states itself. A variable without a name is another one's in a fresh model."""
    model, x = Recurrent(), torch.randn(12, 5, 3)
    model(x)
    result = actprune.prune(model, x, keep="units=50%", method="l2")
    small: Any = result.model
    assert result.proof is not None and result.proof.passed and isinstance(small, Recurrent)
    assert [small.first.state_size, small.second.state_size] == [[4], [3]] and type(small.first) is kl.RNN
    assert small.each.layer.kernel.shape == (4, 5) and small(x[:3, :2]).shape == (3, 2)
    assert not result.plan.edits.sources
    result.save(tmp_path / "run")
    fresh = Recurrent()
    fresh(x)
    assert torch.equal(actprune.load(tmp_path / "run", fresh)(x), small(x))


class Convolutions(keras.Model):
    """Keras around torch: one part in a `TorchModuleWrapper`, one that Keras wraps as a layer is given it."""

    def __init__(self) -> None:
        super().__init__()
        nn = torch.nn
        self.maps = kl.TorchModuleWrapper(nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
        self.last, self.middle = torch.nn.Linear(10, 2), kl.Dense(10, activation="relu")

    def call(self, x: Any) -> Any:
        return self.last(self.middle(self.maps(x).mean((2, 3))))


def test_modules_of_torch_in_keras() -> None:
    """Their parameters are Keras's variables, the running means of their norms are not."""
    model, x = Convolutions(), torch.randn(16, 2, 6, 6)
    model(x)
    model.compile("adam", "mse")
    model.fit(x, torch.randn(16, 2), verbose=0)
    result = actprune.prune(model, x, keep="units=50%", method="l2")
    small: Any = result.model
    convolution, norm, _ = small.maps.module
    assert result.proof is not None and result.proof.passed
    assert convolution.out_channels == norm.num_features == 4
    assert small.middle.units == small.last.module.in_features == 5
    assert np.isin(norm.running_mean, model.maps.module[1].running_mean).all()
    before = norm.running_mean.clone()
    small.fit(x, torch.randn(16, 2), verbose=0)
    assert not torch.equal(norm.running_mean, before) and int(small.optimizer.iterations) == 2


def test_an_attention_makes_outputs_of_another_width_than_it_is_given() -> None:
    inputs = keras.Input((3, 4))
    x = kl.Dense(8, name="first")(inputs)
    x = kl.MultiHeadAttention(2, 4, name="attention")(x, x)
    result = actprune.prune(
        keras.Model(inputs, kl.Dense(2)(x)),
        RNG.normal(size=(16, 3, 4)),
        keep={"first": 6, "attention.attention_output": 5},
        method="l2",
    )
    small: Any = result.model
    assert small.get_layer("attention")._query_dense.kernel.shape == (6, 2, 4)
    assert small.get_layer("attention")._output_dense.kernel.shape == (2, 4, 5)


@pytest.mark.filterwarnings("ignore:Layer InputLayer")
def test_a_quantized_model_is_refused_by_name() -> None:
    model = keras.Sequential([keras.Input((6,)), kl.Dense(8, name="wide"), kl.Dense(2)])
    model.quantize("int8")
    with pytest.raises(UnsupportedModelError, match=r"'wide' can't be pruned: its weights are quantized") as caught:
        actprune.prune(model, torch.randn(16, 6), keep="units=50%")
    assert "as it was before model.quantize" in str(caught.value)


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_one_quantized_layer_stays_as_it_is(mode: str, tmp_path: Path) -> None:
    def made() -> Any:
        names = "first", "quantized", "between"
        layers = [keras.Input((6,)), *(kl.Dense(8, activation="relu", name=name) for name in names), kl.Dense(2)]
        model = keras.Sequential(layers)
        model.layers[1].quantize(mode)
        return model

    model, x = made(), torch.randn(16, 6)
    result = actprune.prune(model, x, keep="units=50%", method="l2")
    assert result.plan.widths == {"between": 4}
    assert f" at quantized (quantized to {mode})" in str(result.graph.account())
    held = [{one.name: one.value for one in found.layers[1].variables} for found in (model, result.model)]
    assert all(torch.equal(value, held[1][name]) for name, value in held[0].items())
    result.save(tmp_path / "run")
    assert torch.equal(actprune.load(tmp_path / "run", made())(x), result.model(x))


def test_a_run_folder_holds_variables_of_whole_numbers(tmp_path: Path) -> None:
    class Shuffled(kl.Layer):
        def build(self, shape: Any) -> None:
            def drawn(shape: Any, dtype: Any = None) -> Any:
                return torch.randperm(shape[0])

            self.order = self.add_weight(shape=(shape[-1],), dtype="int64", trainable=False, initializer=drawn)

        def call(self, x: Any) -> Any:
            return keras.ops.take(x, self.order, axis=-1)

    def made() -> Any:
        return keras.Sequential([keras.Input((32,)), Shuffled(), kl.Dense(8), kl.Dense(2)])

    x = torch.randn(16, 32)
    result = actprune.prune(made(), x, keep="units=50%", method="l2")
    result.save(tmp_path / "run")
    assert torch.equal(actprune.load(tmp_path / "run", made())(x), result.model(x))


def test_a_model_in_half_precision_is_proved() -> None:
    """Its products and biases round one by one, those of its graph at once."""
    keras.utils.set_random_seed(2)  # its graph rounds to almost the exact outputs
    names = {"first": 32, "second": 16}
    halves: dict[str, Any] = {"dtype": "bfloat16", "bias_initializer": "uniform"}
    layers = [kl.Dense(units, "relu", name=name, **halves) for name, units in names.items()]
    model = keras.Sequential([keras.Input((8,)), *layers, kl.Dense(2, **halves)])
    result = actprune.prune(model, torch.randn(32, 8), keep="units=50%", method="l2")
    assert result.plan.widths == {"first": 16, "second": 8}
    assert result.proof is not None and result.proof.eager_error > EAGER_TOLERANCE


def test_half_precision_hides_no_other_function() -> None:
    class Twice(torch.nn.Sequential):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) * 1.1

    layers = [torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)]
    x, model = torch.randn(16, 8).bfloat16(), torch.nn.Sequential(*layers).bfloat16()
    program = actprune.capture(model, x).program
    assert eager_against_graph(model, program, x, (x,))[1] is None
    assert eager_against_graph(Twice(*layers), program, x, (x,))[1] == "the eager cut model against its own graph"


class Scaled(keras.Model):
    """Its first activation closes over a weight of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = self.add_weight(shape=(8,), initializer="ones", name="scale")
        self.first = kl.Dense(8, activation=lambda x: keras.ops.relu(x) * self.scale)
        self.second, self.last = kl.Dense(6, activation=keras.ops.gelu), kl.Dense(2)

    def call(self, x: Any) -> Any:
        return self.last(self.second(self.first(x)))


def test_activations_are_the_functions_that_were_given() -> None:
    """`keras.ops.gelu` is approximate, and the gelu that its config is read as is not; of a lambda it says nothing."""
    inputs = keras.Input((4,))
    x = kl.Dense(8, activation=keras.ops.gelu)(inputs)
    x = kl.Dense(6, activation=lambda x: x * keras.ops.sigmoid(x))(x)
    functional, scaled, x = keras.Model(inputs, kl.Dense(2)(x)), Scaled(), torch.randn(16, 4)
    scaled(x)
    for model in (functional, scaled):
        result = actprune.prune(model, x, keep="units=50%", method="l2")
        assert result.proof is not None and result.proof.passed
    small: Any = result.model
    assert small.scale.shape == (4,) and small.first.activation.__closure__[0].cell_contents is small
    assert small.second.activation is keras.ops.gelu


def test_what_a_layer_raises_is_said_and_not_where_keras_called_it() -> None:
    class Wanting(kl.Layer):
        def call(self, x: Any) -> Any:
            raise ValueError("wants eight units")

    with pytest.raises(ValueError, match="encountered when calling") as caught:
        Wanting()(torch.ones(2, 4))
    assert first_line(caught.value) == "ValueError: wants eight units"


def test_numbers_of_units_that_are_told_twice() -> None:
    """How often the scores of steps are repeated, and the shape that a lambda is said to give."""
    inputs = keras.Input((9, 8))
    steps = kl.Conv1D(12, 1)(inputs)
    scores = kl.Permute((2, 1))(kl.RepeatVector(12)(kl.Flatten()(kl.Dense(1)(steps))))
    pooled = kl.Lambda(lambda x: keras.ops.sum(x, axis=1), output_shape=(12,))(kl.Multiply()([steps, scores]))
    model = keras.Model(inputs, kl.Dense(2)(pooled))
    small: Any = actprune.prune(model, RNG.normal(size=(16, 9, 8)), keep="units=50%", method="l2").model
    assert [layer.n for layer in small.layers if isinstance(layer, kl.RepeatVector)] == [6]
    assert small.layers[-1].kernel.shape == (6, 2)


def test_a_constant_that_a_layer_begins_with_is_cut_with_its_units(tmp_path: Path) -> None:
    """The identity in the bias of a PointNet's T-net."""
    started = kl.Dense(16, "relu", bias_initializer=keras.initializers.Constant(np.eye(4).flatten()))
    model = keras.Sequential([keras.Input((4,)), started, kl.Dense(2)])
    result: Any = actprune.prune(model, RNG.normal(size=(16, 4)), keep="units=40%", method="l2")
    (kept,) = (group.kept for group in result.plan.groups.values())
    result.model.save(tmp_path / "small.keras")
    first = keras.models.load_model(tmp_path / "small.keras").layers[0]
    assert np.array_equal(first.bias_initializer.value, np.eye(4).flatten()[list(kept)])


def test_a_reason_names_the_line_that_raises_and_the_one_that_reads_a_constant() -> None:
    class Picky(kl.Layer):
        def build(self, shape: Any) -> None:
            if shape[-1] % 16:
                raise ValueError("by sixteens alone")

        def call(self, x: Any) -> Any:
            return keras.ops.relu(x)

    class Masked(kl.Layer):
        def build(self, shape: Any) -> None:
            self.mask = np.tri(shape[-1], dtype="float32")[None, -1]

        def call(self, x: Any) -> Any:
            return x * keras.ops.convert_to_tensor(self.mask)

    layers = kl.Dense(16), Picky(), kl.Dense(12), Masked(name="masked"), kl.Dense(10), kl.Dense(2)
    model = keras.Sequential([keras.Input((4,)), *layers])
    result = actprune.prune(model, RNG.normal(size=(16, 4)), keep="units=50%", method="l2")
    reasons = str(result.graph.account())
    assert "by sixteens alone, in build, test_keras_layers.py:" in reasons
    assert "a constant of the forward pass, read by aten.to.device at masked, test_keras_layers.py:" in reasons
