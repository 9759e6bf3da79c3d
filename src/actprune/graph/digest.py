"""A digest of a captured program: two captures that agree are the same calls on tensors of the same names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node

from actprune.graph.program import Program, op_name, shape

_PLAIN = (int, float, complex, str, torch.dtype, torch.layout, torch.memory_format)


def digest(program: Program) -> str:
    """SHA-256 over the calls in order: op, operands, numbers and shape of the result.

    How nodes are called and which device they run on doesn't count, and no tensor's values do: those that aren't in the
    state dict are the model's own, as they are for its class.
    """
    lines = _lines(list(program.nodes), program.bindings, program.subgraphs)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _lines(nodes: list[Node], bindings: Mapping[str, str], subgraphs: Mapping[str, Any]) -> Iterator[str]:
    numbers = {node: i for i, node in enumerate(nodes)}
    for node in nodes:
        yield f"{op_name(node)} {bindings.get(node.name, '')} {_plain((node.args, node.kwargs), numbers)} {shape(node)}"
        inner = subgraphs.get(node.name)
        if isinstance(inner, GraphModule):
            yield from _lines(list(inner.graph.nodes), {}, dict(inner.named_children()))


def _plain(value: Any, numbers: Mapping[Node, int]) -> str:
    """An argument as text: nodes by their number, and nothing that differs between two processes."""
    if isinstance(value, Node):
        return f"%{numbers[value]}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(_plain(part, numbers) for part in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_plain(part, numbers)}' for key, part in value.items())}}}"
    if isinstance(value, slice):
        return f"slice{_plain((value.start, value.stop, value.step), numbers)}"
    return repr(value) if value is None or isinstance(value, _PLAIN) else type(value).__name__
