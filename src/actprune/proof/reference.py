"""The two sides of the proof: the dense graph under a plan, and redrawn weights for both."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.graph.program import Program, named_arguments, op_name
from actprune.mapped import alongside, let_go
from actprune.plan import Plan
from actprune.rewrite import Rewrite, zero_columns
from actprune.surgery.tensors import sliced

_RESOLUTION = 1e-3
"""Keeps redrawn tensors that were positive throughout away from zero."""


def redrawn(program: Program, base: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Every float tensor of the model plus noise, so that no gain is zero and no fault can hide behind one.

    The noise is normal with a tenth of the tensor's standard deviation (0.1 where it is constant); variances,
    and tensors that were positive throughout, stay so. Integers and booleans are left alone.

    Args:
        base: tensor name → what to redraw instead of the model's own tensor.
    """
    generator = torch.Generator().manual_seed(seed)
    variances, saved = _variances(program), program.persistent | program.statistics
    drawn: dict[str, Tensor] = {}
    for name, own in program.tensors.items():
        tensor = base.get(name, own).detach().cpu()
        dense = tensor.layout == torch.strided  # where a sparse one has entries is not drawn anew
        if dense and name in saved and (tensor.is_floating_point() or tensor.is_complex()):
            drawn[name] = alongside(_noisy(tensor, generator, name in variances), tensor)
            let_go((tensor, drawn[name]))
    return drawn


def pruned_reference(graph: Graph, plan: Plan, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Overrides of the dense graph that compute what the cut network must compute with `tensors`."""
    return {**tensors, **zero_columns(graph, plan, Rewrite(tensors), lifted=True)}


def cut_tensors(
    plan: Plan, dense: Program, cut: Program, tensors: Mapping[str, Tensor], base: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The cut program's own tensors, moved as `tensors` (by dense names, dense-shaped) moves the dense ones.

    Moved, not replaced: a wrong value in a tensor of the cut model is then still there.

    Args:
        base: tensor name → what the cut model was sliced from, where that isn't the dense model's own tensor.
    """
    canonical = {alias: name for name, aliases in dense.aliases.items() for alias in aliases}
    found: dict[str, Tensor] = {}
    for name, own in cut.tensors.items():
        source = canonical.get(name, name)
        if source in tensors:
            dense_own = base.get(source, dense.tensors[source]).detach().cpu()
            indices = plan.indices(source)
            new, old = sliced(tensors[source], indices), sliced(dense_own, indices)
            found[name] = alongside(_moved(own.detach().cpu(), new, old), own, dense_own)
            let_go((tensors[source], dense_own, own, found[name]))
    return found


def _moved(own: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """own + new − old, where these differ (inf − inf moves nothing), some rows at a time."""
    parts = [
        (_wide(o) + torch.where(n == p, 0, _wide(n) - _wide(p))).to(own.dtype)
        for o, n, p in zip(*(_pieces(t) for t in (own, new, old)), strict=True)
    ]
    return torch.cat(parts).view(own.shape) if parts else own.clone()


def _noisy(tensor: Tensor, generator: torch.Generator, variance: bool) -> Tensor:
    pieces = _pieces(tensor)
    counts, sums = 0, 0.0
    for piece in pieces:
        finite = _finite(piece)
        counts, sums = counts + finite.numel(), sums + complex(finite.sum())
    mean = sums / max(counts, 1)
    squares = sum(float((_finite(piece) - mean).abs().pow(2).sum()) for piece in pieces)
    spread = (squares / (counts - 1)) ** 0.5 if counts > 1 else 0.0
    real = not tensor.is_complex() and tensor.numel() > 0
    positive = real and (variance or (float(tensor.min()) >= 0 and float(tensor.max()) > 0))
    found: list[Tensor] = []
    for piece in pieces:
        values = _wide(piece)
        noise = torch.randn(values.shape, generator=generator, dtype=values.dtype)
        new = values + (0.1 * spread if spread > 0 else 0.1) * noise
        found.append((new.abs() + _RESOLUTION if positive else new).to(tensor.dtype))
    return torch.cat(found).view(tensor.shape) if found else tensor.clone()


def _finite(piece: Tensor) -> Tensor:
    values = _wide(piece)
    return values[values.isfinite()]  # bounds may be infinite, and stay so


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """Some values at a time: in float64 a table of a vocabulary would be most of the memory."""
    return tensor.reshape(-1).split(_AT_ONCE) if tensor.numel() else ()


_AT_ONCE = 1 << 22
"""Numbers."""


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _variances(program: Program) -> set[str]:
    """The running variances of the program's norms."""
    norms = [node for node in program.nodes if op_name(node).startswith(("aten.batch_norm", "aten.instance_norm"))]
    held = [named_arguments(node).get("running_var") for node in norms]
    return {program.bindings[node.name] for node in held if isinstance(node, Node) and node.name in program.bindings}
