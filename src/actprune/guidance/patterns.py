"""How the units of one group go together, as a table to look at: statistics are kept for the layer that reads them."""

from __future__ import annotations

from torch import Tensor

from actprune.axes.capture import Graph
from actprune.axes.groups import Group
from actprune.guidance.problem import measured, unit_columns
from actprune.mapped import let_go
from actprune.stats.statistics import Stats


def correlation(graph: Graph, stats: Stats, group: Group, units: Tensor | None = None) -> Tensor | None:
    """(n, n) correlation between the activations of the units of a group, or (k, k) between these of them, over samples
    and positions; zero where a unit is constant. None where no layer that reads the group was measured.

    Activations are those that the first such layer is given. Of a convolution it is the place of its input that meets
    the middle of the kernel, of a flattened map the place in its middle: other places have correlations of their own
    (`Stats.correlation`).
    """
    readers = measured(graph, stats, group)
    if not readers:
        return None
    site, (name, *_) = next(iter(readers.items()))
    columns = unit_columns(graph, site, group, len(stats.sites[name][0].mean))
    middle = columns[:, columns.shape[1] // 2]
    found = stats.correlation(name, middle if units is None else middle[units])
    let_go(fold.held for fold in stats.sites[name])
    return found
