"""Convolutions whose kernel covers a dimension of their input: a contraction over it, as over channels.

Kim (2014) lets filters of (k words, the whole embedding) slide over a sentence as an image with one channel. The same
function, said otherwise, with the embedding and the single channel exchanged:

    conv(x (N, 1, L, E), w (n, 1, k, E))  =  conv(xᵀ (N, E, L, 1), wᵀ (n, E, k, 1))

so that every later stage finds the embedding where it looks for what a convolution reads.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Graph, Node

from actprune.graph.program import named_arguments, shape
from actprune.graph.rewriting import ATEN, is_call, make_call

_CONVOLUTIONS = ("aten.conv1d.", "aten.conv2d.", "aten.conv3d.", "aten.convolution.")


def covered_as_channels(graph: Graph) -> None:
    """Rewrite `graph` in place."""
    for node in list(graph.nodes):
        if is_call(node, *_CONVOLUTIONS) and (dim := _covered(node)) is not None:
            given = named_arguments(node)
            with graph.inserting_before(node):
                for operand in (given["input"], given["weight"]):
                    turned = operand.meta["val"].transpose(1, dim)
                    made = make_call(graph, ATEN.transpose.int, (operand, 1, dim), node, turned)
                    node.replace_input_with(operand, made)


def _covered(node: Node) -> int | None:
    """The last dimension that the kernel of a convolution with one input channel covers, without padding."""
    given = named_arguments(node)
    before, weight = shape(given["input"]), shape(given["weight"])
    spatial, padding = len(weight) - 2, _padding(given["padding"], len(weight) - 2)
    if len(before) != len(weight) or before[1] != 1 or weight[1] != 1 or given.get("transposed") or padding is None:
        return None
    covered = (d for d in range(spatial) if before[2 + d] == weight[2 + d] > 1 and padding[d] == 0)
    return max((2 + d for d in covered), default=None)


def _padding(given: Any, spatial: int) -> list[int] | None:
    """A number for each dimension; None of one that the kernel decides."""
    if isinstance(given, str):
        return [0] * spatial if given == "valid" else None
    sizes = [int(n) for n in given] if isinstance(given, list | tuple) else [int(given)]
    return sizes * spatial if len(sizes) == 1 else sizes
