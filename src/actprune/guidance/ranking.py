"""`guide`: statistics → for every group which units matter, and what every width would cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actprune.axes.capture import Graph
from actprune.axes.groups import Group
from actprune.errors import PlanError
from actprune.guidance.blocks import greedy_order
from actprune.guidance.greedy import eliminate
from actprune.guidance.guide import GroupGuide, Guide
from actprune.guidance.inputs import Inputs
from actprune.guidance.judge import Judge
from actprune.guidance.lasso import MAX_UNITS, Path, contribution_gram, lasso_path
from actprune.guidance.problem import Problem, problems, widest
from actprune.guidance.scores import ABSOLUTE, SCALES, SCORES, filter_norm, missing_measure, per_unit
from actprune.guidance.thinet import removals
from actprune.mapped import let_go
from actprune.methods import method as preset
from actprune.stats.room import JUDGED_COLUMNS
from actprune.stats.statistics import Stats

NATURAL = 0.01
"""The natural width is the smallest whose held-out refit error is at most this share of the output variance."""


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

    A criterion may say nothing of a group (a BatchNorm's gain where there is no BatchNorm). L2 then ranks it, and the
    guide names L2 as that group's criterion.
    """
    chosen = preset(method)
    if chosen.statistics and stats is None:
        raise _missing(method, "activation statistics", "pass stats=collect(graph, calibration)")
    if method == "filter" and threshold is None:
        raise _missing(method, "a threshold", "pass threshold=0.01, say: smaller weights count as zero")
    for measure in chosen.measures:
        if stats is None or measure not in stats.measures:
            raise missing_measure(measure, {} if stats is None else stats.measures)
    found: dict[str, GroupGuide] = {}
    scale = _one_scale(graph, stats, chosen.criteria[0], seed)
    questions = questions_of(graph, stats, method)
    for group in graph.groups:
        if method == "filter":
            found[group.name] = _filter_guide(graph, group, threshold or 0.0)
        else:
            ask = _Question(graph, stats, group, questions[group.name], seed, scale)
            found[group.name] = _group_guide(ask, chosen.criteria)
        for problem in questions[group.name]:
            problem.forget()
        let_go(graph.program.tensors.values())
    return Guide(method, found, questions, threshold)


def questions_of(graph: Graph, stats: Stats | None, method: str) -> dict[str, tuple[Problem, ...]]:
    """What a method asks about every group; nothing without statistics."""
    known: dict[str, Inputs] = {}
    weights = preset(method).weights
    return {g.name: problems(graph, stats, g, weights, known) if stats is not None else () for g in graph.groups}


@dataclass(frozen=True, eq=False)
class _Question:
    """What a criterion is asked about."""

    graph: Graph
    stats: Stats | None
    group: Group
    problems: tuple[Problem, ...]
    seed: int
    scale: float | None


@dataclass(frozen=True, eq=False)
class _Answer:
    """What one criterion says of a group: see `GroupGuide`. `comparable` are scores on the scale of all groups."""

    order: tuple[int, ...]
    scores: Tensor | None = None
    comparable: Tensor | None = None
    curve: Sequence[float] | None = None
    path: Path | None = None


def _group_guide(ask: _Question, criteria: Sequence[str]) -> GroupGuide:
    answers = {name: answer for name in criteria if (answer := _answer(ask, name)) is not None}
    if not answers:  # a search that can't be made for this group, or a score that says nothing of it
        fallback = "flap" if ask.problems and not SCORES.keys() & set(criteria) else "l2"
        answers = {name: answer for name in (fallback,) if (answer := _scored(ask, name)) is not None}
    orders = {name: answer.order for name, answer in answers.items()}
    main = next((a for a in answers.values() if a.curve is not None), next(iter(answers.values())))
    if main.curve is None and main.scores is None:  # the path alone: what its order costs
        main = _searched(ask.problems, main.order)
    scores, curve = _scores_and_curve(ask, main)
    path = next((a.path for a in answers.values() if a.path is not None), None)
    if "lasso" not in criteria:
        return GroupGuide(orders, scores, curve, None, None, {})
    if path is None:
        return GroupGuide(orders, scores, curve, None, _natural_width(ask.problems, main.order, {}, curve), {})
    supports = {k: tuple(s) for k in range(1, ask.group.width) if (s := path.support(k)) is not None}
    natural = _natural_width(ask.problems, orders["lasso"], supports, curve)
    return GroupGuide(orders, scores, curve, tuple(path.guide(natural).tolist()), natural, supports)


def _answer(ask: _Question, criterion: str) -> _Answer | None:
    """None where the criterion can't be asked, or says the same as another one."""
    if criterion in SCORES:
        return _scored(ask, criterion)
    if not ask.problems:
        return None
    if criterion == "greedy":
        return _searched(ask.problems)
    if criterion == "thinet":
        order, curve = removals(ask.problems)
        return _Answer(tuple(order), curve=curve)
    if criterion == "greedy-unweighted":
        plain = [p.with_rows(torch.ones_like(p.rows)) for p in ask.problems]
        same = all(bool((p.rows == 1).all()) for p in ask.problems)
        return None if same or widest(ask.problems) > JUDGED_COLUMNS else _searched(plain)
    if ask.group.width > MAX_UNITS:
        return None
    path = lasso_path(contribution_gram(ask.problems))
    return _Answer(tuple(path.order()), path=path)


def _searched(group: Sequence[Problem], order: Sequence[int] | None = None) -> _Answer:
    found, curve = greedy_order(group) if order is None else eliminate(group, order)
    return _Answer(tuple(found), curve=curve)


def _scored(ask: _Question, criterion: str) -> _Answer | None:
    scores = SCORES[criterion](ask.graph, ask.stats, ask.group, ask.seed)
    if scores is None:
        return None
    scores = scores.cpu()
    if criterion in SCALES:
        comparable = SCALES[criterion](ask.graph, ask.stats, ask.group, ask.seed)
    elif criterion in ABSOLUTE and ask.scale is not None:
        comparable = scores / ask.scale
    else:
        comparable = scores / scores.abs().mean().clamp_min(1e-30)
    return _Answer(tuple(scores.argsort(descending=True, stable=True).tolist()), scores, comparable)


def _one_scale(graph: Graph, stats: Stats | None, criterion: str, seed: int) -> float | None:
    """The mean score of all units, for a criterion whose bare scores are comparable; groups that L2 ranks in its place
    have a mean of 1 as well."""
    if criterion not in ABSOLUTE:
        return None
    found = [scores for group in graph.groups if (scores := SCORES[criterion](graph, stats, group, seed)) is not None]
    return max(float(torch.cat(found).mean()), 1e-30) if found else None


def _scores_and_curve(ask: _Question, main: _Answer) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The scores and the curve of `GroupGuide`, one from the other."""
    if main.scores is not None and main.comparable is not None:
        return tuple(main.comparable.tolist()), _lost(main.scores.clamp_min(0), main.order)
    variance = sum(problem.variance for problem in ask.problems)
    curve = torch.tensor(main.curve, dtype=torch.float64) / variance
    scores = torch.zeros(ask.group.width, dtype=torch.float64)
    scores[torch.tensor(main.order)] = -curve.diff()
    return tuple(scores.tolist()), tuple(curve.tolist())


def _lost(scores: Tensor, order: Sequence[int]) -> tuple[float, ...]:
    """(n + 1,) the share of the total score that is lost when the first k units of `order` are kept."""
    ranked = scores[torch.tensor(order)]
    lost = ranked.flip(0).cumsum(0).flip(0) / ranked.sum().clamp_min(1e-30)
    return (*lost.tolist(), 0.0)


def _natural_width(
    group: Sequence[Problem], order: Sequence[int], supports: Mapping[int, tuple[int, ...]], curve: Sequence[float]
) -> int:
    """By bisection: the error falls with the width but for noise. All units where nothing says that fewer will do.

    What the refits lose on their own rows is less than what they lose on others: no width needs a look for which even
    that is too much, and the one that is looked for is mostly near to the first for which it is not.
    """
    if not group:
        return len(order)
    least = max(1, next((k for k, lost in enumerate(curve) if lost <= NATURAL), len(order)))
    if widest(group) > JUDGED_COLUMNS:
        return least
    judge = Judge(group)
    low, high, ahead = least, len(order), 0
    while low < high:
        middle = min(low + ahead, (low + high) // 2)
        if judge(supports.get(middle, tuple(order[:middle]))) <= NATURAL:
            high, ahead = middle, high  # from here on halves
        else:
            low, ahead = middle + 1, 2 * ahead + 1
    return high


def _filter_guide(graph: Graph, group: Group, threshold: float) -> GroupGuide:
    """The seed's filter pruning: a unit is worth as many weights as its filters keep at or above the threshold."""
    surviving = torch.zeros(group.width, dtype=torch.float64)
    for site, dim in ((made, dim) for made in group.producers for dim in made.out_dims):
        surviving += per_unit(graph, group, site.weight, dim, lambda rows: (rows.abs() >= threshold).double().sum(1))
    norm = filter_norm(graph, group, 2)
    order = tuple(sorted(range(group.width), key=lambda u: (-float(surviving[u]), -float(norm[u]))))
    natural = max(1, int((surviving > 0).sum()))
    return GroupGuide({"filter": order}, tuple(surviving.tolist()), _lost(surviving, order), None, natural, {})


def _missing(method: str, what: str, hint: str) -> PlanError:
    return PlanError(
        f"Method {method!r} needs {what}.", expected=what, got="None", where=f'guide(method="{method}")', hint=hint
    )
