"""What the stages before a budget leave: the model as the engine sees it, and what its groups are ranked by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from actprune.axes.capture import Graph
from actprune.data.samples import Calibration
from actprune.distance import Distance
from actprune.forms import Form
from actprune.guidance.guide import Guide
from actprune.latency.bench import Bench
from actprune.stats.statistics import Stats


@dataclass(frozen=True, eq=False)
class Captured:
    """A model as the engine sees it, and the samples in its batch size.

    Attributes:
        inputs: a batch.
        distance: of outputs; what "auto" stands for on these samples.
        elsewhere: the numbers of the batches on which the model does something else than its graph.
    """

    model: nn.Module
    form: Form
    inputs: Any
    data: Calibration
    bench: Bench
    distance: str | Distance
    elsewhere: tuple[int, ...] = ()

    @property
    def graph(self) -> Graph:
        return self.form.graph


@dataclass(frozen=True, eq=False)
class Ranked:
    """What the groups are ranked by, and what plans are proved on.

    Attributes:
        proving: a graph, captured on few samples, and these.
        gathered: the statistics that any run of a sweep needs.
        stats: those of them that this method has asked for; None: it ranks by weights.
    """

    proving: tuple[Graph, Any]
    gathered: Stats | None
    stats: Stats | None
    guide: Guide
