"""What it takes to run some calls: multiply-adds, and the values that they make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.axes.site import Site
from actprune.compensation.effort import STEP, TOUCHED, VALUE
from actprune.compensation.narrowed import Narrowed
from actprune.graph.program import op_name, shape
from actprune.stats.recurrent import input_of, is_recurrent, samples_of

TABLES = "aten.embedding."
"""The op of tables that are looked up by index: their rows are as free as those of a layer. Rows that no sample asks
for stay as they are; held-out samples ask for others, and say whether that does."""


def work(graph: Graph, calls: Iterable[Node], narrow: Narrowed) -> tuple[int, int]:
    """(multiply-adds, values) of one batch; what values take by themselves counts as multiply-adds.

    Args:
        narrow: the calls in the widths that stay, where they run so.
    """
    macs = values = 0
    for node in calls:
        of_call, made = _of_call(graph, node, graph.sites_of.get(node.name, ()), narrow)
        macs, values = macs + of_call, values + made
    return macs + VALUE * values, values


def in_time(weights: Sequence[Sequence[int]], rows: int, steps: int) -> tuple[int, int]:
    """(multiply-adds, values) of what takes steps, in all of them.

    Args:
        weights: their shapes, outputs first.
        rows: samples times steps.
        steps: that a recurrent layer takes; 0 where calls of the graph take them.
    """
    return rows * sum(map(prod, weights)) + STEP * steps * len(weights), TOUCHED * rows * sum(w[0] for w in weights)


def _of_call(graph: Graph, node: Node, sites: Sequence[Site], narrow: Narrowed) -> tuple[int, int]:
    """(multiply-adds, values) of one call."""
    weights = [narrow.left(site.weight, graph.program.tensors[site.weight]) for site in sites]
    if sites and is_recurrent(node):
        rows = prod(shape(input_of(node))[:-1])
        return in_time(weights, rows, rows // samples_of(node, graph.program.batch_size))
    held = node.meta["val"]
    several = [one.shape for one in held if isinstance(one, Tensor)] if isinstance(held, (tuple, list)) else None
    values = sum(map(prod, [narrow.shape(node)] if several is None else several))
    if sites and not op_name(node).startswith(TABLES):  # a row is read, no sum over all of them
        weight = graph.program.tensors[sites[0].weight]
        return int(prod(weights[0]) / weight.numel() * sites[0].columns(weight) * prod(shape(node))), values
    if op_name(node).startswith("aten.scaled_dot_product_attention."):
        query, key = node.args[:2]
        pairs = prod(shape(query)[:-1]) * shape(key)[-2]
        return 2 * pairs * shape(query)[-1], values + 2 * pairs
    return 0, values
