"""How sure a ranking is: would other calibration data have kept the same units?

The bootstrap (Efron 1979) over the folds of the statistics: folds are drawn with replacement, the units are ranked
again, and the best k are compared with those of all the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from actprune.axes.capture import Graph
from actprune.errors import PlanError
from actprune.guidance.guide import Guide
from actprune.guidance.ranking import guide
from actprune.methods import method
from actprune.stats.statistics import Stats

RESAMPLES = 10

OF_FOLDS = frozenset({"greedy", "greedy-unweighted", "lasso", "thinet", "flap", "wanda", "correlation"})
"""The criteria that rank by the moments of the folds; whatever else they look at is not gathered fold by fold."""


@dataclass(frozen=True)
class Confidence:
    """Of one group of n units of which k stay.

    Attributes:
        agreement: mean share of the best k units that are among the best k of a resample as well; k / n is what chance
            gives.
        chance: k / n.
        kept: (n,) share of the resamples in which each unit is among the best k.
    """

    agreement: float
    chance: float
    kept: tuple[float, ...] = field(repr=False)


def confidence(
    graph: Graph,
    stats: Stats | None,
    ranked: Guide,
    widths: Mapping[str, int],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Confidence]:
    """The confidence of every group that is cut, as `widths` says.

    Each resample ranks all groups again, which takes as long as `guide` did. The ranking is that of the method's first
    criterion.

    Args:
        stats: what `ranked` was made from.
        ranked: the guide.
        widths: group name → units that stay.
        resamples: how often the folds are drawn anew, with replacement.
        seed: of these draws.

    Raises:
        PlanError: the ranking does not use the folds' moments, there is a single fold, or no resample is asked for.
    """
    if resamples < 1:
        raise PlanError(
            "No resample says nothing of confidence.",
            expected="a whole number ≥ 1",
            got=repr(resamples),
            where="confidence(resamples=…)",
            hint=f"leave it out for {RESAMPLES}",
        )
    folds = min((len(parts) for parts in stats.sites.values()), default=0) if stats is not None else 0
    by_folds = method(ranked.method).criteria[0] in OF_FOLDS
    if stats is None or folds < 2 or not by_folds:
        raise PlanError(
            f"The ranking of method {ranked.method!r} can't be resampled.",
            expected="activation statistics in two folds or more, and a criterion that ranks by them: "
            f"{', '.join(sorted(OF_FOLDS))}",
            got="none" if stats is None else f"{folds} folds, and {method(ranked.method).criteria[0]!r}",
            where="confidence",
            hint="a ranking by the weights alone does not depend on the calibration data; of means and maps there is "
            "one figure for all of it",
        )
    draw = np.random.default_rng(seed)
    counts = {name: np.zeros(graph[name].width) for name, k in widths.items() if k < graph[name].width}
    for _ in range(resamples):
        drawn = {n: draw.integers(n, size=n) for n in sorted({len(parts) for parts in stats.sites.values()})}
        sites = {node: tuple(parts[i] for i in drawn[len(parts)]) for node, parts in stats.sites.items()}
        again = guide(graph, replace(stats, sites=sites), method=ranked.method, threshold=ranked.threshold, seed=seed)
        for name, count in counts.items():
            count[list(_best(again, name, widths[name]))] += 1
    return {
        name: Confidence(
            float(count[list(_best(ranked, name, widths[name]))].mean()) / resamples,
            widths[name] / len(count),
            tuple((count / resamples).tolist()),
        )
        for name, count in counts.items()
    }


def _best(ranked: Guide, name: str, k: int) -> tuple[int, ...]:
    return next(iter(ranked.groups[name].orders.values()))[:k]
