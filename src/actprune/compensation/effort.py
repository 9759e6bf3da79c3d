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

FEWEST = 4
"""Residuals for each weight that is fitted: with fewer they are left as they are."""

FEWEST_IN_TIME = 1
"""The same with a recurrent layer, whose states are near the dense ones of every step where these steps begin."""

VALUE = 30
"""Multiply-adds in the time that a value takes which is only read and written."""

TOUCHED = 8
"""Values that one output of a gate takes on its way to the state."""

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
