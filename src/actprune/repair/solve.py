"""Which attributes and sizes of the user's class must change so that it fits its smaller tensors.

The recorded sizes say what every call would be given, the axes what it should be given. Where the two differ, the
attributes in the size's expression are solved for; one is changed where fewer sizes are wrong afterwards. What is left
(a size read from another tensor, a literal) becomes a number in the source. What can't be mended is reported with
the axes that it forbids to cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from actprune.axes.capture import Graph
from actprune.axes.expr import Indices, size
from actprune.graph.numbers import Expr, evaluate, variables
from actprune.graph.sizes import SizeUse
from actprune.repair.arithmetic import inverted, with_values
from actprune.repair.comparing import comparisons
from actprune.repair.edits import AttributeEdit, CallEdit, Edits, SourceEdit
from actprune.repair.rewriting import call_edit, source_edit
from actprune.repair.source import argument
from actprune.repair.targets import Targets

Variable = tuple[Any, ...]
"""("attr", holder, path), and for a shared object the path of the module that gets a copy."""

Changes = dict[Variable, int]
"""New values of some attributes."""


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
    """One repair: the values that attributes take, and the sizes that follow."""

    def __init__(self, graph: Graph, kept: Mapping[int, Indices]) -> None:
        self.at = Targets(graph, kept)
        self.sizes = graph.program.sizes
        self._written: dict[Any, list[int]] | None = None
        self.values: dict[Variable, int] = {}
        self.targets: dict[int, int] = {}
        self.reading: dict[Variable, list[int]] = {}
        self._read: dict[int, list[Variable]] = {}
        for i, use in enumerate(self.sizes.uses):
            target = self.at.wanted(use)
            if target is not None:
                self.targets[i] = target
                self._read[i] = [self._variable(use, leaf) for leaf in variables(use.expr) if leaf[0] == "attr"]
                for variable in self._read[i]:
                    self.reading.setdefault(variable, []).append(i)

    def solve(self) -> Repair:
        wrong = {i for i in self.targets if not self._holds(i)}
        self._set_attributes(wrong)
        self._set_unread()
        sources: dict[tuple[Any, ...], SourceEdit] = {}
        calls: dict[CallEdit, None] = {}
        stuck: list[Stuck] = []
        compared = {i for i in wrong if self.sizes.uses[i].role[0] == "equal"}
        wrong -= compared
        for i in sorted(wrong):
            use = self.sizes.uses[i]
            if (call := call_edit(use)) is not None:
                calls[call] = None
                continue
            edit = source_edit(self.at, use, self.targets[i])
            rivals = [j for j in self._together(use) if self.targets[j] != self.targets[i]]
            if edit is None or rivals:
                stuck.append(Stuck(i, use, self._concerns(use), self._counted(i, rivals)))
            else:
                sources[edit.module, edit.functions, edit.line, edit.column] = edit
        edited = wrong - {s.index for s in stuck}
        stuck = [s for s in stuck if not self._keeps(s.use, edited)]
        for i in self.targets:  # a number that should follow a size, in whose arithmetic it became a number
            use = self.sizes.uses[i]
            if use.role[0] == "follows" and self._pinned(use, edited) != use.expr:
                stuck.append(Stuck(i, use, self._concerns(use), frozenset()))
        compare = comparisons(
            [self.sizes.uses[i] for i in sorted(compared)],
            lambda use, part: self._value(use, part, {}),
            lambda use, part: evaluate(part, self.at.before),
        )
        edits = Edits(tuple(self._attribute_edits()), (*compare, *sources.values()), tuple(calls))
        return Repair(edits, tuple(stuck))

    def _keeps(self, use: SizeUse, edited: Iterable[int]) -> bool:
        """Whether a number is what it was because the arithmetic in it was edited elsewhere in the function."""
        return use.role[0] == "fixed" and self._value(use, self._pinned(use, edited), {}) == use.value

    def _pinned(self, use: SizeUse, edited: Iterable[int]) -> Expr:
        """The expression of a number once the sizes `edited` are numbers in the source of its function."""
        fixed: dict[Any, int] = {}
        for i in edited:
            other = self.sizes.uses[i]
            if (other.place.module, other.place.code) == (use.place.module, use.place.code):
                fixed[other.expr] = other.value
        return with_values(use.expr, fixed)

    def _together(self, use: SizeUse) -> list[int]:
        """The sizes that stand at the same place in the source, which becomes one number for all of them."""
        if self._written is None:
            self._written = {}
            for i in self.targets:
                self._written.setdefault(_written_at(self.sizes.uses[i]), []).append(i)
        return self._written[_written_at(use)]

    def _counted(self, i: int, rivals: Iterable[int]) -> frozenset[tuple[int, int]]:
        """Pairs of groups that would fit if both kept as many units: they are the same number in the class.

        So is a size that is read off another tensor, as in `torch.zeros(h.shape)`, with the one that it is read off,
        and so are the parts of a tensor that slices of a number's length take one after the other.
        """
        use = self.sizes.uses[i]
        own, attributes = self.at.counted_by(use), {leaf for leaf in variables(use.expr) if leaf[0] == "attr"}
        read = {j for leaf in attributes for j in self.reading[self._variable(use, leaf)]}
        same = [j for j in read if self.sizes.uses[j].expr == use.expr]
        others = {self.at.counted_by(self.sizes.uses[j]) for j in (*rivals, *same)} | {self.at.lone_read(use)}
        parts = self.at.equal_parts(use) if attributes else []
        pairs = [(own, other) for other in others if own is not None and other is not None and other.key != own.key]
        pairs += [(parts[0], part) for part in parts if part.key != parts[0].key]
        return frozenset((a.key, b.key) for a, b in pairs if a.size == b.size)

    # -- what each size is, and should be ----------------------------------------------------------

    def _variable(self, use: SizeUse, leaf: tuple[Any, ...]) -> Variable:
        return leaf if isinstance(leaf[1], str) else (*leaf, use.place.module)

    def _value(self, use: SizeUse, expr: Expr, assumed: Mapping[Variable, int]) -> Any:
        def of(leaf: tuple[Any, ...]) -> int | None:
            if leaf[0] == "shape":
                return self.at.now(leaf)
            variable = self._variable(use, leaf)
            found = assumed.get(variable, self.values.get(variable))
            return self.sizes.attributes[leaf] if found is None else found

        return evaluate(expr, of)

    def _holds(self, i: int, assumed: Mapping[Variable, int] | None = None) -> bool:
        """A size of which a part isn't known is left to the proof."""
        use = self.sizes.uses[i]
        value = self._value(use, use.expr, assumed or {})
        if value is None or value == self.targets[i]:
            return True
        axis = self.at.axis(use.role[1], use.role[2]) if use.role[0] == "bound" else None
        # a slice clamps what lies behind the end
        return axis is not None and use.value >= size(axis) and value >= self.targets[i]

    # -- changing attributes -----------------------------------------------------------------------

    def _set_attributes(self, wrong: set[int]) -> None:
        """Change one attribute after another, each time the one that mends most; `wrong` shrinks on the way.

        Where one leaves some of its readers wrong, two may do better at once: `heads // key_heads` is right only if
        both are.
        """
        for part in self._connected(wrong):
            while best := self._next_change(wrong & part, wrong):
                self.values |= best
                for i in self._readers(best):
                    (wrong.discard if self._holds(i) else wrong.add)(i)

    def _connected(self, wrong: Iterable[int]) -> Iterator[set[int]]:
        """The wrong sizes with all that attributes connect them with, mostly one layer's: the time grows with their
        number, not with its square."""
        seen: set[int] = set()
        for start in sorted(wrong):
            part, waiting = set[int](), [start]
            while waiting:
                i = waiting.pop()
                if i not in seen:
                    seen.add(i)
                    part.add(i)
                    waiting += [j for variable in self._read[i] for j in self.reading[variable] if j not in seen]
            if part:
                yield part

    def _next_change(self, here: set[int], wrong: set[int]) -> Changes | None:
        singles = list(self._changes(here, {}))
        best = self._best(singles, wrong)
        if best is not None and all(self._holds(i, best) for i in self._readers(best)):
            return best
        return self._best([*([best] if best else []), *self._pairs(singles)], wrong)

    def _best(self, changes: Iterable[Changes], wrong: set[int]) -> Changes | None:
        """The first of those that mend most, if any mends more than it breaks."""
        best: tuple[int, Changes] | None = None
        for change in changes:
            gain = self._gain(change, wrong)
            if gain > 0 and (best is None or gain > best[0]):
                best = gain, change
        return best and best[1]

    def _changes(self, wrong: Iterable[int], assumed: Changes) -> Iterator[Changes]:
        """Single attributes that would mend one of the sizes `wrong`, beside those that are `assumed` to change."""
        given: set[tuple[Variable, int]] = set()
        for i in sorted(wrong):
            use = self.sizes.uses[i]
            for leaf in sorted(variables(use.expr), key=str):
                if leaf[0] == "shape":
                    continue
                variable = self._variable(use, leaf)
                if variable in self.values or variable in assumed or not self._may_change(variable):
                    continue
                for value in self._solutions(use, leaf, self.targets[i], assumed):
                    if (variable, value) not in given:
                        given.add((variable, value))
                        yield {variable: value}

    def _pairs(self, singles: Iterable[Changes]) -> Iterator[Changes]:
        """Each change with another one that mends a size which it would break."""
        for first in singles:
            broken = [i for i in self._readers(first) if not self._holds(i, first)]
            for second in self._changes(broken, first):
                yield first | second

    def _may_change(self, variable: Variable) -> bool:
        """A shared object can be copied only for a module that holds it."""
        return len(variable) == 3 or any(path == variable[3] for path, _ in self.sizes.owners[variable[1]])

    def _readers(self, change: Changes) -> set[int]:
        return {i for variable in change for i in self.reading[variable]}

    def _gain(self, change: Changes, wrong: set[int]) -> int:
        readers = self._readers(change)
        return sum(map(self._weight, readers & wrong)) - sum(
            self._weight(i) for i in readers if not self._holds(i, change)
        )

    def _weight(self, i: int) -> int:
        """A number in a formula can't be written into the source, as a size can: it goes before all of those."""
        return len(self.targets) if self.sizes.uses[i].role[0] in ("fixed", "follows") else 1

    def _solutions(self, use: SizeUse, leaf: tuple[Any, ...], target: int, assumed: Changes) -> list[int]:
        """Values of one attribute with which the expression gives the target."""
        found = inverted(use.expr, leaf, target, lambda part: self._value(use, part, assumed))
        variable = self._variable(use, leaf)
        return [v for v in found if v > 0 and self._value(use, use.expr, {**assumed, variable: v}) == target]

    def _set_unread(self) -> None:
        """Attributes that the captured path ignores but other back ends may read, such as `all_head_size`.

        One that is the product of a changed one and another. Nothing proves what it means, so its name has to speak of
        heads: `dim` may be the size of the stream as well.
        """
        if self.sizes.rebuilt:  # its own code sets those
            return
        by_holder: dict[Any, list[Variable]] = {}
        for variable in self.values:
            by_holder.setdefault((variable[1], *variable[3:]), []).append(variable)
        for (holder, *module), changed in by_holder.items():
            own = {leaf: n for leaf, n in self.sizes.attributes.items() if leaf[1] == holder and len(leaf[2]) == 1}
            for leaf, dense in own.items():
                variable = (*leaf, *module)
                if variable in self.values or variable in self.reading or "head" not in str(leaf[2][0]):
                    continue
                for other in changed:
                    was = self.sizes.attributes[other[:3]]
                    factors = [q for q, n in own.items() if q != leaf and q != other[:3] and was * n == dense]
                    if factors and was > 1:
                        factor = (*factors[0], *module)
                        held = self.values.get(factor, own[factors[0]])
                        self.values[variable] = self.values[other] * held
                        break

    def _attribute_edits(self) -> Iterator[AttributeEdit]:
        for variable, value in self.values.items():
            _, holder, path, *module = variable
            if not module:
                if value != self.sizes.attributes[variable]:
                    yield AttributeEdit(holder, path, value)
                continue
            for owner, attribute in self.sizes.owners[holder]:
                if owner == module[0]:
                    yield AttributeEdit(owner, (attribute, *path), value, shared=True)

    def _concerns(self, use: SizeUse) -> frozenset[int]:
        """The groups on which a size depends: its target, else sizes that are written alike, else all that it reads."""
        reading = {
            i for leaf in variables(use.expr) if leaf[0] == "attr" for i in self.reading[self._variable(use, leaf)]
        }
        alike = [self.sizes.uses[i] for i in reading if self.sizes.uses[i].expr == use.expr]
        for uses in ([use], alike, [self.sizes.uses[i] for i in reading]):
            keys = {key for other in uses for key in self.at.own_keys(other)} & set(self.at.kept)
            if keys:
                return frozenset(keys)
        return frozenset()


def _written_at(use: SizeUse) -> tuple[Any, ...]:
    found = argument(use) if use.role[0] not in ("fixed", "equal", "follows") else None
    place = (use.place.span, use.slot) if found is None else (found.lineno, found.col_offset)
    return use.place.module, use.place.code, *place
