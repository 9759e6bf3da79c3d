"""The two sides of the proof: the dense graph under a plan, and redrawn weights for both."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from actprune.axes.capture import Graph
from actprune.graph.program import Program
from actprune.plan import Plan
from actprune.rewrite import Rewrite, zero_columns
from actprune.surgery.slicing import sliced


def redrawn(program: Program, base: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Every float tensor of the model plus noise, so that no gain is zero and no fault can hide behind one.

    The noise is normal with a tenth of the tensor's standard deviation (0.1 where it is constant); a tensor
    that was positive throughout, such as a variance, stays so. Integers and booleans are left alone.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, Tensor] = {}
    for name, own in program.tensors.items():
        tensor = base.get(name, own).detach().cpu()
        if not tensor.is_floating_point() or name not in program.persistent | program.parameters:
            continue
        values = tensor.double()
        spread = float(values.std()) if values.numel() > 1 else 0.0
        noise = torch.randn(values.shape, generator=generator, dtype=torch.float64)
        new = values + (0.1 * spread if spread > 0 else 0.1) * noise
        if values.numel() and float(values.min()) >= 0 and float(values.max()) > 0:
            new = new.abs() + 1e-3
        drawn[name] = new.to(tensor.dtype)
    return drawn


def pruned_reference(graph: Graph, plan: Plan, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Overrides of the dense graph that compute what the cut network must compute with `tensors`."""
    return {**tensors, **zero_columns(graph, plan, Rewrite(tensors))}


def cut_tensors(plan: Plan, dense: Program, cut: Program, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` (dense-shaped, by dense names) sliced for the cut program, by its names."""
    canonical = {alias: name for name, aliases in dense.aliases.items() for alias in aliases}
    found: dict[str, Tensor] = {}
    for name in cut.tensors:
        source = canonical.get(name)
        if source in tensors:
            found[name] = sliced(tensors[source], plan.indices(source))
    return found
