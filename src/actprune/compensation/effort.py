"""How much steps of Gauss and Newton may cost: multiply-adds are counted, not seconds."""

from __future__ import annotations

from typing import NamedTuple

from actprune.compensation.gauss_newton import PROBES

ROUNDS, STEPS = 10, 12
"""Steps of Gauss and Newton at most, and of conjugate gradients in each."""

PASSES = 5 * (STEPS + PROBES)
"""A step takes as much as so many forward passes: one of conjugate gradients as much as five."""

WORK, FIRST = 6e11, 2e12
"""Multiply-adds that the steps of all blocks may take, and those of each recurrent layer; and what the first step of
all blocks may take, where that is more. Large models use fewer samples, or are left as they are."""

FEWEST, FEWEST_OF_SEVERAL = 0.25, 1
"""Residuals for each weight of a block, at least: steps begin at a refit, are short and damped, and are made only where
held-out samples come nearer. The second one where others lie within, which are fitted alone if there are fewer, or
where it is fitted through time (no less was tried)."""

FEWEST_OF_ROWS = 4
"""The same where rows of a table are among the weights, each of which its own samples alone tell, and for recurrent
layers by themselves (where no less was tried)."""

VALUE = 30
"""Multiply-adds in the time that a value takes which is only read and written."""

TOUCHED = 8
"""Values that one output of a gate takes on its way to the state."""

STEP = 400_000
"""Multiply-adds in the time that a recurrent layer takes for each step and weight, however small they are."""

GRAPHS = 16
"""Bytes for each value between weights and residuals that derivatives hold."""


class Enough(NamedTuple):
    """What is of use to a fit.

    Attributes:
        residuals: for each weight.
        samples: at most.
        weights: for so many of them one sample will do; 0: for none.
    """

    residuals: int
    samples: int
    weights: int


PLENTY, ENOUGH = Enough(60, 2048, 0), Enough(20, 512, 20)
"""The former where it leaves work for `SEVERAL` rounds, else the latter."""

SEVERAL = 5
