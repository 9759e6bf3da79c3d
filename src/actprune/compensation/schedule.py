"""In which order the consumers of a graph are refitted, and what each may aim at.

The target of a consumer is the sum that its output joins, not its own output: in a residual block it then
repairs the stream as well. For that the other operand must be known first, so the schedule may pull a shortcut
in front of the branch that it is added to.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.graph.program import named_arguments, op_name, shape
from actprune.graph.purify import writes
from actprune.graph.room import calls_until
from actprune.guidance.problem import following_norm, output_gain
from actprune.mapped import any_mapped
from actprune.stats.patches import LAYERS

_PASS = ("aten.contiguous", "aten.clone", "aten.dropout")
_RECTIFIERS = ("aten.relu.", "aten.relu6.", "aten.hardtanh.")


@dataclass(frozen=True, eq=False)
class Path:
    """What becomes of a consumer's output y: (gain · y + shift), then perhaps + partner, then perhaps a ReLU.

    Attributes:
        gain: (o,) factor per output, of the norm that follows.
        norm: that norm, or None.
        partner: the other operand of the addition, or None.
        rectified: whether a ReLU alone reads the result.
    """

    gain: Tensor
    norm: Node | None
    partner: Node | None
    rectified: bool


ALONE = Path(torch.ones(1), None, None, False)
"""Of sums that stay what they are."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """The nodes in an order in which each consumer's partner comes before it, and the consumers' paths."""

    nodes: tuple[Node, ...]
    paths: dict[Node, Path]


def schedule(graph: Graph, join: bool = True) -> Schedule:
    """The order of refitting for a graph; the captured order where it writes in place.

    Args:
        join: whether consumers may aim at the sum that they join.
    """
    nodes = [node for node in graph.program.nodes if node.op == "call_function"]
    by_name = {node.name: node for node in nodes}
    in_place = any(map(writes, nodes))
    extra: dict[Node, Node] = {}
    paths: dict[Node, Path] = {}
    for site in (site for site in graph.sites if site.kind in LAYERS):
        node = by_name[site.node]
        path = follow(graph, node)
        if path.partner is not None:
            if not join or in_place or _depends(path.partner, node, extra):
                path = Path(path.gain, path.norm, None, False)
            else:
                extra[node] = path.partner
        paths[node] = path
    return Schedule(tuple(_sorted(nodes, extra)), paths)


def refitted_calls(graph: Graph) -> list[Node]:
    """The calls whose results a refit holds; of a large model without the last consumer, whose results are made batch
    by batch (`Walk`)."""
    calls = [node for node in graph.program.nodes if node.op == "call_function"]
    if not any_mapped(graph.program.tensors.values()):
        return calls
    sites = {site.node for site in graph.sites if site.kind in LAYERS}
    last = next((node for node in reversed(calls) if node.name in sites), None)
    return calls if last is None else calls_until(graph.program, last)


def follow(graph: Graph, node: Node) -> Path:
    """The path of a result, while it has one reader and stays affine per channel."""
    gain = output_gain(graph, node)
    norm = following_norm(node)
    if norm is not None and not _is_affine(norm):
        return Path(torch.ones_like(gain), None, None, False)
    last, partner = norm or node, None
    while len(last.users) == 1:
        (user,) = last.users
        name = op_name(user)
        if rectifies(user):
            return Path(gain, norm, partner, True)
        if name == "aten.add.Tensor" and partner is None and user.kwargs.get("alpha", 1) == 1:
            partners = [value for value in user.args if value is not last]
            if len(partners) != 1 or not isinstance(partners[0], Node) or shape(partners[0]) != shape(last):
                break
            partner = partners[0]
        elif not passes(user):
            break
        last = user
    return Path(gain, norm, partner, False)


def rectifies(node: Node) -> bool:
    """Whether a call is a ReLU, or one with a ceiling."""
    name = op_name(node)
    return name.startswith(_RECTIFIERS) and (not name.startswith("aten.hardtanh") or node.args[1:2] in ((0,), (0.0,)))


def passes(node: Node) -> bool:
    """Whether a call gives what it is given."""
    return op_name(node).startswith(_PASS)


def _is_affine(norm: Node) -> bool:
    """A norm with the statistics of its own batch is not: what one sample gives depends on the others."""
    settings = named_arguments(norm)
    return settings["running_mean"] is not None and settings["training"] is not True


def _depends(node: Node, on: Node, extra: dict[Node, Node]) -> bool:
    """Whether `node` can only be computed after `on`."""
    seen: set[Node] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if current is on:
            return True
        if current not in seen:
            seen.add(current)
            stack += current.all_input_nodes
            if current in extra:
                stack.append(extra[current])
    return False


def _sorted(nodes: list[Node], extra: dict[Node, Node]) -> list[Node]:
    """Depth first in the captured order, so that a node moves only where it must."""
    done: set[Node] = set()
    order: list[Node] = []
    for start in nodes:
        stack = [start]
        while stack:
            node = stack[-1]
            needed = [*node.all_input_nodes, *([extra[node]] if node in extra else [])]
            waiting = [n for n in needed if n.op == "call_function" and n not in done]
            if node in done:
                stack.pop()
            elif waiting:
                stack.append(waiting[0])
            else:
                done.add(node)
                order.append(stack.pop())
    return order
