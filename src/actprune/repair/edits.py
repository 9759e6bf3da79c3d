"""What must change in a user's class beside its tensors: attributes, and sizes written into its source. Plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class AttributeEdit:
    """A number in an attribute.

    Attributes:
        module: path of the module.
        path: the attribute's name, then fields and positions within it: ("num_heads",), ("sizes", 2), or
            ("config", "num_attention_heads").
        value: what it becomes.
        shared: whether the attribute is an object that other modules hold too; this module then gets a copy of it.
    """

    module: str
    path: tuple[str | int, ...]
    value: int
    shared: bool = False


@dataclass(frozen=True)
class SourceEdit:
    """One size argument in the source of a method, or of a function that it calls; it becomes a number.

    Attributes:
        module: path of the module; only this instance gets the new method.
        functions: the method's name, then those of the functions down to the one with the argument. Of a
            function in an attribute of the module, or a method of an object there: "attribute.function".
        line, column: of the argument, from the function's first line (1) and in bytes within it.
        text: the argument as it stands there; "x.shape[-1]" for an item of an "x.shape" that is all sizes.
        value: the number.
        was: the number that it was; other occurrences of the same arithmetic (in a scale, say) stay at it.
        digest: SHA-256 of the function's source.
    """

    module: str
    functions: tuple[str, ...]
    line: int
    column: int
    text: str
    value: int
    was: int
    digest: str


@dataclass(frozen=True)
class CallEdit:
    """A call of a function of torch's that insists on the sizes of its tensors; one that does not takes its place.

    Attributes:
        module: path of the module; only this instance gets the new method.
        functions: the method's name, then those of the functions down to torch's own, see `SourceEdit`.
    """

    module: str
    functions: tuple[str, ...]


@dataclass(frozen=True)
class Edits:
    """All edits of one plan."""

    attributes: tuple[AttributeEdit, ...] = ()
    sources: tuple[SourceEdit, ...] = ()
    calls: tuple[CallEdit, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.attributes or self.sources or self.calls)

    def mapped(self, made: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Edits:
        """What `made` makes of the edits of each kind."""
        return Edits(made(self.attributes), made(self.sources), made(self.calls))

    @property
    def methods(self) -> tuple[SourceEdit | CallEdit, ...]:
        """Those for which an instance gets a class of its own."""
        return (*self.sources, *self.calls)

    def as_data(self) -> dict[str, Any]:
        """JSON values; a plan without calls is as it was before there were any."""
        kinds = {"attributes": self.attributes, "sources": self.sources, "calls": self.calls}
        return {kind: [asdict(edit) for edit in edits] for kind, edits in kinds.items() if edits or kind != "calls"}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Edits:
        """What `as_data` gave.

        Raises:
            ValueError, KeyError, TypeError: it is something else.
        """
        attributes = [
            AttributeEdit(_text(e["module"]), tuple(map(_step, e["path"])), _size(e["value"]), bool(e["shared"]))
            for e in data["attributes"]
        ]
        sources = [
            SourceEdit(
                _text(e["module"]), tuple(map(_text, e["functions"])), _size(e["line"]), _size(e["column"]),
                _text(e["text"]), _size(e["value"]), _size(e["was"]), _text(e["digest"]),
            )
            for e in data["sources"]
        ]  # fmt: skip
        calls = [CallEdit(_text(e["module"]), tuple(map(_text, e["functions"]))) for e in data.get("calls", ())]
        return cls(tuple(attributes), tuple(sources), tuple(calls))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a text, not {value!r}")
    return value


def _size(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"a whole number, not {value!r}")
    return value


def _step(value: Any) -> str | int:
    return value if isinstance(value, str) else _size(value)
