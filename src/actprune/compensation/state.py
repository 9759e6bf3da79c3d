"""What the refits of one pass share: both networks, how to refit, and what was found on the way."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.axes.expr import Indices
from actprune.axes.picked import keys_of, picking
from actprune.axes.site import Site
from actprune.compensation.equations import Equations, numbers_of
from actprune.compensation.folds import Dealer
from actprune.compensation.own import exclusive, placeholders_of
from actprune.compensation.ridge import Chosen
from actprune.compensation.streams import Streams
from actprune.mapped import any_mapped
from actprune.stats.padding import Padding
from actprune.stats.patches import ROWS, has_rows


@dataclass(frozen=True)
class Settings:
    """How to refit: see `compensate`.

    Attributes:
        collects: keep the equations of every consumer over all of its columns, up to so many numbers of all together,
            and refit every output, also what is cut.
        unrolls: bytes that the derivatives of a recurrent layer may take where it is fitted as a whole; 0: it is not.
    """

    method: str
    everything: bool
    rounds: int
    rows: int = ROWS
    collects: int = 0
    unrolls: int = 0

    @property
    def alone(self) -> Settings:
        """For a candidate: only what loses columns is refitted."""
        return replace(self, everything=False, collects=0)


@dataclass(eq=False)
class State:
    """Of one pass through the network.

    Attributes:
        streams: the two runs, with the zero columns of the plan as overrides.
        kept: leaf key → kept units.
        zeroed: names of the weights that lose columns.
        ridges: λ by call and width; what it lacks is chosen and added.
        record: what was done where.
        equations: weight → the equations over all of its columns, where they are asked for.
    """

    graph: Graph
    settings: Settings
    streams: Streams
    kept: Mapping[int, Indices]
    zeroed: frozenset[str]
    ridges: Chosen
    record: dict[str, dict[str, Any]] = field(default_factory=dict[str, "dict[str, Any]"])
    equations: dict[str, Equations] = field(default_factory=dict[str, Equations])
    dealer: Dealer = field(default_factory=Dealer)

    @cached_property
    def placeholders(self) -> dict[str, list[Node]]:
        """Tensor name → what stands for it."""
        return placeholders_of(self.graph.program)

    def strays(self, value: Node) -> bool:
        """Whether the rows of a value are other ones in the cut network.

        No axis counts the rows of what was captured with a single one: then their number tells.
        """
        strayed = self.streams.strayed
        if strayed and not keys_of(self.graph, value).isdisjoint(strayed):
            return True
        return bool(picking(self.graph)) and self.streams.misshapen(value)

    @cached_property
    def padding(self) -> Padding:
        """What its masks tell."""
        return Padding(self.graph)

    @cached_property
    def sparing(self) -> bool:
        """Whether the model lies in files: then as little as possible is held."""
        return any_mapped(self.graph.program.tensors.values())

    @cached_property
    def readers(self) -> set[Site]:
        """The consumers of all groups."""
        return {site for group in self.graph.groups for site in group.consumers}

    @property
    def overrides(self) -> dict[str, Tensor]:
        return self.streams.overrides

    def branch(self) -> State:
        """One that goes on from here by itself."""
        other = copy(self)
        other.streams, other.record = self.streams.fork(self.overrides), {}
        other.dealer, other.ridges = copy(self.dealer), dict(self.ridges)
        return other

    def tensor(self, name: str) -> Tensor:
        """The dense network's."""
        return self.graph.program.tensors[name].detach()

    def owns(self, name: str, reader: Node | None) -> bool:
        """Whether this call alone reads a tensor, so that it may change."""
        return exclusive(self.placeholders.get(name, ()), reader)

    def collects(self, site: Site) -> bool:
        """Whether the equations of a consumer over all of its columns are to be kept, and there is room for them."""
        if not self.settings.collects or site not in self.readers:
            return False
        weight = self.tensor(site.weight)
        held = sum(known.held for known in self.equations.values())
        return has_rows(site, weight) and held + numbers_of(site, weight) <= self.settings.collects
