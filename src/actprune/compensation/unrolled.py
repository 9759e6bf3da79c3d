"""A recurrent layer fitted as a whole: steps of Gauss and Newton for all of its weights, through all of its time.

A closed-form fit brings pre-activations near. What an error there does depends on the gate behind it and on all later
steps, and the weights of the input and of the hidden state are fitted one after the other. These steps start from such
a fit, and go by the states themselves (`gauss_newton`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from actprune.compensation.effort import (
    FEWEST_OF_ROWS,
    GRAPHS,
    PASSES,
    PLENTY,
    ROUNDS,
    STEPS,
    VALUE,
    WORK,
)
from actprune.compensation.gauss_newton import best_size, descend, gauss_newton, twice_differentiable
from actprune.compensation.work import in_time
from actprune.stats.recurrent import Params


@dataclass(frozen=True, eq=False)
class Whole:
    """What of a layer may change, and what for.

    Attributes:
        masks: place among the parameters → 1 where it may change.
        lacking: (batch, parameters) → what the states lack there, of any shape.
        error: parameters → the same on samples that no step sees, squared and summed.
    """

    masks: Mapping[int, Tensor]
    lacking: Callable[[int, Params], Tensor]
    error: Callable[[Params], float]

    def stepped(self, params: Params, batches: Sequence[int], rounds: int) -> tuple[Params, float, str | None]:
        """The parameters after all steps, at most so many, that lower the error, the share of it that is left, and what
        went wrong, if anything did."""
        found, first = params, self.error(params)

        def step(loss: float) -> float:
            nonlocal found
            changed = partial(self._changed, found)
            residuals = [partial(self._residual, changed, i) for i in batches]
            with twice_differentiable(recurrent=True):
                changes = gauss_newton(residuals, list(self.masks.values()), STEPS)
            best, loss = best_size(lambda at: self.error(changed(at)), changes, loss)
            found = found if best is None else changed(best)
            return loss

        left, failed = descend(step, first, rounds)
        return found, left / first if first else 1.0, failed

    def _residual(self, changed: Callable[[Sequence[Tensor]], Params], i: int, at: Sequence[Tensor]) -> Tensor:
        return self.lacking(i, changed(at))

    def _changed(self, params: Params, at: Sequence[Tensor]) -> Params:
        new = list(params)
        for (place, mask), change in zip(self.masks.items(), at, strict=True):
            value = params[place]
            new[place] = None if value is None else value.detach() + mask * change
        return tuple(new)


def affordable(
    masks: Mapping[int, Tensor], rows: int, residuals: int, batches: int, room: int, steps: int = 0
) -> tuple[int, int]:
    """(batches, rounds) within `WORK` and so many bytes for the derivatives; none with too few residuals for a weight.

    Args:
        rows: of one batch: its samples times its steps.
        residuals: of one batch.
        batches: how many there are.
        room: bytes.
        steps: of a recurrent layer.
    """
    weights = [mask for mask in masks.values() if mask.dim() > 1]
    unknowns = sum(int(mask.sum()) for mask in masks.values())
    macs, values = in_time([mask.shape for mask in weights], rows, steps)
    work = (macs + VALUE * values) * PASSES
    enough = PLENTY.residuals * unknowns // max(residuals, 1) + 1
    count = min(batches, enough, room // (GRAPHS * values + 1), int(WORK / work))
    if count * residuals < FEWEST_OF_ROWS * unknowns:
        return 0, 0
    return count, min(ROUNDS, int(WORK / (work * count)))
