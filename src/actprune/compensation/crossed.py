"""Candidates are compared on samples that their refits have not seen: on some that are held out, or, where samples are
few, on all of them, every part by what the others refit (cross-validation)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from torch import Tensor

from actprune.axes.capture import Graph
from actprune.compensation.near import Near
from actprune.compensation.ridge import Chosen
from actprune.compensation.schedule import schedule
from actprune.compensation.shared import shared_equations
from actprune.data.samples import Calibration
from actprune.distance import Outputs
from actprune.plan import Plan
from actprune.stats.patches import QUICK_ROWS

Pairs = list[tuple[Calibration, Calibration]]
"""(samples of the refits, samples of the outputs)."""

FEW_SAMPLES = 16
"""A quarter of so many samples says little."""

FOLDS = 4
"""At most: one for each batch."""


def pairs(data: Calibration, samples: int, fitted: int, cheap: bool = True) -> Pairs:
    """One pair for each network that stands for a candidate.

    Args:
        samples: that candidates are compared on, at most.
        fitted: so many times as many are refitted on.
        cheap: whether each candidate may be several networks.
    """
    numbers = range(len(data.batches))
    folds = min(FOLDS, len(numbers))
    if cheap and data.samples <= min(FEW_SAMPLES, samples) and folds > 1:
        return [(data.part([i for i in numbers if i % folds != f]), data.part(numbers[f::folds])) for f in range(folds)]
    rest, held = data.holdout(1 / (1 + fitted))
    return [(rest.subset(fitted * samples), held.subset(samples))]


def compared(among: Pairs) -> Calibration:
    """The samples of all outputs, in the order of `Crossed`."""
    return reduce(Calibration.joined, (held for _, held in among))


@dataclass(frozen=True, eq=False)
class Crossed:
    """One network refitted on the samples of each pair; the outputs of each on those that it has not seen."""

    networks: Sequence[Near]

    def itself(self) -> list[Outputs]:
        """The flat outputs of that network for every batch."""
        return [outputs for network in self.networks for outputs in network.itself()]

    def __call__(self, plan: Plan, batches: int | None = None) -> list[Outputs]:
        """The flat outputs for every batch, or for so many of them."""
        found: list[Outputs] = []
        for network in self.networks:
            own = len(network.held.batches)
            wanted = own if batches is None else min(batches - len(found), own)
            found += network(plan, wanted) if wanted else []
        return found


def crossed(
    graph: Graph, among: Pairs, method: str, rounds: int, base: Mapping[str, Tensor] | None, collected: int
) -> Callable[[Plan | None], Crossed]:
    """A plan, or None for the dense network → that network; what does not depend on the plan is computed once.

    Args:
        method, rounds, base: see `Near`.
        collected: numbers that the equations of all pairs may take.
    """

    ridges = Chosen()  # a coarse scale, the same for all parts of the samples

    def networks(fitted: Calibration, held: Calibration) -> Callable[[Plan | None], Near]:
        nodes, most = schedule(graph).nodes, collected // len(among)
        shared = shared_equations(graph, fitted.batches, nodes, QUICK_ROWS, most) if method == "least_squares" else {}
        return lambda plan: Near(
            graph, fitted, held, method=method, rounds=rounds, base=base, collected=most, around=plan, shared=shared,
            ridges=ridges,
        )  # fmt: skip

    each = [networks(*pair) for pair in among]
    return lambda plan: Crossed([network(plan) for network in each])
