"""Keras 3 models on the torch backend: captured, cut by rebuilding, proved, saved, loaded by plain Keras."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from keras import layers as kl

import actprune
from actprune.artifacts.export import export
from actprune.cli.main import main
from actprune.errors import ArtifactError, CaptureError, DataError, UnsupportedModelError
from actprune.graph.lift import lift
from actprune.graph.output_kinds import output_kind
from actprune.graph.program import op_name
from actprune.graph.run import run
from actprune.keras3.bridge import progress_callback
from actprune.keras3.data import Batches
from actprune.keras3.files import load_keras, load_npz
from actprune.keras3.network import KerasNetwork

RNG = np.random.default_rng(0)


def _model(shape: tuple[int, ...], *layers: Any) -> Any:
    inputs = x = keras.Input(shape)
    for layer in layers:
        x = layer(x)
    return _lively(keras.Model(inputs, x))


def _lively(model: Any) -> Any:
    """With statistics and gains that hide nothing."""
    for variable in model.weights:
        if not variable.dtype.startswith("int"):
            noise = 0.1 * RNG.random(variable.shape)
            variable.assign(keras.ops.convert_to_numpy(variable) + noise)
    return model


def _inputs(model: Any, samples: int = 4) -> tuple[torch.Tensor, ...]:
    def one(tensor: Any) -> torch.Tensor:
        shape = (samples, *tensor.shape[1:])
        if tensor.dtype.startswith("int"):
            return torch.as_tensor(RNG.integers(0, 9, shape), dtype=getattr(torch, tensor.dtype))
        return torch.as_tensor(RNG.normal(size=shape), dtype=torch.float32)

    return tuple(map(one, model.inputs))


def _halved(model: Any) -> tuple[actprune.Graph, actprune.Plan, Any]:
    """The graph, a plan that keeps half of every group, and the cut model, proved."""
    network, inputs = KerasNetwork(model), _inputs(model)
    graph = actprune.capture(network, inputs)
    plan = actprune.make_plan(graph, {g.name: range(0, g.width, 2) for g in graph.groups})
    small: Any = actprune.cut(network, plan)
    assert actprune.verify(network, small, plan, inputs, graph=graph).passed
    return graph, plan, small.model


def lenet() -> Any:
    model = keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            kl.Conv2D(6, 3, padding="same", activation="relu"),
            kl.MaxPooling2D(),
            kl.Conv2D(8, 3),
            kl.BatchNormalization(),
            kl.ReLU(),
            kl.Flatten(),
            kl.Dense(20, activation="relu"),
            kl.Dropout(0.5),
            kl.Dense(4, activation="softmax"),
        ]
    )
    return _lively(model)


def transformer() -> Any:
    tokens = keras.Input((7,), dtype="int32")
    x = kl.Embedding(9, 16)(tokens)
    x = kl.LayerNormalization()(kl.Add()([x, kl.MultiHeadAttention(4, 4)(x, x)]))
    x = kl.LayerNormalization()(x + kl.Dense(16)(kl.Dense(24, activation="gelu")(x)))
    return _lively(keras.Model(tokens, kl.Dense(3)(kl.GlobalAveragePooling1D()(x))))


def two_inputs() -> Any:
    shared = kl.Dense(6, activation="relu", name="shared")
    inner = keras.Sequential([keras.Input((6,)), kl.Dense(5, activation="tanh"), kl.Dense(4)], name="inner")
    a, b = keras.Input((7,), name="a"), keras.Input((7,), name="b")
    x, y = shared(a), shared(b)
    z = kl.Concatenate()([kl.Multiply()([x, y]), kl.Subtract()([x, y]), inner(x)])
    z = keras.ops.reshape(kl.Dense(9, name="mixed")(z), (-1, 3, 3))
    return _lively(keras.Model([a, b], [kl.Dense(2)(kl.Flatten()(z)), kl.Dense(2)(inner(y))]))


def _frames() -> Any:
    """A model for single images and for every image of a sequence, the first layer of a Sequential too."""
    image = keras.Input((5, 5, 2))
    frame = keras.Model(image, kl.GlobalMaxPooling2D()(kl.Conv2D(6, 3, name="shared")(image)))
    alone, film = keras.Input((5, 5, 2)), keras.Input((2, 5, 5, 2))
    steps = keras.Sequential([keras.Input((2, 5, 5, 2)), kl.TimeDistributed(frame), kl.Dense(4, name="mixed")])
    return _lively(keras.Model([alone, film], kl.Dense(2)(kl.Concatenate()([frame(alone), kl.Flatten()(steps(film))]))))


def _attention_and_recurrence() -> Any:
    inputs = keras.Input((5, 8))
    x = kl.Dense(8)(inputs)
    x = kl.GroupQueryAttention(4, 4, 2)(x, x)
    x = kl.TimeDistributed(kl.Dense(7))(x)
    x = kl.Bidirectional(kl.GRU(4, return_sequences=True), merge_mode="sum")(x)
    x = kl.Bidirectional(kl.LSTM(4, return_sequences=True))(x)
    x = kl.MultiHeadAttention(2, 4, value_dim=3, dropout=0.1, output_shape=6)(x, x)
    return _lively(keras.Model(inputs, kl.Dense(2)(kl.SimpleRNN(4)(x))))


def attention_with_dropout() -> Any:
    """Its scale is a rounded tensor, which follows the size of a query."""
    inputs = keras.Input((5, 8))
    x = kl.Dense(8)(inputs)
    x = kl.MultiHeadAttention(2, 6, dropout=0.1)(x, x)
    return _lively(keras.Model(inputs, kl.Dense(2)(kl.Flatten()(kl.GroupQueryAttention(4, 4, 2, dropout=0.1)(x, x)))))


def masked_attention() -> Any:
    """What stands in for the scores of masked tokens is one number in a tensor, and not the scale."""
    tokens = keras.Input((3,), dtype="int32")
    x = kl.Embedding(9, 8, mask_zero=True)(tokens)
    x = kl.MultiHeadAttention(2, 4, output_shape=6)(x, x, use_causal_mask=True)
    return _lively(keras.Model(tokens, kl.Dense(2)(x)))


def merges() -> Any:
    inputs = keras.Input((6,))
    a, b, c, d = (kl.Dense(6, activation=name)(inputs) for name in ("mish", "selu", "hard_swish", "softplus"))
    x = kl.Maximum()([kl.Average()([a, b]), kl.Minimum()([c, d])])
    return _lively(keras.Model(inputs, kl.Dense(2)(x)))


def _tokens(*layers: Any) -> Any:
    tokens = x = keras.Input((3,), dtype="int32")
    for layer in layers:
        x = layer(x)
    return _lively(keras.Model(tokens, x))


LAYERS: dict[str, tuple[Callable[[], Any], dict[str, int]]] = {
    "depthwise and separable": (
        lambda: _model(
            (8, 8, 4), kl.Conv2D(6, 3), kl.DepthwiseConv2D(3, strides=2, padding="same"), kl.SeparableConv2D(8, 3),
            kl.LeakyReLU(), kl.GlobalMaxPooling2D(), kl.Dense(3),
        ),
        {"conv2d": 3, "separable_conv2d": 4},
    ),
    "depthwise with two outputs a channel": (
        lambda: _model(
            (6, 6, 4), kl.Conv2D(6, 3), kl.DepthwiseConv2D(3, depth_multiplier=2), kl.Flatten(), kl.Dense(3)
        ),
        {"conv2d": 3},
    ),
    "transposed": (
        lambda: _model(
            (4, 4, 4), kl.Conv2DTranspose(6, 3, strides=2, padding="same"), kl.Conv2D(4, 3), kl.Flatten(), kl.Dense(3)
        ),
        {"conv2d_transpose": 3, "conv2d": 2},
    ),
    "one dimension, grouped, causal": (
        lambda: _model(
            (8, 4), kl.Conv1D(8, 3, padding="causal", groups=2), kl.Conv1D(8, 3, groups=2), kl.MaxPooling1D(2),
            kl.Flatten(), kl.Dense(3),
        ),
        {"conv1d": 2, "conv1d_1": 2},
    ),
    "three dimensions": (
        lambda: _model(
            (5, 5, 5, 2), kl.Conv3D(6, 3), kl.AveragePooling3D(2), kl.Conv3DTranspose(4, 2),
            kl.GlobalAveragePooling3D(), kl.Dense(3),
        ),
        {"conv3d": 3, "conv3d_transpose": 2},
    ),
    "group norm": (
        lambda: _model(
            (6, 6, 4), kl.Conv2D(8, 3), kl.GroupNormalization(4), kl.Activation("gelu"), kl.Flatten(), kl.Dense(3)
        ),
        {"conv2d#1": 2, "conv2d#2": 1},  # groups, and channels in each
    ),
    "norms over the width": (
        lambda: _model(
            (6, 4), kl.Dense(8), kl.RMSNormalization(), kl.Dense(6, activation="swish"), kl.LayerNormalization(),
            kl.Dense(6, activation="elu"), kl.Flatten(), kl.Dense(3),
        ),
        {"dense": 4, "dense_1": 3, "dense_2": 3},
    ),
    "preprocessing, norms without gain or shift": (
        lambda: _model(
            (8, 8, 3), kl.Rescaling(1 / 255), kl.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 2.0, 3.0]),
            kl.RandomFlip(), kl.Conv2D(6, 3, use_bias=False), kl.BatchNormalization(scale=False), kl.ReLU(6.0),
            kl.ZeroPadding2D(1), kl.Conv2D(4, 3, dilation_rate=2), kl.BatchNormalization(center=False),
            kl.PReLU(shared_axes=[1, 2]), kl.UpSampling2D(2), kl.Cropping2D(1), kl.Flatten(), kl.Dense(3),
        ),
        {"conv2d": 3, "conv2d_1": 2},
    ),
    "reshape and permute": (
        lambda: _model(
            (8, 8, 3), kl.Conv2D(6, 3), kl.SpatialDropout2D(0.2), kl.Reshape((36, 6)), kl.Permute((2, 1)),
            kl.Permute((2, 1)), kl.Dense(8), kl.Reshape((-1, 4)), kl.Dense(6), kl.Flatten(), kl.Dense(3),
        ),
        {"conv2d": 3, "dense#1": 2, "dense#2": 1, "dense_1": 3},
    ),
    "attention and recurrence": (
        _attention_and_recurrence,
        {
            "dense": 4, "grouped_query_attention.query#1": 1, "grouped_query_attention.query#2": 1,
            "grouped_query_attention.query#3": 2, "grouped_query_attention.value": 2,
            "grouped_query_attention.attention_output": 4,
            "time_distributed.dense_1": 4, "bidirectional.forward_gru": 2,
            "bidirectional_1.forward_lstm": 2, "bidirectional_1.backward_lstm": 2,
            "multi_head_attention.query#1": 1, "multi_head_attention.query#2": 2,
            "multi_head_attention.value": 2, "multi_head_attention.attention_output": 3,
            "simple_rnn.simple_rnn_cell": 2,
        },
    ),
    "both directions": (
        lambda: _model(
            (9, 4), kl.Conv1D(6, 3), kl.Bidirectional(kl.LSTM(4, return_sequences=True)), kl.GRU(4), kl.Dense(2)
        ),
        {"conv1d": 3, "bidirectional.forward_lstm": 2, "bidirectional.backward_lstm": 2, "gru": 2},
    ),
    "einsum": (
        lambda: _model(
            (6, 4), kl.EinsumDense("abc,cde->abde", (6, 3, 8), bias_axes="de"), kl.ReLU(),
            kl.EinsumDense("abde,def->abf", (6, 6), bias_axes="f"), kl.UnitNormalization(axis=1), kl.Flatten(),
            kl.Dense(2),
        ),
        {"einsum_dense#1": 2, "einsum_dense#2": 4, "einsum_dense_1": 3},
    ),
    "attention with dropout": (
        attention_with_dropout,
        {
            "dense": 4, "multi_head_attention.query#1": 1, "multi_head_attention.query#2": 3,
            "multi_head_attention.value": 3, "multi_head_attention.attention_output": 4,
            "grouped_query_attention.query#1": 1, "grouped_query_attention.query#2": 1,
            "grouped_query_attention.query#3": 2, "grouped_query_attention.value": 2,
            "grouped_query_attention.attention_output": 4,
        },
    ),
    "masked attention": (
        masked_attention,
        {
            "embedding": 4, "multi_head_attention.query#1": 1, "multi_head_attention.query#2": 2,
            "multi_head_attention.value": 2, "multi_head_attention.attention_output": 3,
        },
    ),
    "embedding and stacked cells": (
        lambda: _tokens(kl.Embedding(9, 8), kl.RNN([kl.LSTMCell(6), kl.GRUCell(6)]), kl.Dense(2)),
        {"embedding": 4, "rnn.stacked_rnn_cells.lstm_cell": 3, "rnn.stacked_rnn_cells.gru_cell": 3},
    ),
    "masked LSTM": (
        lambda: _tokens(kl.Embedding(9, 8, mask_zero=True), kl.LSTM(6), kl.Dense(2)),
        {"embedding": 4, "lstm.lstm_cell": 3},
    ),
    "convolutional LSTM, one layer at every step": (
        lambda: _model(
            (2, 5, 5, 2), kl.TimeDistributed(kl.Conv2D(4, 1)), kl.ConvLSTM2D(4, 3), kl.Flatten(), kl.Dense(2)
        ),
        {"time_distributed.conv2d": 2, "conv_lstm2d.conv_lstm_cell": 2},
    ),
    "a model at every step": (
        lambda: _model(
            (2, 5, 5, 2), kl.TimeDistributed(kl.Conv2D(4, 1)),
            kl.TimeDistributed(keras.Sequential([keras.Input((5, 5, 4)), kl.Conv2D(6, 3), kl.GlobalMaxPooling2D()])),
            kl.GRU(4), kl.Dense(2),
        ),
        {"time_distributed.conv2d": 2, "time_distributed_1.sequential.conv2d_1": 3, "gru": 2},
    ),
    "one dimension, separable and transposed": (
        lambda: _model(
            (9, 4), kl.SeparableConv1D(6, 3), kl.DepthwiseConv1D(3), kl.Conv1DTranspose(6, 3), kl.Conv1D(4, 1),
            kl.Flatten(), kl.RepeatVector(2), kl.GlobalMaxPooling1D(), kl.Dense(2),
        ),
        {"separable_conv1d": 3, "conv1d_transpose": 3, "conv1d": 2},
    ),
    "channels first": (
        lambda: _model(
            (3, 8, 8), kl.Conv2D(6, 3, data_format="channels_first"), kl.BatchNormalization(axis=1), kl.ReLU(),
            kl.MaxPooling2D(data_format="channels_first"), kl.Flatten(data_format="channels_first"), kl.Dense(2),
        ),
        {"conv2d": 3},
    ),
    "a kernel that covers the features": (
        lambda: _model((6, 4), kl.Dense(8), kl.Reshape((6, 8, 1)), kl.Conv2D(4, (2, 8)), kl.Flatten(), kl.Dense(2)),
        {"dense": 4, "conv2d": 2},
    ),
    "merges": (merges, {"dense_2": 3}),
    "transformer": (
        transformer,
        {
            "multi_head_attention.query#1": 2, "multi_head_attention.query#2": 2, "multi_head_attention.value": 2,
            "dense_1": 12,
        },
    ),
    "two inputs, shared and nested": (
        two_inputs,
        {"shared": 3, "inner.dense": 3, "inner.dense_1": 2, "mixed#1": 2, "mixed#2": 2},
    ),
}  # fmt: skip
"""Hazard → a network with these layers, and how many units are left of each group when it is halved."""


@pytest.fixture(autouse=True)
def names() -> None:
    """Names of layers are counted from one in every test."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)


def test_a_model_that_is_shared_with_a_wrapper_stays_so() -> None:
    _, plan, small = _halved(_frames())
    assert plan.widths == {"sequential.time_distributed.functional.shared": 3, "sequential.mixed": 2}
    (wrapper,) = (layer for layer in small.get_layer("sequential").layers if isinstance(layer, kl.TimeDistributed))
    assert wrapper.layer is small.get_layer("functional")


@pytest.mark.parametrize("hazard", LAYERS)
def test_layers_are_cut_and_proved(hazard: str, tmp_path: Path) -> None:
    """And saved, and loaded by plain Keras."""
    make, widths = LAYERS[hazard]
    model = make()
    before = model.get_weights()
    _, plan, small = _halved(model)
    assert plan.widths == widths
    assert type(small) is type(model)
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]
    assert small.count_params() < model.count_params()
    small.save(tmp_path / "small.keras")
    given = [tensor.numpy() for tensor in _inputs(model)]
    loaded = keras.models.load_model(tmp_path / "small.keras")
    for a, b in zip(
        *(keras.tree.flatten(m(given if len(given) > 1 else given[0], training=False)) for m in (small, loaded)),
        strict=True,
    ):
        assert torch.equal(a, b)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize("make", [lenet, transformer, two_inputs])
def test_the_graph_computes_what_the_model_does(make: Callable[[], Any]) -> None:
    """Biases and norms in one call, permutes moved: the same outputs as Keras's own."""
    model = make()
    inputs = _inputs(model)
    program = actprune.capture(KerasNetwork(model), inputs).program
    expected = keras.tree.flatten(model(inputs[0] if len(inputs) == 1 else list(inputs), training=False))
    for own, theirs in zip(run(program, inputs), expected, strict=True):
        assert torch.allclose(own, theirs.detach(), rtol=1e-5, atol=1e-6)


def test_the_stages_ask_for_a_network() -> None:
    with pytest.raises(actprune.CaptureError, match=r"KerasNetwork\(model\)"):
        actprune.capture(lenet(), torch.zeros(2, 12, 12, 1))


def test_convolutions_meet_their_norm_and_relu_without_permutes() -> None:
    graph = actprune.capture(KerasNetwork(lenet()), torch.zeros(2, 12, 12, 1))
    names = [op_name(node).split(".")[1] for node in graph.program.nodes if node.op == "call_function"]
    found = [name for name in names if name not in ("permute", "reshape")]
    assert found == "conv2d relu max_pool2d conv2d batch_norm relu linear relu linear softmax".split()
    assert [site.bias for site in graph.sites] == ["conv2d.bias", "conv2d_1.bias", "dense.bias", "dense_1.bias"]
    assert graph.sites[1].order == (3, 2, 0, 1)  # (outputs, inputs, height, width) of (height, width, inputs, outputs)
    assert output_kind(graph.program) == "probabilities"


def test_what_reads_heads_is_refitted() -> None:
    """The projection behind an attention contracts heads and their size at once; a twin head is taken over by it."""
    inputs = keras.Input((5, 8))
    x = kl.MultiHeadAttention(4, 3, name="attention")(inputs, inputs)
    model = _lively(keras.Model(inputs, kl.Dense(2)(kl.Flatten()(x))))
    attention = model.get_layer("attention")
    for dense in (attention.query_dense, attention.key_dense, attention.value_dense):
        values = [np.array(v) for v in dense.get_weights()]
        for value in values:
            value[..., 1, :] = value[..., 2, :]
        dense.set_weights(values)
    x = np.random.default_rng(0).standard_normal((128, 5, 8)).astype("float32")
    result = actprune.prune(model, x, keep={"attention.query#1": 3}, distance="mse")
    assert "attention.attention_output" in {fit["module"] for fit in result.rewrite.record["consumers"].values()}
    small, whole = (one.predict(x, verbose=0) for one in (result.model, model))
    assert np.abs(small - whole).max() < 1e-2 * np.abs(whole).max()


def test_a_redundant_channel_is_lost_without_a_trace() -> None:
    """The refit finds Keras's kernels and biases where they are: a copy of a channel can go, with nothing lost."""
    model = lenet()
    kernel, bias = model.layers[0].get_weights()
    kernel[..., 5], bias[5] = kernel[..., 0], bias[0]
    model.layers[0].set_weights([kernel, bias])
    x = RNG.normal(size=(256, 12, 12, 1)).astype("float32")
    result = actprune.prune(model, x, keep={"conv2d": 5}, batchnorm=False)
    assert np.allclose(model.predict(x, verbose=0), result.model.predict(x, verbose=0), atol=1e-3)
    assert result.report.model == "Sequential"


def test_prune_evaluates_and_trains_keras_models(tmp_path: Path) -> None:
    model = lenet()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = RNG.normal(size=(128, 12, 12, 1)).astype("float32"), RNG.integers(0, 4, 128)
    model.fit(x, y, verbose=0)
    told: list[tuple[str, int, int]] = []
    callback = progress_callback(lambda *step: told.append(step))
    result = actprune.prune(
        model, (x, y), keep="macs=60%", save_to=tmp_path / "run", round_to=1,
        evaluate=lambda m: m.evaluate(x, y, verbose=0, return_dict=True)["accuracy"],
        finetune=lambda m: m.fit(x, y, epochs=2, verbose=0, callbacks=[callback]),
    )  # fmt: skip
    assert isinstance(result.model, keras.Sequential) and result.proof.passed
    assert repr(result).startswith("Result(Sequential: ") and result.model._called  # else Keras exports no ONNX
    assert [step for step in told if step[0] == "fine-tune"] == [("fine-tune", n, 2) for n in range(3)]
    loaded = load_keras(tmp_path / "run" / "model.keras")
    assert np.allclose(loaded.predict(x, verbose=0), result.model.predict(x, verbose=0), atol=1e-5)
    result.model.fit(x, y, verbose=0)
    with pytest.raises(UnsupportedModelError, match="isn't folded"):
        result.fold()


def test_a_saved_plan_is_replayed_on_a_fresh_model(tmp_path: Path) -> None:
    """Also with a recovery, which trains the Keras variables through torch."""
    x = RNG.normal(size=(64, 12, 12, 1)).astype("float32")
    result = actprune.prune(lenet(), x, keep="units=50%", method="l2", recover=actprune.Distill(steps=4))
    result.save(tmp_path / "run")
    keras.utils.clear_session()
    loaded = actprune.load(tmp_path / "run", lenet())
    assert isinstance(loaded, keras.Sequential)
    assert np.array_equal(loaded.predict(x, verbose=0), result.model.predict(x, verbose=0))


def test_a_run_folder_of_directions_of_one_width_is_proved_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another capture has to know that both directions have one width, and `inspect` both groups."""
    model = _model((8, 6), kl.Bidirectional(kl.LSTM(8)), kl.Dense(4))
    x = RNG.normal(size=(16, 8, 6)).astype("float32")
    result = actprune.prune(model, x, keep="macs=50%", method="l2")
    forward, backward = result.plan.widths.items()
    assert (forward[0], backward[0]) == ("bidirectional.forward_lstm", "bidirectional.backward_lstm")
    assert forward[1] == backward[1] < 8
    result.save(tmp_path / "run")
    model.save(tmp_path / "dense.keras")
    np.savez(tmp_path / "x.npz", x=x)
    for words in (["verify", "run", "dense.keras", "--data", "x.npz"], ["inspect", "dense.keras", "--json"]):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["actprune", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code
        out = capsys.readouterr().out
        assert out.startswith("proved") if words[0] == "verify" else len(json.loads(out)["groups"]) == 2


def test_gradients_of_gates_with_a_scale_that_follows_a_size() -> None:
    """The factor that stands for 1/√(head size) takes no unit away, so it has no gate."""
    model = transformer()
    result = actprune.prune(model, [_inputs(model)[0]], keep="params=70%", method="taylor")
    assert result.proof.passed


@pytest.mark.parametrize("recover", [False, True])
def test_own_trainings_drop_nothing_and_leave_what_is_frozen(recover: bool) -> None:
    """Without dropout and noise, two trainings from one state end in the same weights."""
    parts = [
        keras.Input((6,)), kl.Dense(12, trainable=False), kl.BatchNormalization(trainable=False), kl.Dropout(0.5),
        kl.GaussianNoise(1.0), kl.Dense(8, activation="relu"), kl.Dense(3),
    ]  # fmt: skip
    model = _lively(keras.Sequential(parts))
    x, y = torch.randn(64, 6), torch.randint(0, 3, (64,))
    sgd = actprune.SGD(list(zip(x.split(16), y.split(16), strict=True)), loss=F.cross_entropy, lr=0.1, epochs=1)
    after = []
    for seed in (1, 2):  # of Keras's own draws
        keras.utils.set_random_seed(seed)
        how: Any = {"recover": actprune.Distill(steps=10, checks=2)} if recover else {"finetune": sgd}
        result = actprune.prune(model, x.numpy(), keep="units=50%", method="l2", **how)
        small, before = result.model, result.before_finetune
        frozen = [*small.layers[0].weights, *small.layers[1].weights]
        if before is not None:
            old = [*before.layers[0].weights, *before.layers[1].weights]
            assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(frozen, old, strict=True))
            assert not np.array_equal(small.layers[4].kernel.numpy(), before.layers[4].kernel.numpy())
        after.append(small.get_weights())
        assert [layer.trainable for layer in small.layers] == [layer.trainable for layer in model.layers]
        assert small.layers[2].rate == 0.5 and "call" not in vars(small.layers[2])
    assert all(np.array_equal(a, b) for a, b in zip(*after, strict=True))


def test_what_evaluate_gives_is_one_number() -> None:
    model = lenet()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = RNG.normal(size=(64, 12, 12, 1)).astype("float32"), RNG.integers(0, 4, 64)
    for as_dict in (False, True):
        with pytest.raises(DataError, match="evaluate gives several numbers") as caught:
            actprune.prune(
                model, x, keep="units=50%", method="l2",
                evaluate=lambda m, as_dict=as_dict: m.evaluate(x, y, verbose=0, return_dict=as_dict),
            )  # fmt: skip
    assert "of accuracy, loss" in str(caught.value) and 'return_dict=True, verbose=0)["accuracy"]' in str(caught.value)


def test_training_settings_survive() -> None:
    model = lenet()
    model.layers[2].trainable = False
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.01, 10, 0.9), beta_1=0.8)
    model.compile(
        optimizer, "sparse_categorical_crossentropy", metrics=[keras.metrics.SparseCategoricalAccuracy("acc")]
    )
    model.fit(RNG.normal(size=(32, 12, 12, 1)), RNG.integers(0, 4, 32), verbose=0)
    _, plan, small = _halved(model)
    assert small.optimizer.get_config() == model.optimizer.get_config() and small.optimizer is not model.optimizer
    assert small.loss == model.loss and small.get_compile_config() == model.get_compile_config()
    assert int(small.optimizer.iterations) == int(model.optimizer.iterations) == 1
    assert [layer.trainable for layer in small.layers] == [layer.trainable for layer in model.layers]
    assert [v.trainable for v in small.weights] == [v.trainable for v in model.weights]
    moments = {v.path: keras.ops.convert_to_numpy(v) for v in model.optimizer.variables}
    cut = {v.path: keras.ops.convert_to_numpy(v) for v in small.optimizer.variables}
    (name,) = [path for path in moments if path.endswith("conv2d_kernel_momentum")]
    kept = list(plan.groups["conv2d"].kept)
    assert np.array_equal(cut[name], moments[name][..., kept])


def test_mixed_precision_and_regularizers_survive() -> None:
    layers = [kl.Dense(8, kernel_regularizer="l2", dtype="mixed_bfloat16", name="first"), kl.Dense(2, name="last")]
    _, _, small = _halved(_model((6,), *layers))
    assert small.get_layer("first").dtype_policy.name == "mixed_bfloat16"
    assert isinstance(small.get_layer("first").kernel_regularizer, keras.regularizers.L2)


LOAD = """
import sys, numpy as np, keras
model, x = keras.models.load_model(sys.argv[1]), np.load(sys.argv[2])
assert "actprune" not in sys.modules
np.save(sys.argv[3], np.asarray(model.predict(x, verbose=0)))
"""


@pytest.mark.parametrize("backend", ["torch", "jax", "tensorflow"])
def test_the_file_loads_in_plain_keras(backend: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    x = RNG.normal(size=(8, 12, 12, 1)).astype("float32")
    result = actprune.prune(lenet(), [x], keep="units=50%", method="l2")
    result.model.save(tmp_path / "small.keras")
    np.save(tmp_path / "x.npy", x)
    files = [tmp_path / "small.keras", tmp_path / "x.npy", tmp_path / "y.npy"]
    env = {**os.environ, "KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", LOAD, *map(str, files)], check=True, env=env, capture_output=True)
    assert np.allclose(np.load(tmp_path / "y.npy"), result.model.predict(x, verbose=0), atol=1e-4)


class _Data(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return np.full((4, 7), index, "float64"), np.zeros(4)


def test_data_in_every_form() -> None:
    model = _model((7,), kl.Dense(4), kl.Dense(2))
    x, y = RNG.normal(size=(40, 7)), RNG.integers(0, 2, 40)

    def shapes(data: Any, of: Any = model) -> list[Any]:
        return [keras.tree.map_structure(lambda t: tuple(t.shape), batch) for batch in Batches(data, of)]

    assert shapes(x) == [((20, 7),)] * 2  # nothing is left over
    assert shapes((x, y)) == [((20, 7), (20,))] * 2
    assert shapes([x[:4], x[4:8]]) == [((4, 7),), ((4, 7),)]
    assert shapes([(x[:4], y[:4])]) == [((4, 7), (4,))]
    assert shapes(_Data()) == [((4, 7), (4,))] * 3
    assert shapes(iter([torch.zeros(2, 7)])) == [((2, 7),)]
    two = two_inputs()
    assert shapes({"b": x, "a": x, "unused": x}, two)[0] == ({"a": (20, 7), "b": (20, 7)},)
    assert shapes(([x, x], y), two)[0] == (((20, 7), (20, 7)), (20,))
    assert next(iter(Batches(x, model)))[0].dtype == torch.float32
    with pytest.raises(DataError, match="lacks inputs"):
        shapes({"a": x}, two)


@pytest.mark.parametrize("labels", [(), (np.zeros(8),)])
def test_several_inputs_may_come_in_flat_batches(labels: tuple[Any, ...]) -> None:
    """(a, b, y), as a loader gives it; the model had been called with the first one alone."""
    a, b = RNG.normal(size=(8, 7)).astype("float32"), RNG.normal(size=(8, 7)).astype("float32")
    inputs, *beside = next(iter(Batches([(a, b, *labels)] * 3, two_inputs())))
    assert [value.tolist() for value in inputs] == [a.tolist(), b.tolist()]
    assert len(beside) == len(labels)


def test_dicts_of_inputs_are_pruned_with() -> None:
    x = RNG.normal(size=(32, 7)).astype("float32")
    result = actprune.prune(two_inputs(), {"a": x, "b": x[::-1]}, keep="units=50%", method="l2")
    assert result.plan.widths["shared"] == 3 and result.proof.passed


def test_what_bakes_a_width_is_frozen() -> None:
    lambda_layer = kl.Lambda(lambda t: t[:, :4] * 2, name="first_four")
    model = _model((7,), kl.Dense(6, name="a"), lambda_layer, kl.Dense(6, name="b"), kl.Dense(2))
    result = actprune.prune(model, RNG.normal(size=(32, 7)), keep={"b": 3}, method="l2")
    assert "a" not in {group.name for group in result.graph.groups}
    assert "can't follow a cut here" in str(result.graph.account())
    assert result.model.get_layer("b").units == 3


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="onnx is not installed")
def test_onnx_files_have_the_names_of_the_input_layers(tmp_path: Path) -> None:
    import onnxruntime  # pyright: ignore[reportMissingImports]

    first, second = keras.Input((4,), name="pixels"), keras.Input((3,), name="place")
    x = kl.Concatenate()([kl.Dense(6, activation="relu")(second), kl.Dense(5, activation="relu")(first)])
    model = _lively(keras.Model([first, second], kl.Dense(2)(x)))
    inputs = _inputs(model)
    path = export(KerasNetwork(model), inputs, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    given = {"pixels": inputs[0].numpy(), "place": inputs[1].numpy()}
    assert {one.name for one in session.get_inputs()} == given.keys()
    np.testing.assert_allclose(session.run(None, given)[0], model(list(inputs)).detach(), rtol=1e-5, atol=1e-6)


@keras.saving.register_keras_serializable("tests")
class Block(kl.Layer):
    """A transformer's layer as tutorials write it."""

    def __init__(self, width: int = 8, heads: int = 2, hidden: int = 12, **others: Any) -> None:
        super().__init__(**others)
        self.width, self.heads, self.hidden = width, heads, hidden
        self.attention = kl.MultiHeadAttention(heads, width // heads)
        self.mlp = keras.Sequential([kl.Dense(hidden, activation="relu"), kl.Dense(width)])
        self.norms = [kl.LayerNormalization(), kl.LayerNormalization()]

    def build(self, shape: Any) -> None:
        self.attention.build(shape, shape)
        for part in (self.mlp, *self.norms):
            part.build(shape)

    def call(self, x: Any) -> Any:
        x = self.norms[0](x + self.attention(x, x))
        return self.norms[1](x + self.mlp(x))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width, "heads": self.heads, "hidden": self.hidden}


@keras.saving.register_keras_serializable("tests")
class Residual(kl.Layer):
    """Its one number is the width of its input as well."""

    def __init__(self, filters: int, **others: Any) -> None:
        super().__init__(**others)
        self.filters = filters
        self.first, self.second = (kl.Conv2D(filters, 3, padding="same") for _ in range(2))

    def build(self, shape: Any) -> None:
        self.first.build(shape)
        self.second.build(shape)

    def call(self, x: Any) -> Any:
        return keras.ops.relu(x + self.second(keras.ops.relu(self.first(x))))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filters": self.filters}


@keras.saving.register_keras_serializable("tests")
class Stack(kl.Layer):
    """A list of numbers, and a weight of its own."""

    def __init__(self, units: list[int], **others: Any) -> None:
        super().__init__(**others)
        self.units = units
        self.parts = [kl.Dense(n, activation="relu") for n in units]

    def build(self, shape: Any) -> None:
        for part in self.parts:
            part.build(shape)
            shape = part.compute_output_shape(shape)
        self.gain = self.add_weight(shape=(self.units[-1],), initializer="ones", name="gain")

    def call(self, x: Any) -> Any:
        for part in self.parts:
            x = part(x)
        return x * self.gain

    def compute_output_shape(self, shape: Any) -> Any:
        return (*shape[:-1], self.units[-1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("tests")
class Cell(kl.Layer):
    """One step of a recurrent layer."""

    def __init__(self, units: int, **others: Any) -> None:
        super().__init__(**others)
        self.units = self.state_size = units

    def build(self, shape: Any) -> None:
        self.inward = self.add_weight(shape=(shape[-1], self.units), name="inward")
        self.onward = self.add_weight(shape=(self.units, self.units), name="onward")

    def call(self, x: Any, states: Any) -> Any:
        state = keras.ops.tanh(x @ self.inward + states[0] @ self.onward)
        return state, [state]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (lambda: _model((5, 6), kl.Dense(8), Block(), Block(), kl.Flatten(), kl.Dense(2)), {"block.sequential": 6}),
        (
            lambda: _model((6, 6, 2), kl.Conv2D(6, 3), Residual(6), Residual(6), kl.Flatten(), kl.Dense(2)),
            {"conv2d": 3},
        ),
        (lambda: _model((5,), Stack([6, 8]), Stack([4]), kl.Dense(2)), {"stack": 3, "stack_1": 2}),
        (
            lambda: _model((5, 6), kl.TimeDistributed(Stack([6, 8])), kl.Flatten(), kl.Dense(2)),
            {"time_distributed.stack": 3},
        ),
        (lambda: _model((5, 6), kl.RNN(Cell(8)), kl.Dense(2)), {"rnn.cell": 4}),
    ],
    ids=["attention and hidden units", "one number for inside and stream", "a list of numbers", "wrapped", "a cell"],
)
def test_layers_of_the_users_own_are_cut_through_their_config(
    make: Callable[[], Any], left: dict[str, int], tmp_path: Path
) -> None:
    model = make()
    _, plan, small = _halved(model)
    first = {name: next(n for key, n in plan.widths.items() if f"{key}.".startswith(f"{name}.")) for name in left}
    assert first == left
    assert small.count_params() < model.count_params()
    small.save(tmp_path / "small.keras")
    (x,) = _inputs(model)
    again = keras.models.load_model(tmp_path / "small.keras")
    assert torch.equal(again(x), small(x))


def test_heads_that_a_class_computes_from_its_width_are_cut(tmp_path: Path) -> None:
    """`width // heads` has no config for one of two heads: a smaller attention takes the place of the class's own."""
    model = _model((5, 6), kl.Dense(8), Block(), kl.Flatten(), kl.Dense(2))
    _, plan, small = _halved(model)
    block = small.layers[2]
    assert [*plan.widths.values()] == [1, 2, 2, 6]  # heads, sizes of queries and of values, hidden units
    assert isinstance(block, Block) and (block.heads, block.hidden) == (2, 6)
    assert (block.attention.num_heads, block.attention.key_dim) == (1, 2)
    small.save(tmp_path / "small.keras")
    (x,) = _inputs(model)
    again = load_keras(tmp_path / "small.keras")
    assert torch.equal(again(x), small(x))
    assert [*_halved(again)[1].widths.values()] == [1, 1, 3]  # cut once more
    small.compile("sgd", "mse")
    small.fit(x, torch.zeros(len(x), 2), verbose=0)
    assert not torch.equal(again(x), small(x))


@keras.saving.register_keras_serializable("tests")
class Attention(kl.Layer):
    """As tutorials write it: one number for widths inside and outside, heads by reshapes, a weight of its own."""

    def __init__(self, width: int = 8, heads: int = 4, **others: Any) -> None:
        super().__init__(**others)
        self.width, self.heads, self.size = width, heads, width // heads
        self.maps = [kl.Dense(width) for _ in range(4)]

    def build(self, shape: Any) -> None:
        for one in self.maps:
            one.build((*shape[:-1], self.width))
        self.bias = self.add_weight(shape=(self.heads, 1, 1), name="bias")

    def call(self, x: Any) -> Any:
        def parted(x: Any) -> Any:
            return keras.ops.transpose(keras.ops.reshape(x, (count, -1, self.heads, self.size)), (0, 2, 1, 3))

        count = keras.ops.shape(x)[0]
        q, k, v = (parted(one(x)) for one in self.maps[:3])
        weights = keras.ops.softmax(keras.ops.matmul(q, keras.ops.transpose(k, (0, 1, 3, 2))) * self.bias)
        mixed = keras.ops.transpose(keras.ops.matmul(weights, v), (0, 2, 1, 3))
        return self.maps[3](keras.ops.reshape(mixed, (count, -1, self.width)))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width, "heads": self.heads}


def test_attributes_of_a_layer_of_the_users_own_follow(tmp_path: Path) -> None:
    inputs = keras.Input((5, 8))
    model = _lively(keras.Model(inputs, kl.Dense(2)(inputs + Attention()(inputs))))
    _, plan, small = _halved(model)
    attention = next(layer for layer in small.layers if isinstance(layer, Attention))
    assert [*plan.widths.values()] == [2, 1, 1]
    assert (attention.heads, attention.size, attention.width, attention.bias.shape) == (2, 1, 2, (2, 1, 1))
    small.save(tmp_path / "small.keras")
    (x,) = _inputs(model)
    assert torch.equal(load_keras(tmp_path / "small.keras")(x), small(x))


def test_refusals() -> None:
    class Own(keras.Model):
        def call(self, x: Any) -> Any:
            return super().call(x)

    inputs = keras.Input((2,))
    own = Own(inputs, kl.Dense(2)(inputs), name="mine")
    with pytest.raises(UnsupportedModelError, match="Own 'mine' can't be rebuilt"):
        actprune.prune(own, np.zeros((4, 2)), keep=0.5)
    stateful = keras.Sequential(
        [keras.Input(batch_shape=(4, 5, 2)), kl.LSTM(6, stateful=True, name="kept"), kl.Dense(2)]
    )
    with pytest.raises(UnsupportedModelError, match="LSTM 'kept' can't be pruned: it keeps its state"):
        actprune.prune(stateful, np.zeros((4, 5, 2)), keep=0.5)
    with pytest.raises(CaptureError, match="has no variables yet"):
        actprune.prune(keras.Sequential([kl.Dense(2)]), np.zeros((4, 2)), keep=0.5)

    class Unbuilt(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = kl.Dense(2)

        def call(self, x: Any) -> Any:
            return self.dense(x)

    unbuilt = Unbuilt()
    with pytest.warns(UserWarning, match="does not have a `build"):
        unbuilt.build((None, 2))  # it has no variables yet, whatever Keras's flag says
    with pytest.raises(CaptureError, match="has no variables yet"):
        actprune.prune(unbuilt, np.zeros((4, 2)), keep=0.5)
    for options in ({"inplace": True}, {"form": "graph"}):
        with pytest.raises(DataError, match="has no other form"):
            actprune.prune(lenet(), np.zeros((4, 12, 12, 1)), keep=0.5, **options)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match="A Keras model isn't folded"):
        actprune.fold(lenet(), torch.zeros(4, 12, 12, 1))


def test_another_backend_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(UnsupportedModelError, match="KERAS_BACKEND=torch") as caught:
        KerasNetwork(object())
    assert "started with KERAS_BACKEND=torch" in str(caught.value)


def test_files_are_read_without_running_them(tmp_path: Path) -> None:
    x, y = np.arange(6.0).reshape(3, 2), np.arange(3)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    np.savez(tmp_path / "b.npz", x_train=x, x_test=x)
    np.savez(tmp_path / "c.npz", left=x, right=x)
    np.savez(tmp_path / "d.npz", x=np.array([{}], dtype=object))
    assert np.array_equal(load_npz(tmp_path / "a.npz")[1], y)
    assert np.array_equal(load_npz(tmp_path / "b.npz"), x)
    assert set(load_npz(tmp_path / "c.npz")) == {"left", "right"}
    np.save(tmp_path / "e.npy", x)
    with pytest.raises(ArtifactError, match=r"(?s)an .npz of plain arrays.*a single array, float.* of shape \("):
        load_npz(tmp_path / "e.npy")
    with pytest.raises(ArtifactError, match="data can't be read"):
        load_npz(tmp_path / "d.npz")
    _model((2,), kl.Lambda(lambda t: t), kl.Dense(2)).save(tmp_path / "code.keras")
    with pytest.raises(ArtifactError, match="can't be loaded"):
        load_keras(tmp_path / "code.keras")


def test_the_result_is_lifted_from_the_dense_model_alone() -> None:
    """A copy shares nothing with the model it was made from."""
    model = lenet()
    network = KerasNetwork(model)
    other: Any = copy.deepcopy(network)
    assert all(torch.equal(lift(a), lift(b)) for a, b in zip(network.parameters(), other.parameters(), strict=True))
    other.model.layers[0].kernel.assign(other.model.layers[0].kernel * 0)
    assert float(model.layers[0].kernel.value.detach().abs().sum()) > 0


def test_labels_of_several_outputs_and_inputs_in_pairs() -> None:
    """Labels are not looked at unless they are asked for; a pair of arrays is what a model of two inputs takes."""
    first, second = keras.Input((6,)), keras.Input((8,))
    hidden = kl.Concatenate()([kl.Dense(8, activation="relu")(first), kl.Dense(8, activation="relu")(second)])
    model = keras.Model([first, second], [kl.Dense(1)(hidden), kl.Dense(3, activation="softmax")(hidden)])
    a, b = RNG.normal(size=(64, 6)).astype("float32"), RNG.normal(size=(64, 8)).astype("float32")
    y, names = RNG.normal(size=(64, 1)), np.array(["u"] * 64)
    for data in (
        [a, b], (a, b), ([a, b],), ((a, b), y), ([a, b], {"one": y, "two": y}), ((a, b), [y, y]), ((a, b), names),
    ):  # fmt: skip
        result = actprune.prune(model, data, keep="units=50%", method="flap")
        assert result.proof.passed
        assert result.report.calibration["samples"] == 64


@pytest.mark.parametrize("frozen", ["after", "before"])
def test_layers_that_are_frozen_after_they_have_trained(frozen: str) -> None:
    """The optimizer knows the variables of the time when the model was compiled."""
    model = _model((6,), kl.Dense(8, activation="relu", name="a"), kl.Dense(3, name="b"))
    x, y = np.random.default_rng(0).random((32, 6), "float32"), np.zeros((32, 3), "float32")
    model.get_layer("a").trainable = frozen == "after"
    model.compile("adam", "mse")
    model.fit(x, y, epochs=1, verbose=0)
    model.get_layer("a").trainable = frozen == "before"
    small = actprune.prune(model, x, keep="macs=60%", method="l2").model
    assert small.optimizer.iterations == model.optimizer.iterations
    known = {variable.path for variable in small.optimizer._trainable_variables}
    assert len(known) == len(model.optimizer._trainable_variables)


def test_moments_behind_a_scaled_loss_are_cut() -> None:
    model = _model((6,), kl.Dense(8, activation="relu"), kl.Dense(3))
    x, y = np.random.default_rng(0).random((32, 6), "float32"), np.ones((32, 3), "float32")
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), "mse")
    model.fit(x, y, epochs=1, verbose=0)
    small = actprune.prune(model, x, keep="macs=60%", method="l2").model
    moments = small.optimizer.inner_optimizer._momentums
    assert (
        tuple(moments[0].shape) == tuple(small.trainable_variables[0].shape)
        and float(abs(moments[0].numpy()).sum()) > 0
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "no calibration data"),
        ("x.npz", "no calibration data"),
        ([tuple(np.zeros((4, 2), "float32") for _ in range(3))], "another number of inputs"),
    ],
)
def test_what_is_no_calibration_data(data: Any, words: str) -> None:
    given = [keras.Input((2,)), keras.Input((2,))]
    model = keras.Model(given, kl.Dense(2)(kl.Dense(4)(kl.concatenate(given))))
    with pytest.raises(DataError, match=words):
        actprune.prune(model, [data] if isinstance(data, list) else data, keep="macs=60%", method="l2")


def test_a_model_built_once_more_in_the_session_is_loaded(tmp_path: Path) -> None:
    """Keras has numbered its layers on: `dense_2` and `dense_3` are what `dense` and `dense_1` were."""

    def build(width: int = 16) -> Any:
        return keras.Sequential(
            [keras.Input((6,)), kl.Dense(width, activation="relu"), kl.BatchNormalization(), kl.Dense(8), kl.Dense(3)]
        )

    x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    result = actprune.prune(build(), x, keep="macs=50%", method="l2")
    result.save(tmp_path / "run")
    found = actprune.load(tmp_path / "run", build())
    assert [layer.name for layer in found.layers] == ["dense_3", "batch_normalization_1", "dense_4", "dense_5"]
    np.testing.assert_allclose(found.predict(x, verbose=0), result.model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)
    with pytest.raises(ArtifactError, match="another architecture"):
        actprune.load(tmp_path / "run", build(12))


def test_shapes_that_a_model_built_once_more_writes_down_are_changed(tmp_path: Path) -> None:
    """They have no weights, whose names would tell: `reshape_4` is what `reshape` was. One of them stays as it is."""

    def build() -> Any:
        x = images = keras.Input((4, 4, 3))
        x = kl.Conv2D(8, 3, padding="same", activation="relu")(x)
        gate = kl.Reshape((1, 1, 8))(kl.GlobalAveragePooling2D()(x))
        x = kl.Multiply()([x, kl.Dense(8, activation="sigmoid")(kl.Dense(4, activation="relu")(gate))])
        x = keras.ops.reshape(x, (-1, 16, 8))
        x = kl.Reshape((16, 10))(kl.Dense(10, activation="relu")(x))
        return keras.Model(images, kl.Reshape((3, 1))(kl.Dense(3)(kl.GlobalMaxPooling1D()(x))))

    x = np.random.default_rng(0).normal(size=(32, 4, 4, 3)).astype("float32")
    result = actprune.prune(build(), x, keep="macs=50%", method="l2")
    result.save(tmp_path / "run")
    found = actprune.load(tmp_path / "run", build())
    np.testing.assert_allclose(found.predict(x, verbose=0), result.model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)
    again = actprune.prune(found, x, keep="macs=60%", method="l2")
    assert again.model.count_params() < found.count_params()
