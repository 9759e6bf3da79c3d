"""Is it a Keras model, and does Keras compute with torch?"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from actprune.errors import UnsupportedModelError


def is_keras(value: Any) -> bool:
    """Whether a value is a Keras model; Keras is not imported to find out."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(value, keras.Model)


def keras_on_torch() -> Any:
    """The `keras` package.

    Raises:
        UnsupportedModelError: it isn't installed, or doesn't compute with torch.
    """
    if "keras" not in sys.modules and importlib.util.find_spec("keras") is None:
        raise UnsupportedModelError(
            "Keras is not installed.",
            expected="the package keras, version 3",
            got="none",
            where="keras",
            hint="pip install 'actprune[keras]'",
        )
    try:
        import keras
    except ImportError as error:  # of the backend that is asked for
        raise UnsupportedModelError(
            "Keras can't be imported.",
            expected="KERAS_BACKEND=torch",
            got=f"{type(error).__name__}: {error}",
            where="keras",
            hint="start the process with KERAS_BACKEND=torch",
        ) from error

    if keras.backend.backend() != "torch":
        raise UnsupportedModelError(
            "Keras models are pruned on the torch backend.",
            expected="KERAS_BACKEND=torch",
            got=f"KERAS_BACKEND={keras.backend.backend()}",
            where="keras.backend",
            hint="save the model with model.save('model.keras'), and load and prune it in a process that is started "
            "with KERAS_BACKEND=torch; the pruned model loads on every backend",
        )
    return keras
