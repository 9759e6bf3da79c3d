"""Candidates near one network: what they share with it is computed once for all of them.

One pass over the samples of the refits leaves the equations of every consumer over all of its columns, in that network;
the plain refit of any support is solved from a part of them. They are gathered for the first candidate: most networks
are tried for themselves (`itself`), which takes a refit on their own columns alone. In front of the first reader of a
group that differs the candidate's run on the samples that it is compared on is that network's as well: it goes forward
once, while the groups are asked for from the inputs to the outputs, and every candidate forks from there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import replace
from functools import cached_property

from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.axes.expr import Indices
from actprune.axes.picked import picking
from actprune.compensation.equations import Equations, refit_from
from actprune.compensation.ridge import Chosen
from actprune.compensation.schedule import schedule
from actprune.compensation.shared import refit_shared, shared_equations
from actprune.compensation.state import Settings
from actprune.compensation.streams import Streams
from actprune.compensation.walk import Walk
from actprune.data.samples import Calibration
from actprune.distance import Outputs
from actprune.graph.program import Batch
from actprune.plan import Plan, make_plan
from actprune.rewrite import Rewrite, kept_units, readers, zero_columns
from actprune.stats.padding import Padding
from actprune.stats.patches import LAYERS, QUICK_ROWS

COLLECTED = 250_000_000
"""2 GB."""

BEHIND = 4
"""Layers that are refitted at most behind a reader that has no refit."""


class Near:
    """The outputs of candidates that differ from one network in some groups, whose readers are refitted.

    A refit aims at what the dense network delivers, from what that one network gives the reader. What the candidate
    itself would give it differs only where one reader of a group lies behind another.

    Args:
        fitted: samples of the refits.
        held: samples of the outputs.
        method, base: as for `compensate`.
        rounds: of rectified fits. With 0, every refit is solved from equations that are gathered once; else each
            passes over the samples, which takes several times as long.
        collected: numbers that these equations may take; consumers beyond them pass over the samples.
        around: that network; None: the dense one.
        shared: `shared_equations` of these samples, which are the same for every network; None: gathered here.
        ridges: λ as other networks found it, see `State`; what it lacks is added.
    """

    def __init__(
        self,
        graph: Graph,
        fitted: Calibration,
        held: Calibration,
        *,
        method: str | None,
        rounds: int = 0,
        collected: int = COLLECTED,
        base: Mapping[str, Tensor] | None = None,
        around: Plan | None = None,
        shared: Mapping[str, Equations] | None = None,
        ridges: Chosen | None = None,
    ) -> None:
        self.graph, self.base = graph, dict(base or {})
        self.order = schedule(graph)
        plan = make_plan(graph, {}) if around is None else around
        self.plan, self.kept, self.batches = plan, kept_units(graph, plan), fitted.batches
        self.settings: Settings | None = None
        self.layers = {site.node: site for site in graph.sites if site.kind in LAYERS}
        self.refitted = {site.weight for site in graph.sites if site.kind in (*LAYERS, "recurrent", "stacked")}
        self.shared: Mapping[str, Equations] = {}
        self.ridges: Chosen = {} if ridges is None else ridges
        if method not in (None, "none"):
            solved = method == "least_squares"
            if shared is None:
                nodes = self.order.nodes
                shared = shared_equations(graph, fitted.batches, nodes, QUICK_ROWS, collected) if solved else {}
            self.shared = {name: own.again for name, own in shared.items()}
            room = max(collected - sum(own.held for own in shared.values()), 0)
            self.settings = Settings(method, True, rounds, QUICK_ROWS, room if solved and not rounds else 0)
        self.held, self.padding = held, Padding(graph)
        self.runs: dict[int, _Shared] = {}

    def itself(self) -> list[Outputs]:
        """The flat outputs of that network for every batch of `held`; refitted on its own columns alone."""
        alone = None if self.settings is None else replace(self.settings, collects=0)
        known = alone == self.settings or "gathered" in vars(self)
        overrides = self.overrides if known else self._refitted(alone)[0]
        return self.padding.outputs(self.held.batches, overrides)

    def _refitted(self, settings: Settings | None) -> tuple[dict[str, Tensor], Mapping[str, Equations]]:
        """(the overrides of that network, weight → the equations that its refits left)."""
        zeroed = zero_columns(self.graph, self.plan, Rewrite(self.base))
        if settings is None:
            return zeroed, {}
        together = {name: own for name, own in self.shared.items() if name in zeroed}
        zeroed |= refit_shared(self.graph, together, self.kept, self.base, {})
        streams = Streams(self.graph.program, self.batches, self.order.nodes, zeroed, picking(self.graph))
        walk = Walk(self.graph, self.plan, self.order, streams, settings, ridges=self.ridges)
        walk.run()
        return walk.overrides, {**self.shared, **walk.equations}

    @cached_property
    def gathered(self) -> tuple[dict[str, Tensor], Mapping[str, Equations]]:
        """The same with all that candidates are refitted from."""
        return self._refitted(self.settings)

    @property
    def overrides(self) -> dict[str, Tensor]:
        """Of that network, as candidates are compared with it."""
        return self.gathered[0]

    @property
    def equations(self) -> Mapping[str, Equations]:
        """Weight → what any support of its inputs is refitted from."""
        return self.gathered[1]

    @cached_property
    def fitted(self) -> _Shared:
        """Its run on the samples of the refits."""
        return _Shared(self.graph, self.batches, self.order.nodes, self.overrides, twice=True)

    def __call__(self, plan: Plan, batches: int | None = None) -> list[Outputs]:
        """The flat outputs for every batch of `held`, or for so many of them."""
        kept = kept_units(self.graph, plan)
        read = self._concerned(kept)
        behind = self._behind(read)
        overrides = {name: tensor for name, tensor in self.overrides.items() if name not in read}
        overrides |= {name: self.base[name] for name in read & self.base.keys()}
        for name in (read - behind) & self.equations.keys():
            overrides |= refit_from(self.graph, self.equations[name], kept, self.base)
        overrides = zero_columns(self.graph, plan, Rewrite(overrides))
        start, others = self._first_reader(read), (read - self.equations.keys() - self.graph.masks.keys()) | behind
        if self.settings is not None and others:
            fork, place = self.fitted.fork(start, overrides)
            walk = Walk(self.graph, plan, self.order, fork, self.settings.alone, place, others, self.ridges)
            walk.run()
            overrides = walk.overrides
        run, place = self._run_on(batches or len(self.held.batches)).fork(start, overrides)
        for node in self.order.nodes[place:]:
            run.step_one(node)
        returned = self.graph.program.outputs
        values = [run.cut(out) if isinstance(out, Node) else [out] * run.count for out in returned]
        return [self.padding.marked(*pair) for pair in zip(zip(*values, strict=True), run.batches, strict=True)]

    def _run_on(self, batches: int) -> _Shared:
        """This network's run on the first batches that candidates are compared on."""
        if batches not in self.runs:
            self.runs[batches] = _Shared(self.graph, self.held.batches[:batches], self.order.nodes, self.overrides)
        return self.runs[batches]

    def _concerned(self, wanted: Mapping[int, Indices]) -> set[str]:
        """Names of what reads a group that differs, and of what makes units that are cut here and had no refit."""
        differs: set[int] = set()
        makers: set[str] = set()
        for group in self.graph.groups:
            every = range(group.width)
            asked, here = (set(units.get(group.key, every)) for units in (wanted, self.kept))
            if asked != here:
                differs.add(group.key)
            if asked - here:
                makers |= {site.weight for site in group.producers} & self.overrides.keys() - self.equations.keys()
        return readers(self.graph, differs) | makers

    def _behind(self, names: Set[str]) -> set[str]:
        """Weights of the first layers behind what reads these tensors and can't be refitted: a product of activations,
        a weight that is computed. The refit of the whole network mends there what those can't."""
        if self.settings is None or self.settings.method == "ridge_map":  # which leaves those that lose no columns
            return set()
        bindings, layers = self.graph.program.bindings, self.layers
        passed = {source for source, name in bindings.items() if name in names - self.refitted}
        found: set[str] = set()
        for node in self.order.nodes if passed else ():
            if len(found) == BEHIND:  # a residual stream leads to all that follow
                break
            if any(source.name in passed for source in node.all_input_nodes):
                if node.name in layers:
                    found |= {layers[node.name].weight} - self.shared.keys()
                else:
                    passed.add(node.name)
        return found

    def _first_reader(self, names: Collection[str]) -> int:
        """The place of the first call that reads one of these tensors."""
        bindings = self.graph.program.bindings
        places = (
            i
            for i, node in enumerate(self.order.nodes)
            if any(bindings.get(source.name) in names for source in node.all_input_nodes)
        )
        return next(places, len(self.order.nodes))


class _Shared:
    """The network's run up to some call; it goes forward as it is asked to, and starts anew to go back.

    Args:
        twice: run the dense network beside the one that is cut, for refits to aim at.
    """

    def __init__(
        self,
        graph: Graph,
        batches: Sequence[Batch],
        nodes: tuple[Node, ...],
        overrides: Mapping[str, Tensor],
        twice: bool = False,
    ) -> None:
        self.program, self.batches, self.nodes = graph.program, batches, nodes
        self.picking = picking(graph)
        self.overrides, self.twice = overrides, twice
        self._restart()

    def _restart(self) -> None:
        self.place, self.streams = 0, Streams(self.program, self.batches, self.nodes, self.overrides, self.picking)

    def fork(self, place: int, overrides: Mapping[str, Tensor]) -> tuple[Streams, int]:
        """A run with these overrides, and how many calls it has been through: `place` where it may start there."""
        if not self.streams.shareable:
            place = 0
        if place < self.place:
            self._restart()
        step = self.streams.step if self.twice else self.streams.step_one
        for node in self.nodes[self.place : place]:
            step(node)
        self.place = place
        return self.streams.fork(overrides), place
