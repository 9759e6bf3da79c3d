"""The learning rate over the steps of a training (Loshchilov and Hutter 2017, SGDR, without restarts)."""

from __future__ import annotations

from math import cos, pi


def warm_cosine(step: int, steps: int, warmup: float) -> float:
    """Share of the peak rate at a step: rising over the share `warmup` of the steps, then along a cosine to 0."""
    rising = max(int(warmup * steps), 1)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + cos(pi * (step - rising) / max(steps - rising, 1)))
