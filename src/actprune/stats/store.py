"""Stats as named tensors and counts, and as a safetensors file of them: no pickle, any machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from actprune.errors import ArtifactError
from actprune.shards import open_weights, write_tensors
from actprune.stats.activation import Activation
from actprune.stats.moments import Few, Moments
from actprune.stats.spread import Spread
from actprune.stats.statistics import Stats

SCHEMA = "actprune.stats/1"

_COUNT = "count "
"""What the names of counts begin with in the metadata."""


@dataclass(frozen=True, eq=False)
class Flat:
    """Statistics as a file holds them.

    Attributes:
        tensors: `kind/name/part/field` → tensor, all of them float64.
        counts: `kind/name/part` → number of values behind its mean and its deviations.
        samples, measures: as in `Stats`, of the measures the names.
    """

    tensors: Mapping[str, Tensor]
    counts: Mapping[str, int]
    samples: int
    measures: tuple[str, ...]


def flat(stats: Stats, rows: bool = False) -> Flat:
    """The tensors of `stats`, not copied.

    Args:
        rows: those of moments of few rows as they are, instead of their scatter.
    """
    tensors: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def put(prefix: str, item: Moments | Spread) -> None:
        counts[prefix] = item.count
        tensors[f"{prefix}/mean"] = item.mean.contiguous()
        if rows and isinstance(item, Few):
            tensors[f"{prefix}/rows"] = item.rows.contiguous()
            return
        rest = item.scatter if isinstance(item, Moments) else item.deviations
        tensors[f"{prefix}/rest"] = rest.contiguous()

    for node, parts in stats.sites.items():
        for fold, part in enumerate(parts):
            put(f"sites/{node}/{fold}", part)
    for node, part in stats.layers.items():
        put(f"layers/{node}/0", part)
    for name, item in stats.maps.items():
        put(f"maps/{name}/0", item)
    for measure, of_groups in stats.measures.items():
        for name, item in of_groups.items():
            put(f"measures/{measure}/{name}/0", item)
    for name, unit in stats.units.items():
        put(f"units/{name}/signed", unit.signed)
        put(f"units/{name}/absolute", unit.absolute)
        for key in ("positive", "least", "most"):
            tensors[f"units/{name}/{key}"] = getattr(unit, key).contiguous()
    return Flat(tensors, counts, stats.samples, tuple(stats.measures))


def save_stats(stats: Stats, path: str | Path) -> None:
    """Write `stats`; counts are in the metadata."""
    found = flat(stats, rows=True)
    counts = {f"{_COUNT}{prefix}": str(count) for prefix, count in found.counts.items()}
    told = {"schema": SCHEMA, "samples": str(found.samples), "measures": " ".join(found.measures)}
    write_tensors(Path(path), found.tensors, {**told, **counts})


def load_stats(path: str | Path) -> Stats:
    """What `save_stats` wrote.

    Raises:
        ArtifactError: the file is missing, truncated or no statistics file.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            counts = file.metadata() or {}
        tensors = open_weights(path)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, str(error)) from error
    except ArtifactError as error:
        raise _unreadable(path, str(error.got)) from error
    if counts.get("schema") != SCHEMA:
        raise _unreadable(path, f"schema {counts.get('schema')}")
    try:
        known = {key.removeprefix(_COUNT): int(count) for key, count in counts.items() if key.startswith(_COUNT)}
        return raised(Flat(tensors, known, int(counts["samples"]), tuple(counts.get("measures", "").split())))
    except (KeyError, ValueError) as error:
        raise _unreadable(path, f"a missing or broken entry: {error}") from error


def raised(found: Flat) -> Stats:
    """The statistics that `flat` has laid flat.

    Raises:
        KeyError, ValueError: an entry is missing.
    """
    counts, tensors = found.counts, found.tensors

    def moments(prefix: str) -> Moments:
        if f"{prefix}/rows" in tensors:
            return Few(counts[prefix], tensors[f"{prefix}/mean"], tensors[f"{prefix}/rows"])
        return Moments(counts[prefix], tensors[f"{prefix}/mean"], tensors[f"{prefix}/rest"])

    def spread(prefix: str) -> Spread:
        return Spread(counts[prefix], tensors[f"{prefix}/mean"], tensors[f"{prefix}/rest"])

    def names(kind: str) -> list[str]:
        prefixes = (prefix for prefix in counts if prefix.startswith(f"{kind}/"))
        return sorted({prefix.split("/", 1)[1].rsplit("/", 1)[0] for prefix in prefixes})  # a header has no order

    def folds(node: str) -> tuple[Moments, ...]:
        count = sum(key.startswith(f"sites/{node}/") for key in counts)
        return tuple(moments(f"sites/{node}/{fold}") for fold in range(count))

    def unit(name: str) -> Activation:
        prefix = f"units/{name}"
        rest = (tensors[f"{prefix}/{key}"] for key in ("positive", "least", "most"))
        return Activation(spread(f"{prefix}/signed"), spread(f"{prefix}/absolute"), *rest)

    def measures() -> dict[str, dict[str, Spread]]:
        each: dict[str, dict[str, Spread]] = {measure: {} for measure in found.measures}
        for name in names("measures"):
            measure, group = name.split("/", 1)
            each.setdefault(measure, {})[group] = spread(f"measures/{name}/0")
        return each

    return Stats(
        sites={node: folds(node) for node in names("sites")},
        units={name: unit(name) for name in names("units")},
        layers={node: moments(f"layers/{node}/0") for node in names("layers")},
        maps={name: spread(f"maps/{name}/0") for name in names("maps")},
        samples=found.samples,
        measures=measures(),
    )


def _unreadable(path: str | Path, got: str) -> ArtifactError:
    return ArtifactError(
        "The statistics can't be read.",
        expected=f"a safetensors file of schema {SCHEMA}",
        got=got,
        where=str(path),
        hint="collect the statistics again",
    )
