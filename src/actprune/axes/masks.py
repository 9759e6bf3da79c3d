"""Masks: how the dense graph computes what a cut network would, where no weight could be set to zero.

A group's units are usually removed by zero columns in the weights that read them. Where an activation meets another
one instead (q · k, a linear attention), a factor of ones is put in front of the call, as one more tensor of the
program. A candidate network then overrides it with zeros for the units that are cut. So a candidate stays what it
was: the captured program, and other tensors under the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.expr import Axis, Indices, kept_indices, leaves, size
from actprune.axes.site import Mixing
from actprune.graph.lift import lift
from actprune.graph.program import Program

_MASK = "mask:"


@dataclass(frozen=True)
class Mask:
    """One factor of ones in the program.

    Attributes:
        axis: what it runs over.
        ones: (size, 1, …) itself: dense, with a dimension for each that follows that one; () where the factor takes
            nothing away, and is only the gain.
        gain: (dense size, kept size) → factor of the kept entries, if not 1.
    """

    axis: Axis
    ones: Tensor
    gain: Callable[[int, int], float] | None = None

    def values(self, kept: Mapping[int, Indices], lifted: bool = False) -> Tensor:
        """The override that removes all but the `kept` units; `lifted` to float64, where a gain isn't rounded."""
        ones: Tensor = lift(self.ones) if lifted else self.ones
        index = torch.as_tensor(kept_indices(self.axis, kept), device=ones.device)
        factor = 1.0 if self.gain is None else self.gain(size(self.axis), len(index))
        if not ones.dim():
            return ones * factor
        return torch.zeros_like(ones).index_fill_(0, index, factor)

    def touches(self, keys: Iterable[int]) -> bool:
        """Whether some group of these keys runs along it."""
        return not set(keys).isdisjoint(leaf.key for leaf in leaves(self.axis))


@dataclass(frozen=True)
class Scaling:
    """A call that multiplies or divides by a number which the class computes from the size of an axis.

    Attributes:
        node: the ATen call.
        operand: the argument that gets a factor for the change of that number.
        axis: what the number follows.
        gain: (dense size, kept size) → the factor.
    """

    node: Node
    operand: Node
    axis: Axis
    gain: Callable[[int, int], float]


def with_masks(
    program: Program, mixings: Iterable[Mixing], axis_of: Callable[[Mixing], Axis], keys: set[int], prefix: str = ""
) -> tuple[Program, dict[str, Mask]]:
    """The program with a mask in front of every sum over an axis that holds one of the groups `keys`.

    Args:
        mixings: those of this program.
        axis_of: mixing → the axis that it sums over.
        prefix: of the masks' names.
    """
    masks: dict[str, Mask] = {}
    bindings: dict[str, str] = {}
    masked: dict[tuple[Node, Node], Node] = {}
    for i, mixing in enumerate(mixings):
        value = mixing.operand.meta["val"]
        sizes = (value.shape[mixing.dim], *[1] * (value.dim() - mixing.dim - 1))
        mask = Mask(axis_of(mixing), torch.ones(sizes, dtype=value.dtype, device=value.device), mixing.gain)
        if mask.touches(keys):
            name = f"{prefix}{_MASK}{mixing.node.name}.{i}"
            placeholder = _placeholder(program, mask.ones)
            if mixing.twin is not None:
                _replace(mixing.node, mixing.twin, placeholder)
            else:
                _multiply(program, mixing.node, mixing.operand, placeholder, masked)
            bindings[placeholder.name] = name
            masks[name] = mask
    return _holding(program, masks, bindings), masks


def with_scales(program: Program, scalings: Iterable[Scaling], prefix: str = "") -> tuple[Program, dict[str, Mask]]:
    """The program with a factor in front of every call of `scalings`; `prefix` precedes the masks' names."""
    masks: dict[str, Mask] = {}
    bindings: dict[str, str] = {}
    for scaling in scalings:
        value = scaling.operand.meta["val"]
        name = f"{prefix}{_MASK}{scaling.node.name}.scale"
        masks[name] = Mask(scaling.axis, torch.ones((), dtype=value.dtype, device=value.device), scaling.gain)
        placeholder = _placeholder(program, masks[name].ones)
        _multiply(program, scaling.node, scaling.operand, placeholder, {})
        bindings[placeholder.name] = name
    return _holding(program, masks, bindings), masks


def masked_call(mask: str) -> str:
    """The name of the call that a mask of the program (of eval mode) stands in front of."""
    return mask.removeprefix(_MASK).rpartition(".")[0]


def _holding(program: Program, masks: Mapping[str, Mask], bindings: Mapping[str, str]) -> Program:
    """The program that holds these masks."""
    if not masks:
        return program
    return replace(
        program,
        tensors={**program.tensors, **{name: mask.ones for name, mask in masks.items()}},
        aliases={**program.aliases, **{name: (name,) for name in masks}},
        bindings={**program.bindings, **bindings},
    )


def calls(program: Program) -> list[Node]:
    """The calls that the model itself makes: all but the products with masks."""
    names = {node: name for node, name in program.bindings.items() if name not in program.held}
    return [
        node
        for node in program.nodes
        if node.op == "call_function" and not any(_MASK in names.get(n.name, "") for n in node.all_input_nodes)
    ]


def _placeholder(program: Program, ones: Tensor) -> Node:
    graph = program.graph
    with graph.inserting_before(next(iter(graph.nodes))):
        placeholder = graph.placeholder("mask")
    placeholder.meta = {"val": ones.to("meta")}
    return placeholder


def _replace(node: Node, twin: Callable[..., Any], placeholder: Node) -> None:
    """Put an op's twin in its place, with the placeholder among its masks."""
    node.target = twin
    node.kwargs = {**node.kwargs, "masks": (*node.kwargs.get("masks", ()), placeholder)}  # type: ignore[misc]


def _multiply(
    program: Program, node: Node, factor: Node, placeholder: Node, masked: dict[tuple[Node, Node], Node]
) -> None:
    """Multiply the operand with the placeholder.

    Args:
        masked: (call, operand) → what the call reads instead of it: a call may sum over several axes of one operand.
    """
    graph, key = program.graph, (node, factor)
    operand = masked.get(key, factor)
    with graph.inserting_before(node):
        product = graph.call_function(torch.ops.aten.mul.Tensor, (operand, placeholder))
    product.meta = {**node.meta, "val": factor.meta["val"]}
    node.replace_input_with(operand, product)
    masked[key] = product
