"""A functional model, of whatever class, with some of its layers exchanged: connected as before, in their sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from actprune.keras3.backend import keras_on_torch

_GRAPH = (
    "_inputs_struct _outputs_struct _inputs _outputs _nodes _nodes_by_depth _operations _operations_by_depth"
).split()
"""Attributes by which Keras remembers how a functional model is connected."""


def is_functional(layer: Any) -> bool:
    """Whether it is a model whose layers are connected by symbolic tensors, so that its own `call` is Keras's."""
    calls = next(kind for kind in type(layer).__mro__ if "call" in vars(kind))
    return isinstance(layer, _functional()) and calls.__module__.startswith("keras.")


def is_plain(model: Any) -> bool:
    """Whether it is a functional model of no class of its own, or of one that is made of inputs and outputs alone."""
    made_by: Any = type(model).__init__
    return made_by is _functional().__init__


def _functional() -> type:
    from keras.src.models.functional import Functional  # it has no public name

    return Functional


def reconnect(model: Any, new: Mapping[int, Any]) -> None:
    """Connect a model anew, in place, so that its attributes hold what it calls.

    Args:
        new: id of a layer, or of a call that is none → what is called instead.

    Raises:
        LookupError: the calls come in another order than before.
    """
    keras = keras_on_torch()
    for operation in model.operations:
        if not isinstance(operation, keras.layers.InputLayer):
            operation._inbound_nodes.clear()  # the first one tells what a layer is called on
            operation._outbound_nodes.clear()
    inputs = model._inputs_struct
    outputs = model._run_through_graph(inputs, operation_fn=lambda operation: new.get(id(operation), operation))
    graph = keras.Model(inputs, outputs, name=model.name)
    renewed = _pairs(model, graph, new)
    for name in _GRAPH:
        vars(model)[name] = vars(graph)[name]
    for held in (vars(model), model._modules):
        for name, value in list(held.items()):
            if name not in _GRAPH:
                held[name] = _renewed(value, renewed)
    forget(model)


def forget(layer: Any) -> None:
    """The table of parameters that Keras keeps for torch, which it makes again where it is missing."""
    if "_torch_params" in layer._modules:
        nn.Module.__delattr__(layer, "_torch_params")


def _pairs(model: Any, graph: Any, exchanged: Mapping[int, Any]) -> dict[int, tuple[Any, Any]]:
    """The id of each operation and symbolic tensor that isn't the same in both → both."""
    keras, found = keras_on_torch(), dict[int, tuple[Any, Any]]()
    pairs = list(zip(model._operations, graph._operations, strict=True))
    for depth, nodes in model._nodes_by_depth.items():
        for old, new in zip(nodes, graph._nodes_by_depth[depth], strict=True):
            pairs += [(old.operation, new.operation), *zip(old.outputs, new.outputs, strict=True)]
    for old, new in pairs:
        if not isinstance(old, keras.KerasTensor) and new is not exchanged.get(id(old), old):
            raise LookupError(f"{old.name} is called where {new.name} was")
        if old is not new:
            found[id(old)] = old, new
            if isinstance(old, keras.Layer) and model._tracker.is_in_store("layers", old):
                model._tracker.replace_tracked_value("layers", old, new)
    return found


def _renewed(value: Any, pairs: Mapping[int, tuple[Any, Any]]) -> Any:
    """What takes the place of an attribute's value; lists and dicts change in place."""
    if id(value) in pairs:
        return pairs[id(value)][1]
    if type(value) is tuple:
        return tuple(_renewed(entry, pairs) for entry in value)
    if isinstance(value, list | dict):
        for key, entry in list(value.items() if isinstance(value, dict) else enumerate(value)):
            new = _renewed(entry, pairs)
            if new is not entry:
                value[key] = new
    return value
