"""The values that attributes of the user's class take, so that the sizes which they make fit its smaller tensors.

An attribute in the expression of a wrong size is solved for, and the one is changed after which the fewest sizes are
wrong; two at once where one alone breaks others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from actprune.axes.expr import size
from actprune.graph.numbers import Expr, evaluate, variables
from actprune.graph.sizes import Sizes, SizeUse
from actprune.repair.arithmetic import inverted
from actprune.repair.edits import AttributeEdit
from actprune.repair.targets import Targets

Variable = tuple[Any, ...]
"""("attr", holder, path), and for a shared object the path of the module that gets a copy."""

Changes = dict[Variable, int]
"""New values of some attributes."""


class Attributes:
    """The attributes that recorded sizes are made of.

    Args:
        at: what the sizes should be.
        sizes: the record.

    Attributes:
        targets: index of a size → what it should be, where that is known.
        reading: attribute → the indices of the sizes that it stands in.
        values: attribute → its new value, of those that change.
    """

    def __init__(self, at: Targets, sizes: Sizes) -> None:
        self.at, self.sizes = at, sizes
        self.targets: dict[int, int] = {}
        self.reading: dict[Variable, list[int]] = {}
        self.values: dict[Variable, int] = {}
        self._read: dict[int, list[Variable]] = {}
        for i, use in enumerate(sizes.uses):
            target = at.wanted(use)
            if target is not None:
                self.targets[i] = target
                self._read[i] = [self._variable(use, leaf) for leaf in variables(use.expr) if leaf[0] == "attr"]
                for variable in self._read[i]:
                    self.reading.setdefault(variable, []).append(i)

    def solve(self) -> set[int]:
        """Change what mends more sizes than it breaks.

        Returns:
            The sizes that are wrong all the same.
        """
        wrong = {i for i in self.targets if not self._holds(i)}
        self._set_attributes(wrong)
        self._set_unread()
        return wrong

    def value(self, use: SizeUse, expr: Expr, assumed: Changes | None = None) -> Any:
        """What an expression at the place of a size comes to, with the new values and those that are assumed beside
        them; None where a part of it isn't known."""

        def of(leaf: tuple[Any, ...]) -> int | None:
            if leaf[0] == "shape":
                return self.at.now(leaf)
            variable = self._variable(use, leaf)
            found = (assumed or {}).get(variable, self.values.get(variable))
            return self.sizes.attributes[leaf] if found is None else found

        return evaluate(expr, of)

    def alike(self, use: SizeUse) -> tuple[list[SizeUse], list[SizeUse]]:
        """(the sizes with the same expression, all sizes) that read an attribute which this one reads."""
        leaves = [leaf for leaf in variables(use.expr) if leaf[0] == "attr"]
        read = [self.sizes.uses[i] for i in {i for leaf in leaves for i in self.reading[self._variable(use, leaf)]}]
        return [other for other in read if other.expr == use.expr], read

    def edits(self) -> Iterator[AttributeEdit]:
        """The new values; of a shared object each module that holds it gets a copy."""
        for variable, value in self.values.items():
            _, holder, path, *module = variable
            if not module:
                if value != self.sizes.attributes[variable]:
                    yield AttributeEdit(holder, path, value)
                continue
            for owner, attribute in self.sizes.owners[holder]:
                if owner == module[0]:
                    yield AttributeEdit(owner, (attribute, *path), value, shared=True)

    def _variable(self, use: SizeUse, leaf: tuple[Any, ...]) -> Variable:
        return leaf if isinstance(leaf[1], str) else (*leaf, use.place.module)

    def _holds(self, i: int, assumed: Changes | None = None) -> bool:
        """A size of which a part isn't known is left to the proof."""
        use = self.sizes.uses[i]
        value = self.value(use, use.expr, assumed)
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
        use = self.sizes.uses[i]
        return len(self.targets) if use.is_in_formula and use.role[0] != "equal" else 1

    def _solutions(self, use: SizeUse, leaf: tuple[Any, ...], target: int, assumed: Changes) -> list[int]:
        """Values of one attribute with which the expression gives the target."""
        found = inverted(use.expr, leaf, target, lambda part: self.value(use, part, assumed))
        variable = self._variable(use, leaf)
        return [v for v in found if v > 0 and self.value(use, use.expr, {**assumed, variable: v}) == target]

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
