"""Models of the user's own class, with a `call` of its own, and layers that no config makes again."""

from __future__ import annotations

import os
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import pytest
import torch

import actprune
from actprune.keras3.dtypes import plain_numbers
from actprune.keras3.files import load_keras
from actprune.keras3.noise import torchs_generator

keras = pytest.importorskip("keras")
kl: Any = keras.layers
RNG = np.random.default_rng(0)


def _x(*shape: int) -> Any:
    return RNG.normal(size=shape).astype("float32")


class Block(kl.Layer):
    """Takes no keywords, so Keras's own config doesn't make it; its width is known when it is built."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.norm = kl.LayerNormalization()
        self.drop = kl.Dropout(0.5)

    def build(self, shape: Any) -> None:
        self.wide, self.back = kl.Dense(self.hidden, activation="relu"), kl.Dense(shape[-1])
        self.scale = self.add_weight(shape=(self.hidden,), initializer="ones", name="scale")

    def call(self, x: Any, training: Any = None) -> Any:
        return x + self.drop(self.back(self.wide(self.norm(x)) * self.scale), training=training)


class Network(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.first = kl.Dense(6)
        self.blocks = [Block(8) for _ in range(2)]
        self.inner = keras.Sequential([kl.Dense(10, activation="relu"), Block(8)])
        self.heads = {"a": kl.Dense(3), "b": kl.Dense(1)}

    def call(self, inputs: Any, training: bool = False) -> Any:
        x = self.first(inputs["left"]) + self.first(inputs["right"])
        for block in self.blocks:
            x = block(x, training=training)
        x = self.inner(x)
        return {name: head(x) for name, head in self.heads.items()}


def _same(left: Any, right: Any, x: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(*(keras.tree.flatten(m(x)) for m in (left, right)), strict=True))


def test_a_model_with_a_call_of_its_own(tmp_path: Path) -> None:
    model, x = Network(), {"left": _x(16, 4), "right": _x(16, 4)}
    y = {"a": _x(16, 3), "b": _x(16, 1)}
    model(x)
    model.compile("adam", {"a": "mse", "b": "mae"})
    model.fit(x, y, verbose=0)
    result = actprune.prune(model, x, keep="units=50%", method="l2")
    small: Any = result.model
    assert result.proof is not None and result.proof.passed and isinstance(small, Network)
    shapes = [tuple(block.wide.kernel.shape) for block in (*small.blocks, small.inner.layers[1])]
    assert shapes == [(6, 4), (6, 4), (10, 4)] and small.blocks[0].scale.shape == (4,)
    assert (model.blocks[0].hidden, model.blocks[0].wide.kernel.shape) == (8, (6, 8))
    # compiled as it was: the moments of the optimizer are cut like the weights
    assert small.compiled and int(small.optimizer.iterations) == 1
    result.save(tmp_path / "run")
    fresh = Network()
    fresh(x)
    assert _same(actprune.load(tmp_path / "run", fresh), small, x)
    before = keras.tree.map_structure(torch.clone, small(x))
    small.fit(x, y, verbose=0)
    assert not torch.equal(small(x)["a"], before["a"]) and small.predict(x, verbose=0)["b"].shape == (16, 1)


def test_a_class_that_trains_by_itself() -> None:
    class Coder(keras.Model):
        """Is given its parts, and has more to say in `compile` and in `train_step`."""

        def __init__(self, encoder: Any, decoder: Any) -> None:
            super().__init__()
            self.encoder, self.decoder, self.seen = encoder, decoder, keras.metrics.Mean(name="seen")

        def compile(self, own: Any, error: Any) -> None:
            super().compile()
            self.own, self.error = own, error

        def call(self, x: Any) -> Any:
            return self.decoder(self.encoder(x))

        def train_step(self, data: Any) -> dict[str, Any]:
            self.zero_grad()
            loss = self.error(data[0], self(data[0], training=True))
            loss.backward()
            weights = list(self.trainable_weights)
            with torch.no_grad():
                self.own.apply([weight.value.grad for weight in weights], weights)
            self.seen.update_state(loss)
            return {"seen": self.seen.result()}

    inputs, code = keras.Input((6,)), keras.Input((5,))
    encoder = keras.Model(inputs, kl.Dense(5)(kl.Dense(8, activation="relu")(inputs)))
    decoder = keras.Model(code, kl.Dense(6)(kl.Dense(8, activation="relu")(code)))
    model, x = Coder(encoder, decoder), _x(16, 6)
    model(x)
    model.compile(keras.optimizers.SGD(0.1), keras.losses.MeanSquaredError())
    small: Any = actprune.prune(model, x, keep="units=60%", method="l2").model
    assert isinstance(small, Coder) and small.encoder.output.shape == small.decoder.input.shape == (None, 3)
    before = small(x)
    assert small.fit(x, x, verbose=0).history["seen"][0] > 0 and not torch.equal(small(x), before)
    assert small.own is not model.own and small.error is model.error and float(model.seen.result()) == 0


def test_optimizers_under_names_of_their_own() -> None:
    """Two that train parts of a model keep their state, cut like the weights; of one under two names there is one."""

    class Pair(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.maker, self.judge = (keras.Sequential([kl.Dense(8), kl.Dense(6)]) for _ in range(2))

        def compile(self, makers: Any, others: dict[str, Any]) -> None:
            super().compile()
            self.makers, self.others, self.same = makers, others, makers

        def call(self, x: Any) -> Any:
            return self.judge(self.maker(x))

        def train_step(self, data: Any) -> dict[str, Any]:
            for part, optimizer in ((self.maker, self.makers), (self.judge, self.others["judge"])):
                self.zero_grad()
                loss = self(data[0], training=True).square().mean()
                loss.backward()
                with torch.no_grad():
                    optimizer.apply([weight.value.grad for weight in part.weights], part.weights)
            return {"loss": loss}

    model, x = Pair(), _x(16, 6)
    model.compile(keras.optimizers.Adam(), {"judge": keras.optimizers.SGD(0.1, momentum=0.9)})
    model.fit(x, x, verbose=0)
    small: Any = actprune.prune(model, x, keep="units=50%", method="l2").model
    judge, kept = small.others["judge"], small.maker.layers[0].kernel
    assert small.same is small.makers is not model.makers and int(small.makers.iterations) == 1
    assert small.makers._momentums[0].shape == kept.shape == (6, 4)
    assert np.isin(small.makers._momentums[0].numpy(), model.makers._momentums[0].numpy()).all()
    assert judge.momentums[0].shape == small.judge.layers[0].kernel.shape and judge.momentums[0].numpy().any()
    small.fit(x, x, verbose=0)
    assert int(small.makers.iterations) == int(judge.iterations) == 2


class Table(kl.Layer):
    def __init__(self, length: int, names: int, width: int) -> None:
        super().__init__()
        self.words, self.places = kl.Embedding(names, width), kl.Embedding(length, width)

    def call(self, x: Any) -> Any:
        return self.words(x) + self.places(keras.ops.arange(0, keras.ops.shape(x)[-1], 1))


def test_layers_that_take_no_keywords(tmp_path: Path) -> None:
    def made() -> Any:
        ids = keras.Input((7,), dtype="int32")
        x = Block(8)(Table(7, 20, 6)(ids))
        return keras.Model(ids, kl.Dense(2)(kl.Dense(8, activation="relu")(kl.GlobalAveragePooling1D()(x))))

    x = RNG.integers(0, 20, (16, 7)).astype("int32")
    result = actprune.prune(made(), x, keep="units=50%", method="l2")
    small: Any = result.model
    assert result.proof is not None and result.proof.passed and small.layers[2].wide.units == 4
    result.save(tmp_path / "run")
    assert _same(actprune.load(tmp_path / "run", made()), small, x)


def _rows(x: Any, size: int) -> Any:
    return keras.ops.reshape(x, (-1, size, x.shape[-1]))


@keras.saving.register_keras_serializable("models")
class Reading(kl.Layer):
    """Attention that reads its sizes off its inputs, and a bias for each head."""

    def __init__(self, heads: int, **others: Any) -> None:
        super().__init__(**others)
        self.heads, self.qkv, self.out = heads, kl.Dense(24), kl.Dense(8)

    def build(self, shape: Any) -> None:
        self.bias = self.add_weight(shape=(self.heads, 1, 1), initializer="ones", name="bias")

    def call(self, x: Any) -> Any:
        ops = keras.ops
        _, length, width = x.shape
        size = width // self.heads
        q, k, v = ops.transpose(ops.reshape(self.qkv(x), (-1, length, 3, self.heads, size)), (2, 0, 3, 1, 4))
        weights = ops.softmax(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) / 2 + self.bias, -1)
        y = ops.reshape(ops.transpose(ops.matmul(weights, v), (0, 2, 1, 3)), (-1, length, width))
        return self.out(_rows(y, length))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "heads": self.heads}


def test_sizes_read_off_inputs(tmp_path: Path) -> None:
    inputs = keras.Input((5, 8))
    model = keras.Model(inputs, kl.Dense(3)(Reading(4)(kl.LayerNormalization()(inputs))))
    x = _x(8, 5, 8)
    result = actprune.prune(model, x, keep="units=50%", method="l2")
    small: Any = result.model
    assert result.proof is not None and result.proof.passed
    attention = small.layers[2]
    assert isinstance(attention, Reading) and attention.out.kernel.shape[0] < 8 and attention.qkv.units < 24
    small.save(tmp_path / "small.keras")
    again: Any = load_keras(tmp_path / "small.keras")
    assert _same(again, small, x)
    twice: Any = actprune.prune(again, x, keep="units=60%", method="l2").model  # what was edited before, once more
    twice.save(tmp_path / "twice.keras")
    assert twice.count_params() < small.count_params() and _same(load_keras(tmp_path / "twice.keras"), twice, x)


class Turned(Reading):
    """It turns its keys twice; what they were turned into first is no call of the graph any more."""

    def __init__(self, heads: int, **others: Any) -> None:
        super().__init__(heads, **others)
        self.parts = [kl.Dense(8) for _ in range(3)]

    def call(self, x: Any) -> Any:
        ops, (_, length, width) = keras.ops, x.shape
        q, k, v = (
            ops.transpose(ops.reshape(part(x), (-1, length, self.heads, width // self.heads)), (0, 2, 1, 3))
            for part in self.parts
        )
        weights = ops.softmax(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) / 2, -1)
        return self.out(ops.reshape(ops.transpose(ops.matmul(weights, v), (0, 2, 1, 3)), (-1, length, width)))


def test_keys_that_are_turned_twice() -> None:
    inputs = keras.Input((5, 8))
    model = keras.Model(inputs, kl.Dense(3)(Turned(4)(kl.LayerNormalization()(inputs))))
    small: Any = actprune.prune(model, _x(8, 5, 8), keep="units=50%", method="l2").model
    assert [part.kernel.shape[1] for part in small.layers[2].parts] == [2, 2, 2]


class Squeezed(kl.Layer):
    """It makes layers of Keras's as it is called, and gives them a size of its own."""

    def __init__(self, filters: int, **others: Any) -> None:
        super().__init__(**others)
        self.filters, self.wide, self.gate = filters, kl.Conv1D(filters, 1), kl.Dense(filters, activation="sigmoid")

    def call(self, x: Any) -> Any:
        x = self.wide(x)
        means = kl.Reshape((1, self.filters))(kl.GlobalAveragePooling1D()(x))
        return kl.multiply([x, self.gate(means)])


def test_a_layer_that_is_made_as_another_is_called() -> None:
    model = keras.Sequential([keras.Input((5, 3)), Squeezed(8), kl.Conv1D(2, 1)])
    small: Any = actprune.prune(model, _x(8, 5, 3), keep="units=50%", method="l2").model
    assert (small.layers[0].filters, small.layers[0].gate.kernel.shape) == (4, (4, 4))


class Listed(kl.Layer):
    """Its layers were in a list of its own before they were in a model, so it tracks both."""

    def __init__(self, hidden: int, **others: Any) -> None:
        super().__init__(**others)
        self.hidden, self.net = hidden, []
        self.net.append(kl.Dense(hidden, activation="relu"))
        self.net.append(kl.Dense(4))
        self.net = keras.Sequential(self.net)

    def build(self, shape: Any) -> None:
        self.net.build(shape)

    def call(self, x: Any) -> Any:
        return self.net(x)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "hidden": self.hidden}


def test_layers_of_a_list_that_became_a_model(tmp_path: Path) -> None:
    class Holder(keras.Model):
        def __init__(self, **others: Any) -> None:
            super().__init__(**others)
            self.listed, self.last = Listed(8), kl.Dense(2)

        def call(self, x: Any) -> Any:
            return self.last(self.listed(x))

    keras.saving.register_keras_serializable("models")(Holder)
    keras.saving.register_keras_serializable("models")(Listed)
    model, x = Holder(), _x(16, 3)
    model(x)
    small: Any = actprune.prune(model, x, keep="units=50%", method="l2").model
    assert small.listed.net.layers[0].units == 4
    small.save(tmp_path / "small.keras")
    assert _same(load_keras(tmp_path / "small.keras"), small, x)


class Paired(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.inner = keras.Sequential([kl.Dense(8, activation="relu"), kl.Dense(6, activation="relu")])
        self.pair = (kl.Dense(10, activation="relu"), self.inner)
        self.hold = {"steps": [1, (self.inner, "last")]}

    def call(self, x: Any) -> Any:
        return self.pair[0](self.hold["steps"][1][0](x))


def test_layers_in_tuples() -> None:
    model = Paired()
    model(_x(2, 5))
    small = actprune.prune(model, _x(32, 5), keep="units=50%", method="l2").model
    assert small.pair[1] is small.hold["steps"][1][0] is small.inner
    assert [variable.shape[0] for variable in small.weights] == [5, 4, 4, 3, 3, 10]


def test_layers_that_wrap_own_ones(tmp_path: Path) -> None:
    @keras.saving.register_keras_serializable("models")
    class Steps(keras.Model):
        def __init__(self, **others: Any) -> None:
            super().__init__(**others)
            self.steps, self.last = kl.TimeDistributed(Block(8)), kl.Dense(2)

        def call(self, x: Any) -> Any:
            return self.last(self.steps(x))

    model, x = Steps(), _x(12, 3, 4)
    model(x)
    small: Any = actprune.prune(model, x, keep="units=50%", method="l2").model
    assert small.steps.layer.wide.kernel.shape == (4, 4) and model.steps.layer.wide.kernel.shape == (4, 8)
    small.compile("sgd", "mse")
    small.fit(x, _x(12, 3, 2), batch_size=5, verbose=0)
    small.save(tmp_path / "small.keras")
    assert _same(load_keras(tmp_path / "small.keras"), small, x)


def test_a_file_that_a_class_does_not_read_says_why(tmp_path: Path) -> None:
    @keras.saving.register_keras_serializable("models")
    class Bare(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = kl.Dense(2)

        def call(self, x: Any) -> Any:
            return self.dense(x)

    model = Bare()
    model(_x(2, 3))
    model.save(tmp_path / "bare.keras")
    with pytest.raises(actprune.ArtifactError, match=r"__init__\(\) got an unexpected") as caught:
        load_keras(tmp_path / "bare.keras")
    assert "register_keras_serializable" in str(caught.value) and "actprune.load(folder, model)" in str(caught.value)


def test_a_reason_names_the_line_of_the_class() -> None:
    class Fixed(kl.Layer):
        def call(self, x: Any) -> Any:
            return keras.ops.reshape(x, (-1, *map(int, "42")))

    model = keras.Sequential([keras.Input((3,)), kl.Dense(8), Fixed(), kl.Dense(4, activation="relu"), kl.Dense(2)])
    result = actprune.prune(model, _x(16, 3), keep="units=50%", method="l2")
    reasons = str(result.graph.account())
    assert "in call, test_keras_models.py:" in reasons and "numpy.py" not in reasons


def test_a_model_that_draws_numbers() -> None:
    class Drawing(kl.Layer):
        """As in a variational autoencoder."""

        def __init__(self) -> None:
            super().__init__()
            self.generator = keras.random.SeedGenerator(1)

        def call(self, x: Any) -> Any:
            return x + keras.random.normal(keras.ops.shape(x), seed=self.generator)

    model = keras.Sequential([keras.Input((3,)), kl.Dense(6), Drawing(), kl.Dense(8, activation="relu"), kl.Dense(2)])
    before = model.layers[1].generator.state.value.clone()
    result = actprune.prune(model, _x(16, 3), keep="units=50%", method="l2")
    account = str(result.graph.account())
    assert "drawn at random by aten.normal.float_float at drawing, test_keras_models.py:" in account
    assert account.count(".py:") == account.count("test_keras_models.py:")  # lines of the user's alone
    assert result.proof is not None and result.proof.passed
    assert torch.equal(before, model.layers[1].generator.state.value)


def test_what_only_training_calls_and_what_closes_over_the_model() -> None:
    class Model(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.scaled = kl.Normalization()  # computes constants as it is built
            self.scaled.adapt(_x(20, 4))
            self.wide, self.last, self.aside = kl.Dense(8), kl.Dense(2), kl.Dense(2)
            self.act = lambda x: keras.ops.relu(self.wide(self.scaled(x)))

        def call(self, x: Any, training: bool = False) -> Any:
            x = self.act(x)
            return self.last(x) + self.aside(x) if training else self.last(x)

    model, x = Model(), _x(16, 4)
    model(x, training=True)
    result = actprune.prune(model, x, keep="units=50%", method="l2")
    small: Any = result.model
    assert result.proof is not None and result.proof.passed
    assert small.wide.units == 4 and small.aside.kernel.shape == (4, 2)


@pytest.mark.filterwarnings("ignore:.build")
def test_layers_without_weights_of_a_class_without_a_config(tmp_path: Path) -> None:
    """Only the run folder tells that `reshape_2` of a model made once more is what `reshape` was; a model that training
    alone calls may not be built there."""

    class Folded(keras.Model):
        def __init__(self, part: Any) -> None:
            super().__init__()
            self.part, self.noise = part, keras.Sequential([kl.GaussianNoise(0.1), kl.Dense(3)])

        def call(self, x: Any) -> Any:
            return self.part(x)

    def build() -> Any:
        rows = keras.Input((6,))
        x = kl.Reshape((2, 8))(kl.Dense(16, activation="relu")(rows))
        return Folded(keras.Model(rows, kl.Reshape((3, 1))(kl.Dense(3)(kl.Flatten()(x)))))

    model, x = build(), _x(32, 6)
    model(x)
    result = actprune.prune(model, x, keep="macs=60%", method="l2")
    result.save(tmp_path / "run")
    assert not (tmp_path / "run" / "model.keras").exists()
    fresh = build()
    fresh(x)
    found = actprune.load(tmp_path / "run", fresh)
    assert _same(found, result.model, x) and found.noise(x).shape == (32, 3)


def test_a_list_of_inputs_is_all_samples() -> None:
    """As `fit` takes it for a model that was built on a list of as many."""

    class Two(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.last = kl.Dense(8), kl.Dense(8), kl.Dense(2)

        def call(self, inputs: Any) -> Any:
            left, right = inputs
            return self.last(keras.ops.relu(self.left(left) * self.right(right)))

    model, inputs = Two(), [_x(32, 4), _x(32, 6)]
    model(inputs)
    small: Any = actprune.prune(model, inputs, keep="macs=50%", method="l2").model
    assert small(inputs).shape == (32, 2) and small.left.kernel.shape[1] == small.right.kernel.shape[1] == 4


def test_two_inputs_by_position() -> None:
    class Pair(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.last = kl.Dense(8, activation="relu"), kl.Dense(2)

        def call(self, x: Any, y: Any) -> Any:
            return self.last(self.left(x) * self.left(y))

    model, x = Pair(), (_x(16, 4), _x(16, 4))
    model(*x)
    small: Any = actprune.prune(model, [x], keep="units=50%", method="l2").model
    assert small.left.units == 4 and small(*x).shape == (16, 2)


def test_nothing_that_training_changes_is_shared() -> None:
    class Counted(keras.metrics.Metric):
        """Its config doesn't make it again."""

        def __init__(self, step: int) -> None:
            super().__init__(name="counted")
            self.step, self.seen = step, self.add_variable((), "zeros")

        def update_state(self, *_: Any, **__: Any) -> None:
            self.seen.assign(self.seen + self.step)

        def result(self) -> Any:
            return self.seen

    class Held:
        """A layer in what Keras doesn't look into."""

        def __init__(self, layer: Any) -> None:
            self.layer, self.calls = layer, 0

    class Model(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.last, self.back = kl.Dense(8), kl.Dense(6), kl.Dense(4)
            self.held, self.next = Held(self.wide), partial(lambda layer, x: layer(x), self.last)
            self.then = kl.Lambda(lambda x: self.back(x))
            self.total, self.recent, self.counted = np.zeros(2), deque([0], maxlen=3), Counted(2)
            self.optimizer, self.loss = keras.optimizers.SGD(0.1), keras.losses.MeanSquaredError()

        def call(self, x: Any) -> Any:
            return self.then(self.next(keras.ops.relu(self.held.layer(x))))

        def step(self, x: Any) -> None:
            self.zero_grad()
            self.loss(x, self(x)).backward()
            with torch.no_grad():
                self.optimizer.apply([weight.value.grad for weight in self.trainable_weights], self.trainable_weights)
            self.held.calls += 1
            self.total += 1
            self.recent.append(1)
            self.counted.update_state()

    def values(model: Any) -> list[Any]:
        told = [model.total, [*model.recent], model.held.calls, model.counted.seen, *model.optimizer.variables]
        return [np.array(keras.ops.convert_to_numpy(one)) for one in (*told, *model.weights)]

    model, x = Model(), _x(16, 4)
    model(x)
    result = actprune.prune(model, x, keep="units=50%", method="l2")
    small: Any = result.model
    assert result.proof is not None and result.proof.passed and small.held.layer is small.wide
    assert (small.wide.units, small.last.units) == (4, 3)
    for trained, other in ((small, model), (model, small)):
        before, own = values(other), values(trained)
        trained.step(x)
        assert all(map(np.array_equal, before, values(other))) and not np.array_equal(own[-2], values(trained)[-2])


def test_threads_that_overlap_leave_keras_as_it_is() -> None:
    from keras.src.backend.common import dtypes
    from keras.src.backend.torch import random

    held = random.torch_seed_generator, dtypes._dtype_and_weaktype, dict(dtypes.PYTHON_DTYPES_MAP)
    for context in (torchs_generator, plain_numbers):
        first, second = context(), context()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert held[:2] != (random.torch_seed_generator, dtypes._dtype_and_weaktype)
        second.__exit__(None, None, None)
    assert held == (random.torch_seed_generator, dtypes._dtype_and_weaktype, dtypes.PYTHON_DTYPES_MAP)


class Edged(keras.Model):
    """It knows the edges of its one graph, whose nodes are the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.edges = keras.ops.convert_to_tensor(RNG.integers(0, 20, (60, 2)))
        self.before, self.after = kl.Dense(16, activation="relu"), kl.Dense(12, activation="relu")
        self.head = kl.Dense(5)

    def call(self, x: Any) -> Any:
        sent = keras.ops.take(self.before(x), self.edges[:, 1], axis=0)
        return self.head(self.after(keras.ops.segment_sum(sent, self.edges[:, 0], num_segments=20)))


def test_a_class_that_runs_on_whole_batches_alone() -> None:
    model, x = Edged(), RNG.normal(size=(20, 8)).astype("float32")
    model(x)
    small: Any = actprune.prune(model, [x], keep="units=50%", method="l2").model
    assert (small.before.units, small.after.units) == (8, 6) and small(x).shape == (20, 5)
