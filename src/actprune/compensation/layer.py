"""The refit of one consumer: a linear layer or a convolution, group by group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.expr import kept_indices
from actprune.axes.site import Site
from actprune.compensation.aim import Aim
from actprune.compensation.batchnorm import running_statistics
from actprune.compensation.equations import Equations, Slot, part
from actprune.compensation.own import has_plain_bias
from actprune.compensation.rectified import rectified_fit
from actprune.compensation.ridge import Normal, Ridge, choose_ridge, merged_all, usual_ridge
from actprune.compensation.ridge_map import ridge_map
from actprune.compensation.rows import InputRows, columns_of, contracted, rows_there, stride_of, thinned_there
from actprune.compensation.schedule import Path
from actprune.compensation.state import State
from actprune.mapped import alongside
from actprune.stats.moments import Moments
from actprune.stats.padding import along, counted
from actprune.stats.patches import (
    as_weight,
    columns_per_input,
    has_grouped_rows,
    has_rows,
    most_rows,
    output_rows,
    weight_matrix,
)

SOLVED = 1 << 24
"""Weights that are solved for at once: a vocabulary has many outputs."""


def slot_of(state: State, site: Site, node: Node, path: Path) -> Slot | None:
    """Where the bias of a layer is; None where there is no place for one."""
    program = state.graph.program
    if site.bias is not None:
        return Slot(site.bias, 1.0) if has_plain_bias(program, site) and state.owns(site.bias, node) else None
    names = running_statistics(program, path.norm) if path.norm is not None else None
    return None if names is None or not state.owns(names[0], path.norm) else Slot(names[0], -1.0)


@dataclass(frozen=True, eq=False)
class Layer:
    """A consumer that the dense stream has run and the cut one has not.

    Attributes:
        path: what becomes of its output.
    """

    state: State
    site: Site
    node: Node
    path: Path

    def refit(self) -> None:
        """Put the new weight and bias among the overrides of the streams."""
        state, site, weight = self.state, self.site, self._weight
        if state.settings.method == "ridge_map":
            inputs = self._cut_inputs()
            found, state.record[site.node] = ridge_map(state.graph, site, inputs, state.kept)
            if found is not None:
                state.overrides[site.weight] = found
            return
        grouped = site.weight in state.zeroed and has_grouped_rows(site, weight)  # a depthwise one never loses columns
        if state.settings.method == "bias":
            self._replace_with_means()
            return
        if not (grouped or has_rows(site, weight)):
            self._restore_mean()
            return
        for group in range(site.groups):
            self._fit(group)

    def _cut_inputs(self) -> list[Tensor]:
        """What the layer gets in the cut network; of a batch with padding what counts, as positions of one sample."""
        state, source, found = self.state, contracted(self.node), list[Tensor]()
        for x, batch in zip(state.streams.cut(source), state.streams.batches, strict=True):
            units = 1 if "conv" in self.site.kind else x.dim() - 1
            there = along(state.padding.of(source.name, batch), x, units)
            if there is not None:
                rows = x.movedim(units, -1)[there.squeeze(units)][None]
                x = rows.transpose(1, 2) if "conv" in self.site.kind else rows
            found.append(x)
        return found

    @cached_property
    def _there(self) -> list[Tensor | None]:
        return rows_there(self.state.padding, self.state.streams, self.site, self.node)

    @property
    def _weight(self) -> Tensor:
        return self.state.tensor(self.site.weight)

    @cached_property
    def _slot(self) -> Slot | None:
        return slot_of(self.state, self.site, self.node, self.path)

    @cached_property
    def _strays(self) -> bool:
        """Whether both networks give it rows of different tokens: then it is fitted within the dense one."""
        return self.state.strays(contracted(self.node))

    @cached_property
    def _aim(self) -> Aim:
        path = self.path
        if self._strays:
            path = replace(path, partner=None, rectified=path.rectified and path.partner is None)
        return Aim(self.state.streams, self.site, self.node, path, self.state.sparing)

    def _fit(self, group: int) -> None:
        """Refit the outputs of one group of a convolution; all outputs of any other layer."""
        state, site, node, weight, slot = self.state, self.site, self.node, self._weight, self._slot
        full = weight_matrix(site, state.overrides.get(site.weight, weight)).clone()
        units, outputs, each = self._units(), self._outputs(), columns_per_input(site, weight)
        columns = columns_of(units, each)
        outputs = outputs[outputs * site.groups // len(full) == group]
        if not len(outputs):
            return
        collects = state.collects(site)
        seen = torch.arange(site.inputs(weight), device=weight.device) if collects else units
        stride = self._stride(len(seen) * each)
        rows, targets = self._rows(seen, stride, group), self._targets(outputs, stride)
        folds = state.dealer(rows, targets, len(seen) * each)
        if not folds:
            return  # no sample came by

        def start() -> Tensor:
            return full[outputs][:, columns].double()

        key = site.node, group, len(columns).bit_length()  # widths near each other
        if collects:
            found = state.equations[site.weight] = Equations(site, folds, slot)
            if len(columns) == full.shape[1] and not state.streams.differs(contracted(node)):
                return  # the dense consumer on the dense inputs: there is nothing to refit yet
            size = self._ridge(key, lambda: found.parts(columns), start)
            found.settle(size)
            equations = part(found.folds[0], columns)
        else:
            size, equations = self._ridge(key, lambda: folds, start), merged_all(folds)
        ridge = Ridge(equations.inner, size, slot is not None)
        if self._aim.path.rectified and state.settings.rounds and not collects:
            wanted = self._aim.rectified(targets, stride, outputs, rows.there)
            fit = ridge.fit(equations.outer, start())
            fit = rectified_fit(rows, wanted, ridge, fit, start(), state.settings.rounds)
            full[outputs[:, None], columns], bias = fit.weight.to(full.dtype), fit.bias
        else:
            bias = _solved(ridge, equations.outer, full, outputs, columns)
        state.overrides[site.weight] = alongside(as_weight(site, full, weight), weight)
        if slot is not None:
            slot.put(state.overrides, state.graph.program, bias, outputs)
        state.record[site.node] = {
            "module": site.module, "ridge": size, "rows": equations.inner.count, "columns": len(columns),
        }  # fmt: skip

    def _rows(self, units: Tensor, stride: int, group: int) -> InputRows:
        """What these of its channels get in the network that it is fitted in."""
        streams, source = self.state.streams, contracted(self.node)
        inputs, there = streams.dense(source) if self._strays else streams.cut(source), self._there
        return InputRows(inputs, self.site, self.node, self._weight, units, stride, group, thinned_there(there, stride))

    def _targets(self, outputs: Tensor, stride: int) -> Sequence[Tensor]:
        """What these outputs are to be, see `Aim.targets`."""
        made = self._aim.targets(None if self._slot is not None else self._bias(), stride)
        every = torch.equal(outputs, torch.arange(self.site.outputs(self._weight), device=outputs.device))
        return made if every else self._aim.of_batches(lambda i: made[i][..., outputs])

    def _ridge(
        self, key: tuple[str, int, int], folds: Callable[[], Sequence[Normal]], start: Callable[[], Tensor]
    ) -> float:
        known = self.state.ridges
        if key not in known:
            dealt = folds()
            several = len(dealt) > 1
            known[key] = choose_ridge(dealt, start(), self._slot is not None) if several else usual_ridge()
        return known[key]

    def _units(self) -> Tensor:
        """The input channels that stay."""
        kept = kept_indices(self.site.in_axis(self.state.graph.tensor_axes[self.site.weight]), self.state.kept)
        return torch.as_tensor(kept, device=self._weight.device)

    def _outputs(self) -> Tensor:
        """The rows of the weight matrix that stay: what is cut itself needs no fit, unless it may come back."""
        site, weight = self.site, self._weight
        if self.state.settings.collects:
            return torch.arange(site.outputs(weight), device=weight.device)
        kept = kept_indices(site.out_axis(self.state.graph.tensor_axes[site.weight]), self.state.kept)
        return torch.as_tensor(kept, device=weight.device)

    def _stride(self, columns: int) -> int:
        """Every how many-th position of a map is used."""
        streams, wanted = self.state.streams, most_rows(columns, self.state.settings.rows)
        return stride_of(self.site, streams.output(self.node, 0), self._there, wanted)

    def _bias(self) -> Tensor | None:
        """(o,) the bias, as it is now."""
        return None if self.site.bias is None else self.state.streams.tensor(self.site.bias).reshape(-1)

    def _replace_with_means(self) -> None:
        """The mean of the dense network's inputs in place of those that go (FLAP: An et al. 2024, eq. 6)."""
        streams = self.state.streams

        def lost(i: int) -> Tensor:
            apart = streams.output(self.node, i) - streams.on_dense(self.node, i)
            return output_rows(self.site, apart)

        self._shift(lost)

    def _restore_mean(self) -> None:
        """The mean of each output as it is in the dense network, where nothing else can be fitted."""
        if self._strays:
            self._leave("is given other rows by the cut network")
            return
        streams, targets = self.state.streams, self._aim.targets(None)
        streams.step_cut(self.node)
        cut = streams.cut(self.node)
        self._shift(lambda i: targets[i] - output_rows(self.site, cut[i]))

    def _shift(self, apart: Callable[[int], Tensor]) -> None:
        """Add to the bias the mean of what the outputs of batch i lack."""
        state, slot = self.state, self._slot
        if slot is None:
            self._leave("has no bias of its own, nor a BatchNorm behind it")
            return
        total, count = torch.zeros((), dtype=torch.float64, device=self._weight.device), 0
        for i, there in enumerate(self._there):
            rows = counted(apart(i), there).double().flatten(0, -2)
            total, count = total + rows.sum(0), count + len(rows)
        if not count:
            self._leave("is given padding alone")
            return
        now = self._bias()
        slot.put(state.overrides, state.graph.program, total / count + (0.0 if now is None else now.double()))
        state.record[self.site.node] = {"module": self.site.module, "bias": True}

    def _leave(self, why: str) -> None:
        self.state.record[self.site.node] = {"module": self.site.module, "left": why}


def _solved(ridge: Ridge, outer: Moments, full: Tensor, outputs: Tensor, columns: Tensor) -> Tensor:
    """Put the fit of these outputs into `full`, some outputs at a time, and give back their biases."""
    biases: list[Tensor] = []
    at_once = max(SOLVED // max(len(columns), 1), 1)
    for rows in torch.arange(len(outputs), device=outputs.device).split(at_once):
        own = outputs[rows]
        whole = len(rows) == len(outputs)
        some = outer if whole else replace(outer, mean=outer.mean[rows], scatter=outer.scatter[rows])
        fit = ridge.fit(some, full[own][:, columns].double())
        full[own[:, None], columns] = fit.weight.to(full.dtype)
        biases.append(fit.bias)
    return torch.cat(biases)
