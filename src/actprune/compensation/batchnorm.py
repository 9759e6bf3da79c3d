"""BatchNorm re-estimation: the running statistics of the cut network, from calibration data.

Population statistics by averaging over batches (Wu and Johnson 2021, Rethinking "Batch" in BatchNorm, §3, "precise
BN"), layer after layer in one pass, each norm seeing inputs that the re-estimated norms before it produced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from actprune.compensation.streams import Streams
from actprune.graph.program import Batch, Program, named_arguments, op_name
from actprune.stats.spread import spread


def reestimate(program: Program, batches: Sequence[Batch], overrides: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """New running means and variances for every BatchNorm whose input `overrides` change.

    A norm that sees what it saw before keeps the statistics of its training, which are better; one that is used
    twice has no right statistics for both places, and is left alone too.

    Returns:
        tensor name → new value; empty for a network without BatchNorm.
    """
    norms = {node: names for node in program.nodes if (names := running_statistics(program, node)) is not None}
    if not norms:
        return {}
    nodes = [node for node in program.nodes if node.op == "call_function"]
    streams = Streams(program, batches, nodes, overrides)
    found: dict[str, Tensor] = {}
    for node in nodes:
        source = named_arguments(node)["input"] if node in norms else None
        if source is not None and streams.differs(source):
            for name, value in zip(norms[node], _statistics(streams.cut(source)), strict=True):
                found[name] = value.to(program.tensors[name].dtype)
            streams.overrides.update(found)
        streams.step_one(node)
    return found


def running_statistics(program: Program, node: Node) -> tuple[str, str] | None:
    """The names of the running mean and variance of a BatchNorm, where no other call reads them."""
    if not op_name(node).startswith("aten.batch_norm"):
        return None
    settings = named_arguments(node)
    held = [settings[key] for key in ("running_mean", "running_var")]
    if settings["training"] is True or any(not isinstance(value, Node) or len(value.users) != 1 for value in held):
        return None
    mean, variance = (program.bindings.get(value.name) for value in held)
    return None if mean is None or variance is None else (mean, variance)


def _statistics(batches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(C,) mean and unbiased variance per channel over samples and positions, as BatchNorm keeps them."""
    total = None
    for x in batches:
        own = spread(x.transpose(0, 1).flatten(1).T)
        total = own if total is None else total.merge(own)
    if total is None:
        return torch.zeros(0), torch.zeros(0)
    return total.mean, total.deviations / max(total.count - 1, 1)
