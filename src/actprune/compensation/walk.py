"""One pass through the network, front to back, that refits consumer after consumer on two streams."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy
from typing import Any

from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.axes.site import Site
from actprune.compensation.direction import Scope
from actprune.compensation.equations import Equations, Slot
from actprune.compensation.layer import Layer, slot_of
from actprune.compensation.own import is_plain
from actprune.compensation.recurrent import refit_recurrent
from actprune.compensation.ridge import Chosen
from actprune.compensation.rows import contracted
from actprune.compensation.schedule import Path, Schedule
from actprune.compensation.stacked import refit_stacked
from actprune.compensation.state import Settings, State
from actprune.compensation.streams import Streams
from actprune.plan import Plan
from actprune.rewrite import kept_units
from actprune.stats.patches import LAYERS, ROWS

OWN_ROUNDS = 2
"""Fits of a recurrent weight on the states of the cut layer's own run."""


class Walk:
    """The pass; afterwards `overrides` holds the new tensors and `record` what was done where.

    Attributes:
        state: what its refits share.
        place: the next one of `nodes`.
        settled: weights that it leaves as they are by now.

    Args:
        order: the nodes in the order of refitting.
        streams: the two runs, with the zero columns of `plan` as overrides.
        start: how many nodes of `order` they have been through; no refit lies before.
        lost: names of the weights that lose columns; None: every override.
        ridges: see `State`.
    """

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        order: Schedule,
        streams: Streams,
        settings: Settings,
        start: int = 0,
        lost: Collection[str] | None = None,
        ridges: Chosen | None = None,
    ) -> None:
        zeroed = frozenset(streams.overrides if lost is None else lost)
        found = {} if ridges is None else ridges
        self.state = State(graph, settings, streams, kept_units(graph, plan), zeroed, found)
        self.nodes, self.paths = order.nodes, order.paths
        self.sites = {site.node: site for site in graph.sites if site.kind in LAYERS}
        sites_of = graph.sites_of if settings.method == "least_squares" else {}
        self.several = {name: own for name, own in sites_of.items() if own[0].kind in ("recurrent", "stacked")}
        self.place, self.last = start, self._last_place(start)
        self.settled: set[str] = set()

    @property
    def graph(self) -> Graph:
        return self.state.graph

    @property
    def streams(self) -> Streams:
        return self.state.streams

    @property
    def overrides(self) -> dict[str, Tensor]:
        return self.state.overrides

    @property
    def record(self) -> dict[str, dict[str, Any]]:
        return self.state.record

    @property
    def equations(self) -> dict[str, Equations]:
        return self.state.equations

    def run(self) -> None:
        """Up to the last consumer that may be refitted."""
        self.advance(self.last + 1)

    def advance(self, place: int) -> None:
        """Up to this place among `nodes`, not beyond the last consumer that may be refitted."""
        for i in range(self.place, min(place, self.last + 1)):
            self._pass(self.nodes[i], i == self.last)
            self.place = i + 1

    def branch(self) -> Walk:
        """A walk that goes on from here by itself."""
        other = copy(self)
        other.state, other.settled = self.state.branch(), set(self.settled)
        return other

    def slot(self, site: Site, node: Node) -> Slot | None:
        """Where the bias of a layer is; None where there is no place for one."""
        return slot_of(self.state, site, node, self.paths[node])

    def _pass(self, node: Node, last: bool) -> None:
        """Refit what a call reads, then make it in both streams."""
        site, several = self.sites.get(node.name), self.several.get(node.name)
        if site is None and several is None:
            self.streams.step(node)
            return
        # where nothing reads what it gives (logits, the largest values there are), that is made batch by batch
        held = site is None or not (last and self.state.sparing)
        if held:
            self.streams.step_dense(node)
        if several is not None:
            self._refit_several(several, node)
        elif site is not None and self._wanted(site, node, self.paths[node]):
            Layer(self.state, site, node, self.paths[node]).refit()
        if held:
            self.streams.step_cut(node)
        self.streams.forget(node)

    def _last_place(self, start: int) -> int:
        def asked(node: Node) -> bool:
            site = self.sites.get(node.name)
            sites = self.several.get(node.name, []) if site is None else [site]
            return any(self.state.settings.everything or one.weight in self.state.zeroed for one in sites)

        return max((i for i in range(start, len(self.nodes)) if asked(self.nodes[i])), default=-1)

    def _refit_several(self, sites: Sequence[Site], node: Node) -> None:
        """The weights of a recurrent call, or the matrices of a product with several."""
        state, settings = self.state, self.state.settings
        if sites[0].kind == "stacked":
            if sites[0].weight not in self.settled:
                state.record.update(refit_stacked(state, sites[0], node))
            return
        differs = settings.everything and any(map(self.streams.differs, node.all_input_nodes))

        def wanted(site: Site) -> bool:
            mine = state.owns(site.weight, node) and site.weight not in self.settled
            return mine and (differs or site.weight in state.zeroed)

        quick = settings.rows < ROWS
        rounds = min(settings.rounds, 1 if quick else OWN_ROUNDS)
        scope = Scope(
            self.graph, self.streams, state.kept, wanted, state.owns, rounds, settings.rows, not quick, settings.unrolls
        )
        if any(map(wanted, sites)):
            state.record.update(refit_recurrent(scope, node, sites))

    def _wanted(self, site: Site, node: Node, path: Path) -> bool:
        state, streams = self.state, self.streams
        if not state.owns(site.weight, node) or site.weight in self.settled or not is_plain(node):
            return False
        if site.weight in state.zeroed or state.collects(site):
            return True
        if state.settings.method in ("ridge_map", "bias") or state.strays(contracted(node)):
            return False
        stream_differs = path.partner is not None and streams.differs(path.partner)
        return state.settings.everything and (streams.differs(contracted(node)) or stream_differs)
