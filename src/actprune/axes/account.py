"""The account: for every dimension of every tensor, which groups may cut it, or why nothing may."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from actprune.axes.expr import leaves, size
from actprune.axes.groups import Group
from actprune.axes.site import Dims
from actprune.axes.twins import TWINS

BEYOND_CLASS = "the model's class can't follow a cut here"
"""So begins the reason for a group that only the class keeps whole."""


def over_norms(reason: str) -> bool:
    """Whether an axis is frozen because a norm or a mean runs over it, which `norms=True` cuts; a product or the place
    of the largest entry it does not."""
    why, _, call = reason.partition(" by ")
    return why in ("normalised over", "reduced") and call.partition(" ")[0] in TWINS


def beyond_class(reason: str) -> bool:
    """Whether an axis is frozen because of the model's class alone, which `form="graph"` does without."""
    return reason.startswith(BEYOND_CLASS)


@dataclass(frozen=True)
class Entry:
    """One dimension of one tensor.

    Attributes:
        groups: names of the groups that may cut it.
        frozen: why the rest of it can't be cut, in the words of the rule that froze it.
    """

    tensor: str
    dim: int
    size: int
    groups: tuple[str, ...]
    frozen: tuple[str, ...]

    @property
    def prunable(self) -> bool:
        return bool(self.groups)


@dataclass(frozen=True)
class Account:
    """Every dimension of every tensor, and how many parameters some group can remove.

    Attributes:
        entries: one per dimension; an entry without groups has a reason.
        parameters: number of parameters of the model.
        prunable: number of them that some group can take; a frozen part of a concatenation is not counted.
    """

    entries: tuple[Entry, ...]
    parameters: int
    prunable: int

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __str__(self) -> str:
        lines = _lines(self.entries)
        share = 100 * self.prunable / max(self.parameters, 1)
        return "\n".join([*lines, f"{share:.1f} % of {self.parameters:,} parameters prunable"])

    def briefly(self, most: int = 12) -> str:
        """The first dimension of several units that each reason holds; what a message has room for."""
        told: dict[tuple[str, ...], Entry] = {}
        for entry in self.entries:
            if not entry.groups and entry.size > 1:
                told.setdefault(entry.frozen, entry)
        further = f"{len(told) - most} further reasons: " if len(told) > most else ""
        whole = f"({further}print(actprune.capture(model, x).account()) has all {len(self.entries)} dimensions)"
        return "\n".join([*_lines([*told.values()][:most]), whole])


def _lines(entries: Sequence[Entry]) -> list[str]:
    """One for each, in columns."""
    rows = [
        (f"{e.tensor}[{e.dim}]", str(e.size), ", ".join(e.groups) or "frozen: " + "; ".join(e.frozen)) for e in entries
    ]
    first = max((len(row[0]) for row in rows), default=0)
    return [f"{name:<{first}}  {units:>6}  {what}" for name, units, what in rows]


def account(
    tensors: Mapping[str, Dims],
    sizes: Mapping[str, tuple[int, ...]],
    parameters: frozenset[str],
    groups: tuple[Group, ...],
    frozen: Mapping[int, str],
) -> Account:
    """The account of a graph.

    Args:
        tensors: tensor name → its axes.
        sizes: tensor name → its shape.
        parameters: which of the tensors are parameters.
        frozen: leaf key → reason.
    """
    by_key = {group.key: group.name for group in groups}
    gone = dict.fromkeys(by_key, 0)
    entries: list[Entry] = []
    total = prunable = 0
    for name, dims in tensors.items():
        for d, axis in enumerate(dims):
            keys = list(dict.fromkeys(leaf.key for leaf in leaves(axis)))
            reasons = [frozen.get(key, "it has a single unit") for key in keys if key not in by_key]
            mine = tuple(by_key[key] for key in keys if key in by_key)
            entries.append(Entry(name, d, sizes[name][d], mine, tuple(dict.fromkeys(reasons))))
        if name in parameters:
            count = prod(sizes[name])
            total += count
            prunable += count - prod(size(axis, gone) for axis in dims)  # all but what would stay without any unit
    return Account(tuple(entries), total, prunable)
