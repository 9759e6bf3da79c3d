"""What one way from allocation to fine-tune leaves."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from actprune.allocation.correct import Corrected
from actprune.proof.check import Proof
from actprune.recovery.distill import Recovered
from actprune.rewrite import Rewrite


@dataclass(frozen=True, eq=False)
class Attempt:
    """One way from allocation to fine-tune.

    Attributes:
        small, metric: the network after cut and compensation.
        final, final_metric: the one that is returned.
        recovery, recovered: what the recovery without labels did, and the network after it, where it was asked for.
        worse: steps that made the metric worse: (name, metric before, after).
        diverged: what is to be said of a fine-tune whose loss was not finite any more.
    """

    decided: Corrected
    rewrite: Rewrite
    small: nn.Module
    proof: Proof
    metric: float | None
    final: nn.Module
    final_metric: float | None
    recovery: Recovered | None = None
    recovered: nn.Module | None = None
    recovered_metric: float | None = None
    worse: tuple[tuple[str, float, float], ...] = ()
    diverged: str | None = None
