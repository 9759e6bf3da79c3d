"""What the values of a run take, told from the shapes at capture."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from actprune.graph.program import Program
from actprune.graph.run import last_uses


def calls_until(program: Program, last: Node) -> list[Node]:
    """The calls in front of `last`, in order."""
    nodes = program.nodes
    return [node for node in nodes[: nodes.index(last)] if node.op == "call_function"]


def held_bytes(order: Sequence[Node]) -> int:
    """The most that is held at a time of one batch, as captured, when every value is freed after its last use."""
    dying = last_uses(order)
    held = most = 0
    for node in order:
        held += _size(node)
        most = max(most, held)
        held -= sum(_size(source) for source in dying.get(node, ()) if source.op == "call_function")
    return most


def _size(node: Node) -> int:
    values = pytree.tree_leaves(node.meta.get("val"))
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, Tensor))
