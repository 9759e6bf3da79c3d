"""The normal equations of a consumer over all of its columns: what any support of its inputs is refitted from.

Candidates for widths differ in what they keep of one group. In front of its reader they all get the same inputs, so one
pass over the samples serves every width: the equations of a support are a part of those of all columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from actprune.axes.capture import Graph
from actprune.axes.expr import Indices, kept_indices
from actprune.axes.site import Site
from actprune.compensation.folds import folds_of
from actprune.compensation.ridge import Normal, choose_ridge, merged_all, solve
from actprune.compensation.rows import columns_of
from actprune.graph.program import Program
from actprune.mapped import alongside
from actprune.stats.moments import Moments
from actprune.stats.patches import as_weight, columns_per_input, weight_matrix


@dataclass(frozen=True)
class Slot:
    """Where a new bias goes: the consumer's own, or with opposite sign the running mean of the norm that follows."""

    name: str
    sign: float

    def put(
        self, overrides: dict[str, Tensor], program: Program, bias: Tensor, outputs: Tensor | slice = slice(None)
    ) -> None:
        """Set the bias of these outputs; what it was before, in a norm's mean too, does not count."""
        own = program.tensors[self.name].detach()
        new = overrides.get(self.name, own).double().clone(memory_format=torch.contiguous_format)
        flat, old = new.view(-1), own.double().reshape(-1)
        flat[outputs] = bias if self.sign > 0 else old[outputs] - bias
        overrides[self.name] = new.to(own.dtype)


@dataclass(eq=False)
class Equations:
    """Of one consumer, a convolution without groups or a linear layer.

    Attributes:
        site: the consumer.
        folds: normal equations of all outputs over all columns, one for each fold; a single one once λ is chosen.
        slot: where the bias goes; None where there is no place for one.
        chosen: λ, once a support was asked for.
    """

    site: Site
    folds: list[Normal]
    slot: Slot | None
    chosen: float | None = field(default=None, repr=False)

    @property
    def held(self) -> int:
        """Numbers in memory."""
        return sum(fold.inner.held.numel() + fold.outer.scatter.numel() for fold in self.folds)

    @property
    def again(self) -> Equations:
        """The same, with λ still to be chosen."""
        return Equations(self.site, list(self.folds), self.slot)

    def ridge(self, columns: Tensor, start: Tensor) -> float:
        """λ, chosen for the first support that is asked for: near ones have the same, but for noise."""
        if self.chosen is not None:
            return self.chosen
        return self.settle(choose_ridge(self.parts(columns), start, self.slot is not None))

    def parts(self, columns: Tensor) -> list[Normal]:
        """Of these columns alone, one for each fold."""
        return [part(fold, columns) for fold in self.folds]

    def settle(self, ridge: float) -> float:
        """Take this λ: the folds have served their purpose."""
        self.chosen, self.folds = ridge, [merged_all(self.folds)]
        return ridge


def numbers_of(site: Site, weight: Tensor) -> int:
    """How many numbers the equations of a consumer over all of its columns take."""
    outputs, columns = site.outputs(weight), site.columns(weight)
    return folds_of(columns) * columns * (columns + outputs)


def part(equations: Normal, columns: Tensor) -> Normal:
    """Of these columns alone."""
    outer = equations.outer
    right = None if outer.other is None else outer.other[columns]
    return Normal(
        equations.inner.part(columns),
        Moments(outer.count, outer.mean, outer.scatter[:, columns], right),
    )


def refit_from(
    graph: Graph, equations: Equations, kept: Mapping[int, Indices], base: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The consumer's weight and bias with these units of its inputs: tensor name → tensor of the dense shape.

    Args:
        base: tensors that hold before any refit; the new weight shrinks to the one in it, else to the model's own.
    """
    site, program = equations.site, graph.program
    before = base.get(site.weight, program.tensors[site.weight]).detach()
    units = torch.as_tensor(kept_indices(site.in_axis(graph.tensor_axes[site.weight]), kept), device=before.device)
    columns = columns_of(units, columns_per_input(site, before))
    full = weight_matrix(site, before).double()
    start, full = full[:, columns], torch.zeros_like(full)
    ridge = equations.ridge(columns, start)
    fit = solve(part(equations.folds[0], columns), start, ridge, equations.slot is not None)
    full[:, columns] = fit.weight
    found = {site.weight: alongside(as_weight(site, full, before), before)}
    if equations.slot is not None:
        equations.slot.put(found, program, fit.bias)
    return found
