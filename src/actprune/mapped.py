"""Tensors that lie in files: mapped into memory, read as they are used, and let go of afterwards.

A model that is larger than memory has such tensors, see `actprune.shards`. Whatever is made from one of them and is as
large (a sliced weight, a refitted one) is put on disk as well, by `alongside`: so every stage works as with any other
model, and only what it uses at the moment is in memory.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import tempfile
import weakref
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from actprune.errors import ArtifactError

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None

SMALL = 1 << 16
"""Tensors of fewer bytes stay in memory: norms and biases."""


@dataclass(frozen=True, eq=False)
class _Mapping:
    """A file in memory.

    Attributes:
        start, end: its addresses.
        file: kept alive by the tensors in it alone.
        writable: changes reach the file; otherwise they are private to this process, and lost when let go of.
    """

    start: int
    end: int
    file: weakref.ref[mmap.mmap]
    writable: bool


_MAPPINGS: dict[int, _Mapping] = {}
_STARTS: list[int] = []


def mapped_file(file: BinaryIO, size: int, *, writable: bool = False) -> mmap.mmap:
    """The first `size` bytes of an open file as memory, which may be closed then."""
    made = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_COPY)
    start = torch.frombuffer(made, dtype=torch.uint8).data_ptr()
    _MAPPINGS[start] = _Mapping(start, start + size, weakref.ref(made, lambda _: _forget(start)), writable)
    _STARTS[:] = sorted(_MAPPINGS)
    return made


def _forget(start: int) -> None:
    _MAPPINGS.pop(start, None)
    _STARTS[:] = sorted(_MAPPINGS)


def is_mapped(value: Any) -> bool:
    """Whether a tensor lies in such a file."""
    return _mapping(value) is not None


def any_mapped(tensors: Iterable[Any]) -> bool:
    """Whether one of them does: the parameters of a model, or the tensors of a program."""
    return bool(_MAPPINGS) and any(map(is_mapped, tensors))


@contextmanager
def letting_go() -> Iterator[None]:
    """While networks are called as they are: the weights of every layer are given back behind its call."""
    if not _MAPPINGS:
        yield
        return

    def behind(module: nn.Module, args: Any, outputs: Any) -> None:
        let_go(module.parameters(recurse=False))

    hook = register_module_forward_hook(behind)
    try:
        yield
    finally:
        hook.remove()


def let_go(values: Iterable[Any]) -> None:
    """Give back the memory that these tensors take while they lie in files; they are read again when they are used.

    One that was changed where the file may not be is left alone. With them goes what the allocator holds free between
    what is in use: values and pieces of some MB, of which otherwise the most that there ever was would stay.
    """
    if not _MAPPINGS:
        return
    given = 0
    for value in values:
        mapping = _mapping(value)
        file = mapping.file() if mapping is not None else None
        if mapping is None or file is None or not hasattr(mmap, "MADV_DONTNEED"):
            continue
        if mapping.writable or value._version == 0:
            storage = value.untyped_storage()
            first = storage.data_ptr() - mapping.start
            begin = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE  # a page that is shared with another tensor stays
            whole = (first + storage.nbytes()) // mmap.PAGESIZE * mmap.PAGESIZE - begin
            if whole > 0:
                file.madvise(mmap.MADV_DONTNEED, begin, whole)
                given += whole
    if given and hasattr(_LIBC, "malloc_trim"):  # glibc's
        _LIBC.malloc_trim(0)


def alongside(new: Tensor, *own: Any) -> Tensor:
    """`new`; on disk, where one of the tensors that it is made from is, unless it is small.

    Raises:
        ArtifactError: the disk is full.
    """
    if not _MAPPINGS or new.nbytes < SMALL or new.device.type != "cpu" or is_mapped(new):
        return new
    return on_disk(new) if any_mapped(own) else new


def on_disk(tensor: Tensor) -> Tensor:
    """A copy in a file of its own, which nobody sees and which goes with the tensor.

    Raises:
        ArtifactError: the disk is full.
    """
    own = tensor.detach().contiguous()
    try:
        with tempfile.TemporaryFile(prefix="actprune-") as file:
            write_bytes(file, own)
            file.flush()  # memory of a file that has a hole, because the disk is full, would end the process
            held = mapped_file(file, own.nbytes, writable=True)
    except OSError as error:
        raise disk_error(error, tempfile.gettempdir()) from error
    return torch.frombuffer(held, dtype=own.dtype).view(own.shape)


def write_bytes(file: BinaryIO, tensor: Tensor) -> None:
    """The bytes of a tensor, piece by piece."""
    values = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8) if tensor.numel() else tensor.new_empty(0)
    for piece in values.split(1 << 26) if tensor.numel() else ():
        file.write(piece.numpy().data)


def disk_error(error: OSError, where: str) -> ArtifactError:
    return ArtifactError(
        "What does not fit into memory could not be written to the disk.",
        expected="room on the disk for what a large model needs beside itself: refitted weights and statistics",
        got=error.strerror or str(error),
        where=where,
        hint="make room there, or name a larger disk in the environment variable TMPDIR",
    )


def _mapping(value: Any) -> _Mapping | None:
    if not _MAPPINGS or not isinstance(value, Tensor) or value.device.type != "cpu" or value.layout != torch.strided:
        return None
    if type(value) not in (Tensor, nn.Parameter):  # a fake tensor, or a wrapper, has no memory of its own
        return None
    try:
        address = value.untyped_storage().data_ptr()
    except NotImplementedError:  # inside `torch.vmap` a tensor is one of a batch
        return None
    i = bisect_right(_STARTS, address) - 1
    found = _MAPPINGS.get(_STARTS[i]) if i >= 0 else None
    return found if found is not None and address < found.end else None
