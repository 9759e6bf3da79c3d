"""What the walk over a program notes beside axes: contractions with a parameter, sums without one, multiply-adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

from torch import Tensor
from torch.fx import Node

from actprune.axes.expr import Axis, product

Dims: TypeAlias = tuple[Axis, ...]
"""The axes of one tensor, one per dimension."""


def flat(dims: Dims | list[Dims]) -> Dims:
    """The axes of a call's result, or of all of them where it gives several."""
    several = dims if isinstance(dims, list) else [dims]
    return tuple(axis for own in several for axis in own)


Split: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""The dimensions of an operand of a product that number the matrices (-1: it has none such), those of its rows, and
those that are contracted or made."""


@dataclass(frozen=True)
class Form:
    """How a product with several matrices at once, as those of an ensemble's members, is one product for each.

    Attributes:
        source: name of the activation.
        stack: the weight's dimensions that number the matrices.
        given, made: of the activation and of the result.
        ends: name of what tells where the rows of each matrix end, where they are sorted by it (mixtures of experts);
            "" where every matrix has the same number.
        bias: what is added to the result afterwards, one number for each output of each matrix: its name and its
            dimensions, those that number the matrices before those of the outputs.
    """

    source: str
    stack: tuple[int, ...]
    given: Split
    made: Split
    ends: str = ""
    bias: tuple[str, tuple[int, ...]] | None = None


@dataclass(frozen=True)
class Site:
    """A contraction of an activation with a parameter: where a group is consumed, and where one is made.

    Attributes:
        node: name of the ATen call.
        module: path of the module it was called in.
        kind: "linear", "conv", "conv_transpose", "recurrent", "stacked" (several matrices at once), "product" (any
            other einsum, a bilinear form), "embedding" or "computed" (its weight is made of `weight` in the forward
            pass, as in weight normalisation).
        weight, bias: tensor names; `bias` is None where there is none.
        in_dim, out_dim: the weight's dimensions that are contracted, and kept; where several are so as one, the first
            of them.
        groups: number of groups of a grouped convolution.
        order: which dimension of the stored weight each one is of what the call is given; () where they are the same.
        merged: dimensions that follow `in_dim` and are contracted with it as one, as the heads and the head size in
            front of the projection behind an attention.
        parted: dimensions that follow `out_dim` and are made with it as one, as those of a projection in front of it.
        form: of a "stacked" one, how it is several products.
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
    parted: tuple[int, ...] = ()
    form: Form | None = None

    @property
    def in_dims(self) -> tuple[int, ...]:
        """All dimensions of the weight that are contracted."""
        return (self.in_dim, *self.merged)

    @property
    def out_dims(self) -> tuple[int, ...]:
        """All dimensions of the weight that are kept."""
        return (self.out_dim, *self.parted)

    def in_axis(self, axes: Sequence[Axis]) -> Axis:
        """What is contracted, of the axes of the weight."""
        return product(axes[d] for d in self.in_dims) if self.merged else axes[self.in_dim]

    def out_axis(self, axes: Sequence[Axis]) -> Axis:
        """What is made, of the axes of the weight."""
        return product(axes[d] for d in self.out_dims) if self.parted else axes[self.out_dim]

    def inputs(self, weight: Tensor) -> int:
        """How many inputs the weight has; a convolution has a kernel for each."""
        return prod(weight.shape[d] for d in self.in_dims)

    def outputs(self, weight: Tensor) -> int:
        """How many outputs the weight has."""
        return prod(weight.shape[d] for d in self.out_dims)

    def columns(self, weight: Tensor) -> int:
        """How many numbers the weight has for each output."""
        return weight.numel() // (self.outputs(weight) * self.matrices(weight))

    def matrices(self, weight: Tensor) -> int:
        """How many matrices the weight holds, each for inputs of its own."""
        return 1 if self.form is None else prod(weight.shape[d] for d in self.form.stack)

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
    twin: Callable[..., Any] | None = None
