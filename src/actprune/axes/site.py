"""What the walk over a program notes beside axes: contractions with a parameter, sums without one, multiply-adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from torch import Tensor
from torch.fx import Node

from actprune.axes.expr import Axis, product

Dims: TypeAlias = tuple[Axis, ...]
"""The axes of one tensor, one per dimension."""


@dataclass(frozen=True)
class Site:
    """A contraction of an activation with a parameter: where a group is consumed, and where one is made.

    Attributes:
        node: name of the ATen call.
        module: path of the module it was called in.
        kind: "linear", "conv", "conv_transpose", "recurrent", "product" (an einsum, a bilinear form), "embedding" or
            "computed" (its weight is made of `weight` in the forward pass, as in weight normalisation).
        weight, bias: tensor names; `bias` is None where there is none.
        in_dim, out_dim: the weight's dimensions that are contracted, and kept; where several are contracted as one,
            the first of them.
        groups: number of groups of a grouped convolution.
        order: which dimension of the stored weight each one is of what the call is given; () where they are the same.
        merged: dimensions that follow `in_dim` and are contracted with it as one, as the heads and the head size in
            front of the projection behind an attention.
        reads: whether zero columns in `in_dim` take units away. An embedding only makes units; what a computed
            weight reads is masked.
    """

    node: str
    module: str
    kind: str
    weight: str
    bias: str | None
    in_dim: int
    out_dim: int
    groups: int = 1
    reads: bool = True
    order: tuple[int, ...] = ()
    merged: tuple[int, ...] = ()

    @property
    def in_dims(self) -> tuple[int, ...]:
        """All dimensions of the weight that are contracted."""
        return (self.in_dim, *self.merged)

    def in_axis(self, axes: Sequence[Axis]) -> Axis:
        """What is contracted, of the axes of the weight."""
        return product(axes[d] for d in self.in_dims) if self.merged else axes[self.in_dim]

    def inputs(self, weight: Tensor) -> int:
        """How many inputs the weight has; a convolution has a kernel for each."""
        return prod(weight.shape[d] for d in self.in_dims)

    @property
    def name(self) -> str:
        """Its own among the sites of a graph: a recurrent call has several weights, any other one."""
        return f"{self.node}:{self.weight}" if self.kind == "recurrent" else self.node


@dataclass(frozen=True)
class Term:
    """Multiply-adds of one call: `factor` × the product of the sizes of `axes`."""

    axes: Dims
    factor: float


@dataclass(frozen=True)
class Mixing:
    """A sum over an axis of an activation with no parameter whose columns could be set to zero (q · k in attention).

    Units of that axis are removed by a mask in front of the call: see `axes/masks.py`.

    Attributes:
        node: the ATen call.
        operand: the argument that is summed over.
        dim: which of its dimensions.
        gain: (dense size, kept size) → what the call multiplies the kept entries with once it is cut, if not 1.
        twin: what stands for the op and is given the mask, where it is no plain sum.
    """

    node: Node
    operand: Node
    dim: int
    gain: Callable[[int, int], float] | None = None
    twin: Callable[..., Tensor] | None = None
