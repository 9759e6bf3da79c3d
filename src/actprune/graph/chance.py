"""Random draws of training mode become one number that they may give, as dropout is off there: two captures then agree,
and noise of any size follows a cut. It is no zero, by which a class may divide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch.fx import Graph, Node

from actprune.graph.program import op_name

ATEN = torch.ops.aten

Settled: TypeAlias = "tuple[Any, tuple[Any, ...], tuple[str, ...]]"
"""An op, its arguments, and the keywords that it keeps."""

_MADE = ("dtype", "layout", "device", "pin_memory")


def _filled(like: Any, value: float) -> Settled:
    return ATEN.full_like.default, (like, value), _MADE


_SETTLED: dict[str, Callable[..., Settled]] = {
    "aten.rand.default": lambda size: (ATEN.full.default, (size, 0.5), _MADE),
    "aten.randn.default": lambda size: (ATEN.full.default, (size, 0.5), _MADE),
    "aten.normal.float_float": lambda mean, std, size: (ATEN.full.default, (size, mean + std / 2), _MADE),
    "aten.rand_like.default": lambda like: _filled(like, 0.5),
    "aten.randn_like.default": lambda like: _filled(like, 0.5),
    "aten.bernoulli.p": _filled,
    "aten.bernoulli.default": lambda share: (ATEN.clone.default, (share,), ()),
    "aten.normal.Tensor_float": lambda mean, std=1.0: (ATEN.clone.default, (mean,), ()),
    "aten.normal.Tensor_Tensor": lambda mean, std: (ATEN.clone.default, (mean,), ()),
    "aten.bernoulli_.float": lambda own, share=0.5: (ATEN.fill_.Scalar, (own, share), ()),
    "aten.uniform_.default": lambda own, low=0.0, high=1.0: (ATEN.fill_.Scalar, (own, (low + high) / 2), ()),
    "aten.exponential_.default": lambda own, rate=1.0: (ATEN.fill_.Scalar, (own, 1 / rate), ()),
    "aten.normal_.default": lambda own, mean=0.0, std=1.0: (ATEN.fill_.Scalar, (own, mean + std / 2), ()),
}
"""Calls that draw → a call of the same arguments that gives such a number."""


def without_chance(graph: Graph) -> None:
    """Settle every draw of a known kind; integers at random (a shuffled batch) stay as they are."""
    for node in graph.nodes:
        name = op_name(node).replace(".generator", ".default")
        settle = _SETTLED.get(name) if node.op == "call_function" else None
        if settle is not None:
            _settle(node, *settle(*node.args))


def _settle(node: Node, op: Any, args: tuple[Any, ...], kept: tuple[str, ...]) -> None:
    before = node.all_input_nodes
    node.args, node.kwargs = args, {name: value for name, value in node.kwargs.items() if name in kept}
    node.target = op
    for source in before:  # a deviation that `torch.distributions` has expanded: no cut has to follow what none reads
        if op_name(source).startswith("aten.expand.") and not source.users:
            node.graph.erase_node(source)
