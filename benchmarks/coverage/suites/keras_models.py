"""Keras 3.15: models of `keras.applications` with random weights, on the torch backend."""

from __future__ import annotations

import os

import torch
from benchmarks.coverage.suites.case import Case

SIZES = {
    "VGG16": 64,
    "ResNet50": 96,
    "ResNet50V2": 96,
    "DenseNet121": 96,
    "MobileNet": 96,
    "MobileNetV2": 96,
    "MobileNetV3Small": 96,
    "EfficientNetB0": 96,
    "EfficientNetV2B0": 96,
    "InceptionV3": 96,
    "Xception": 96,
    "ConvNeXtTiny": 64,
}
"""Name → height and width: small ones, for nothing but time depends on them."""


def names() -> list[str]:
    return list(SIZES)


def build(name: str) -> Case:
    os.environ["KERAS_BACKEND"] = "torch"  # before Keras is imported
    import keras

    from actprune.keras3.network import KerasNetwork

    keras.utils.clear_session()
    size = SIZES[name]
    model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=100)
    return Case(KerasNetwork(model), lambda batch: _images(batch, size))


def _images(batch: int, size: int) -> torch.Tensor:
    """Pixels from 0 to 255, channels last: some of the models scale them themselves."""
    return 255 * torch.rand(batch, size, size, 3, generator=torch.Generator().manual_seed(batch))
