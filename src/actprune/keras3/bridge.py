"""What `prune` is given for a Keras model, as the engine takes it; and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from actprune.artifacts.checkpoint import save
from actprune.errors import DataError, UnsupportedModelError
from actprune.keras3.backend import keras_on_torch
from actprune.keras3.network import KerasNetwork
from actprune.recovery.sgd import SGD
from actprune.result import Result

MODEL = "model.keras"
"""The file in a run folder that plain Keras loads."""


@dataclass(frozen=True, eq=False)
class KerasResult(Result):
    """As `Result`; `model` and `before_finetune` are Keras models.

    Attributes:
        network: `model` as the engine sees it.
    """

    network: KerasNetwork = field(kw_only=True, repr=False)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """As `Result.save`, and `model.keras`, which `keras.models.load_model` reads without actprune.

        Raises:
            ArtifactError: the folder exists (and isn't to be overwritten), or can't be written.
        """
        report = self.report.to_data()
        more = {MODEL: self.network.model.save}
        return save(folder, self.network, self.plan, report, overwrite=overwrite, more=more)

    def fold(self, *, channels_last: bool | str = "auto") -> nn.Module:
        raise UnsupportedModelError(
            "A Keras model isn't folded.",
            expected="a torch model",
            got=f"the Keras model {self.network.model.name!r}",
            where="Result.fold",
            hint="export it instead: result.model.export(path)",
        )


def check_keras(form: str, inplace: bool) -> None:
    """Refuse what a model that is rebuilt can't have."""
    if form != "class" or inplace:
        raise DataError(
            "A Keras model is rebuilt from its config: it has no other form, and can't be changed in place.",
            expected='form="class" and inplace=False',
            got=f"form={form!r}, inplace={inplace}",
            where="prune(form=…, inplace=…)",
            hint="leave both out, and use the model that prune returns",
        )


def on_network(function: Callable[[Any], Any] | None) -> Callable[[Any], Any] | None:
    """A function of the Keras model (`evaluate`) as one of the network."""
    if function is None or not callable(function):
        return function
    return lambda network: function(network.model)


def training_of(finetune: SGD | Callable[[Any], Any] | None) -> SGD | Callable[[Any], Any] | None:
    """A function that trains the Keras model as one that trains the network; what `fit` returns is no model."""
    if finetune is None or isinstance(finetune, SGD) or not callable(finetune):
        return finetune

    def train(network: KerasNetwork) -> KerasNetwork:
        returned = finetune(network.model)
        return KerasNetwork(returned if isinstance(returned, keras_on_torch().Model) else network.model, like=network)

    return train


def keras_result(result: Result) -> KerasResult:
    """The result with Keras models in it."""
    network: Any = result.model
    before: Any = result.before_finetune
    held = {one.name: getattr(result, one.name) for one in fields(Result)}
    held["report"] = replace(result.report, model=type(network.model).__name__)
    held |= {"model": network.model, "before_finetune": None if before is None else before.model}
    return KerasResult(**held, network=network)


def progress_callback(progress: Callable[[str, int, int], None], stage: str = "fine-tune") -> Any:
    """A `keras.callbacks.Callback` that tells `progress` (stage, epochs done, epochs in all) during `fit`."""
    keras = keras_on_torch()

    class Progress(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            progress(stage, 0, self.params["epochs"])

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            progress(stage, epoch + 1, self.params["epochs"])

    return Progress()
