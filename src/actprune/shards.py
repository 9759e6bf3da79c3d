"""Weights in safetensors files, one or several with an index, mapped into memory; and written tensor by tensor.

The format is a header of names, dtypes, shapes and places, then the bytes. Everything in a header is checked before a
tensor is made of it. See https://huggingface.co/docs/safetensors and, for several files, the index that
transformers writes: `model.safetensors.index.json` with {"weight_map": {name: file}}.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actprune.errors import ArtifactError
from actprune.mapped import any_mapped, let_go, mapped_file, write_bytes

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

SHARD_BYTES = 5 * 10**9
"""Of a file at most, unless one tensor is larger: as transformers has it."""

HEADER_BYTES = 100_000_000
"""The library's own limit."""

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}

_AGAIN = "copy or download the whole folder again"


def open_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a folder of them: name → tensor, mapped and not read.

    For `model.load_state_dict(open_weights(folder), assign=True)`, the model built on the meta device. `prune` and
    all stages then take the model as any other, and read its weights layer by layer; where they are trained, train a
    copy, for changes never reach the files.

    Raises:
        ArtifactError: a file is missing, truncated or no safetensors file, or the index contradicts it.
    """
    where = Path(path)
    if not where.is_dir():
        return mapped_tensors(where)
    if not (where / INDEX).exists():
        return mapped_tensors(where / SINGLE)
    homes = _index(where / INDEX)
    files = sorted(set(homes.values()))
    if missing := [name for name in files if not (where / name).is_file()]:
        raise _broken(
            where / missing[0],
            f"{len(files)} files that the index names",
            f"no {', '.join(missing)}: {len(missing)} of {len(files)} files are missing",
        )
    found: dict[str, Tensor] = {}
    for file in files:
        tensors = mapped_tensors(where / file)
        named = {name for name, home in homes.items() if home == file}
        if named != tensors.keys():
            name = min(named ^ tensors.keys())
            raise _broken(where / INDEX, f"the tensors that {file} holds", f"{name} in only one of the two")
        found |= tensors
    return {name: found[name] for name in homes}


def mapped_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            header, start = _header(path, file.read(8), size, file.read)
            held = mapped_file(file, size)
    except OSError as error:
        raise _broken(path, "a safetensors file", error.strerror or str(error)) from error
    return {name: _tensor(held, start, entry) for name, entry in header.items()}


def _tensor(held: Any, start: int, entry: _Entry) -> Tensor:
    count, offset = math.prod(entry.shape), start + entry.begin
    if not count:
        return torch.empty(entry.shape, dtype=entry.dtype)
    if offset % entry.dtype.itemsize:  # odd, but allowed: no view of this dtype begins there
        return torch.frombuffer(bytearray(held[offset : start + entry.end]), dtype=entry.dtype).view(entry.shape)
    return torch.frombuffer(held, dtype=entry.dtype, count=count, offset=offset).view(entry.shape)


@dataclass(frozen=True)
class _Entry:
    """Where a tensor is in a file: its bytes go from `begin` to `end` behind the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def _header(path: Path, length: bytes, size: int, read: Callable[[int], bytes]) -> tuple[dict[str, _Entry], int]:
    """The entries of a file, and where the bytes begin."""
    count = int.from_bytes(length, "little")
    if len(length) < 8 or not 2 <= count <= min(HEADER_BYTES, size - 8):
        raise _broken(path, "a safetensors file", f"{size} bytes that begin with no header")
    try:
        data = json.loads(read(count))
        data.pop("__metadata__", None)
        entries = {str(name): _entry(own) for name, own in data.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _broken(path, "a header of dtypes, shapes and places", f"{type(error).__name__}: {error}") from error
    room = size - 8 - count
    place = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != place or entry.end - entry.begin != math.prod(entry.shape) * entry.dtype.itemsize:
            raise _broken(path, "tensors that lie one behind the other", f"{name} from {entry.begin} to {entry.end}")
        place = entry.end
    if place != room:
        raise _broken(path, f"{place} bytes of tensors", f"{room}: the file is truncated, or was added to")
    return entries, 8 + count


def _entry(data: Mapping[str, Any]) -> _Entry:
    begin, end = data["data_offsets"]
    shape = tuple(data["shape"])
    if not all(type(n) is int and n >= 0 for n in (begin, end, *shape)):
        raise ValueError(f"shape {shape}, places {begin} and {end}")
    return _Entry(DTYPES[data["dtype"]], shape, begin, end)


def _index(path: Path) -> dict[str, str]:
    """Tensor name → file name."""
    try:
        homes = json.loads(path.read_text("utf-8"))["weight_map"]
        names = {str(name): str(file) for name, file in homes.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _broken(path, "an index with a weight_map", f"{type(error).__name__}: {error}") from error
    if wrong := next((file for file in names.values() if Path(file).name != file or not file), None):
        raise _broken(path, "names of files in the same folder", repr(wrong))  # which may lead anywhere
    return names


def _broken(path: Path, expected: str, got: str) -> ArtifactError:
    return ArtifactError(f"{path.name} can't be read.", expected=expected, got=got, where=str(path), hint=_AGAIN)


# -- writing ---------------------------------------------------------------------------------------


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """One safetensors file, tensor by tensor: none of them is copied as a whole, and those in files are let go of.

    Raises:
        OSError: the disk is full, or the file can't be written.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))  # so that each is aligned
    place = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, place + tensor.nbytes]
        }  # fmt: skip
        place += tensor.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if any_mapped(tensors.values()) and path.is_file():  # they may lie in this very file, which must not shrink then
        path.unlink()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            write_bytes(file, tensor)
            let_go([tensor])


def write_shards(folder: Path, tensors: Mapping[str, Tensor], most: int = SHARD_BYTES) -> list[Path]:
    """The tensors in as many files as it takes, and their index, named as transformers names them.

    Raises:
        OSError: the disk is full, or the folder can't be written.
    """
    parts = list(_parts(tensors, most))
    names = [f"model-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1)]
    if len(parts) == 1:
        names = [SINGLE]
    for name, part in zip(names, parts, strict=True):
        write_tensors(folder / name, {key: tensors[key] for key in part}, {"format": "pt"})
    if len(parts) > 1:
        homes = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        total = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
        (folder / INDEX).write_text(json.dumps({"metadata": total, "weight_map": homes}, indent=2) + "\n", "utf-8")
    return [folder / name for name in names]


def _parts(tensors: Mapping[str, Tensor], most: int) -> Iterable[list[str]]:
    """Names in order, of as many tensors as a file takes."""
    part: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if part and size + tensor.nbytes > most:
            yield part
            part, size = [], 0
        part.append(name)
        size += tensor.nbytes
    yield part
