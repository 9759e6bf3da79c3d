"""NumPy arrays out of an old pickle, without unpickling it.

Unpickling runs whatever callables the file names. The one pickle this package has to read needs 19
kinds of opcode and three names, so a stack machine over plain data reads it: nothing is imported,
looked up or called on the file's behalf, and whatever that file does not need is refused.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from actprune.errors import DataError

MAX_STEPS = 1000
"""Opcodes read before giving up; the MNIST pickle has 151."""

_RECONSTRUCT, _NDARRAY, _DTYPE = "numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"
_ITEM_BYTES = {"f4": 4, "i8": 8}
_TYPE_STATE = (3, "<", None, None, None, -1, -1, 0)  # version 3, little-endian, no fields, no own alignment
_BINSTRING_HEADER = 5  # the opcode and a length of four bytes stand before the bytes


@dataclass(frozen=True, eq=False)
class PickledArray:
    """An array as the pickle describes it: `data` holds `shape` items of `kind` ("f4" or "i8"), C order."""

    kind: str
    shape: tuple[int, ...]
    data: memoryview

    def array(self) -> np.ndarray:
        """The same bytes as a read-only array; no copy."""
        return np.frombuffer(self.data, dtype=f"<{self.kind}").reshape(self.shape)


def read_pickled_arrays(raw: bytes, where: str) -> object:
    """Rebuild the nested tuples of arrays that a protocol-2 pickle describes.

    Args:
        raw: the whole pickle, already decompressed.
        where: the file it came from, for the error messages.

    Returns:
        The pickled value: tuples whose leaves are `PickledArray`s that refer to `raw`. What the file
        holds beside them (numbers, text) is returned as it stands, so check the structure.

    Raises:
        DataError: `raw` holds an opcode, a name, a call or a state other than the MNIST pickle's, or
            is truncated, too long or followed by more bytes. Nothing in it has been executed.
    """
    machine = _Machine(memoryview(raw), where)
    try:
        for opcode, argument, position in pickletools.genops(raw):
            machine.step(opcode.name, argument, position or 0)
    except (ValueError, Warning) as error:
        # genops: a byte that starts no opcode, or an end without STOP. It also warns of bad escapes in names,
        # which are refused in any case, but arrive here as an exception where warnings are errors.
        raise machine.refusal("The pickle is malformed", "a whole protocol-2 pickle", str(error)) from error
    return machine.result()


@dataclass(frozen=True)
class _Name:
    """What GLOBAL pushes: the name as text. It is compared, and never resolved."""

    text: str


@dataclass(frozen=True, eq=False)
class _Type:
    """A dtype; `built` once BUILD has told its byte order. Told apart by identity, as the memo does."""

    kind: str
    built: bool


class _Blank:
    """An array before BUILD has told its contents."""


class _Machine:
    """The pickle machine, reduced to pushing data, making tuples and describing arrays."""

    def __init__(self, raw: memoryview, where: str) -> None:
        self.raw = raw
        self.where = where
        self.position = 0
        self.steps = 0
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[object, object] = {}

    def step(self, name: str, argument: object, position: int) -> None:
        """Carry out one opcode."""
        self.position = position
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise self.refusal("The pickle is too long", f"at most {MAX_STEPS} opcodes", "more")
        if name not in _OPCODES:
            expected = "one of the opcodes of the MNIST pickle"
            raise self.refusal("The pickle holds an opcode that is refused", expected, name)
        _OPCODES[name](self, argument)

    def result(self) -> object:
        """The one value left after STOP, which has to be the last byte."""
        if len(self.stack) != 1 or self.marks:
            raise self.refusal("The pickle does not end in one value", "1 value", f"{len(self.stack)} values")
        extra = len(self.raw) - self.position - 1
        if extra:
            problem = "Something follows the pickle"
            raise self.refusal(problem, "STOP as the last byte", f"{extra} bytes after it")
        return self.stack[0]

    def refusal(self, problem: str, expected: str, got: str) -> DataError:
        return DataError(
            problem,
            expected=expected,
            got=got if len(got) <= 200 else f"{got[:200]}…",
            where=f"{self.where}, byte {self.position}",
            hint="nothing in it was executed; do not unpickle this file, get a fresh copy of it",
        )

    def pop(self, count: int) -> tuple[object, ...]:
        """Take the topmost values, but none from below the last mark."""
        available = len(self.stack) - (self.marks[-1] if self.marks else 0)
        if available < count:
            problem = "The pickle takes more values than it has pushed"
            raise self.refusal(problem, f"{count} values", f"{available} values")
        start = len(self.stack) - count
        values = tuple(self.stack[start:])
        del self.stack[start:]
        return values

    def protocol(self, argument: object) -> None:
        if (self.position, argument) != (0, 2):
            raise self.refusal("The pickle's protocol is refused", "protocol 2", f"protocol {argument}")

    def push(self, argument: object) -> None:
        self.stack.append(argument)

    def push_bytes(self, argument: object) -> None:
        """Push a view of the bytes; genops gives text, one character a byte, which tells the length."""
        start = self.position + _BINSTRING_HEADER
        self.stack.append(self.raw[start : start + len(str(argument))])

    def mark(self, _: object) -> None:
        self.marks.append(len(self.stack))

    def tuple_from_mark(self, _: object) -> None:
        if not self.marks:
            problem = "The pickle closes a tuple that it has not opened"
            raise self.refusal(problem, "MARK before TUPLE", "no MARK")
        values = self.pop(len(self.stack) - self.marks[-1])
        self.marks.pop()
        self.stack.append(values)

    def store(self, slot: object) -> None:
        (value,) = self.pop(1)
        self.stack.append(value)
        self.memo[slot] = value

    def recall(self, slot: object) -> None:
        if slot not in self.memo:
            problem = "The pickle recalls a value that it has not stored"
            raise self.refusal(problem, "a stored slot", f"slot {slot}")
        self.stack.append(self.memo[slot])

    def name(self, text: object) -> None:
        allowed = (_RECONSTRUCT, _NDARRAY, _DTYPE)
        if text not in allowed:
            expected = "one of " + ", ".join(allowed)
            raise self.refusal("The pickle names a callable that is refused", expected, str(text))
        self.stack.append(_Name(str(text)))

    def reduce(self, _: object) -> None:
        """A call: the two that make a blank array or a dtype are recognised by comparing, none is made."""
        callee, arguments = self.pop(2)
        if callee == _Name(_RECONSTRUCT) and arguments == (_Name(_NDARRAY), (0,), "b"):
            self.stack.append(_Blank())
            return
        for kind in _ITEM_BYTES:
            if callee == _Name(_DTYPE) and arguments == (kind, 0, 1):
                self.stack.append(_Type(kind, built=False))
                return
        expected = "_reconstruct(ndarray, (0,), 'b'), dtype('f4', 0, 1) or dtype('i8', 0, 1)"
        got = f"{callee.text}, other arguments" if isinstance(callee, _Name) else "a call of something else"
        raise self.refusal("The pickle makes a call that is refused", expected, got)

    def build(self, _: object) -> None:
        """Give a dtype its byte order or a blank array its contents, on the stack and where it is stored."""
        target, state = self.pop(2)
        if isinstance(target, _Type) and state == _TYPE_STATE:
            built: object = _Type(target.kind, built=True)
        elif isinstance(target, _Blank) and isinstance(state, tuple):
            built = self.described(state)
        else:
            expected = "a blank array's contents, or the byte order of a little-endian dtype"
            raise self.refusal("The pickle sets a state that is refused", expected, "another state or target")
        self.stack.append(built)
        self.memo = {slot: built if value is target else value for slot, value in self.memo.items()}

    def described(self, state: tuple[object, ...]) -> PickledArray:
        """An array out of (version 1, shape, dtype, Fortran order, bytes), the state that ndarray pickles."""
        if len(state) == 5:
            version, shape, dtype, fortran, data = state
            axes = shape if isinstance(shape, tuple) and len(shape) in (1, 2) else ()
            sizes = tuple(size for size in axes if isinstance(size, int) and size > 0)
            plain = sizes != () and (version, fortran, sizes) == (1, False, axes)
            if plain and isinstance(dtype, _Type) and dtype.built and isinstance(data, memoryview):
                needed = math.prod(sizes) * _ITEM_BYTES[dtype.kind]
                if len(data) == needed:
                    return PickledArray(dtype.kind, sizes, data)
        problem = "The pickle describes an array that does not fit its bytes"
        expected = "(1, a shape of 1 or 2 axes, a little-endian dtype, False, the bytes of that many items)"
        raise self.refusal(problem, expected, "another state")


_OPCODES: dict[str, Callable[[_Machine, object], None]] = {
    "PROTO": _Machine.protocol,
    "BININT": _Machine.push,
    "BININT1": _Machine.push,
    "BININT2": _Machine.push,
    "SHORT_BINSTRING": _Machine.push,
    "BINSTRING": _Machine.push_bytes,
    "NONE": _Machine.push,  # genops gives no argument, that is None
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": _Machine.mark,
    "TUPLE": _Machine.tuple_from_mark,
    "TUPLE1": lambda machine, _: machine.push(machine.pop(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.pop(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.pop(3)),
    "BINPUT": _Machine.store,
    "BINGET": _Machine.recall,
    "GLOBAL": _Machine.name,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
    "STOP": lambda machine, _: None,
}
