"""Which attributes and sizes of the user's class must change so that it fits its smaller tensors.

The recorded sizes say what every call would be given, the axes what it should be given. Where the two differ,
attributes get other values (`repair.attributes`). What is left (a size read from another tensor, a literal) becomes a
number in the source. What can't be mended is reported with the axes that it forbids to cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from actprune.axes.capture import Graph
from actprune.axes.expr import Indices
from actprune.graph.numbers import Expr, evaluate
from actprune.graph.sizes import SizeUse
from actprune.repair.arithmetic import with_values
from actprune.repair.attributes import Attributes
from actprune.repair.comparing import comparisons
from actprune.repair.edits import CallEdit, Edits, SourceEdit
from actprune.repair.rewriting import call_edit, source_edit
from actprune.repair.source import text_of
from actprune.repair.targets import Targets
from actprune.repair.written import argument


@dataclass(frozen=True)
class Stuck:
    """A size that no change mends.

    Attributes:
        index: its number in the record.
        use: where it stands.
        keys: the groups (by leaf key) that it depends on.
        counted: pairs of groups that the class can carry if both keep as many units.
    """

    index: int
    use: SizeUse
    keys: frozenset[int]
    counted: frozenset[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Repair:
    """What has to be done, and what can't be.

    Attributes:
        edits: the changes.
        stuck: the sizes that no change mends.
    """

    edits: Edits
    stuck: tuple[Stuck, ...] = field(repr=False)


def repair(graph: Graph, kept: Mapping[int, Indices]) -> Repair:
    """Find the edits for keeping the units `kept` (by leaf key) of some groups, and all of the others."""
    if not kept or not graph.program.sizes.uses:
        return Repair(Edits(), ())
    return _Solver(graph, kept).solve()


class _Solver:
    """One repair: attributes first, then numbers in the source for what those leave wrong."""

    def __init__(self, graph: Graph, kept: Mapping[int, Indices]) -> None:
        self.at = Targets(graph, kept)
        self.uses = graph.program.sizes.uses
        self.attributes = Attributes(self.at, graph.program.sizes)
        self.targets = self.attributes.targets

    def solve(self) -> Repair:
        wrong = self.attributes.solve()
        compared = {i for i in wrong if self.uses[i].role[0] == "equal"}
        sources, calls, stuck = self._written_anew(sorted(wrong - compared))
        edited = wrong - compared - {s.index for s in stuck}
        stuck = [s for s in stuck if not self._keeps(s.use, edited)]
        for i in self.targets:  # a number that should follow a size, in whose arithmetic it became a number
            use = self.uses[i]
            if use.role[0] == "follows" and self._pinned(use, edited) != use.expr:
                stuck.append(Stuck(i, use, self._concerns(use), frozenset()))
        compare = comparisons(
            [self.uses[i] for i in sorted(compared)],
            self.attributes.value,
            lambda use, part: evaluate(part, self.at.before),
        )
        return Repair(Edits(tuple(self.attributes.edits()), (*compare, *sources), calls), tuple(stuck))

    def _written_anew(self, wrong: Iterable[int]) -> tuple[list[SourceEdit], tuple[CallEdit, ...], list[Stuck]]:
        """(numbers in the source, calls of another function, sizes for which there is neither)."""
        sources: dict[tuple[Any, ...], SourceEdit] = {}
        calls: dict[CallEdit, None] = {}
        stuck: list[Stuck] = []
        for i in wrong:
            use = self.uses[i]
            if (call := call_edit(use)) is not None:
                calls[call] = None
                continue
            edit = source_edit(self.at, use, self.targets[i])
            rivals = [self.uses[j] for j in self._together[_written_at(use)] if self.targets[j] != self.targets[i]]
            if edit is None or rivals:
                stuck.append(Stuck(i, use, self._concerns(use), self._counted(use, rivals)))
            else:
                sources[edit.module, edit.functions, edit.line, edit.column, edit.text] = edit
        return [*sources.values()], tuple(calls), stuck

    def _keeps(self, use: SizeUse, edited: Iterable[int]) -> bool:
        """Whether a number is what it was because the arithmetic in it was edited elsewhere in the function."""
        return use.role[0] == "fixed" and self.attributes.value(use, self._pinned(use, edited)) == use.value

    def _pinned(self, use: SizeUse, edited: Iterable[int]) -> Expr:
        """The expression of a number once the sizes `edited` are numbers in the source of its function."""
        fixed: dict[Any, int] = {}
        for i in edited:
            other = self.uses[i]
            if (other.place.module, other.place.code) == (use.place.module, use.place.code):
                fixed[other.expr] = other.value
        return with_values(use.expr, fixed)

    @cached_property
    def _together(self) -> dict[Any, list[int]]:
        """A place in the source → the sizes that stand there, which becomes one number for all of them."""
        written: dict[Any, list[int]] = {}
        for i in self.targets:
            written.setdefault(_written_at(self.uses[i]), []).append(i)
        return written

    def _counted(self, use: SizeUse, rivals: Iterable[SizeUse]) -> frozenset[tuple[int, int]]:
        """Pairs of groups that would fit if both kept as many units: they are the same number in the class.

        So is a size that is read off another tensor, as in `torch.zeros_like(h)`, with the one that it is read off,
        and so are the parts of a tensor that slices of a number's length take one after the other.
        """
        own, (same, read) = self.at.counted_by(use), self.attributes.alike(use)
        others = {self.at.counted_by(other) for other in (*rivals, *same)} | {self.at.lone_read(use)}
        parts = self.at.equal_parts(use) if read else []
        pairs = [(own, other) for other in others if own is not None and other is not None and other.key != own.key]
        pairs += [(parts[0], part) for part in parts if part.key != parts[0].key]
        return frozenset((a.key, b.key) for a, b in pairs if a.size == b.size)

    def _concerns(self, use: SizeUse) -> frozenset[int]:
        """The groups on which a size depends: its target, else sizes that are written alike, else all that it reads."""
        for uses in ([use], *self.attributes.alike(use)):
            keys = {key for other in uses for key in self.at.own_keys(other)} & set(self.at.kept)
            if keys:
                return frozenset(keys)
        return frozenset()


def _written_at(use: SizeUse) -> tuple[Any, ...]:
    found = None if use.is_in_formula else argument(use)
    place = (use.place.span, use.slot) if found is None else (found.lineno, found.col_offset, text_of(found))
    return use.place.module, use.place.code, *place
