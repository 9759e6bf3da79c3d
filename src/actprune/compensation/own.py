"""Whether a tensor of a call is its own, so that a refit may change it."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node

from actprune.axes.site import Site
from actprune.graph.program import Program, named_arguments

_TRANSPOSES = (
    "aten.t.",
    "aten.transpose",
    "aten.permute",
    "numpy_T",
    "aten.reshape.",
    "aten.view.",
    "aten._unsafe_view.",
    "aten.flatten.",
)
"""Between a stored weight and the call that reads it; a reshape there moves no entry and leaves none out."""


def placeholders_of(program: Program) -> dict[str, list[Node]]:
    """Tensor name → what stands for it; tied tensors have one each."""
    found: dict[str, list[Node]] = {}
    for node in program.nodes:
        if node.name in program.bindings:
            found.setdefault(program.bindings[node.name], []).append(node)
    return found


def calls_of(placeholders: Sequence[Node]) -> set[Node]:
    """The calls that read a tensor, through a transpose perhaps."""
    found, waiting = set[Node](), list(placeholders)
    while waiting:
        for user in waiting.pop().users:
            if any(word in str(user.target) for word in _TRANSPOSES):
                waiting.append(user)
            else:
                found.add(user)
    return found


def exclusive(placeholders: Sequence[Node], reader: Node | None) -> bool:
    """Whether a tensor is read by this call alone (through a transpose perhaps), so that it may change.

    Args:
        placeholders: all that stand for the tensor.
    """
    node = next((p for p in placeholders if p.users), None)
    if sum(len(p.users) for p in placeholders) != 1:
        return False
    while node is not None and len(node.users) == 1:
        (node,) = node.users
        if node is reader:
            return True
        if not any(word in str(node.target) for word in _TRANSPOSES):
            return False
    return False


def has_plain_bias(program: Program, site: Site) -> bool:
    """Whether the bias of a layer, if there is one, is one number for each output."""
    held = None if site.bias is None else program.tensors[site.bias]
    return held is None or held.shape == tuple(program.tensors[site.weight].shape[d] for d in site.out_dims)


def is_plain(node: Node) -> bool:
    """`addmm` may scale the product or the bias; refitting knows no such factors."""
    settings = named_arguments(node)
    return settings.get("alpha", 1) == 1 and settings.get("beta", 1) == 1
