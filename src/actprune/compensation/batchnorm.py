"""BatchNorm re-estimation: the running statistics of the cut network, from calibration data.

Population statistics by averaging over batches (Wu and Johnson 2021, Rethinking "Batch" in BatchNorm, §3, "precise BN"), layer
after layer in one pass, each norm seeing inputs that the re-estimated norms before it produced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.inference import _by_name
from actprune.compensation.streams import Streams
from actprune.graph.program import Batch, Program, op_name
from actprune.stats.moments import spread


def reestimate(program: Program, batches: Sequence[Batch], overrides: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """New running means and variances for every BatchNorm that keeps such, under `overrides`.

    Returns:
        tensor name → new value; empty for a network without BatchNorm.
    """
    norms = [node for node in program.nodes if op_name(node).startswith("aten.batch_norm")]
    if not norms:
        return {}
    nodes = [node for node in program.nodes if node.op == "call_function"]
    streams = Streams(program, batches, nodes)
    streams.overrides = dict(overrides)
    found: dict[str, Tensor] = {}
    for node in nodes:
        if node in norms:
            settings = _by_name(node)
            names = [_name(program, settings[key]) for key in ("running_mean", "running_var")]
            if None not in names:
                mean, variance = _statistics(streams.cut(settings["input"]))
                for name, value in zip(names, (mean, variance), strict=True):
                    own = program.tensors[str(name)]
                    found[str(name)] = value.to(own.dtype)
                streams.overrides.update(found)
        streams.step(node)
    return found


def _statistics(batches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(C,) mean and unbiased variance per channel over samples and positions, as BatchNorm keeps them."""
    total = None
    for x in batches:
        own = spread(x.transpose(0, 1).flatten(1).T)
        total = own if total is None else total.merge(own)
    if total is None:
        return torch.zeros(0), torch.zeros(0)
    return total.mean, total.deviations / max(total.count - 1, 1)


def _name(program: Program, value: object) -> str | None:
    return program.bindings.get(value.name) if isinstance(value, Node) else None
