"""What a run found, as plain data: the content of `report.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA, FRONTIER = "actprune.report/1", "actprune.frontier/1"


@dataclass(frozen=True)
class Stage:
    """One network of the run.

    Attributes:
        accuracy: the metric of `evaluate`, 0–1 where it is an accuracy; None where there is none.
        params: parameters, tied ones once.
        macs: multiply-adds per sample.
        bytes: bytes of parameters and buffers.
        latency_ms: median milliseconds of one forward pass, see `Report.latency`.
        validation: the metric on the validation split, where `accuracy` is on a test set.
    """

    accuracy: float | None
    params: int
    macs: int
    bytes: int
    latency_ms: float | None
    validation: float | None = None


CURVE_POINTS = 65
MOST_UNITS = 32_768
"""Bounds on what a report holds: points of one error curve, units of all groups together."""


@dataclass(frozen=True)
class Units:
    """Of n units, to four digits.

    Attributes:
        scores: (n,) importance, on a scale that is comparable between groups.
        mean, std: (n,) of the activation, or None where there are no statistics.
    """

    scores: Sequence[float | None]
    mean: Sequence[float | None] | None
    std: Sequence[float | None] | None


MAP_UNITS, MAP_PLACES, MOST_MAPS = 64, 32, 64
"""Bounds on heat maps: units of one, places of one, groups that have some."""


@dataclass(frozen=True)
class Correlation:
    """Of m units of a group, evenly chosen where there are more, as its first consumer sees them.

    Attributes:
        units: (m,) their numbers.
        percent: the upper triangle row by row, without the diagonal, −100 to 100.
    """

    units: Sequence[int]
    percent: Sequence[int]


@dataclass(frozen=True)
class Places:
    """Activations of some units at some places of a layer's map, to three digits.

    Attributes:
        units: (m,) their numbers.
        mean, std: (m, places) over the samples.
    """

    units: Sequence[int]
    mean: Sequence[Sequence[float]]
    std: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Sureness:
    """Would other calibration data have kept the same units? See `actprune.confidence`.

    Attributes:
        agreement, chance: shares of the kept units, 0–1.
        kept: (n,) share of the resamples in which each unit is among the best.
    """

    agreement: float
    chance: float
    kept: Sequence[float]


@dataclass(frozen=True)
class GroupRow:
    """One group: widths before and after, and why.

    Attributes:
        guide: LASSO factors β of its units at the natural width (the pruning guide), or None.
        natural: natural width, or None.
        criterion: which criterion's support won; "given" where the plan came with other units.
        error: held-out refit error as a share of the consumers' output variance, or None.
        mean, std: activation statistics averaged over the units, or None.
        curve: (k, E(k)), what keeping k units would cost on held-out data, as a share of the consumers' output variance
            (without statistics: of the total score); at most `CURVE_POINTS`, with both ends and the width that is kept.
        units: what is known of every unit; None where the report has no room for it (`MOST_UNITS`).
        correlation, places: heat maps, of the first `MOST_MAPS` groups with statistics; places only in front of a
            convolution.
        sureness: where it was asked for.
    """

    name: str
    kind: str
    before: int
    after: int
    guide: Sequence[float] | None = field(repr=False)
    natural: int | None
    criterion: str
    error: float | None
    mean: float | None = None
    std: float | None = None
    curve: Sequence[tuple[int, float | None]] = field(default=(), repr=False)
    units: Units | None = field(default=None, repr=False)
    correlation: Correlation | None = field(default=None, repr=False)
    places: Places | None = field(default=None, repr=False)
    sureness: Sureness | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Spot:
    """One run of a sweep, as `frontier.json` has it; `frontier`: whether no other run beats it."""

    keep: str
    folder: str
    accuracy: float | None
    macs: int
    frontier: bool | None


@dataclass(frozen=True)
class Sweep:
    """What the page shows of a `frontier.json`."""

    points: tuple[Spot, ...]


@dataclass(frozen=True)
class Report:
    """The record of one run; `print` shows it as a table.

    Attributes:
        dense, pruned, recovered, finetuned: the network before, after cut and compensation, after recovery without
            labels, and as it is returned after the fine-tune; None for what was not asked for.
        groups: in the order of the forward pass.
        proof: the fields of `Proof`.
        rounds: those of correction, see `actprune.allocation.correct.Round`.
        calibration: samples that were used and left over, the batch size, and by which distance outputs were compared.
        seconds: stage → time.
        notes: what a reader of the figures must know.
        latency: of what the milliseconds are: device, batch size, threads, layout.
        losses: of the fine-tune, where it is an `SGD`: (steps done, loss).
        rivals: name → the same widths cut in another way, for comparison.
        peak_bytes: the most memory that the process had held by the end; None where the system does not say.
        command: what was typed, where the run was started from the command line.
        request: SHA-256 of the settings, the weights and the data, where a run folder was asked for; a sweep knows its
            finished runs by it.
    """

    model: str
    method: str
    allocation: str
    compensation: str
    budget: str | None
    dense: Stage
    pruned: Stage
    recovered: Stage | None
    finetuned: Stage | None
    groups: tuple[GroupRow, ...]
    proof: Mapping[str, Any]
    rounds: tuple[Mapping[str, Any], ...]
    calibration: Mapping[str, Any]
    seed: int
    seconds: Mapping[str, float]
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()
    latency: Mapping[str, Any] = field(default_factory=dict[str, Any])
    losses: Sequence[tuple[int, float | None]] = ()
    rivals: Mapping[str, Stage] = field(default_factory=dict[str, Stage])
    command: str | None = None
    peak_bytes: int | None = None
    request: str | None = None

    @property
    def final(self) -> Stage:
        """The network that was returned."""
        return self.finetuned or self.recovered or self.pruned

    @property
    def stages(self) -> dict[str, Stage]:
        """Every network that was measured, by the name that readers see."""
        found = {
            "dense": self.dense,
            **{f"{name}, same widths": stage for name, stage in self.rivals.items()},
            "after cut": self.pruned,
            "after recovery": self.recovered,
            "after fine-tune": self.finetuned,
        }
        return {name: stage for name, stage in found.items() if stage is not None}

    @property
    def in_percent(self) -> bool:
        """Whether the metric is between 0 and 1 throughout, as an accuracy is."""
        return all(stage.accuracy is None or 0 <= stage.accuracy <= 1 for stage in self.stages.values())

    def to_data(self) -> dict[str, Any]:
        """JSON values, with the schema first."""
        return {"schema": SCHEMA, **asdict(self)}

    def to_json(self) -> str:
        return json.dumps(self.to_data(), indent=1, allow_nan=False, default=float)

    def __str__(self) -> str:
        from actprune.report.table import render  # rich is only needed to show it

        return render(self)
