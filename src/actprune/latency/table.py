"""Milliseconds of a network of any widths, from a table of measured ops.

An entry is measured when it is first asked for: one op, on one device, in one layout, at one set of shapes. Between the
widths of a coarse grid time is linear, so that a plan costs milliseconds once the entries around it are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from actprune.axes.capture import Graph
from actprune.errors import BudgetError
from actprune.latency.bench import Bench, Latency
from actprune.latency.calls import TimedCall, timed_calls


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Widths → milliseconds: the sum over the calls whose time depends on widths, brought to whole networks.

    What lies between the calls is no sum of ops, and a call may take more or less there than alone. Networks that were
    timed as a whole say how much: between their sums, time is linear.

    Attributes:
        graph: the captured model.
        bench: where and how it was measured.
        dense: milliseconds of the dense network.
        bundles: leaf keys of groups → the calls that exactly these groups are in.
        points: (sum over calls, milliseconds of the whole network), the dense one last.
    """

    graph: Graph = field(repr=False)
    bench: Bench = field(repr=False)
    dense: float
    bundles: Mapping[tuple[int, ...], tuple[TimedCall, ...]] = field(repr=False)
    points: tuple[tuple[float, float], ...]
    sums: dict[Any, float] = field(default_factory=dict[Any, float], repr=False)

    def __call__(self, widths: Mapping[str, int] | None = None) -> float:
        """Milliseconds with each named group at the width given; the others are whole."""
        return self._whole(self._calls(widths or {}))

    def exact(self, widths: Mapping[str, int]) -> float:
        """The same with every op measured at its own shapes, not interpolated."""
        sizes = self._sizes(widths)
        calls = (call for bundle in self.bundles.values() for call in bundle)
        found = ((call, call.exact(self.bench, sizes)) for call in calls)
        return self._whole(sum(call.interpolated(self.bench, sizes) if ms is None else ms for call, ms in found))

    def through(self, widths: Mapping[str, int], ratio: float) -> LatencyTable:
        """The table that knows one more measurement: the network of these widths took `ratio` of the dense one."""
        calls, (dense, ms) = self._calls(widths), self.points[-1]
        if calls >= dense:
            return self
        known = sorted({*self.points[1:-1], (calls, min(ratio * self.dense, ms))})
        # narrower than all of them: as if the line from the dense network went on
        slope = (ms - known[0][1]) / (dense - known[0][0])
        return replace(self, points=((0.0, max(ms - slope * dense, 0.0)), *known, (dense, ms)))

    def _whole(self, calls: float) -> float:
        """Milliseconds of a network whose calls take so many; never fewer than one whose calls take less."""
        at, ms = zip(*self.points, strict=True)
        if calls > at[-1]:  # a noisy entry
            return ms[-1] * calls / at[-1]
        return float(np.interp(calls, at, np.maximum.accumulate(ms)))

    def _calls(self, widths: Mapping[str, int]) -> float:
        sizes = self._sizes(widths)
        total = 0.0
        for keys, calls in self.bundles.items():
            own = (keys, *(sizes[key] for key in keys))
            if own not in self.sums:
                self.sums[own] = sum(call.interpolated(self.bench, sizes) for call in calls)
            total += self.sums[own]
        return total

    def _sizes(self, widths: Mapping[str, int]) -> dict[int, int]:
        return {group.key: widths.get(group.name, group.width) for group in self.graph.groups}


def measure_latency(
    model: nn.Module, graph: Graph, latency: Latency | None = None, *, bench: Bench | None = None
) -> LatencyTable:
    """The table of a captured model, filled for its dense widths.

    Args:
        latency: on what device, and with how many samples; None: as the model was captured.
        bench: what was measured already, instead.

    Raises:
        BudgetError: the model was captured in a way that says nothing about that number of samples.
    """
    bench = bench or Bench(graph.program, latency or Latency())
    if graph.batch is None and bench.batch != graph.program.batch_size:
        raise BudgetError(
            f"{graph.program.model_name} can't be timed on {bench.batch} samples.",
            expected="a capture in whose inputs the samples are an axis of their own",
            got=f"a capture with {graph.program.batch_size}",
            where="Latency(batch=…)",
            hint="give calibration batches of 2 samples or more, or leave batch out",
        )
    calls = [call for call in timed_calls(graph, bench.batch) if call.exact(bench, {}) is not None]
    bundles: dict[tuple[int, ...], tuple[TimedCall, ...]] = {}
    for call in calls:
        bundles[call.keys] = (*bundles.get(call.keys, ()), call)
    (dense,) = bench.models([model])
    alone = sum(call.interpolated(bench, {}) for call in calls)
    return LatencyTable(graph, bench, dense, bundles, ((0.0, max(dense - alone, 0.0)), (alone, dense)))
