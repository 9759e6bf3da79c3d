"""Sums that several readers of a block join: what they add up to has to come out, not each by itself.

Two layers that read one group and whose results are added (a node's own features and its neighbours', a convolution
beside one of 1 × 1, a spline beside a plain layer) may share the work otherwise than in the dense network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch.fx import Node

from actprune.compensation.schedule import passes, rectifies
from actprune.graph.program import op_name, shape


def joined(values: Mapping[Node, Node], places: Mapping[str, int]) -> dict[Node, tuple[Node, ...]]:
    """Sum → the ends that it is made of, with what else is added that is there by then; only those of several ends.

    Args:
        values: end → its value, or that of the norm behind it.
        places: name of a call → its place in the order of running.
    """
    ways = {end: list(_additions(value)) for end, value in values.items()}
    last = max(places[end.name] for end in values)
    found: dict[Node, tuple[Node, ...]] = {}
    for way in ways.values():
        parts = [tuple(end for end, other in ways.items() if node in other) for node in way]
        most = max(map(len, parts), default=1)
        if most == 1:
            continue
        first = next(i for i, some in enumerate(parts) if len(some) == most)
        root = way[first]
        for node in way[first + 1 :]:
            if any(places.get(source.name, last) >= last for source in node.all_input_nodes if source not in way):
                break
            root = node
        found[root] = parts[first]
    return found


def _additions(value: Node) -> Iterator[Node]:
    """The additions that a value goes into alone, one behind the other."""
    while len(value.users) == 1:
        (user,) = value.users
        if op_name(user) == "aten.add.Tensor":
            terms = user.args[:2]
            same = [isinstance(term, Node) and shape(term) == shape(value) for term in terms]
            if user.kwargs.get("alpha", 1) != 1 or not all(same) or terms[0] is terms[1]:
                return
            yield user
        elif not passes(user):
            return
        value = user


def rectified(value: Node) -> bool:
    """Whether a ReLU alone reads a sum."""
    while len(value.users) == 1:
        (user,) = value.users
        if rectifies(user):
            return True
        if not passes(user):
            return False
        value = user
    return False
