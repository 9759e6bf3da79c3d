"""Weight norm taken for what it computes: a weight, which is stored as directions and lengths.

    W = g · v / ‖v‖   (Salimans and Kingma 2016, Weight Normalization, §2)

computes the same for v := W and g := ‖W‖. So the program reads v alone, whose value is W: a weight like any other, to
be measured, refitted and sliced; `cut` writes the lengths of what it has sliced into g.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.fx import Graph, Node

from actprune.graph.program import Normed, named_arguments
from actprune.graph.rewriting import ATEN, is_call

_CALLS = ("aten._weight_norm.default", "aten._weight_norm_interface.default")

ULPS = 8
"""A length that is off by no more than so many steps of float32 (float64, where it has that type) is that of the
direction; one in half precision, which is rounded from there, by no more than one step."""


def fold_weight_norms(
    graph: Graph, bindings: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Normed], dict[str, Tensor]]:
    """Rewrite `graph` in place: every weight norm of two tensors of the model that nothing else reads.

    Args:
        bindings: placeholder node name → tensor name.
        tensors: tensor name → tensor.

    Returns:
        (name of g → where its weight is, name of v → W).
    """
    held: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.op == "placeholder" and node.name in bindings:
            held.setdefault(bindings[node.name], []).append(node)
    normed: dict[str, Normed] = {}
    values: dict[str, Tensor] = {}
    found = {node: _stored(node, bindings, tensors) for node in graph.nodes if is_call(node, *_CALLS)}
    for g, own in dict.fromkeys(pair for pair in found.values() if pair is not None):
        calls = [node for node, pair in found.items() if pair == (g, own)]
        readers = {user for name in (g, own.weight) for node in held[name] for user in node.users}
        if readers == set(calls):
            for node in calls:
                _use_weight(graph, node)
            normed[g] = own
            trainable = tensors[own.weight].requires_grad
            values[own.weight] = joined(tensors[own.weight], tensors[g], own.dim).requires_grad_(trainable)
    return normed, values


def joined(v: Tensor, g: Tensor, dim: int) -> Tensor:
    """W of directions and lengths; v itself where g is its length already, up to rounding."""
    v, g, length = v.detach(), g.detach(), lengths(v, dim)
    rounding = max(torch.finfo(v.dtype).eps, ULPS * torch.finfo(length.dtype).eps)
    says = (g - length).abs() <= rounding * length
    return torch.where(says, v, (v * (g / length)).to(v.dtype))


def lengths(weight: Tensor, dim: int) -> Tensor:
    """The norm of every slice along `dim`, in float32 at least; its other dimensions have size 1."""
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    others = [d for d in range(weight.dim()) if d != dim]
    return torch.linalg.vector_norm(wide, dim=others, keepdim=True) if others else wide.abs()


def weights_of(
    normed: Mapping[str, Normed],
    tensors: Mapping[str, Tensor],
    computed: Callable[[Tensor, Tensor, int], Tensor] = joined,
) -> dict[str, Tensor]:
    """Name of v → W, for the norms of which a model holds both tensors.

    Args:
        tensors: tensor name → tensor, as the model holds it.
        computed: (v, g, dim) → W.
    """
    held = {g: own for g, own in normed.items() if g in tensors and own.weight in tensors}
    return {own.weight: computed(tensors[own.weight], tensors[g], own.dim) for g, own in held.items()}


def as_called(v: Tensor, g: Tensor, dim: int) -> Tensor:
    """W as torch computes it in a call: in half precision it is not v where g is its length already."""
    return ATEN._weight_norm(v.detach(), g.detach(), dim)


def _stored(node: Node, bindings: Mapping[str, str], tensors: Mapping[str, Tensor]) -> tuple[str, Normed] | None:
    """Where a call finds its two tensors; None where they are computed, or where one length is that of all slices."""
    given = named_arguments(node)
    v, g, dim = (given[name] for name in ("v", "g", "dim"))
    of_both = all(isinstance(one, Node) and one.name in bindings for one in (v, g))
    if not of_both or any(part.users and part.args[1] != 0 for part in _parts(node)):
        return None
    weight, length = tensors[bindings[v.name]], tensors[bindings[g.name]]
    sizes = [n if d == dim else 1 for d, n in enumerate(weight.shape)]
    alone = dim in range(weight.dim()) and list(length.shape) == sizes and weight.is_floating_point()
    return (bindings[g.name], Normed(bindings[v.name], int(dim))) if alone else None


def _parts(node: Node) -> list[Node]:
    """What takes the weight, or the lengths of v, out of the results of a call that gives both."""
    return list(node.users) if is_call(node, _CALLS[1]) else []


def _use_weight(graph: Graph, node: Node) -> None:
    """Let the readers of a call's weight read v."""
    weight = named_arguments(node)["v"]
    for result in (*_parts(node), node):
        result.replace_all_uses_with(weight)
        graph.erase_node(result)
