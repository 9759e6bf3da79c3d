"""Stats as a safetensors file: no pickle, any machine."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from actprune.errors import ArtifactError
from actprune.stats.collect import Activation, Stats
from actprune.stats.moments import Moments, Spread

SCHEMA = "actprune.stats/1"


def save_stats(stats: Stats, path: str | Path) -> None:
    """Write `stats`; every moment is an entry `kind/name/part/field`, counts are in the metadata."""
    tensors: dict[str, Tensor] = {}
    counts: dict[str, str] = {"schema": SCHEMA, "samples": str(stats.samples), "measures": " ".join(stats.measures)}

    def put(prefix: str, item: Moments | Spread) -> None:
        counts[f"count {prefix}"] = str(item.count)
        tensors[f"{prefix}/mean"] = item.mean.contiguous()
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
    save_file(tensors, str(path), metadata=counts)


def load_stats(path: str | Path) -> Stats:
    """What `save_stats` wrote.

    Raises:
        ArtifactError: the file is missing, truncated or no statistics file.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            counts = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, str(error)) from error
    if counts.get("schema") != SCHEMA:
        raise _unreadable(path, f"schema {counts.get('schema')}")

    def moments(prefix: str) -> Moments:
        return Moments(int(counts[f"count {prefix}"]), tensors[f"{prefix}/mean"], tensors[f"{prefix}/rest"])

    def spread(prefix: str) -> Spread:
        return Spread(int(counts[f"count {prefix}"]), tensors[f"{prefix}/mean"], tensors[f"{prefix}/rest"])

    def names(kind: str) -> list[str]:
        prefixes = (key.removeprefix("count ") for key in counts if key.startswith(f"count {kind}/"))
        return sorted({prefix.split("/", 1)[1].rsplit("/", 1)[0] for prefix in prefixes})  # a header has no order

    def folds(node: str) -> tuple[Moments, ...]:
        count = sum(key.startswith(f"count sites/{node}/") for key in counts)
        return tuple(moments(f"sites/{node}/{fold}") for fold in range(count))

    def unit(name: str) -> Activation:
        prefix = f"units/{name}"
        rest = (tensors[f"{prefix}/{key}"] for key in ("positive", "least", "most"))
        return Activation(spread(f"{prefix}/signed"), spread(f"{prefix}/absolute"), *rest)

    def measures() -> dict[str, dict[str, Spread]]:
        found: dict[str, dict[str, Spread]] = {measure: {} for measure in counts.get("measures", "").split()}
        for name in names("measures"):
            measure, group = name.split("/", 1)
            found.setdefault(measure, {})[group] = spread(f"measures/{name}/0")
        return found

    try:
        return Stats(
            sites={node: folds(node) for node in names("sites")},
            units={name: unit(name) for name in names("units")},
            layers={node: moments(f"layers/{node}/0") for node in names("layers")},
            maps={name: spread(f"maps/{name}/0") for name in names("maps")},
            samples=int(counts["samples"]),
            measures=measures(),
        )
    except (KeyError, ValueError) as error:
        raise _unreadable(path, f"a missing or broken entry: {error}") from error


def _unreadable(path: str | Path, got: str) -> ArtifactError:
    return ArtifactError(
        "The statistics can't be read.",
        expected=f"a safetensors file of schema {SCHEMA}",
        got=got,
        where=str(path),
        hint="collect the statistics again",
    )
