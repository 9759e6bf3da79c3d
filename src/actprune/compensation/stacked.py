"""The refit of a product with several matrices at once: one least-squares problem for each of them.

Where the rows are sorted by matrix, as those of experts, both networks may sort them otherwise; then the inputs are the
dense network's too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.expr import kept_indices
from actprune.axes.site import Site
from actprune.compensation.folds import Dealer
from actprune.compensation.ridge import choose_ridge, merged_all, solve, usual_ridge
from actprune.compensation.rows import places_of
from actprune.compensation.state import State
from actprune.mapped import alongside
from actprune.stats.moments import Centred, centred
from actprune.stats.padding import counted
from actprune.stats.patches import ROWS, has_stacked_rows, most_rows
from actprune.stats.stacked import given_rows, made_rows, matrices, name_of, operands_of, stacked_form, with_matrices


def refit_stacked(state: State, site: Site, node: Node) -> dict[str, dict[str, Any]]:
    """Refit the matrices of a call that the dense stream has run, where they lose columns or get other inputs; the
    overrides of the streams change.

    Returns:
        name of a matrix → what was done.
    """
    form = stacked_form(site)
    source = next(value for value in node.all_input_nodes if value.name == form.source)
    differs = state.settings.everything and not form.ends and state.streams.differs(source)
    wanted = (differs or site.weight in state.zeroed) and has_stacked_rows(site, state.tensor(site.weight))
    return _Stacked(state, site, node).refit() if wanted and state.owns(site.weight, node) else {}


@dataclass(frozen=True, eq=False)
class _Stacked:
    """One such call in both networks."""

    state: State
    site: Site
    node: Node

    def refit(self) -> dict[str, dict[str, Any]]:
        """Put the new weight, and the bias behind it, among the overrides; what was done, by matrix."""
        state, streams, site = self.state, self.state.streams, self.site
        weight, axes = state.tensor(site.weight), state.graph.tensor_axes[site.weight]
        columns, outputs = (
            torch.as_tensor(kept_indices(axis, state.kept), device=weight.device)
            for axis in (site.in_axis(axes), site.out_axis(axes))
        )
        full = matrices(site, streams.overrides.get(site.weight, weight)).clone()
        added, dealer = self._added(full), Dealer()
        bias = None if added is None else streams.tensor(added[0]).double().clone(memory_format=torch.contiguous_format)
        record, quick = dict[str, dict[str, Any]](), state.settings.rows < ROWS
        for number in range(len(full) if len(outputs) else 0):
            targets = [self._made(i, number)[..., outputs] for i in range(streams.count)]
            positions, count = max(t.shape[1] for t in targets), sum(t.shape[0] * t.shape[1] for t in targets)
            stride = max(1, min(count // most_rows(len(columns), state.settings.rows), positions))
            rows = _Rows(self, number, columns, stride, [self._there(i, number, stride) for i in range(streams.count)])
            folds = dealer(rows, [t[:, places_of(i, stride)] for i, t in enumerate(targets)], len(columns))
            if not folds:
                continue  # no sample came by
            start = full[number][outputs][:, columns].double()
            size = usual_ridge() if quick else choose_ridge(folds, start, bias is not None)
            every = merged_all(folds)
            fit = solve(every, start, size, bias is not None)
            full[number][outputs[:, None], columns] = fit.weight.to(full.dtype)
            if bias is not None and added is not None:
                bias.view(-1)[added[1][number][outputs]] += fit.bias
            record[name_of(site, number)] = {
                "module": site.module, "ridge": size, "rows": every.inner.count, "columns": len(columns),
            }  # fmt: skip
        streams.overrides[site.weight] = alongside(with_matrices(site, full, weight), weight)
        if bias is not None and added is not None:
            streams.overrides[added[0]] = bias.to(state.tensor(added[0]).dtype)
        return record

    def given(self, i: int, number: int) -> Tensor:
        """(n, positions, inputs) of batch i, in the network that is cut."""
        x, ends = self._operands(i, cut=not stacked_form(self.site).ends)
        return given_rows(self.site, self.state.tensor(self.site.weight), x, number, ends)

    def _made(self, i: int, number: int) -> Tensor:
        """(n, positions, outputs) of batch i, in the dense one."""
        made, ends = self.state.streams.output(self.node, i), self._operands(i, cut=False)[1]
        return made_rows(self.site, self.state.tensor(self.site.weight), made, number, ends)

    def _there(self, i: int, number: int, stride: int) -> Tensor | None:
        """(n, positions) which of these count; None: all."""
        state, x = self.state, self._operands(i, cut=False)[0]
        there = state.padding.given(self.site, x, state.streams.batches[i])
        if there is None:
            return None
        return given_rows(self.site, state.tensor(self.site.weight), there, number, None)[:, places_of(i, stride), 0]

    def _operands(self, i: int, cut: bool) -> tuple[Tensor, Tensor | None]:
        return operands_of(self.site, self.node, self.state.streams.given(self.node, i, cut)[0])

    def _added(self, full: Tensor) -> tuple[str, Tensor] | None:
        """The bias behind the product, and (matrices, outputs) which of its entries each output has; None without one
        that may change."""
        found = stacked_form(self.site).bias
        if found is None or not self.state.owns(found[0], next(iter(self.node.users))):
            return None
        name, dims = found
        held = self.state.tensor(name)
        rest = [d for d in range(held.dim()) if d not in dims]
        return name, torch.arange(held.numel(), device=held.device).view(held.shape).permute(*dims, *rest).reshape(
            full.shape[:2]
        )


@dataclass(frozen=True, eq=False)
class _Rows:
    """The inputs of one matrix, batch by batch: what a `Dealer` deals to folds."""

    product: _Stacked
    number: int
    units: Tensor
    stride: int
    there: Sequence[Tensor | None]

    @property
    def site(self) -> Site:
        return self.product.site

    def __call__(self) -> Iterator[Centred]:
        for i in range(self.product.state.streams.count):
            rows = self.product.given(i, self.number)[:, places_of(i, self.stride)][..., self.units]
            yield centred(counted(rows, self.there[i]))
