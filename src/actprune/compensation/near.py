"""Candidates that cut one group: what does not depend on the cut is run once for all of them.

In front of a group's first consumer the candidate is the dense network, and behind its last one nothing is refitted.
Both runs (on the samples of the refits, and on those that candidates are compared on) therefore go forward through the
network once, while the groups are asked for from the inputs to the outputs, and every candidate forks from there.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.compensation.schedule import schedule
from actprune.compensation.streams import Streams
from actprune.compensation.walk import Settings, Walk
from actprune.data import Calibration
from actprune.distance import Outputs
from actprune.plan import Plan
from actprune.rewrite import Rewrite, zero_columns
from actprune.stats.patches import ROWS


class Alone:
    """The outputs of candidates that cut one group, each with that group's consumers refitted.

    Args:
        fitted: samples of the refits.
        held: samples of the outputs.
        method, rounds, rows, base: as for `compensate`.
    """

    def __init__(
        self,
        graph: Graph,
        fitted: Calibration,
        held: Calibration,
        *,
        method: str | None,
        rounds: int,
        rows: int = ROWS,
        base: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.graph, self.base = graph, Rewrite(base or {})
        self.settings = None if method in (None, "none") else Settings(method, False, rounds, rows)
        self.order = schedule(graph)
        self.fitted, self.held = (_Shared(graph, data, self.order.nodes) for data in (fitted, held))

    def __call__(self, plan: Plan) -> list[Outputs]:
        """The flat outputs for every batch of `held`."""
        overrides = zero_columns(self.graph, plan, self.base)
        start = self._first_reader(overrides)
        if self.settings is not None:
            fork, place = self.fitted.fork(start, overrides)
            walk = Walk(self.graph, plan, self.order, fork, self.settings, place)
            walk.run()
            overrides = walk.overrides
        run, place = self.held.fork(start, overrides)
        for node in self.order.nodes[place:]:
            run.step_one(node)
        returned = self.graph.program.outputs
        values = [run.cut(out) if isinstance(out, Node) else [out] * run.count for out in returned]
        return list(zip(*values, strict=True))

    def _first_reader(self, overrides: Mapping[str, Tensor]) -> int:
        """The place of the first call that reads an overridden tensor."""
        bindings = self.graph.program.bindings
        places = (
            i
            for i, node in enumerate(self.order.nodes)
            if any(bindings.get(source.name) in overrides for source in node.all_input_nodes)
        )
        return next(places, len(self.order.nodes))


class _Shared:
    """The dense network's run up to some call; it goes forward as it is asked to, and starts anew to go back."""

    def __init__(self, graph: Graph, data: Calibration, nodes: tuple[Node, ...]) -> None:
        self.program, self.data, self.nodes = graph.program, data, nodes
        self._restart()

    def _restart(self) -> None:
        self.place, self.streams = 0, Streams(self.program, self.data.batches, self.nodes)

    def fork(self, place: int, overrides: Mapping[str, Tensor]) -> tuple[Streams, int]:
        """A run with these overrides, and how many calls it has been through: `place` where it may start there."""
        if not self.streams.shareable:
            place = 0
        if place < self.place:
            self._restart()
        for node in self.nodes[self.place : place]:
            self.streams.step_one(node)
        self.place = place
        return self.streams.fork(overrides), place
