"""Whether the units of a block reach outputs by a way that the block does not see.

Blocks end at layers that read units. A product with a computed weight, a Gram matrix or a norm of features reads them,
too. Where that leads to an output of its own, makers that are fitted for the layers alone would give it others than
the dense network's, and no residual would say so.
"""

from __future__ import annotations

from collections.abc import Collection

from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.axes.expr import leaves
from actprune.axes.site import flat


def leads_elsewhere(graph: Graph, keys: Collection[int], calls: Collection[Node], ends: Collection[Node]) -> bool:
    """Whether something else than the last calls of a block gets units of these groups, and an output depends on it.

    Args:
        keys: of the groups.
        calls: what depends on the makers and what the ends depend on.
        ends: the calls that read.
    """
    masks = {name for name, mask in graph.masks.items() if mask.touches(keys)}

    def has_units(node: Node) -> bool:
        along = any(leaf.key in keys for axis in flat(graph.node_axes.get(node.name, ())) for leaf in leaves(axis))
        return along or any(graph.program.bindings.get(source.name) in masks for source in node.all_input_nodes)

    users = {user for node in calls if node not in ends and has_units(node) for user in node.users}
    return any(user.op == "output" or (has_units(user) and _is_read(user)) for user in users.difference(calls, ends))


def _is_read(node: Node) -> bool:
    """Whether an output depends on it: nothing may read the last states of a recurrent layer."""
    reached, waiting = set[Node](), [node]
    while waiting:
        users = [user for user in waiting.pop().users if user not in reached]
        if any(user.op == "output" for user in users):
            return True
        reached.update(users)
        waiting += users
    return False
