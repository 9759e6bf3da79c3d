"""A state dict as a safetensors file: no pickle, one contiguous entry per tied tensor, the same bytes every time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils import _pytree as pytree

from actprune.artifacts.files import check_regular, unreadable
from actprune.errors import ArtifactError
from actprune.mapped import any_mapped
from actprune.shards import write_tensors

_TIED = "tied"


@dataclass(frozen=True, eq=False)
class Weights:
    """What a weights file holds.

    Attributes:
        tensors: first name → tensor.
        names: that first name → every name of the tensor, itself included.
        metadata: the rest of the file's metadata.
    """

    tensors: Mapping[str, Tensor]
    names: Mapping[str, tuple[str, ...]]
    metadata: Mapping[str, str]

    def state(self) -> dict[str, Tensor]:
        """Every name → its tensor."""
        return {name: self.tensors[first] for first, names in self.names.items() for name in names}


def write_weights(path: Path, state: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Write the tensors of a state dict; tied ones once, under their first name.

    Raises:
        ArtifactError: an entry that is no plain tensor with data of its own.
        OSError, SafetensorError: the file can't be written.
    """
    tensors = _plain(state)
    names = tied(tensors)
    seen: set[int] = set()
    entries: dict[str, Tensor] = {}
    for first in names:
        entry = tensors[first].detach().resolve_conj().resolve_neg().cpu().contiguous()
        storage = entry.untyped_storage()
        # The format wants entries that share nothing: a view of a larger storage becomes a copy.
        if storage.nbytes() != entry.nbytes or storage.data_ptr() in seen:
            entry = entry.clone()
        seen.add(entry.untyped_storage().data_ptr())
        entries[first] = entry
    others = {first: list(aliases[1:]) for first, aliases in names.items() if len(aliases) > 1}
    about = {**metadata, _TIED: json.dumps(others, sort_keys=True)}
    if any_mapped(entries.values()):  # the library copies all of them first
        write_tensors(path, entries, about)
        return
    path.touch()
    mode = path.stat().st_mode
    save_file(entries, path, metadata=about)
    with suppress(OSError):  # not every file system has modes
        path.chmod(mode)  # save_file makes files that only their owner may read, whatever the umask says
    _sort_header(path)


def read_weights(path: Path, hint: str) -> Weights:
    """What `write_weights` wrote. Tensors are mapped from the file, not read: copy them before it changes.

    Raises:
        ArtifactError: the file is missing, truncated or no such file.
    """
    expected = "a safetensors file written by actprune"
    check_regular(path, hint)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        others = json.loads(metadata.pop(_TIED))
        names = {first: (first, *map(str, others.pop(first, ()))) for first in tensors}
    except Exception as error:  # whatever the library and the two lines above raise for foreign bytes
        raise unreadable(path, expected, f"{type(error).__name__}: {error}", hint) from error
    if others or len({name for group in names.values() for name in group}) != sum(map(len, names.values())):
        raise unreadable(path, expected, "names in its metadata that contradict its entries", hint)
    return Weights(tensors, names, metadata)


def tied(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """First name → every name of the same memory seen in the same way."""
    groups: dict[Any, list[str]] = {}
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        groups.setdefault(place if tensor.numel() else name, []).append(name)
    return {names[0]: tuple(names) for names in groups.values()}


def _plain(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict that safetensors can hold; extra state that is None holds nothing. What a class adds
    that holds no tensor (its constructor's arguments, in neuraloperator) is not of the weights: `load` is given a model
    with it."""
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if value is None or not (_is_extra(name) or _holds_tensors(value)):
            continue
        if not isinstance(value, Tensor):
            got = type(value).__name__
        elif value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
            got = f"a tensor of layout {value.layout}, {value.dtype}, on {value.device}"
        elif value.numel() and not _has_memory(value):
            got = f"a {type(value).__name__} without memory of its own"
        else:
            tensors[name] = value
            continue
        raise ArtifactError(
            "The model holds something that a weights file can't.",
            expected="a state dict of dense tensors with data",
            got=got,
            where=name,
            hint="convert it to a plain tensor, register it with persistent=False, or save the model yourself",
        )
    return tensors


def _is_extra(name: str) -> bool:
    """Whether `get_extra_state` of a module gave it, which may hold what training has learnt."""
    return name.rpartition(".")[2] == "_extra_state"


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


def _has_memory(tensor: Tensor) -> bool:
    try:
        return tensor.data_ptr() != 0
    except (RuntimeError, NotImplementedError):  # wrappers such as distributed tensors
        return False


def _sort_header(path: Path) -> None:
    """The library writes the metadata in random order: sort it, so that equal weights make equal files."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(text) == length:
            file.seek(8)
            file.write(text)
