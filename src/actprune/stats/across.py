"""`collect_across`: one pass over the calibration data by several processes, each with its own batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from actprune.data.samples import Calibration
from actprune.distributed import Ranks
from actprune.errors import DataError
from actprune.stats.statistics import Stats
from actprune.stats.store import Flat, flat, raised

SHARE, LEAST, MOST = "positive", "least", "most"
"""Fields of a unit's activation that are no mean or deviation: see `Activation`."""


def collect_across(ranks: Ranks, data: Calibration, collected: Callable[..., Stats]) -> Stats:
    """The statistics of all batches, on every rank; each rank passes over those of its shard.

    Shards are whole batches in a row, and samples keep their numbers, so that they are dealt to the same folds as by
    one process: the result is that of one process but for the rounding of float64.

    Args:
        data: all of it, the same on every rank.
        collected: `collect` of a part, to which `total` and `first` are given.

    Raises:
        DistributedError: another rank has failed, or is gone.
    """
    size = data.samples // len(data.batches)
    mine = ranks.shard(len(data.batches))
    own = ranks.together(lambda: collected(data.part(mine), total=data.samples, first=mine.start * size))
    device = next((x.device for x in data.batches[0] if isinstance(x, Tensor)), torch.device("cpu"))
    return own if ranks.world == 1 else merged_across(ranks, own, device)


def merged_across(ranks: Ranks, own: Stats, device: torch.device) -> Stats:
    """The statistics of all ranks together, on every rank; rank 0 has seen all that any of them has.

    With n, μ, S of a rank and N, M of all: N = Σ n, M = Σ n μ / N, and the scatter is Σ (S + n (μ − M)(μ − M)ᵀ)
    (Chan, Golub and LeVeque 1983), a sum of squares, so that nothing cancels.

    Args:
        device: of the activations on this rank.
    """
    part = flat(own)
    layout = ranks.from_first(lambda: _layout(part))
    ranks.together(lambda: _check_known(part, layout))
    devices = {name: device if kind == device.type else torch.device("cpu") for name, kind in layout["devices"].items()}
    counts = ranks.sum_(torch.tensor([part.samples, *(part.counts.get(name, 0) for name in layout["counts"])]))
    total = dict(zip(layout["counts"], counts[1:].tolist(), strict=True))
    tensors: dict[str, Tensor] = {}
    means = [name for name in layout["shapes"] if name.endswith(("/mean", f"/{SHARE}"))]
    for name, mean in zip(means, _means(ranks, part, layout["shapes"], means, total), strict=True):
        tensors[name] = mean.to(devices[name])
    for name, shape in layout["shapes"].items():
        held, where = part.tensors.get(name), devices[name]
        if name.endswith("/rest"):
            tensors[name] = ranks.sum_(_about(part, name.removesuffix("/rest"), tensors, shape, where))
        elif name.endswith(f"/{LEAST}"):
            tensors[name] = ranks.least_(_filled(shape, torch.inf, where) if held is None else held.clone())
        elif name.endswith(f"/{MOST}"):
            tensors[name] = ranks.most_(_filled(shape, -torch.inf, where) if held is None else held.clone())
    return raised(Flat(tensors, total, int(counts[0]), part.measures))


def _layout(part: Flat) -> dict[str, Any]:
    """Names, shapes and kinds of devices of all that is merged: a rank without a batch knows none of them."""
    shapes = {name: list(tensor.shape) for name, tensor in part.tensors.items()}
    devices = {name: tensor.device.type for name, tensor in part.tensors.items()}
    return {"shapes": shapes, "devices": devices, "counts": list(part.counts)}


def _check_known(part: Flat, layout: Mapping[str, Any]) -> None:
    shapes = layout["shapes"]
    for name, tensor in part.tensors.items():
        if shapes.get(name) != list(tensor.shape):
            raise DataError(
                "The statistics of two processes can't be merged.",
                expected=f"{name} of shape {shapes.get(name)}, as rank 0 has it",
                got=f"shape {list(tensor.shape)}",
                where="collect_across",
                hint="give every process the same memory_limit, model and data",
            )


def _means(
    ranks: Ranks, part: Flat, shapes: Mapping[str, list[int]], names: list[str], total: Mapping[str, int]
) -> Iterator[Tensor]:
    """The means of all samples, by one all-reduce of them all."""
    pieces = [
        (part.tensors[name].cpu() * part.counts[_counted(name)]).flatten()
        if name in part.tensors
        else torch.zeros(shapes[name], dtype=torch.float64).flatten()
        for name in names
    ]
    sums = ranks.sum_(torch.cat(pieces)) if pieces else torch.empty(0)
    for name, piece in zip(names, sums.split([len(piece) for piece in pieces]), strict=True):
        yield (piece / max(total[_counted(name)], 1)).reshape(shapes[name])


def _counted(name: str) -> str:
    """The prefix whose count says how many values are behind a mean."""
    prefix, _, kind = name.rpartition("/")
    return f"{prefix}/signed" if kind == SHARE else prefix


def _about(part: Flat, prefix: str, means: Mapping[str, Tensor], shape: list[int], device: torch.device) -> Tensor:
    """This rank's deviations from the mean of all: a scatter (p, p), or squares in the shape of the mean."""
    held = part.tensors.get(f"{prefix}/rest")
    if held is None:
        return torch.zeros(shape, dtype=torch.float64, device=device)
    mean = means[f"{prefix}/mean"]
    delta = part.tensors[f"{prefix}/mean"] - mean
    return held + part.counts[prefix] * (torch.outer(delta, delta) if held.dim() > mean.dim() else delta**2)


def _filled(shape: list[int], value: float, device: torch.device) -> Tensor:
    return torch.full(shape, value, dtype=torch.float64, device=device)
