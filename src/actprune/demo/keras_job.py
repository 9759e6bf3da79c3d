"""The main job on Keras 3: the seed's own script, which never ran, from end to end.

    Sequential LeNet-5 → compile → fit → evaluate → SGD-AP → fit → evaluate → run folder

As in the job on PyTorch, decisions look only at the training split and its validation part.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from actprune.artifacts.checkpoint import check_output
from actprune.demo.dense_cache import cached, digest
from actprune.demo.main_job import (
    CALIBRATION,
    CALIBRATION_BATCH,
    Options,
    Outcome,
    Progress,
    check,
    how_to_prune,
    tested,
)
from actprune.demo.mnist import cache_folder, load_mnist
from actprune.errors import PlanError
from actprune.keras3.backend import keras_on_torch
from actprune.keras3.bridge import progress_callback
from actprune.keras3.calls import without_dropout
from actprune.keras3.network import KerasNetwork
from actprune.pipeline import prune
from actprune.surgery.slicing import cut

RECIPE = "actprune.lenet5.keras/1"
"""The version of network and training: another one makes cached networks stale."""

LR, BATCH = 0.05, 64
"""Of the fine-tune, as on PyTorch."""


def run(options: Options, progress: Progress | None = None) -> Outcome:
    """Do the main job with Keras and write its run folder.

    Raises:
        ActpruneError: with what to do; nothing is written then.
    """
    tell = progress or (lambda stage, done, total: None)
    check_output(options.out, overwrite=options.overwrite)
    if options.device != "cpu":
        raise PlanError(
            "Keras chooses the device of its models itself.",
            expected="no device",
            got=repr(options.device),
            where="device",
            hint="leave --device out",
        )
    check(options)
    if "keras" not in sys.modules:
        os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = keras_on_torch()
    started = time.perf_counter()
    mnist = load_mnist(options.data, options.cache)
    x, x_test = _images(mnist.x_train), _images(mnist.x_test)
    y, y_test = mnist.y_train.astype("int64"), mnist.y_test.astype("int64")
    first = len(x) * 4 // 5  # Keras takes the last fifth to validate
    shown = x[:first][:CALIBRATION]
    loaded = time.perf_counter()
    dense, trained = _dense(x, y, options, tell)
    keras.utils.set_random_seed(options.seed)  # what follows is the same, trained or loaded
    ready = time.perf_counter()
    result = prune(
        dense,
        [shown[i : i + CALIBRATION_BATCH] for i in range(0, len(shown), CALIBRATION_BATCH)],
        evaluate=accuracy_on(x[first:], y[first:]),
        finetune=_finetune(x[:first], y[:first], options, tell),
        progress=progress,
        **how_to_prune(options),
    )
    tell("test", 0, 1)
    report = tested(
        result, dense, accuracy_on(x_test, y_test), options, lambda m, plan, rw: cut(KerasNetwork(m), plan, rw).model
    )
    seconds = {"load": loaded - started, "train" if trained else "load dense": ready - loaded}
    report = replace(report, seconds={**{k: round(v, 3) for k, v in seconds.items()}, **report.seconds})
    tell("test", 1, 1)
    folder = replace(result, report=report).save(options.out, overwrite=options.overwrite)
    return Outcome(result, report, folder)


def _dense(x: np.ndarray, y: np.ndarray, options: Options, tell: Progress) -> tuple[Any, bool]:
    """The compiled network, trained as the seed does, and whether it was trained now and not taken from the cache."""
    keras = keras_on_torch()

    def compiled() -> Any:
        keras.utils.set_random_seed(options.seed)
        model = lenet5()
        model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    def train() -> KerasNetwork:
        model, told = compiled(), progress_callback(tell, "train")
        model.fit(x, y, epochs=options.epochs, validation_split=0.2, verbose=0, callbacks=[told])
        return KerasNetwork(model)

    data = digest({"x": torch.from_numpy(x), "y": torch.from_numpy(y)})
    about = {"schema": RECIPE, "seed": str(options.seed), "epochs": str(options.epochs), "data": data}
    cache = options.cache or cache_folder()
    name = f"lenet5-mnist-keras-seed{options.seed}-epochs{options.epochs}.safetensors"
    path = None if cache is None else cache / name
    network, trained = cached(path, about, lambda: KerasNetwork(compiled()), train)
    return network.model, trained


def lenet5() -> Any:
    """The seed's network: (batch, 28, 28, 1) pixels in [0, 1] → (batch, 10) probabilities; 44,426 parameters."""
    keras = keras_on_torch()
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(6, 5, activation="relu", name="conv1"),
            layers.MaxPooling2D(name="pool1"),
            layers.Conv2D(16, 5, activation="relu", name="conv2"),
            layers.MaxPooling2D(name="pool2"),
            layers.Flatten(name="flatten"),
            layers.Dense(120, activation="relu", name="fc1"),
            layers.Dropout(0.5, name="dropout1"),
            layers.Dense(84, activation="relu", name="fc2"),
            layers.Dropout(0.5, name="dropout2"),
            layers.Dense(10, activation="softmax", name="fc3"),
        ],
        name="lenet5",
    )


def accuracy_on(x: np.ndarray, y: np.ndarray) -> Callable[[Any], float]:
    """Keras model → the fraction of images whose most probable class is their label's."""

    def accuracy(model: Any) -> float:
        return float((model.predict(x, batch_size=1000, verbose=0).argmax(1) == y).mean())

    return accuracy


def _images(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype("float32")[..., None] / np.float32(255)


def _finetune(x: np.ndarray, y: np.ndarray, options: Options, tell: Progress) -> Callable[[Any], None] | None:
    """Stochastic gradient descent with Nesterov momentum and a cosine: `compile` and `fit`.

    Nothing is dropped at random, as on PyTorch: half of a dozen units is too few to learn from.
    """
    if options.finetune_epochs == 0:
        return None
    keras = keras_on_torch()

    def fit(model: Any) -> None:
        steps = options.finetune_epochs * -(-len(x) // BATCH)
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, max(steps * 9 // 10, 1), warmup_target=LR, warmup_steps=max(steps // 10, 1)
        )
        model.compile(
            keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        with without_dropout(model.layers):
            model.fit(
                x, y, batch_size=BATCH, epochs=options.finetune_epochs, verbose=0,
                callbacks=[progress_callback(tell)],
            )  # fmt: skip

    return fit
