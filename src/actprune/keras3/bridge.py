"""What `prune` is given for a Keras model, as the engine takes it; and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import nn

from actprune.artifacts.checkpoint import load as load_network
from actprune.artifacts.checkpoint import save
from actprune.deployment import fold as fold_network
from actprune.errors import DataError, UnsupportedModelError
from actprune.graph.arguments import call_arguments
from actprune.keras3.backend import is_keras, keras_on_torch
from actprune.keras3.data import Batches
from actprune.keras3.files import run_files, written_names
from actprune.keras3.inputs import as_given, has_own_call
from actprune.keras3.network import KerasNetwork
from actprune.recovery.sgd import SGD
from actprune.result import Result


@dataclass(frozen=True, eq=False, repr=False)
class KerasResult(Result):
    """As `Result`; `model` and `before_finetune` are Keras models.

    Attributes:
        network: `model` as the engine sees it.
    """

    network: KerasNetwork = field(kw_only=True)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """As `Result.save`, and `model.keras`, which `keras.models.load_model` reads without actprune; not where the
        class gives no config, so that Keras can't write one.

        Raises:
            ArtifactError: the folder exists (and isn't to be overwritten), or can't be written.
        """
        report = self.report.to_data()
        return save(folder, self.network, self.plan, report, overwrite=overwrite, more=run_files(self.network))

    def fold(self, *, channels_last: bool | str = "auto") -> nn.Module:
        raise unfoldable(self.model)


def unfoldable(model: Any) -> UnsupportedModelError:
    """What is said where the BatchNorm of a Keras model shall be folded."""
    return UnsupportedModelError(
        "A Keras model isn't folded.",
        expected="a torch model",
        got=f"the Keras model {model.name!r}",
        where="fold",
        hint="export it as it is: on the command line without --fold, in Python with result.model.export(path)",
    )


@wraps(fold_network)
def fold(model: nn.Module, example_inputs: Any, *, channels_last: bool | str = "auto") -> nn.Module:
    if is_keras(model):  # it is a torch module as well, without one norm that is torch's
        raise unfoldable(model)
    return fold_network(model, example_inputs, channels_last=channels_last)


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


def as_network(model: Any) -> Any:
    """A Keras model as the engine sees it; any other model as it is."""
    return KerasNetwork(model) if is_keras(model) else model


def as_batches(data: Any, model: Any) -> Any:
    """Calibration data for a Keras model as batches that the engine takes; for any other model as it is."""
    return Batches(data, model) if is_keras(model) else data


def example_of(model: Any) -> Any:
    """Two samples of ones for a Keras model whose inputs have all their sizes, in their order; else None."""
    if not is_keras(model) or has_own_call(model):
        return None
    if not model.inputs or any(None in one.shape[1:] for one in model.inputs):
        return None
    return tuple(torch.ones((one.shape[0] or 2, *one.shape[1:])).to(getattr(torch, one.dtype)) for one in model.inputs)


def load(folder: str | Path, model: Any, example_inputs: Any = None) -> Any:
    """The cut model that `save` wrote, made from a fresh dense one by replaying the plan.

    Args:
        model: the dense model, built with the same arguments; its weights do not matter, and it is left as it is.
        example_inputs: as for `capture`, of the shapes of the calibration batches; only needed for what `prune` gave
            back as a graph, which is captured again, and for a Keras class that was never called and says of itself
            that it is built.

    Returns:
        A model of the same class, or the graph form, on the device and in the train or eval mode of `model`, with
        tensors of the saved values and dtypes; a Keras model where one is given.

    Raises:
        ArtifactError: the model has another architecture, it gives another graph, or a file is missing, damaged,
            tampered with or foreign. Nothing in the files has been executed.
        UnsupportedModelError: the model can't be copied.
    """
    network = as_network(model)
    if isinstance(network, KerasNetwork):
        # of layers without weights, whose sizes a plan may change, only a file tells the names
        network = network.named_for(written_names(Path(folder)))
        if example_inputs is not None:
            network.called_on.given = as_given(*call_arguments(network, example_inputs))
    found: Any = load_network(folder, network, example_inputs)
    return found.model if isinstance(found, KerasNetwork) else found


def on_network(function: Callable[[Any], Any] | None) -> Callable[[Any], Any] | None:
    """A function of the Keras model (`evaluate`) as one of the network."""
    if function is None or not callable(function):
        return function
    return lambda network: _one_number(function(network.model))


def _one_number(metric: Any) -> Any:
    """Refuse all that `model.evaluate` gives at once: which of it is meant, and is higher better?"""
    if isinstance(metric, Mapping | list | tuple):
        shown = ", ".join(map(str, metric)) if isinstance(metric, Mapping) else f"{len(metric)} numbers"
        raise DataError(
            "evaluate gives several numbers.",
            expected="one number, higher is better",
            got=f"{type(metric).__name__} of {shown}, as model.evaluate returns it: the loss comes first",
            where="prune(evaluate=…)",
            hint='choose one: evaluate=lambda m: m.evaluate(x, y, return_dict=True, verbose=0)["accuracy"]',
        )
    return metric


def training_of(finetune: SGD | Callable[[Any], Any] | None) -> SGD | Callable[[Any], Any] | None:
    """A function that trains the Keras model as one that trains the network; what `fit` returns is no model."""
    if finetune is None or isinstance(finetune, SGD) or not callable(finetune):
        return finetune

    def train(network: KerasNetwork) -> KerasNetwork:
        returned = finetune(network.model)
        trained = returned if isinstance(returned, keras_on_torch().Model) else network.model
        return KerasNetwork(trained, network.places, network.calls, network.called_on)

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
