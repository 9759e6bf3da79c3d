"""Fields of a JSON document that anybody may have edited: each is checked, and a message names the wrong one."""

from __future__ import annotations

import json
from typing import Any, cast

from actprune.errors import PlanError


def names_in(data: Any, where: str) -> list[str]:
    return [text_in(name, f"{where}/{i}") for i, name in enumerate(array_in(data, where))]


def field_of(entry: dict[str, Any], name: str, where: str, separator: str = ": ") -> tuple[Any, str]:
    """A field of an object, and the place of it."""
    if name not in entry:
        got = f"only {', '.join(sorted(entry))}" if entry else "none"
        raise malformed(where, f'the fields that Plan.to_json writes, "{name}" among them', got)
    return entry[name], f"{where}{separator}{name}"


def object_in(data: Any, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise malformed(where, "an object", shown(data))
    return cast("dict[str, Any]", data)


def array_in(data: Any, where: str) -> list[Any]:
    if not isinstance(data, list):
        raise malformed(where, "an array", shown(data))
    return cast("list[Any]", data)


def text_in(data: Any, where: str) -> str:
    if not isinstance(data, str):
        raise malformed(where, "a text", shown(data))
    return data


def whole_in(data: Any, where: str) -> int:
    if not isinstance(data, int) or isinstance(data, bool):
        raise malformed(where, "a whole number", shown(data))
    return data


def shown(data: Any) -> str:
    return json.dumps(data)[:100]


def malformed(where: str, expected: str, got: str) -> PlanError:
    return PlanError(
        "The plan can't be read.",
        expected=expected,
        got=got,
        where=where if len(where) <= 500 else f"{where[:500]}…",
        hint="restore the file, or make a new plan with actprune.prune",
    )
