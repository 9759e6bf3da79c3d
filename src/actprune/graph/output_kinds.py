"""What a network's outputs are, told by the ops that make them, and which of them are compared."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor
from torch.fx import Node

from actprune.graph.program import Program, named_arguments, op_name, shape
from actprune.graph.values import is_float


def output_kind(program: Program) -> str:
    """What the one output is, told by its last op: "probabilities", "log_probabilities", "logits" or "values".

    Beside a logit for every word of a vocabulary, outputs that it is computed from (what an encoder has made of the
    text, keys and values, hidden states) do not count as outputs.
    """
    outputs = tensor_outputs(program)
    if not outputs:
        return "values"
    last = _unscaled(outputs[0])
    name, shape = op_name(last), tuple(outputs[0].meta["val"].shape)
    if len(shape) > 2 and shape[-1] in _vocabularies(program) and op_name(_step(last)).startswith("aten.linear"):
        return "logits" if set(outputs[1:]) <= _before(outputs[0]) else "values"
    if len(outputs) != 1:
        return "values"
    if "softmax" in name and last is outputs[0] and len(shape) > 1 and shape[-1] > 1:
        if named_arguments(last).get("dim") not in (-1, len(shape) - 1):
            return "values"
        return "log_probabilities" if "log_softmax" in name else "probabilities"
    if len(shape) != 2 or shape[1] < 2:
        return "values"
    return "logits" if name.startswith(("aten.linear", "aten.addmm", "aten.flatten", "aten.view")) else "values"


def _step(node: Node) -> Node:
    """What gives each of the steps that a loop puts side by side, where one layer gives them all; else the node."""
    if not op_name(node).startswith(("aten.stack.", "aten.cat.")):
        return node
    steps = [_unscaled(step) for step in named_arguments(node)["tensors"]]
    weights = {named_arguments(step).get("weight", step) for step in steps}
    return steps[0] if len(weights) == 1 else node


def _before(node: Node) -> set[Node]:
    """All that a value is computed from."""
    found, waiting = set[Node](), [node]
    while waiting:
        sources = set(waiting.pop().all_input_nodes) - found
        found |= sources
        waiting += sources
    return found


_SCALES = ("aten.mul.", "aten.div.", "aten.tanh.", "aten.to.", "aten._to_copy.")


def _unscaled(node: Node) -> Node:
    """What logits were before a model multiplied them by a number, capped them softly, or gave them another type."""
    while op_name(node).startswith(_SCALES):
        given = [one for one in node.args if isinstance(one, Node)]
        operands = [one for one in given if shape(one) == shape(node)]
        numbers = all(prod(shape(one)) == 1 for one in given if one not in operands)
        divided = not op_name(node).startswith("aten.div.") or node.args[0] in operands
        if len(operands) != 1 or not numbers or not divided:
            break
        (node,) = operands
    return node


def _vocabularies(program: Program) -> set[int]:
    """The numbers of rows of the tables that whole numbers are looked up in."""
    calls = [node for node in program.nodes if op_name(node).startswith("aten.embedding.")]
    tables = [named_arguments(node)["weight"] for node in calls]
    return {table.meta["val"].shape[0] for table in tables if isinstance(table, Node)}


def tensor_outputs(program: Program) -> list[Node]:
    """The outputs that are compared, in order: tensors, but for scalars (a loss) beside others of floats."""
    nodes = [out for out in program.outputs if isinstance(out, Node)]
    return [nodes[i] for i in compared([out.meta.get("val") for out in nodes])]


def compared(outputs: Sequence[Any]) -> list[int]:
    """The places of these among all."""
    tensors = [i for i, out in enumerate(outputs) if isinstance(out, Tensor)]
    several = [i for i in tensors if outputs[i].dim()]
    return several if any(is_float(outputs[i]) for i in several) else tensors
