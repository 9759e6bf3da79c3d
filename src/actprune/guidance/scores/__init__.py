"""Scores: one number per unit, larger = more important. Each is a small function in a table.

A score sees the graph, the statistics, and the group. To add one, write a function and put it into `SCORES`.
"""

from __future__ import annotations

from actprune.guidance.scores.activation import activation, apoz, correlation, mean, std
from actprune.guidance.scores.bn_scale import bn_scale
from actprune.guidance.scores.chance import random
from actprune.guidance.scores.columns import flap, standardised, wanda
from actprune.guidance.scores.fpgm import fpgm
from actprune.guidance.scores.magnitude import filter_norm, l1, l2
from actprune.guidance.scores.maps import chip, hrank
from actprune.guidance.scores.parts import Score, missing_measure, per_unit
from actprune.guidance.scores.taylor import taylor

__all__ = ["ABSOLUTE", "SCALES", "SCORES", "Score", "filter_norm", "missing_measure", "per_unit"]

SCORES: dict[str, Score] = {
    "l1": l1,
    "l2": l2,
    "fpgm": fpgm,
    "bn_scale": bn_scale,
    "random": random,
    "mean": mean,
    "std": std,
    "activation": activation,
    "apoz": apoz,
    "correlation": correlation,
    "flap": flap,
    "wanda": wanda,
    "taylor": taylor,
    "hrank": hrank,
    "chip": chip,
}

SCALES: dict[str, Score] = {"flap": standardised}
"""Criteria whose paper says how to compare units of different groups; others are divided by their group's mean."""

ABSOLUTE = ("bn_scale", "taylor")
"""Criteria whose paper ranks the units of all groups by the bare score: one scale for the whole network."""
