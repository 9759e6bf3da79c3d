"""Trained dense networks that are kept, so that the second run of a demo starts at pruning."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from torch import Tensor, nn

from actprune.artifacts.files import new_file
from actprune.artifacts.weights import read_weights, write_weights
from actprune.errors import ArtifactError

M = TypeVar("M", bound=nn.Module)


def cached(
    path: Path | None, about: Mapping[str, str], make: Callable[[], M], train: Callable[[], M]
) -> tuple[M, bool]:
    """The network that a file holds, where it is sound and of the same recipe and data; else one trained now.

    Args:
        path: of the file, which a network that is trained now is put into; None keeps nothing.
        about: what the weights depend on; the file must say the same.
        make: a network to load the weights into.
        train: a trained one.

    Returns:
        The network, and whether it was trained now.

    Warns:
        UserWarning: the copy is damaged, of other data or of another version (it is replaced), or can't be written.
    """
    model = None if path is None else _read(path, about, make)
    if model is not None:
        return model, False
    model = train()
    if path is not None:
        _write(path, model, about)
    return model, True


def _read(path: Path, about: Mapping[str, str], make: Callable[[], M]) -> M | None:
    if not path.exists():
        return None
    try:
        weights = read_weights(path, "it is trained again")
        found = {key: weights.metadata.get(key) for key in about}
        if found != about:
            got = ", ".join(f"{key} {found[key]}" for key in about if found[key] != about[key])
            raise ArtifactError(f"it is of another version or of other data ({got})")
        model, state = make(), weights.state()
        kinds, wanted = ({n: (t.shape, t.dtype) for n, t in held.items()} for held in (state, model.state_dict()))
        if kinds != wanted or weights.metadata.get("digest") != digest(state):
            raise ArtifactError("it is damaged")
        model.load_state_dict(state)
    except (ArtifactError, RuntimeError) as error:
        problem = error.got or error.problem if isinstance(error, ArtifactError) else str(error)
        warnings.warn(f"the cached network {path} is not used, and trained again: {problem}", stacklevel=4)
        return None
    return model


def _write(path: Path, model: nn.Module, about: Mapping[str, str]) -> None:
    state = model.state_dict()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as scratch:
            write_weights(scratch, state, {**about, "digest": digest(state)})
    except (OSError, SafetensorError) as error:
        warnings.warn(f"the trained network could not be kept in {path}: {error}", stacklevel=4)


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes, dtypes and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(tensor.detach().cpu().contiguous().numpy().data)
    return found.hexdigest()
