"""The widths among which an allocation may choose, and what they cost."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, floor, lcm, log10
from numbers import Integral
from typing import Any

import numpy as np

from actprune.allocation.budget import Budget
from actprune.allocation.cost import COSTS, Array, cost, costs_along, costs_of_each
from actprune.allocation.protection import protected
from actprune.axes.account import beyond_class, over_norms
from actprune.axes.capture import Graph
from actprune.axes.components import components
from actprune.axes.groups import Group
from actprune.errors import BudgetError, PlanError
from actprune.latency.table import LatencyTable

Widths = dict[str, int]
"""Group name → number of units that stay."""


@dataclass(frozen=True, eq=False)
class Space:
    """What may be chosen, under which budget.

    Attributes:
        graph: the captured model.
        options: group name → the widths that are allowed, ascending; the last is the dense width.
        budget: the goal.
        latency: what milliseconds any widths cost; needed for a budget of latency.
        tied: group name → all groups that have its width, itself first; only the first of them has options. Empty
            where all widths are free.
    """

    graph: Graph = field(repr=False)
    options: Mapping[str, tuple[int, ...]]
    budget: Budget
    latency: LatencyTable | None = field(default=None, repr=False)
    tied: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, "tuple[str, ...]"], repr=False)

    def every(self, widths: Mapping[str, int]) -> Widths:
        """These widths, and the same for the groups that are tied to those named."""
        return {**widths, **{other: k for name, k in widths.items() for other in self.tied.get(name, ())}}

    @cached_property
    def target(self) -> float:
        """The cost that must not be exceeded."""
        return self.budget.keep * self.cost({}) * (1 + 1e-12)  # 29 % of 100 is 29

    def cost(self, widths: Mapping[str, int]) -> float:
        """What the budget counts, for these widths; groups that are not named are whole."""
        if self.budget.cost == "latency" and self.latency is not None:
            return self.latency(self.every(widths))
        return cost(self.graph, self.every(widths))[self.budget.cost]

    def costs_along(self, name: str, widths: Mapping[str, int], options: Sequence[int]) -> Array:
        """(options,) the cost with each of some widths of a group, and these of the others."""
        if self.budget.cost not in COSTS:
            return np.array([self.cost({**widths, name: k}) for k in options])
        tied = self.tied.get(name, (name,))
        return costs_along(self.graph, self.every(widths), tied, options, self.budget.cost)

    def with_each(self, widths: Mapping[str, int], others: Mapping[str, int]) -> dict[str, float]:
        """Group → the cost of these widths with that group's other one."""
        if self.budget.cost not in COSTS:
            return {name: self.cost({**widths, name: k}) for name, k in others.items()}
        changes = {name: (self.tied.get(name, (name,)), k) for name, k in others.items()}
        return costs_of_each(self.graph, self.every(widths), changes, self.budget.cost)

    def steps(self, widths: Mapping[str, int], step: int) -> dict[str, int]:
        """Group → the allowed width `step` places further, of those that have one."""
        return {name: to for name, k in widths.items() if (to := self.neighbour(name, k, step)) is not None}

    @property
    def least(self) -> float:
        """The fraction of the dense cost that the narrowest network has."""
        return self.cost(self.narrowest) / self.cost({})

    def fits(self, widths: Mapping[str, int]) -> bool:
        return self.cost(widths) <= self.target

    @property
    def narrowest(self) -> Widths:
        return {name: options[0] for name, options in self.options.items()}

    def at_most(self, name: str, k: float) -> int:
        """The largest allowed width that is not above k, or the smallest allowed one."""
        return max((w for w in self.options[name] if w <= k), default=self.options[name][0])

    def neighbour(self, name: str, k: int, step: int) -> int | None:
        """The allowed width `step` places further; None beyond the ends."""
        options = self.options[name]
        i = bisect_left(options, k) + step
        return options[i] if 0 <= i < len(options) else None


def make_space(
    graph: Graph,
    budget: Budget,
    *,
    protect: Sequence[str] = (),
    round_to: int = 1,
    latency: LatencyTable | None = None,
    equal: bool = False,
) -> Space:
    """The choice that a model leaves.

    Args:
        protect: patterns of module paths (`fnmatch`); the units that a matching module makes all stay.
        round_to: widths are multiples of it (and of what the group demands), or the dense width.
        latency: for a budget of latency.
        equal: groups of one role (`role`) get the same width, as a configuration with one number for all layers has it.

    Raises:
        PlanError: nothing can be cut, a pattern matches no module, or a bad `round_to`.
        BudgetError: even the narrowest network costs more than the budget; a budget of latency without a table.
    """
    _check_asked(budget, round_to, latency)
    untouched = protected(graph, protect)
    options = {
        group.name: (group.width,) if group.name in untouched else _widths(graph, group, budget, round_to)
        for group in graph.groups
    }
    if all(len(choice) == 1 for choice in options.values()):
        raise PlanError(
            f"Nothing in {graph.program.model_name} can be cut.",
            expected="at least one prunable group that is not protected",
            got=f"{len(graph.groups)} groups, {len(untouched)} of them protected, with round_to={round_to}",
            where="plan",
            hint="print(graph.account()) says for every dimension why it is frozen; protect less, or lower round_to",
        )
    tied = _tied(graph, options, equal) if equal or graph.counted else {}
    if tied:
        options = {name: _common([options[one] for one in names]) for name, names in tied.items()}
    space = Space(graph, options, budget, latency, tied)
    within = budget.cost == "units" or budget.keep == 1  # the whole network is, also where narrow ones seem slower
    if not within and not space.fits(space.narrowest):
        raise _out_of_reach(space, _what_frees(graph, bool(untouched), round_to))
    return space


def _check_asked(budget: Budget, round_to: int, latency: LatencyTable | None) -> None:
    if budget.cost == "latency" and latency is None:
        raise BudgetError(
            "A budget of latency needs measurements.",
            expected="a table of milliseconds",
            got="None",
            where="latency",
            hint="pass latency=measure_latency(model, graph) to allocate; prune measures by itself",
        )
    check_multiple(round_to)


def check_multiple(round_to: Any) -> None:
    """That widths can be multiples of it."""
    if isinstance(round_to, bool) or not isinstance(round_to, Integral) or round_to < 1:
        raise PlanError(
            "Widths can't be rounded so.",
            expected='a whole number ≥ 1; prune also takes "auto"',
            got=repr(round_to),
            where="round_to",
            hint="round_to=8 makes every width that is cut a multiple of 8",
        )


def _widths(graph: Graph, group: Group, budget: Budget, round_to: int) -> tuple[int, ...]:
    """Those that a group may have, ascending; only its own where no budget gains anything by its cut."""
    readers = group.consumers  # none where only a product or a computed weight reads it
    in_training_only = bool(readers) and all(site in graph.training_sites for site in readers)
    if in_training_only and budget.cost != "units":
        return (group.width,)
    step = lcm(round_to, group.multiple)
    return (*range(step, group.width, step), group.width)


def _what_frees(graph: Graph, protected: bool, round_to: int) -> str:
    """What lets a network become narrower, of all that keeps it wide."""
    ways = {
        "ask for more": True,
        "protect less": protected,
        "lower round_to": round_to > 1,
        "norms=True cuts what norms and means run over": any(map(over_norms, graph.frozen.values())),
        'form="graph" cuts what the class can\'t follow': any(map(beyond_class, graph.frozen.values())),
    }
    told = "; ".join(way for way, helps in ways.items() if helps)
    return f"{told}; print(graph.account()) says why the rest can't be cut"


def _out_of_reach(space: Space, ways: str) -> BudgetError:
    """What is said where even the narrowest network costs more than the budget."""
    budget, least = space.budget, space.least * space.cost({})
    if budget.cost == "latency" and space.least >= 1:
        return BudgetError(
            "No cut makes this network faster here.",
            expected="fewer milliseconds for a narrower network",
            got=f"{least:,.4g} ms for the narrowest, {space.cost({}):,.4g} ms for the dense one",
            where=f"keep={budget}",
            hint='small layers are bound by overhead: a larger Latency(batch=…), or a budget such as "macs=50%"',
        )
    share, unit = _rounded_up(100 * space.least), " ms" if budget.cost == "latency" else ""
    return BudgetError(
        "The budget can't be reached.",
        expected=f"at least {budget.cost}={share}%, the cost with one step of every group left: {least:,.6g}{unit}",
        got=str(budget),
        where="keep",
        hint=ways,
    )


def _common(choices: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The widths that all of some groups may have, ascending."""
    return tuple(sorted(set(choices[0]).intersection(*choices[1:])))


def role(name: str) -> str:
    """What repeated blocks call a group: its path without the numbers of the blocks, `layers.*.mlp.up`.

    A number at the end is the place of a layer in one sequence, and stays.
    """
    *blocks, own = name.partition("#")[0].split(".")
    return ".".join([*("*" if part.isdecimal() else part for part in blocks), own])


def _tied(graph: Graph, options: Mapping[str, tuple[int, ...]], equal: bool) -> dict[str, tuple[str, ...]]:
    """The first of some groups that have one width → all of them: those that a number of the class counts, and if
    `equal` those of one role, kind and choice of widths.

    Of several groups that one module makes, `name#1` and `name#2`, the first ones belong together, then the second.
    """
    roles: dict[tuple[object, ...], list[str]] = {}
    seen = Counter[str]()
    for name, choice in options.items() if equal else ():
        module = name.partition("#")[0]
        roles.setdefault((role(name), seen[module], graph[name].kind, choice), []).append(name)
        seen[module] += 1
    return {names[0]: names for names in components(options, [*graph.peers.values(), *roles.values()])}


def _rounded_up(percent: float) -> str:
    """So that who asks for just that much gets it."""
    digits = 2 - floor(log10(percent))
    return f"{ceil(percent * 10**digits) / 10**digits:g}"
