"""How many folds the statistics of each consumer are kept in, so that all covariances together keep to a limit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from actprune.axes.inference import Site
from actprune.stats.patches import has_rows

FOLDS = 5
WIDE = 1024
"""Consumers with more columns than this get two folds instead of five."""

_NUMBER = 8
"""Bytes of a float64."""


def folds_within(sites: Iterable[Site], tensors: Mapping[str, Tensor], folds: int, limit: int) -> dict[str, int]:
    """Name of a consumer → number of folds.

    Where the covariances take more than `limit` bytes there are two folds of every consumer, then one; then the widest
    ones are left out, whose inputs are ranked by their other consumers or by magnitude.
    """
    columns = {
        site.name: tensors[site.weight].numel() // tensors[site.weight].shape[site.out_dim]
        for site in sites
        if has_rows(site, tensors[site.weight])
    }

    def held(chosen: Mapping[str, int]) -> int:
        return sum(_NUMBER * count * columns[name] ** 2 for name, count in chosen.items())

    chosen = {name: folds if p <= WIDE else min(folds, 2) for name, p in columns.items()}
    for most in (2, 1):
        if held(chosen) > limit:
            chosen = {name: min(count, most) for name, count in chosen.items()}
    for name in sorted(columns, key=columns.__getitem__, reverse=True):
        if held(chosen) <= limit:
            break
        del chosen[name]
    return chosen
