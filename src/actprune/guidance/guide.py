"""`guide`: statistics → for every group which units matter, and what every width would cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from actprune.axes.capture import Graph
from actprune.axes.groups import Group
from actprune.errors import PlanError
from actprune.guidance.greedy import eliminate, swap
from actprune.guidance.lasso import MAX_UNITS, contribution_gram, lasso_path
from actprune.guidance.problem import Problem, held_out_error, problems
from actprune.guidance.scores import SCORES, filter_norm
from actprune.methods import method as preset
from actprune.stats.collect import Stats

NATURAL = 0.01
"""The natural width is the smallest whose held-out refit error is at most this share of the output variance."""

SWAPS = 8
SWAP_COLUMNS = 1024
"""Supports are refined by up to so many exchanges, where no consumer has more columns than this."""


@dataclass(frozen=True, eq=False)
class GroupGuide:
    """What guidance says of one group of n units.

    Attributes:
        orders: criterion → units from the most to the least important.
        scores: (n,) importance on a scale that is comparable between groups.
        curve: (n + 1,) E(k), the cost of keeping k units, as a share of the consumers' output variance where
            statistics exist, else the share of the total score that is lost.
        beta: (n,) the LASSO factors at the natural width: the pruning guide; None without a LASSO.
        natural: the natural width, or None.
        path_support: width → LASSO support where the path has exactly that many units.
    """

    orders: Mapping[str, tuple[int, ...]] = field(repr=False)
    scores: tuple[float, ...] = field(repr=False)
    curve: tuple[float, ...] = field(repr=False)
    beta: tuple[float, ...] | None = field(repr=False)
    natural: int | None
    path_support: Mapping[int, tuple[int, ...]] = field(repr=False)


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
    _known: dict[tuple[str, int], tuple[tuple[int, ...], str, float | None]] = field(default_factory=dict, repr=False)

    def kept(self, name: str, k: int) -> tuple[int, ...]:
        """The k units of a group to keep: the best support by held-out refit error among all criteria."""
        return self.choice(name, k)[0]

    def choice(self, name: str, k: int) -> tuple[tuple[int, ...], str, float | None]:
        """(units, criterion, held-out error as a share of the output variance) of the support that `kept` gives."""
        if (name, k) not in self._known:
            self._known[name, k] = self._choose(name, k)
        return self._known[name, k]

    def _choose(self, name: str, k: int) -> tuple[tuple[int, ...], str, float | None]:
        own, group = self.groups[name], self.problems[name]
        n = len(own.scores)
        candidates: dict[tuple[int, ...], str] = {}
        for criterion, order in own.orders.items():
            units = own.path_support.get(k, order[:k]) if criterion == "lasso" else order[:k]
            candidates.setdefault(tuple(sorted(units)), criterion)
        if not group or k == n or len(own.orders) == 1:
            units, criterion = next(iter(candidates.items()))
            return units, criterion, held_out_error(group, units) if group and k < n else None
        errors = {units: held_out_error(group, units) for units in candidates}
        best = min(errors, key=errors.__getitem__)
        if max(problem.weight.shape[1] for problem in group) <= SWAP_COLUMNS:
            swapped = tuple(swap(group, best, SWAPS))
            if swapped not in errors:
                errors[swapped] = held_out_error(group, swapped)
                candidates[swapped] = f"{candidates[best]}, swapped"
            best = min(errors, key=errors.__getitem__)
        return best, candidates[best], errors[best]


def guide(
    graph: Graph, stats: Stats | None, *, method: str = "sgd-ap", threshold: float | None = None, seed: int = 0
) -> Guide:
    """Rank the units of every group.

    Args:
        stats: from `collect`; methods that look only at weights take None.
        method: a name from `actprune.methods`.
        threshold: for `method="filter"`: weights with a smaller absolute value count as zero.
        seed: for `method="random"`.

    Raises:
        PlanError: an unknown method, or one whose needs are not met.
    """
    chosen = preset(method)
    if chosen.statistics and stats is None:
        raise _missing(method, "activation statistics", "pass stats=collect(graph, calibration)")
    if method == "filter" and threshold is None:
        raise _missing(method, "a threshold", "pass threshold=0.01, say: smaller weights count as zero")
    found: dict[str, GroupGuide] = {}
    questions: dict[str, tuple[Problem, ...]] = {}
    for group in graph.groups:
        questions[group.name] = problems(graph, stats, group) if stats is not None else ()
        if method == "filter":
            found[group.name] = _filter_guide(graph, group, threshold or 0.0)
        else:
            found[group.name] = _group_guide(graph, stats, group, questions[group.name], chosen.criteria, seed)
    return Guide(method, found, questions, threshold)


def _group_guide(
    graph: Graph, stats: Stats | None, group: Group, group_problems: Sequence[Problem], criteria: Sequence[str], seed: int
) -> GroupGuide:
    orders: dict[str, tuple[int, ...]] = {}
    curve: list[float] | None = None
    scores: Tensor | None = None
    beta: tuple[float, ...] | None = None
    supports: dict[int, tuple[int, ...]] = {}
    natural: int | None = None
    for criterion in criteria:
        if criterion.startswith("greedy") and group_problems:
            weighted = criterion == "greedy"
            order, costs = eliminate(group_problems if weighted else [_unweighted(p) for p in group_problems])
            orders[criterion] = tuple(order)
            if curve is None:
                variance = sum(problem.variance for problem in group_problems)
                curve = [value / variance for value in costs]
                scores = torch.zeros(group.width, dtype=torch.float64)
                scores[torch.tensor(order)] = torch.tensor([curve[i] - curve[i + 1] for i in range(group.width)]).double()
        elif criterion == "lasso" and group_problems and group.width <= MAX_UNITS:
            path = lasso_path(contribution_gram(group_problems))
            orders["lasso"] = tuple(path.order())
            supports = {k: tuple(s) for k in range(1, group.width) if (s := path.support(k)) is not None}
            natural = _natural_width(group_problems, orders["lasso"], supports)
            beta = tuple(float(b) for b in path.guide(natural))
        elif criterion in SCORES:
            own = _score(graph, stats, group, criterion, seed)
            orders[criterion] = tuple(int(u) for u in own.argsort(descending=True, stable=True))
            scores = own / own.abs().mean().clamp_min(1e-30) if scores is None else scores
    if not orders:  # a search without a consumer that has statistics: weights are all there is
        return _group_guide(graph, None, group, (), ("l2",), seed)
    if scores is None:
        order = next(iter(orders.values()))
        scores = torch.zeros(group.width, dtype=torch.float64)
        scores[torch.tensor(order)] = torch.linspace(1, 0, group.width).double()
    if curve is None:
        ranked = scores.clamp_min(0)[torch.tensor(next(iter(orders.values())))]
        lost = ranked.flip(0).cumsum(0).flip(0) / ranked.sum().clamp_min(1e-30)
        curve = [*(float(value) for value in lost), 0.0]
    return GroupGuide(orders, tuple(scores.tolist()), tuple(curve), beta, natural, supports)


def _score(graph: Graph, stats: Stats | None, group: Group, criterion: str, seed: int) -> Tensor:
    """A group without a consumer in the eval graph has no statistics; its filters' norm decides."""
    known = stats is not None and group.name in stats.units
    if criterion in ("l1", "l2", "random") or known:
        return SCORES[criterion](graph, stats, group, seed).cpu()
    return filter_norm(graph, group, 2)


def _natural_width(group: Sequence[Problem], order: Sequence[int], supports: Mapping[int, tuple[int, ...]]) -> int:
    """By bisection: the error falls with the width but for noise."""
    low, high = 1, len(order)
    while low < high:
        middle = (low + high) // 2
        if held_out_error(group, supports.get(middle, tuple(order[:middle]))) <= NATURAL:
            high = middle
        else:
            low = middle + 1
    return high


def _filter_guide(graph: Graph, group: Group, threshold: float) -> GroupGuide:
    """The seed's filter pruning: a unit is worth as many weights as its filters keep at or above the threshold."""
    surviving = torch.zeros(group.width, dtype=torch.float64)
    for site in group.producers:
        from actprune.axes.expr import positions

        weight = graph.program.tensors[site.weight].detach().cpu()
        unit = torch.as_tensor(positions(graph.tensor_axes[site.weight][site.out_dim], group.key))
        count = (weight.movedim(site.out_dim, 0).flatten(1).abs() >= threshold).sum(1).double()
        surviving.index_add_(0, unit[unit >= 0], count[unit >= 0])
    norm = filter_norm(graph, group, 2)
    order = sorted(range(group.width), key=lambda u: (-float(surviving[u]), -float(norm[u])))
    lost = surviving[torch.tensor(order)].flip(0).cumsum(0).flip(0) / surviving.sum().clamp_min(1)
    natural = max(1, int((surviving > 0).sum()))
    return GroupGuide(
        {"filter": tuple(order)}, tuple(surviving.tolist()), (*lost.tolist(), 0.0), None, natural, {}
    )


def _unweighted(problem: Problem) -> Problem:
    return problem.with_rows(torch.ones_like(problem.rows))


def _missing(method: str, what: str, hint: str) -> PlanError:
    return PlanError(
        f"Method {method!r} needs {what}.", expected=what, got="None", where=f'guide(method="{method}")', hint=hint
    )
