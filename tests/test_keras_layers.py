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
from actprune.keras3.files import load_keras

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
