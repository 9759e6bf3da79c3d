"""A batch norm as one call, where a class writes it out in elementary ones."""

from __future__ import annotations

from typing import cast

from torch.fx import Graph, Node

from actprune.graph.program import named_arguments, shape
from actprune.graph.rewriting import ATEN, inverse, is_call, make_call, permuted, vector_of, with_other


def norm_in_one_call(graph: Graph, node: Node, statistics: set[str], weights: set[str]) -> None:
    """(x − mean) · (rsqrt(var + ε) · γ) + β → batch_norm, with the running statistics of the model.

    `node` is the rsqrt.
    """
    if not is_call(node, "aten.rsqrt.") or not is_call(node.args[0], "aten.add."):
        return
    variance, eps = named_arguments(cast("Node", node.args[0]))["self"], named_arguments(node.args[0])["other"]  # type: ignore[arg-type]
    spread = vector_of(variance, statistics)
    factor, gain = _one_of(node, "aten.mul.", weights, 1.0)
    product = next(iter(factor.users), None) if factor is not None and len(factor.users) == 1 else None
    if spread is None or not isinstance(eps, float) or factor is None or not is_call(product, "aten.mul."):
        return
    centred = with_other(cast("Node", product), factor)
    shifted, offset = _one_of(cast("Node", product), "aten.add.", weights, 0.0)
    if shifted is None or not is_call(centred, "aten.sub.", "aten.subtract.") or len(centred.users) != 1:
        return
    x, mean = centred.args[0], vector_of(centred.args[1], statistics)
    vectors = [found for found in (mean, spread, gain, offset) if found is not None]
    same = len({dim for _, dim in vectors}) == 1 and shape(x) == shape(shifted)
    if mean is None or not same or len(shape(x)) < 2:
        return
    if any(vector.meta["val"].dtype != x.meta["val"].dtype for vector, _ in vectors):
        return
    rank = len(shape(x))
    channels = rank + spread[1]
    order = [0, channels, *(d for d in range(1, rank) if d != channels)]
    if channels == 0:
        return
    held = [None if found is None else found[0] for found in (gain, offset)]
    with graph.inserting_before(shifted):
        first = permuted(graph, x, order)
        norm = make_call(
            graph, ATEN.batch_norm.default, (first, *held, mean[0], spread[0], False, 0.1, eps, False),
            shifted, first.meta["val"],
        )  # fmt: skip
        shifted.replace_all_uses_with(permuted(graph, norm, inverse(order), shifted))


def _one_of(node: Node, op: str, weights: set[str], neutral: float) -> tuple[Node | None, tuple[Node, int] | None]:
    """The one call that combines `node` with a vector of the model, and that vector; none where it is constant.

    Args:
        neutral: what the constant consists of: Keras makes ones for a γ, zeros for a β that isn't there.
    """
    user = next(iter(node.users), None)
    if len(node.users) != 1 or user is None or not is_call(user, op):
        return None, None
    other = with_other(user, node)
    if is_call(other, "aten.ones_like." if neutral else "aten.zeros_like."):
        return user, None
    found = vector_of(other, weights)
    return (user, found) if found is not None else (None, None)
