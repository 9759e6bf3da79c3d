"""Keras on the torch backend: `compile` and `fit` as ever, and a Keras model comes back."""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")  # before Keras is imported

import keras
from data import images

import actprune as ap


def arrays(count, seed):
    x, y = images(count, seed)
    return x.permute(0, 2, 3, 1).numpy(), y.numpy()


def main():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((8, 8, 1)), layers.Conv2D(16, 3, padding="same", activation="relu"), layers.MaxPooling2D(4),
        layers.Flatten(), layers.Dense(32, activation="relu"), layers.Dense(4, activation="softmax"),
    ])  # fmt: skip
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    (x, y), (x_val, y_val) = arrays(512, 0), arrays(256, 1)
    model.fit(x, y, epochs=3, verbose=0)
    result = ap.prune(
        model,
        x,
        keep="macs=50%",
        method="flap",
        evaluate=lambda m: float((m.predict(x_val, verbose=0).argmax(1) == y_val).mean()),
        finetune=lambda m: m.fit(x, y, epochs=1, verbose=0),
    )
    print(result.report)
    return result


if __name__ == "__main__":
    main()
