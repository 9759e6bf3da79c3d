"""`Stats`: what one pass over the calibration data leaves, or several passes together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from actprune.errors import DataError
from actprune.stats.activation import Activation
from actprune.stats.moments import Moments, merge, merge_all
from actprune.stats.spread import Spread

Kept = TypeVar("Kept")


@dataclass(frozen=True, eq=False)
class Stats:
    """Activation statistics of a captured model. Mergeable: `merge_stats(a, b)` equals one pass over both.

    Attributes:
        sites: name of a consumer (`Site.name`) → moments of its input rows, one per fold.
        units: group name → activation values of its units.
        layers: call of a consumer (`Site.node`) → moments of (mean input, mean output) per sample, for the seed's own
            correlation of a layer's input with its output.
        maps: group name → mean and deviations at each place of the layer's map (n, positions), where its
            consumer is a convolution.
        samples: number of samples seen.
        measures: name of a measure → group name → its values per unit (n,), one per sample or batch ("fisher": name of
            a consumer → per output); only those that were asked for, see `actprune.stats.measures`.
    """

    sites: Mapping[str, tuple[Moments, ...]] = field(repr=False)
    units: Mapping[str, Activation] = field(repr=False)
    layers: Mapping[str, Moments] = field(repr=False)
    maps: Mapping[str, Spread] = field(repr=False)
    samples: int
    measures: Mapping[str, Mapping[str, Spread]] = field(default_factory=dict[str, "dict[str, Spread]"], repr=False)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file that `Stats.load` reads."""
        from actprune.stats.store import save_stats  # it needs this class

        save_stats(self, path)

    @staticmethod
    def load(path: str | Path) -> Stats:
        """Read what `save` wrote; `ArtifactError` where it can't be."""
        from actprune.stats.store import load_stats

        return load_stats(path)

    def merge(self, other: Stats) -> Stats:
        """The statistics of both sets of samples together."""
        return merge_stats(self, other)

    def moments(self, node: str) -> Moments:
        """All folds of a consumer together."""
        return merge_all(self._folds(node))

    def columns(self, node: str) -> Spread:
        """(p,) the input columns of a consumer, each for itself: no matrix is merged for them."""
        return reduce(Spread.merge, (fold.entries for fold in self._folds(node)))

    def correlation(self, node: str, columns: Tensor | None = None) -> Tensor:
        """(p, p) correlation between the input columns of a consumer, or (k, k) between these of them; zero where a
        column is constant. (`actprune.guidance.patterns.correlation` has those of the units of a group.)

        Raises:
            DataError: no consumer has this name.
        """
        folds = self._folds(node)
        found = merge_all(folds if columns is None else (fold.part(columns.to(fold.mean.device)) for fold in folds))
        covariance = found.covariance
        scale = torch.where(found.varies, covariance.diagonal().rsqrt(), 0.0)
        return covariance * scale[:, None] * scale[None, :]

    def input_output_correlation(self, node: str) -> float:
        """The seed's correlation: a layer's mean input against its mean output, over the samples.

        Raises:
            DataError: no consumer has this name.
        """
        c = _of(self.layers, node).covariance
        scale = float((c[0, 0] * c[1, 1]).clamp_min(0).sqrt())
        return float(c[0, 1]) / scale if scale > 0 else 0.0

    def _folds(self, node: str) -> tuple[Moments, ...]:
        return _of(self.sites, node)


def _of(known: Mapping[str, Kept], node: str) -> Kept:
    """Groups have names of modules, consumers those of calls, for a module may be called twice."""
    if node not in known:
        raise DataError(
            "No layer whose input was measured has this name.",
            expected=", ".join(known),
            got=node,
            where="Stats",
            hint="a layer that reads group 'conv1' is graph['conv1'].consumers[0].node",
        )
    return known[node]


def merge_stats(a: Stats, b: Stats) -> Stats:
    """The statistics of both sets of samples together.

    Raises:
        DataError: they are not of the same capture and number of folds.
    """
    _check_same_form(a, b)
    return Stats(
        sites={node: tuple(map(merge, a.sites[node], b.sites[node])) for node in a.sites},
        units={name: a.units[name].merge(b.units[name]) for name in a.units},
        layers={node: merge(a.layers[node], b.layers[node]) for node in a.layers},
        maps={name: a.maps[name].merge(b.maps[name]) for name in a.maps},
        samples=a.samples + b.samples,
        measures={
            measure: {name: own.merge(b.measures[measure][name]) for name, own in of_groups.items()}
            for measure, of_groups in a.measures.items()
        },
    )


def _check_same_form(a: Stats, b: Stats) -> None:
    """Silently leaving out a fold or a consumer would bias every later choice."""
    first, second = ({node: (len(s.sites[node]), s.sites[node][0].mean.numel()) for node in s.sites} for s in (a, b))
    differing = sorted(node for node in first.keys() | second.keys() if first.get(node) != second.get(node))
    taken, others = ({(m, name) for m in s.measures for name in s.measures[m]} for s in (a, b))
    if differing or a.units.keys() != b.units.keys() or taken != others:
        node = differing[0] if differing else ""
        raise DataError(
            "The statistics can't be merged.",
            expected=f"the same consumers and groups, with (folds, columns) = {first.get(node, 'none')}",
            got=str(second.get(node, "none")) if node else "other groups or measures",
            where=f"merge_stats, {node or 'groups'}",
            hint="collect both with the same model, example inputs, folds=, measures= and memory_limit=",
        )
