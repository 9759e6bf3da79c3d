"""The observer of one pass: what it takes from every call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, prod
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.axes.expr import positions
from actprune.axes.groups import Group
from actprune.axes.site import Site
from actprune.errors import DataError
from actprune.graph.program import Batch, place
from actprune.mapped import alongside, let_go
from actprune.stats.activation import Activation, activation_of
from actprune.stats.maps import batch_key, samples_along
from actprune.stats.moments import Moments, absorb, merge, moments
from actprune.stats.padding import Padding, along
from actprune.stats.patches import (
    EVERYWHERE,
    LAYERS,
    Places,
    drawn_places,
    input_rows,
    most_rows,
    output_rows,
    row_names,
    source_of,
)
from actprune.stats.recurrent import batch_dim, is_recurrent, unroll
from actprune.stats.spread import Spread, spread
from actprune.stats.stacked import given_rows, operands_of, stacked_form, units_last
from actprune.stats.statistics import Stats


class Collector:
    """The observer of one pass.

    Attributes:
        samples: of the batches before.
        inputs: of the batch that is observed.
    """

    def __init__(self, graph: Graph, folds: Mapping[str, int], total: int, first: int) -> None:
        self.graph, self.folds, self.total, self.first = graph, folds, total, first
        self.sites: dict[str, list[Moments]] = {}
        self.units: dict[str, Activation] = {}
        self.layers: dict[str, Moments] = {}
        self.maps: dict[str, Spread] = {}
        self.samples = 0
        self.padding = Padding(graph)
        self.inputs: Batch = ()
        self._sites = {site.name: site for site in graph.sites if site.kind in (*LAYERS, "recurrent", "stacked")}
        self._consumers = {site for group in graph.groups for site in group.consumers}
        self._batch = batch_key(graph)
        self._first: dict[str, list[Group]] = {}
        for group in graph.groups:
            # some are called in training mode only
            reader = next((site for site in group.consumers if self._sites.get(site.name) == site), None)
            if reader is not None:
                self._first.setdefault(reader.name, []).append(group)

    def result(self, measures: Mapping[str, Mapping[str, Spread]]) -> Stats:
        return Stats(
            sites={node: tuple(parts) for node, parts in self.sites.items()},
            units=self.units,
            layers=self.layers,
            maps=self.maps,
            samples=self.samples,
            measures=measures,
        )

    def __call__(self, node: Node, args: tuple[Any, ...], value: Any) -> None:
        if is_recurrent(node):
            self._steps(node, args, value)
            return
        site = self._sites.get(node.name)
        if site is not None and site.kind == "stacked":
            self._matrices(site, node, args, value)
            return
        if site is None:
            return
        source = source_of(node)
        x = args[source]
        if not bool(torch.isfinite(value).all()):
            raise _not_finite(node, x, value)
        if site not in self._consumers:
            return
        if x.dim() == 1:  # one row, that of a single sample
            x, value = x[None], value[None]
        units = 1 if "conv" in site.kind else x.dim() - 1
        origin = cast("Node", node.args[source])
        dim, numbers = self._samples(origin.name, x, range(units))
        by_sample, made = x.movedim(dim, 0), value.movedim(dim, 0)
        given, there = self._there(origin, x, units), self._there(node, value, units)
        pairs = (by_sample, _moved(given, dim)), (made, _moved(there, dim))
        means = torch.stack([_sample_means(y, numbers, own) for y, own in pairs], 1)
        self.layers[node.name] = merge(self.layers.get(node.name), moments(means[~means.isnan().any(1)]))
        weight = self.graph.program.tensors[site.weight]
        if site.name in self.folds:
            places = self._places(site, weight, made)
            which = None if there is None else output_rows(site, there.movedim(dim, 0), places)[..., 0]
            self._rows(node.name, input_rows(site, node, by_sample, weight, places), numbers, which)
        for group in self._first.get(node.name, ()) if x.numel() else ():
            self._units(group, site, x, given)

    def _there(self, node: Any, value: Tensor, units: int) -> Tensor | None:
        """What is no padding in a value, with size 1 for its dimension of units; None: all."""
        return along(self.padding.of(node.name, self.inputs), value, units)

    def _places(self, site: Site, weight: Tensor, value: Tensor) -> Places:
        """The positions of a map whose patches count: they overlap, so that a few of many say as much."""
        if site.kind == "linear":
            return EVERYWHERE
        positions = prod(value.shape[2:])
        rows = most_rows(site.columns(weight))
        return drawn_places(positions, ceil(rows / self.total))

    def _matrices(self, site: Site, node: Node, args: tuple[Any, ...], value: Tensor) -> None:
        """Of a product with several matrices: the rows of each are those that it is multiplied with."""
        (x, ends), form = operands_of(site, node, args), stacked_form(site)
        if not bool(torch.isfinite(value).all()):
            raise _not_finite(node, x, value)
        if site not in self._consumers:
            return
        weight = self.graph.program.tensors[site.weight]
        dim, numbers = self._samples(form.source, x, form.given[1])
        first = dim if form.given[1] else None
        there = self.padding.given(site, x, self.inputs)
        for number, name in enumerate(row_names(site, weight)):
            if name in self.folds:
                rows, whose = given_rows(site, weight, x, number, ends, first), numbers
                which = None if there is None else given_rows(site, weight, there, number, None, first)[..., 0]
                if ends is not None:  # whose row is whose is not known there: they are dealt one by one
                    rows, whose = rows.transpose(0, 1), torch.arange(rows.shape[1], device=x.device)
                self._rows(name, rows, whose, which)
        for group in self._first.get(node.name, ()):
            self._units(group, site, x, there)

    def _steps(self, node: Node, args: tuple[Any, ...], value: Any) -> None:
        """Of a recurrent call: the rows of each of its weights are the steps of every sample."""
        if not bool(torch.isfinite(value if isinstance(value, Tensor) else value[0]).all()):
            raise _not_finite(node, args[0], value if isinstance(value, Tensor) else value[0])
        run = unroll(node, args)
        dim, there, origin = batch_dim(node), run.there, cast("Node", node.args[0])
        numbers = torch.arange(len(run.x)) if dim is None else self._samples(origin.name, args[0], (dim,))[1]
        for part, x, states, hidden in run.steps():
            for which, rows in part.reads(x, states, hidden):
                held = part.nodes[which]
                site = self._sites.get(f"{node.name}:{self.graph.program.bindings.get(held.name)}") if held else None
                if site is None or site not in self._consumers:
                    continue
                if site.name in self.folds:
                    self._rows(site.name, rows, numbers.to(rows.device), there)
                for group in self._first.get(site.name, ()):
                    self._units(group, site, rows if there is None else rows[there])

    def _samples(self, source: str, x: Tensor, among: Sequence[int]) -> tuple[int, Tensor]:
        """The dimension of x that holds the samples, and the sample of each of its indices.

        The first one as a rule, but attention may put positions first, and windows of one sample share a dimension
        with the samples. Where none does (a table of positions, say), the indices of the first one count as such.

        Args:
            source: the node that x is the value of.
            among: the dimensions that are looked at; without any all of x is one sample.
        """
        first = among[0] if among else 0
        count = x.shape[first] if among else 1
        if self.graph.program.batch_size == 1:
            return first, torch.zeros(count, dtype=torch.long, device=x.device)
        dims = self.graph.node_axes.get(source, ())
        for d in among:
            numbers = samples_along(dims[d], self._batch) if d < len(dims) else None
            if numbers is not None:
                return d, torch.as_tensor(numbers, device=x.device)
        return first, torch.arange(count, device=x.device)

    def _rows(self, name: str, rows: Tensor, numbers: Tensor, there: Tensor | None = None) -> None:
        """Rows (indices, positions, columns) dealt to the folds, all those of one sample to the same one.

        Args:
            there: (indices, positions) which of them count; None: all.
        """
        folds = self.folds[name]
        fold = (numbers + self.first + self.samples) % folds
        known = self.sites.get(name, [None] * folds)
        chosen = (fold == f if there is None else (fold == f)[:, None] & there for f in range(folds))
        self.sites[name] = [absorb(own, _flat(rows[which])) for own, which in zip(known, chosen, strict=True)]

    def put_aside(self, node: Node) -> None:
        """What is known of a call whose weight lies in a file, into a file as well."""
        tensors = self.graph.program.tensors
        parts = (f"{node.name}:", f"{node.name}#")
        for name in {node.name, *(s for s in self.sites if s.startswith(parts))} & self.sites.keys():
            weight = tensors[self._sites[name.partition("#")[0]].weight]
            found = [own.holding(own.mean, alongside(own.held, weight)) for own in self.sites[name]]
            self.sites[name] = list(found)
            let_go(own.held for own in found)

    def _units(self, group: Group, site: Site, x: Tensor, there: Tensor | None = None) -> None:
        """Activation values of a group in the input of its first reader.

        Args:
            there: which of its places count, with size 1 for the units; None: all.
        """
        axis = site.in_axis(self.graph.tensor_axes[site.weight])
        unit = torch.as_tensor(positions(axis, group.key), device=x.device)
        if site.kind == "stacked":
            x, there = units_last(site, x), None if there is None else units_last(site, there)
        channel_last = site.kind in ("linear", "recurrent", "stacked")
        values = x.reshape(-1, x.shape[-1]).T if channel_last else x.transpose(0, 1).flatten(1)
        if there is not None:
            values = values[:, there.reshape(-1)]
            if not values.numel():
                return
        if unit.numel() != values.shape[0]:  # a grouped convolution: its weight names the channels of one group
            unit = unit.repeat(values.shape[0] // unit.numel())
        held = unit >= 0
        if not channel_last and bool(held.all()) and x.shape[1] == group.width:
            _add(self.maps, group.name, spread(x.flatten(2)))
        _add(self.units, group.name, activation_of(values[held].double(), unit[held], group.width))


def _flat(rows: Tensor) -> Tensor:
    """(rows, columns) of (indices, positions, columns)."""
    return rows.reshape(-1, rows.shape[-1])


def _add(known: dict[str, Any], name: str, found: Any) -> None:
    known[name] = known[name].merge(found) if name in known else found


def _moved(there: Tensor | None, dim: int) -> Tensor | None:
    return None if there is None else there.movedim(dim, 0)


def _sample_means(x: Tensor, numbers: Tensor, there: Tensor | None) -> Tensor:
    """(samples,) mean over everything that belongs to a sample, of x (indices, …) and the sample of each index.

    Args:
        there: of the shape of x, or with size 1: what counts; NaN is the mean of a sample of which nothing does.
    """
    rows = x.flatten(1)
    if there is None:
        own, counts = rows.mean(1, dtype=torch.float64), torch.bincount(numbers)
    else:
        whole = there.expand(x.shape).reshape(rows.shape)
        own, counts = rows.where(whole, 0).sum(1, dtype=torch.float64), torch.bincount(numbers, whole.sum(1))
    return torch.zeros(counts.numel(), dtype=own.dtype, device=own.device).index_add_(0, numbers, own) / counts


def _not_finite(node: Node, x: Tensor, value: Tensor) -> DataError:
    """The input decides who is to blame: what came before, or this layer."""
    side, found = ("input", x) if not bool(torch.isfinite(x).all()) else ("output", value)
    return DataError(
        "Activations are not finite.",
        expected="finite values in every layer",
        got=f"{'NaN' if bool(torch.isnan(found).any()) else 'infinite'} values in the {side} of this layer",
        where=place(node),
        hint="look for NaN or infinite entries in the calibration data and in the weights up to this layer",
    )
