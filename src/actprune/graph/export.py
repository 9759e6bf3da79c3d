"""The first tracer: `torch.export`, without decomposition, so that one `linear` stays one node. Nothing heavy runs."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx.traceback as annotations
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.fx import Graph
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from actprune.graph.call_stacks import no_call_stacks, short_call_stacks
from actprune.graph.names import Names
from actprune.graph.program import place
from actprune.graph.rebuilt import Rebuilt, running
from actprune.graph.size_recorder import Recorder, recording
from actprune.graph.traced import Refused, Traced


def exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], names: Names) -> Traced:
    """Trace the call `model(*args, **kwargs)` with fake tensors.

    Raises:
        Refused: a size depends on the values of tensors.
        Exception: whatever export or the model raises.
    """
    program, recorder = _program(model, args, kwargs)
    _register_users(program.graph)
    _check_static(program.graph)
    inputs: list[str] = []
    bindings: dict[str, str] = {}
    constants: dict[str, Tensor] = {}
    for spec in program.graph_signature.input_specs:
        placeholder = spec.arg.name
        if spec.kind == InputKind.USER_INPUT:
            inputs.append(placeholder)
            continue
        target = spec.target or placeholder
        value = names.tensors.get(target)
        if value is None:  # a constant that export lifted out of the forward
            value = program.constants[target]
        name = names.canonical(target, value)
        bindings[placeholder] = name
        if name not in names.tensors:
            constants[name] = value if isinstance(value, Tensor) else torch.tensor(0)
    out_spec = program.call_spec.out_spec or pytree.tree_structure(())
    return Traced(program.graph, program.graph_module, tuple(inputs), bindings, constants, out_spec, "export", recorder)


def _program(model: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Recorder | None]:
    """The export, with the sizes that the forward pass writes down; without them where recording is in the way.

    A model that is rebuilt has such sizes only in code of the user's own.
    """
    if isinstance(model, Rebuilt) and not running(model):
        with annotations.preserve_node_meta(), no_call_stacks():
            return torch.export.export(model, args, kwargs, strict=False), None
    traces = no_call_stacks if isinstance(model, Rebuilt) else short_call_stacks
    try:
        with recording(model) as recorder, traces():
            return torch.export.export(model, args, kwargs, strict=False), recorder
    except GuardOnDataDependentSymNode:  # the values of tensors decide: without the record as well
        raise
    except Exception:
        with short_call_stacks():
            return torch.export.export(model, args, kwargs, strict=False), None


def _register_users(graph: Graph) -> None:
    """Where export opens a region that does nothing (autocast off), what nobody reads is missing among the users of
    its arguments: the argument could be erased before it."""
    for node in graph.nodes:
        for source in node.all_input_nodes:
            source.users.setdefault(node)


def _check_static(graph: Graph) -> None:
    """Export follows `nonzero` and boolean masks with sizes that it doesn't know; the axes need to know them."""
    for node in graph.nodes:
        value = node.meta.get("val")
        for result in value if isinstance(value, tuple | list) else (value,):
            if isinstance(result, Tensor) and not all(isinstance(n, int) for n in result.shape):
                shape = f"({', '.join(map(str, result.shape))})"
                raise Refused(f"a size depends on the values of tensors: {shape} from {place(node)}")
