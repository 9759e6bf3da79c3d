"""In which order the consumers of a graph are refitted, and what each may aim at.

The target of a consumer is the sum that its output joins, not its own output: in a residual block it then
repairs the stream as well. For that the other operand must be known first, so the schedule may pull a shortcut
in front of the branch that it is added to.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.graph.program import op_name, shape
from actprune.guidance.problem import following_norm, output_gain

_PASS = ("aten.contiguous", "aten.clone", "aten.dropout")


@dataclass(frozen=True)
class Join:
    """Where a consumer's output y is added to something: (a · y + const) + partner.

    Attributes:
        partner: the other operand.
        gain: (o,) a, the factor per output between the consumer and the addition.
    """

    partner: Node
    gain: Tensor


@dataclass(frozen=True)
class Schedule:
    """The nodes in an order in which each consumer's partner comes before it.

    Attributes:
        nodes: every call, once.
        joins: consumer node → its join, for those that have one whose partner doesn't wait for them.
    """

    nodes: tuple[Node, ...]
    joins: dict[Node, Join]


def schedule(graph: Graph) -> Schedule:
    """The order of refitting for a graph; the captured order where it writes in place."""
    nodes = [node for node in graph.program.nodes if node.op == "call_function"]
    extra: dict[Node, Node] = {}
    joins: dict[Node, Join] = {}
    if not any(op_name(node).split(".")[1].endswith("_") for node in nodes if op_name(node).count(".") == 2):
        by_name = {node.name: node for node in nodes}
        for site in graph.sites:
            node = by_name[site.node]
            join = _find_join(graph, node)
            if join is not None and not _depends(join.partner, node, extra):
                joins[node] = join
                extra[node] = join.partner
    return Schedule(tuple(_sorted(nodes, extra)), joins)


def _find_join(graph: Graph, node: Node) -> Join | None:
    """Follow the result while it has one reader and stays affine per channel."""
    norm = following_norm(node)
    gain = output_gain(graph, node)
    last = norm or node
    while len(last.users) == 1:
        (user,) = last.users
        name = op_name(user)
        if name == "aten.add.Tensor" and user.kwargs.get("alpha", 1) == 1:
            partners = [value for value in user.args if value is not last]
            if len(partners) == 1 and isinstance(partners[0], Node) and shape(partners[0]) == shape(last):
                return Join(partners[0], gain)
            return None
        if not name.startswith(_PASS):
            return None
        last = user
    return None


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
