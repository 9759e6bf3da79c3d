"""The named methods: a criterion, a compensation and an allocation that belong together. Data, no code.

`criteria` are names of scores (`actprune.guidance.scores`) or of the searches "greedy", "greedy-unweighted", "lasso"
and "thinet"; with several, the support of every width is the one with the best held-out refit error. Everything can be
overridden by the arguments of `prune`, so that criterion, compensation and allocation can be told apart.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from actprune.errors import PlanError


@dataclass(frozen=True)
class Method:
    """One preset.

    Attributes:
        criteria: how units are ranked.
        compensate: "reconstruct", "least_squares", "ridge_map", "bias" or None.
        allocation: how the budget is spread over the groups, see `actprune.allocation.rules`.
        statistics: whether activation statistics are needed.
        about: one line for `--help` and messages.
        measures: what `collect` must take beside them, see `actprune.stats.measures`.
        weights: the one of them that weighs the outputs of consumers; None: the norms behind them do.
    """

    criteria: tuple[str, ...]
    compensate: str | None
    allocation: str
    statistics: bool
    about: str
    measures: tuple[str, ...] = ()
    weights: str | None = None


BEST_OF = ("greedy", "greedy-unweighted", "lasso", "flap", "l2")

METHODS: dict[str, Method] = {
    "sgd-ap": Method(
        BEST_OF,
        "reconstruct",
        "sensitivity",
        True,
        "statistics, exact greedy costs and the LASSO guide, blocks fitted anew, widths by sensitivity",
    ),
    "greedy": Method(("greedy",), "least_squares", "sensitivity", True, "the greedy costs S_g alone"),
    "lasso": Method(("lasso",), "least_squares", "sensitivity", True, "the LASSO guide alone (He et al. 2017)"),
    "sgd-ap-fisher": Method(
        BEST_OF,
        "reconstruct",
        "sensitivity",
        True,
        "sgd-ap with each output of a layer weighed by the Fisher information there",
        ("fisher",),
        "fisher",
    ),
    "thinet": Method(
        ("thinet",), "least_squares", "uniform", True, "greedy by the next layer's outputs (Luo et al. 2017)"
    ),
    "flap": Method(
        ("flap",), "bias", "global", True, "fluctuation × weight norm, means into the bias (An et al. 2024)"
    ),
    "wanda": Method(("wanda",), None, "uniform", True, "|weight| × norm of the activation, per unit (Sun et al. 2024)"),
    "grail": Method(
        ("wanda",), "ridge_map", "uniform", True, "Wanda's units, a ridge map between channels (Tang et al. 2026)"
    ),
    "taylor": Method(
        ("taylor",), None, "global", True, "squared gradient of a gate on the unit (Molchanov et al. 2019)", ("taylor",)
    ),
    "hrank": Method(("hrank",), None, "uniform", True, "mean rank of the feature maps (Lin et al. 2020)", ("hrank",)),
    "chip": Method(("chip",), None, "uniform", True, "channel independence, nuclear norm (Sui et al. 2021)", ("chip",)),
    "bn_scale": Method(("bn_scale",), None, "global", False, "gain of the BatchNorm behind (Liu et al. 2017)"),
    "fpgm": Method(
        ("fpgm",), None, "uniform", False, "distance to the geometric median of the filters (He et al. 2019)"
    ),
    "l1": Method(("l1",), None, "uniform", False, "L1 norm of the filters (Li et al. 2017)"),
    "l2": Method(("l2",), None, "uniform", False, "L2 norm of the filters"),
    "random": Method(("random",), None, "uniform", False, "random units"),
    "mean": Method(("mean",), None, "uniform", True, "mean activation"),
    "std": Method(("std",), None, "uniform", True, "standard deviation of the activation"),
    "activation": Method(("activation",), None, "uniform", True, "the seed's activation value mean|a| + std|a|"),
    "apoz": Method(("apoz",), None, "uniform", True, "average percentage of zeros (Hu et al. 2016)"),
    "correlation": Method(("correlation",), None, "uniform", True, "what the other units can't predict, 1 − R²"),
    "filter": Method(
        ("filter",), None, "natural", False, "weights below a threshold set to zero, empty filters removed (the seed)"
    ),
}

ALLOCATIONS = ("sensitivity", "uniform", "layerwise", "spatial", "global", "natural")

COMPENSATIONS = ("reconstruct", "least_squares", "ridge_map", "bias", "none")


def quickly(compensation: str) -> str:
    """What stands for a compensation where many candidates are compared, and where it begins."""
    return "least_squares" if compensation == "reconstruct" else compensation


def method(name: str) -> Method:
    """The preset of that name; `PlanError` with the nearest names otherwise."""
    return METHODS[known(name, METHODS, "method")]


def known(name: str, names: Iterable[str], what: str, *, where: str | None = None, hint: str | None = None) -> str:
    """`name` if it is one of `names`.

    Args:
        where, hint: of the error, where more can be told than `what` it is and which name is near.

    Raises:
        PlanError: it is not; the message names the nearest.
    """
    names = list(names)
    if name in names:
        return name
    near = difflib.get_close_matches(str(name).lower(), names, 1)
    raise PlanError(
        f"There is no {what} named {name!r}.",
        expected=f"one of {', '.join(names)}",
        got=repr(name),
        where=where or what,
        hint=hint or (f"did you mean {near[0]!r}?" if near else "choose one of the names above"),
    )
