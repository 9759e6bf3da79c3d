"""A layer of a Keras model from its config, or a call that is none, with the sizes that a plan leaves."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from types import FunctionType
from typing import Any

from actprune.errors import PlanError
from actprune.keras3.attributes import is_attribute
from actprune.keras3.backend import keras_on_torch
from actprune.keras3.inside import own_classes
from actprune.keras3.own import is_own
from actprune.keras3.places import Placed, quantization
from actprune.keras3.refusal import misfit
from actprune.keras3.resized import with_entry
from actprune.keras3.table import Cut, fields
from actprune.keras3.wrapped_torch import small_module
from actprune.keras3.wrapping import trailing, wrapped
from actprune.plan import Plan


def given_functions(layer: Any) -> dict[str, FunctionType]:
    """The functions that a layer of Keras's was given, such as its activation, by name.

    A config tells them by names, and `keras.ops.gelu` is another function than what Keras finds under its name; it
    finds none for a lambda.
    """
    found = {} if is_own(layer) else {name: getattr(layer, name, None) for name in _FUNCTIONS}
    return {name: value for name, value in found.items() if isinstance(value, FunctionType)}


_FUNCTIONS = ("activation", "recurrent_activation", "function")
"""Attributes, and fields of the config, that hold functions."""


def _lambda_like(layer: Any, shape: Any) -> Any:
    return type(layer)(
        layer.function, output_shape=shape, mask=layer.mask, arguments=layer.arguments,
        name=layer.name, dtype=layer.dtype_policy,
    )  # fmt: skip


def _follows(layer: Any) -> bool:
    """Whether the shape that a Lambda was told is what its function gives: then a smaller one need not be told."""
    try:
        (node, *_) = layer._inbound_nodes
        found = _lambda_like(layer, None).compute_output_spec(*node.arguments.args, **node.arguments.kwargs)
    except Exception:  # whatever a function raises on tensors without values
        return False
    return [one.shape for one in keras_on_torch().tree.flatten(found)] == [one.shape for one in node.outputs]


class Within:
    """Stands for a model within a model, a layer that wraps one, or one of the user's own class that is cut, until its
    inputs, and so their sizes, are known."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer


class FromConfig:
    """What a plan leaves, and layers made so.

    Attributes:
        paths: id of a layer → its path.
        names: id of a variable → its name in the plan.
        shapes: that name → its new shape.
        edits: path → place in a config → the number there.
    """

    def __init__(self, places: Sequence[Placed], calls: Mapping[str, str], plan: Plan) -> None:
        self.plan, self.calls = plan, calls
        self.paths = {id(place.layer): place.path for place in places}
        variables = {place.full(name): held[0] for place in places for name, held in place.variables.items()}
        self.names = {id(variable): name for name, variable in variables.items()}
        self.shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
        self.shapes |= {name: plan.shape(name) for name in plan.dims}
        self.edits: dict[str, dict[tuple[Any, ...], int]] = {}
        for edit in (edit for edit in plan.edits.attributes if not is_attribute(edit)):
            self.edits.setdefault(edit.module, {})[edit.path] = edit.value

    @abstractmethod
    def layer(self, layer: Any) -> Any:
        """The new layer for an old one, or what stands for it."""

    @abstractmethod
    def built(self, within: Within, *args: Any, **kwargs: Any) -> Any:
        """What such a one stands for, made for these inputs."""

    def like(self, layer: Any, inputs: Any = None) -> Any:
        """A layer of the same class, smaller.

        Args:
            inputs: what it is called on, where it wraps a model.
        """
        keras = keras_on_torch()
        try:
            if isinstance(layer, keras.layers.Lambda):  # its config holds code, which isn't read back
                return _lambda_like(layer, None if _follows(layer) else layer._output_shape)
            if isinstance(layer, keras.layers.TorchModuleWrapper):  # its config holds a pickle, which isn't read back
                module, shape = small_module(layer, self.names, self.plan), layer.output_shape
                return type(layer)(module, name=layer.name, output_shape=shape, dtype=layer.dtype_policy)
            config = self._config(layer, inputs)
            if isinstance(layer, keras.layers.Wrapper):
                return type(layer)(config.pop("layer"), **config)
            with own_classes(layer):  # of cells in it
                return type(layer).from_config(config)
        except PlanError:
            raise
        except Exception as error:  # a config without what the class needs
            raise misfit(layer.name, error) from error

    def _config(self, layer: Any, inputs: Any) -> dict[str, Any]:
        keras = keras_on_torch()
        path = self.paths.get(id(layer)) or str(layer.name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of lambdas, which are taken as they are
            config = dict(layer.get_config())
        # what is wrapped may be shared, or hold code, so it is no copy; the others copy what they are given
        whole = isinstance(layer, keras.layers.Wrapper)
        for field, inner in wrapped(layer).items():
            if field in config:
                new = self.layer(inner)
                new = self.built(new, trailing(new.layer, inputs)) if isinstance(new, Within) else new
                config[field] = new if whole else keras.saving.serialize_keras_object(new)
        if cells := [cell for cell in getattr(layer, "cells", ()) if isinstance(cell, keras.Layer)]:
            config["cells"] = [keras.saving.serialize_keras_object(self.layer(cell)) for cell in cells]
        own = {name[len(path) + 1 :]: shape for name, shape in self.shapes.items() if name.startswith(f"{path}.")}
        config |= fields(Cut(layer, path, own, self.plan)) if own and quantization(layer) is None else {}
        for (field, *rest), value in self.edits.get(path, {}).items():
            config[field] = with_entry(config[field], rest, value)
        return config | given_functions(layer)

    def operation(self, operation: Any) -> Any:
        edits = self.edits.get(self.calls.get(operation.name, operation.name))
        if not edits:
            return operation
        try:
            config = dict(operation.get_config())  # it is what a saved file holds, whatever the attributes say
            for (field, *rest), value in edits.items():
                config[field] = with_entry(config[field], rest, value)
            return type(operation).from_config(config)
        except Exception as error:  # a config without what the class needs
            raise misfit(operation.name, error) from error
