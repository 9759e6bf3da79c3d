"""What guidance says of every group: which units matter, what every width would cost, which support is the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actprune.guidance.blocks import greedy_order
from actprune.guidance.exchange import swap
from actprune.guidance.judge import Judge
from actprune.guidance.problem import Problem, widest
from actprune.stats.room import JUDGED_COLUMNS

SWAPS = 8
SWAP_COLUMNS = 1024
"""Supports are refined by up to so many exchanges, where the group has no more columns than this in a consumer."""

QUICK_WORK = 1e9
"""Where the consumers of a group take more than so many multiply-adds to factorise, trials compare no supports."""


@dataclass(frozen=True, eq=False)
class GroupGuide:
    """What guidance says of one group of n units.

    Attributes:
        orders: criterion → units from the most to the least important.
        scores: (n,) importance on a scale that is comparable between groups.
        curve: (n + 1,) E(k), the cost of keeping k units, as a share of the consumers' output variance where
            statistics exist, else the share of the total score that is lost.
        beta: (n,) the LASSO factors at the natural width: the pruning guide; None without a LASSO.
        natural: the natural width; None for a method without the LASSO guide or a threshold.
        path_support: width → LASSO support where the path has exactly that many units.
    """

    orders: Mapping[str, tuple[int, ...]] = field(repr=False)
    scores: tuple[float, ...] = field(repr=False)
    curve: tuple[float, ...] = field(repr=False)
    beta: tuple[float, ...] | None = field(repr=False)
    natural: int | None
    path_support: Mapping[int, tuple[int, ...]] = field(repr=False)

    def support(self, criterion: str, k: int) -> tuple[int, ...]:
        """The k units that a criterion keeps, ascending."""
        order = self.orders[criterion][:k]
        return tuple(sorted(self.path_support.get(k, order) if criterion == "lasso" else order))


TIE = 1e-7
"""Held-out errors that differ by a smaller share are equal, and those below its square are zero."""

WHOLE = "whole"
"""The criterion of a group that is not cut."""


@dataclass(frozen=True)
class Choice:
    """The units that a group keeps.

    Attributes:
        units: ascending.
        criterion: whose support it is.
        error: held-out refit error as a share of the output variance, None without statistics or cut.
    """

    units: tuple[int, ...]
    criterion: str
    error: float | None


@dataclass(frozen=True, eq=False)
class Guide:
    """The guide of every group.

    Attributes:
        method: name of the method.
        groups: group name → its guide.
        problems: group name → its consumers, for choosing and judging supports.
        threshold: of the method "filter".
    """

    method: str
    groups: Mapping[str, GroupGuide]
    problems: Mapping[str, tuple[Problem, ...]] = field(repr=False)
    threshold: float | None = None
    _known: dict[Any, Choice] = field(default_factory=dict[Any, "Choice"], repr=False)
    _orders: dict[Any, list[int]] = field(default_factory=dict[Any, "list[int]"], repr=False)

    def kept(self, name: str, k: int) -> tuple[int, ...]:
        """The k units of one group to keep while all others stay whole."""
        return self._choice(name, k, {}).units

    def supports(self, widths: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """The units to keep for widths of several groups: group name → units."""
        return {name: choice.units for name, choice in self.choices(widths).items() if name in widths}

    def by(self, criterion: str, widths: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """The units that one criterion keeps of every group; as `supports` where it says nothing of one."""
        own = {name: self.groups[name] for name in widths if criterion in self.groups[name].orders}
        return self.supports(widths) | {name: group.support(criterion, widths[name]) for name, group in own.items()}

    def near(self, widths: Mapping[str, int], changed: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """The units to keep where some groups get other widths, and all others keep what they have at `widths`.

        A trial, of which there are many: where that is much work, the first criterion decides alone.
        """
        here = self.choices(widths)
        found = {name: choice.units for name, choice in here.items() if name in widths}
        names = list(self.groups)
        for name, k in changed.items():
            behind = names[names.index(name) + 1 :]
            decided = {other: here[other].units for other in behind if here[other].criterion != WHOLE}
            found[name] = self._choice(name, k, decided, quick=True).units
        return found

    def choices(self, widths: Mapping[str, int]) -> dict[str, Choice]:
        """The choice of every group, from the last to the first.

        What a group's consumers make may be cut as well; then only what stays of it has to be served. So the
        groups nearest to the outputs decide first, and the others serve the units that those keep.
        """
        found: dict[str, Choice] = {}
        for name in reversed(list(self.groups)):
            n = len(self.groups[name].scores)
            decided = {other: choice.units for other, choice in found.items() if choice.criterion != WHOLE}
            found[name] = self._choice(name, widths.get(name, n), decided)
        return {name: found[name] for name in self.groups}

    def _choice(self, name: str, k: int, decided: Mapping[str, tuple[int, ...]], quick: bool = False) -> Choice:
        quick = quick and sum(problem.matrix.shape[1] ** 3 for problem in self.problems[name]) > QUICK_WORK
        served = {other for problem in self.problems[name] for other in problem.makes}
        decided = {other: units for other, units in decided.items() if other in served}
        key = (name, k, tuple(sorted(decided.items())), quick)
        if key not in self._known:
            self._known[key] = self._choose(name, k, decided, quick)
            for problem in self.problems[name]:
                problem.forget()
        return self._known[key]

    def _eliminated(self, name: str, group: Sequence[Problem], decided: Mapping[str, tuple[int, ...]]) -> list[int]:
        """The greedy order where some of what the consumers make is cut; it serves every width."""
        key = (name, tuple(sorted(decided.items())))
        if key not in self._orders:
            self._orders[key] = greedy_order(group)[0]
        return self._orders[key]

    def _choose(self, name: str, k: int, decided: Mapping[str, tuple[int, ...]], quick: bool) -> Choice:
        """The best support by held-out refit error among all criteria; of the first one where it has to be quick."""
        own, group = self.groups[name], self.problems[name]
        if k == len(own.scores):
            return Choice(tuple(range(k)), WHOLE, None)
        small = all(problem.columns.numel() <= SWAP_COLUMNS for problem in group)
        candidates: dict[tuple[int, ...], str] = {}
        if decided and "greedy" in own.orders:
            group = tuple(problem.without(decided) for problem in group)
            if small:
                candidates[tuple(sorted(self._eliminated(name, group, decided)[:k]))] = "greedy"
        for criterion in own.orders:
            candidates.setdefault(own.support(criterion, k), criterion)
        if not group or quick or widest(group) > JUDGED_COLUMNS:
            units, criterion = next(iter(candidates.items()))
            return Choice(units, criterion, None)
        judge = Judge(group)
        errors = {units: judge(units) for units in candidates}
        best = _least(errors)
        if len(own.orders) > 1 and small:
            swapped = tuple(swap(group, best, SWAPS))
            if swapped not in errors:
                errors[swapped] = judge(swapped)
                candidates[swapped] = f"{candidates[best]}, swapped"
            best = _least(errors)
        return Choice(best, candidates[best], errors[best])


def _least(errors: Mapping[tuple[int, ...], float]) -> tuple[int, ...]:
    """The first of the supports that none beats by more than rounding: supports that differ in dead units are equally
    good, and rounding, such as that of another order of the batches, must not choose among them."""
    most = min(errors.values()) * (1 + TIE) + TIE**2
    return next(units for units, error in errors.items() if error <= most)
