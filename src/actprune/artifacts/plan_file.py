"""A plan that a person may have edited: read with errors that name the line."""

from __future__ import annotations

import json
import re
from pathlib import Path

from actprune.artifacts.files import read_text
from actprune.artifacts.folder import PLAN_BYTES
from actprune.errors import PlanError
from actprune.plan import Plan

_HINT = "give the plan.json of a run folder"


def read_plan(path: Path) -> Plan:
    """The plan in a file.

    Raises:
        ArtifactError: there is no such file, or it is no text.
        PlanError: it is no plan; where it goes wrong is told by line.
    """
    text = read_text(path, PLAN_BYTES, _HINT)
    try:
        return Plan.from_json(text, str(path))
    except PlanError as error:
        raise PlanError(
            error.problem,
            expected=error.expected,
            got=error.got,
            where=f"{error.where}, line {_line(text, str(error.where).removeprefix(str(path)))}",
            hint=error.hint,
        ) from error


def _line(text: str, place: str) -> int:
    """The line of a place such as ": groups/conv1/kept/3": that of a syntax error, else where the last key stands."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.lineno
    except (ValueError, RecursionError):
        return 1
    at = 0
    for part in place.lstrip(": ").replace(": ", "/").split("/"):
        if found := re.compile(re.escape(json.dumps(part)) + r"\s*:").search(text, at):
            at = found.end()
        elif part.isdecimal():  # the n-th entry of an array
            for _ in range(int(part)):
                at = text.find(",", at) + 1 or at
            at = max(at, re.compile(r"[\[,\s]*").match(text, at).end())  # type: ignore[union-attr]
    return text.count("\n", 0, at) + 1
