"""`report.json` → `Report`, whoever wrote the file.

Every value is compared with the annotations in `actprune.report.record`, so that what shows a report can rely on them.
Fields that are missing take their defaults, for older reports; those that are not known are left out, for newer ones.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, NoReturn, Union, cast, get_args, get_origin, get_type_hints

from actprune.errors import ArtifactError
from actprune.report.record import FRONTIER, SCHEMA, Report, Sweep

_HINT = "give a folder that actprune wrote, or prune again"

_SIMPLE: dict[Any, tuple[str, tuple[type, ...]]] = {
    str: ("text", (str,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    bool: ("true or false", (bool,)),
    type(None): ("null", (type(None),)),
}
"""Annotation → what it is called, and what JSON gives for it."""


class _MismatchError(Exception):
    """A value that doesn't fit; never seen by the caller."""

    def __init__(self, place: str, expected: str, got: Any) -> None:
        super().__init__()
        self.place, self.expected, self.got = place, expected, got


def read_report(text: str, where: str = "report.json") -> Report:
    """The report in a text of JSON.

    Raises:
        ArtifactError: it is no JSON, of another schema, or a value isn't what the report has there.
    """
    report = cast(Report, _read(Report, SCHEMA, text, where))
    with _told(where):
        for name, kind in (("passed", bool), ("max_rel_error", float)):  # the rest of the proof is only listed
            _made(kind, report.proof.get(name), f"proof/{name}")
    return report


def read_frontier(text: str, where: str = "frontier.json") -> Sweep:
    """The sweep in a text of JSON.

    Raises:
        ArtifactError: it is no JSON, of another schema, or a value isn't what the frontier has there.
    """
    return cast(Sweep, _read(Sweep, FRONTIER, text, where))


def _read(kind: Any, schema: str, text: str, where: str) -> Any:
    """The record of a kind in a text of JSON that names its schema."""
    with _told(where):
        data = json.loads(text, parse_constant=_no_number)
        _want(isinstance(data, dict), "", "an object", data)
        _want(data.get("schema") == schema, "schema", schema, data.get("schema"))
        return _made(kind, data, "")


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Whatever doesn't fit as an error that names the file and the place in it."""
    try:
        yield
    except _MismatchError as error:
        place = f"{where}: {error.place}" if error.place else where
        got = json.dumps(error.got)
        raise _foreign(error.expected, got if len(got) <= 80 else f"{got[:80]}…", place) from error
    except (ValueError, RecursionError) as error:
        raise _foreign("JSON", f"{type(error).__name__}: {error}"[:300], where) from error


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _foreign(expected: str, got: str, where: str) -> ArtifactError:
    return ArtifactError("This is no report of actprune.", expected=expected, got=got, where=where, hint=_HINT)


def _want(held: bool, place: str, expected: str, got: Any) -> None:
    if not held:
        raise _MismatchError(place, expected, got)


def _made(wanted: Any, value: Any, place: str) -> Any:
    """`value` as an instance of the annotation `wanted`."""
    if wanted is Any:
        return value
    if wanted in _SIMPLE:
        name, kinds = _SIMPLE[wanted]
        fits = isinstance(value, kinds) and (wanted is bool or not isinstance(value, bool))
        _want(fits and not (isinstance(value, float) and not math.isfinite(value)), place, name, value)
        return value
    if is_dataclass(wanted):
        return _record(wanted, value, place)
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        # the only unions of the report are with None
        return None if value is None else _made(next(one for one in inner if one is not type(None)), value, place)
    if origin is Mapping:
        _want(isinstance(value, dict), place, "an object", value)
        return {name: _made(inner[1], one, _inside(place, name)) for name, one in value.items()}
    _want(isinstance(value, list), place, "an array", value)
    if origin is Sequence or inner[1:] == (...,):
        return tuple(_made(inner[0], one, _inside(place, str(i))) for i, one in enumerate(value))
    _want(len(value) == len(inner), place, f"{len(inner)} values", value)
    return tuple(
        _made(kind, one, _inside(place, str(i))) for i, (kind, one) in enumerate(zip(inner, value, strict=True))
    )


def _record(wanted: Any, value: Any, place: str) -> Any:
    _want(isinstance(value, dict), place, "an object", value)
    given: dict[str, Any] = {}
    for name, kind, needed in _fields(wanted):
        if name in value:
            given[name] = _made(kind, value[name], _inside(place, name))
        else:
            _want(not needed, _inside(place, name), "a value", None)
    return wanted(**given)


@cache
def _fields(wanted: Any) -> tuple[tuple[str, Any, bool], ...]:
    """Name, annotation and whether there is no default, of every field."""
    hints = get_type_hints(wanted)
    listed: tuple[Field[Any], ...] = fields(wanted)
    return tuple((f.name, hints[f.name], f.default is MISSING and f.default_factory is MISSING) for f in listed)


def _inside(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name
