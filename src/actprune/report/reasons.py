"""Why parameters are frozen: each is counted once, under the reason that holds the most."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from actprune.axes.capture import Graph

GIVEN = (
    "it has a single unit", "it is a single number", "a kernel size", "a spatial size", "looked up by index",
    "model input", "model output",
)  # fmt: skip
"""How reasons start that say of a dimension that its size is given, whatever the model does inside. A parameter is
told under them only if it has no other: else all frozen convolutions would be there because of their kernels."""


@dataclass(frozen=True)
class ReasonEntry:
    """One reason why something is frozen, without its places, which are counted.

    Attributes:
        params: frozen parameters; one that several reasons hold is counted under the reason that holds the most.
        dims: dimensions of parameters that it freezes, wholly or in part.
        places: number of calls in the model that it names; 0 where it names none.
        first: the first of these, or of the tensors where it names none.
    """

    reason: str
    params: int
    dims: int
    places: int
    first: str


_SAID = r"(?:(?!: ).)*"
_PLACE = re.compile(
    rf"^(?P<before>{_SAID} by \S+|{_SAID}\S+) at (?P<place>(?:the model|[^\s,]+)(?:, [^,]+:\d+)?)(?P<after>.*)$"
)
"""Behind a colon stand others' words: torch's "… must match … at non-singleton dimension 1" names no place."""


def without_place(reason: str) -> tuple[str, str | None]:
    """A reason as (what it says of every such place, the place), the latter None where it names none.

    The places are those of `actprune.graph.program.place`: `… at layer1.0.conv1, resnet.py:92`.
    """
    found = _PLACE.match(reason)
    return (reason, None) if found is None else (found["before"] + found["after"], found["place"])


def reasons_of(graph: Graph, frozen: dict[str, int]) -> Iterator[ReasonEntry]:
    """Those that hold most parameters first.

    Args:
        frozen: tensor name → how many parameters of it are frozen.
    """
    dims: dict[str, int] = {}
    places: dict[str, dict[str, None]] = {}
    first: dict[str, str] = {}
    holds: dict[str, set[str]] = {name: set() for name in frozen}
    for tensor, where, said in _said(graph, frozen):
        reason, place = without_place(said)
        dims[reason] = dims.get(reason, 0) + bool(where)
        named = places.setdefault(reason, {})
        if place is not None:
            named[place] = None
        first.setdefault(reason, place or tensor + where)
        holds[tensor].add(reason)
    counted = _attribute(frozen, holds, list(first))
    for reason in sorted(first, key=lambda reason: (-counted[reason], -dims[reason])):
        yield ReasonEntry(reason, counted[reason], dims[reason], len(places[reason]), first[reason])


def _said(graph: Graph, frozen: dict[str, int]) -> Iterator[tuple[str, str, str]]:
    """(tensor, its dimension as text, reason) of all that is frozen; a single number has no dimensions."""
    for entry in graph.account():
        if entry.tensor in frozen:
            for reason in entry.frozen:
                yield entry.tensor, f"[{entry.dim}]", reason
    for tensor, count in frozen.items():
        if count and not graph.tensor_axes[tensor]:
            yield tensor, "", "it is a single number"


def _attribute(frozen: dict[str, int], holds: dict[str, set[str]], reasons: list[str]) -> dict[str, int]:
    """Reason → parameters, each counted once: the reason that holds the most takes them, then the next one."""
    left = {tensor: count for tensor, count in frozen.items() if count}
    counted = dict.fromkeys(reasons, 0)
    while left:
        held = Counter[str]()
        for tensor, count in left.items():
            held.update(dict.fromkeys(holds[tensor], count))
        tells = [reason for reason in reasons if held[reason]]  # in their order, so that ties go to the first
        best = max(tells, key=lambda reason: (not reason.startswith(GIVEN), held[reason]))
        counted[best] = held[best]
        left = {tensor: count for tensor, count in left.items() if best not in holds[tensor]}
    return counted
