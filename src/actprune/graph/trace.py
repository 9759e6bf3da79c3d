"""Model → Program, through `torch.export`.

The export is taken without decomposition, so that one `linear` stays one node. In-place calls are turned into
their pure twins where they can be (`graph/purify.py`). The model is left as it was: modes, hooks, random state.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

from actprune.errors import CaptureError, DataError
from actprune.graph.inline import inline
from actprune.graph.program import Program, architecture, op_name, place
from actprune.graph.purify import make_pure
from actprune.graph.quiet import quiet

_NOISE = {
    "aten.alias.default",
    "aten.detach.default",
    "aten.detach_.default",
    "aten.lift_fresh_copy.default",
    "aten.dropout.default",
    "aten.dropout_.default",
    "aten.feature_dropout.default",
    "aten.alpha_dropout.default",
}
"""Calls that return their first argument; dropout is taken as off in every capture."""


def trace(model: nn.Module, example_inputs: Any, *, training: bool = False) -> Program:
    """Capture `model` as it computes on `example_inputs`.

    Args:
        model: any module that `torch.export` takes.
        example_inputs: a tensor (the one argument), a tuple or list (positional arguments) or a dict
            (keyword arguments; keys that are not in the signature of `forward` are dropped).
        training: capture the branches of training mode instead of those of eval mode.

    Raises:
        CaptureError: the inputs are not tensors, or export refuses the model.
    """
    args, kwargs = call_arguments(model, example_inputs)
    flat, in_spec = pytree.tree_flatten((args, kwargs))
    tensors = [value for value in flat if isinstance(value, Tensor)]
    if not tensors:
        raise CaptureError(
            f"{type(model).__name__} was given no tensor to be captured with.",
            expected="a tensor, a tuple of tensors or a dict of tensors",
            got=type(example_inputs).__name__,
            where="example_inputs",
            hint="pass one batch of inputs, as the model gets them in use",
        )
    with preserved(model), torch.no_grad():
        for module in model.modules():
            module.training = training
        try:
            with quiet():
                exported = torch.export.export(model, args, kwargs, strict=False)
        except Exception as error:  # export raises whatever the model or the tracer raises
            raise _refusal(model, tensors, error) from error
    graph = exported.graph
    _check_static(model, graph)
    inline(graph, exported.graph_module)
    _drop_noise(graph)
    make_pure(graph)
    names = _names(model)
    bindings: dict[str, str] = {}
    inputs: list[str] = []
    found: dict[str, Tensor] = {}
    for spec in exported.graph_signature.input_specs:
        placeholder = spec.arg.name
        if spec.kind == InputKind.USER_INPUT:
            inputs.append(placeholder)
            continue
        target = spec.target or placeholder
        value = names.tensors.get(target)
        if value is None:  # a constant that export lifted out of the forward
            value = exported.constants[target]
        name = names.canonical(target, value)
        bindings[placeholder] = name
        found[name] = value if isinstance(value, Tensor) else torch.tensor(0)
    every = {name: tensor for name, tensor in names.tensors.items() if names.canonical(name, tensor) == name}
    batch = next((value.shape[0] for value in tensors if value.dim() > 0), 1)
    return Program(
        graph=graph,
        tensors={**every, **found},
        aliases={name: names.all_names(name) for name in {**every, **found}},
        bindings=bindings,
        parameters=frozenset(name for name in every if isinstance(every[name], nn.Parameter)),
        persistent=frozenset(
            name for name in every if any(alias in names.persistent for alias in names.all_names(name))
        ),
        inputs=tuple(inputs),
        kwarg_names=tuple(kwargs),
        in_spec=in_spec,
        out_spec=exported.call_spec.out_spec or pytree.tree_structure(()),
        example=tuple(flat),
        batch_size=int(batch),
        model_name=type(model).__name__,
        architecture=architecture(model.state_dict()),
        subgraphs={node.name: node.meta["subgraph"] for node in graph.nodes if node.op == "get_attr"},
    )


def call_arguments(model: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What to call `model` with: `(args, kwargs)`.

    A tensor is the one argument, a tuple or list are the positional ones, a mapping the keyword ones; of a
    mapping only the keys that `forward` takes are used (a batch of a data loader often carries labels too).
    """
    if isinstance(inputs, Mapping):
        parameters = inspect.signature(model.forward).parameters
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            return (), dict(inputs)
        kwargs = {name: value for name, value in inputs.items() if name in parameters}
        if not kwargs:
            raise DataError(
                f"No key of the batch is an argument of {type(model).__name__}.forward.",
                expected=f"keys among {', '.join(parameters)}",
                got=", ".join(map(str, inputs)),
                where="batch",
                hint="say with forward= how to call the model on a batch",
            )
        return (), kwargs
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    return (inputs,), {}


@contextlib.contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Put back every module's train/eval mode and the global random state, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


@contextlib.contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Put back every buffer that a call of the model changes or replaces, also after an error."""
    held = [(module, dict(module._buffers)) for module in model.modules()]
    copies = {id(b): b.clone() for _, buffers in held for b in buffers.values() if b is not None}
    try:
        yield
    finally:
        for module, buffers in held:
            module._buffers.update(buffers)
            for buffer in buffers.values():
                if buffer is not None and not torch.equal(buffer, copies[id(buffer)]):
                    with torch.no_grad():
                        buffer.copy_(copies[id(buffer)])


class _names:
    """The model's tensors under all their names, one of them canonical for each storage."""

    def __init__(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self.tensors: dict[str, Tensor] = {**parameters, **dict(model.named_buffers(remove_duplicate=False))}
        self.persistent = set(model.state_dict(keep_vars=True)) | set(parameters)
        self._groups: dict[tuple[Any, ...], list[str]] = {}
        for name, tensor in self.tensors.items():
            self._groups.setdefault(_identity(tensor), []).append(name)

    def canonical(self, name: str, tensor: Any) -> str:
        group = self._groups.get(_identity(tensor)) if isinstance(tensor, Tensor) else None
        return group[0] if group else name

    def all_names(self, name: str) -> tuple[str, ...]:
        tensor = self.tensors.get(name)
        return (name,) if tensor is None else tuple(self._groups[_identity(tensor)])


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two tensors that are the same memory seen the same way; meta tensors only equal themselves."""
    if tensor.device.type == "meta" or tensor.numel() == 0 or tensor.layout != torch.strided:
        return (id(tensor),)
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _drop_noise(graph: Graph) -> None:
    """Leave out what only hides a value, and every dropout, also that within attention and recurrent layers."""
    for node in list(graph.nodes):
        _without_dropout(node)
        name = op_name(node)
        if name == "aten._assert_tensor_metadata.default":
            graph.erase_node(node)
        elif name in _NOISE and isinstance(node.args[0], Node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _without_dropout(node: Node) -> None:
    """In training mode some ops are given a probability: two runs of them would never agree."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    for i, argument in enumerate(node.target._schema.arguments):
        if argument.name in ("dropout", "dropout_p"):
            if i < len(node.args):
                node.update_arg(i, 0.0)
            elif argument.name in node.kwargs:
                node.update_kwarg(argument.name, 0.0)


def _check_static(model: nn.Module, graph: Graph) -> None:
    """Export follows `nonzero` and boolean masks with sizes that it doesn't know; the axes need to know them."""
    for node in graph.nodes:
        value = node.meta.get("val")
        for result in value if isinstance(value, tuple | list) else (value,):
            if isinstance(result, Tensor) and not all(isinstance(n, int) for n in result.shape):
                raise CaptureError(
                    f"{type(model).__name__} could not be captured.",
                    expected="sizes that do not depend on the values of tensors",
                    got=f"a result of shape ({', '.join(map(str, result.shape))})",
                    where=place(node),
                    hint="replace nonzero, unique or indexing with a mask by torch.where, or export a part without it",
                )


def _refusal(model: nn.Module, tensors: list[Tensor], error: Exception) -> CaptureError:
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return CaptureError(
        f"{type(model).__name__} could not be captured.",
        expected="a forward pass that torch.export can follow",
        got=f"{type(error).__name__}: {first[:300]}",
        where=f"forward with inputs of shape {', '.join(str(tuple(t.shape)) for t in tensors)}",
        hint="check that the model runs on these inputs; replace a branch that depends on tensor values, "
        "or export a part of the model that has none",
    )
