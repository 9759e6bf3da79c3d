"""A Keras model and its data from files, without running what is in them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from actprune.errors import ArtifactError
from actprune.keras3.backend import keras_on_torch
from actprune.keras3.network import KerasNetwork
from actprune.keras3.resized import has_config, register

MODEL = "model.keras"
"""The file in a run folder that plain Keras loads."""

LAYERS = "layers.json"
"""The file in a run folder with the names of all layers, those without weights too, which no tensor tells."""


def load_keras(path: str | Path) -> Any:
    """The model in a `.keras` file; one that holds code (a Lambda) is refused.

    Raises:
        ArtifactError: it is missing, damaged, or not to be read safely.
        UnsupportedModelError: Keras isn't installed, or doesn't compute with torch.
    """
    keras = keras_on_torch()
    register()
    _check_there(path)
    try:
        return keras.models.load_model(path, safe_mode=True)
    except Exception as error:  # whatever Keras and the zip reader raise on a file
        cause = re.split(r"(?:Error|Exception) encountered[^:]*: ", str(error))[-1]  # what Keras quotes last
        said = next((line for line in cause.splitlines() if line.strip()), "")
        raise ArtifactError(
            "The Keras model can't be loaded.",
            expected="a file that model.save('name.keras') wrote, without code in it",
            got=f"{type(error).__name__}: {said[:200]}",
            where=str(path),
            hint="classes of your own are read if keras.saving.register_keras_serializable knows them and their "
            "__init__ takes what get_config gives; where not, and with Lambda layers, the model is given to "
            "actprune.prune in Python, and what that saved to actprune.load(folder, model)",
        ) from error


def run_files(network: KerasNetwork) -> dict[str, Callable[[Path], Any]]:
    """What a run folder holds of a Keras model beside its weights: name → what writes it.

    `model.keras`, which plain Keras reads, is not there where the class gives no config, so that Keras can't write one.
    """
    names = sorted({*network.calls.values(), *(part for one in network.places for part in one.path.split(".") if part)})
    more: dict[str, Callable[[Path], Any]] = {LAYERS: lambda path: path.write_text(json.dumps(names), "utf-8")}
    return more | ({MODEL: network.model.save} if has_config(network.model) else {})


def written_names(folder: Path) -> set[str]:
    """What the layers of the model in a run folder are called, and calls that are no layers (`keras.ops.reshape`).

    Nothing is made of the files. Where they aren't there, or can't be read, there are no names.
    """
    try:
        return {name for name in json.loads((folder / LAYERS).read_text("utf-8")) if isinstance(name, str)}
    except (OSError, ValueError, TypeError, RecursionError):  # a folder from before has the model's file alone
        pass
    try:
        with ZipFile(folder / MODEL) as file:
            return set(_names(json.loads(file.read("config.json"))))
    except (OSError, BadZipFile, KeyError, ValueError, RuntimeError, NotImplementedError):
        return set()


def _names(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        inner = config.get("config")
        if "class_name" in config and isinstance(inner, dict) and isinstance(inner.get("name"), str):
            yield inner["name"]
    for part in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        yield from _names(part)


def load_npz(path: str | Path) -> Any:
    """Calibration data of an `.npz`: its x and y as a pair, with the names of Keras's own data sets if need be.

    Returns:
        x, or (x, y), from the entries `x` and `y`, or `x_train` and `y_train`; else a dict of all arrays.

    Raises:
        ArtifactError: it is missing, damaged or holds pickled objects.
    """
    _check_there(path)
    try:
        held = np.load(path, allow_pickle=False)
        if isinstance(held, np.ndarray):
            raise ValueError(f"a single array, {held.dtype} of shape {held.shape}")
        with held:
            arrays = {name: held[name] for name in held.files}
    except Exception as error:  # whatever NumPy and the zip reader raise on a file
        raise ArtifactError(
            "The data can't be read.",
            expected="an .npz of plain arrays",
            got=f"{type(error).__name__}: {error}",
            where=str(path),
            hint="write it with numpy.savez(path, x=…, y=…)",
        ) from error
    for x, y in (("x", "y"), ("x_train", "y_train")):
        if x in arrays:
            return (arrays[x], arrays[y]) if y in arrays else arrays[x]
    return arrays


def _check_there(path: str | Path) -> None:
    if not Path(path).is_file():
        raise ArtifactError(
            f"There is no file {Path(path).name}.",
            expected="a file",
            got="a folder" if Path(path).is_dir() else "nothing of that name",
            where=str(path),
            hint=f"the working folder is {Path.cwd()}",
        )
