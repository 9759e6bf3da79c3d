"""A Keras model built anew from its config, with the sizes that a plan leaves, and with its own weights in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from actprune.errors import PlanError, UnsupportedModelError
from actprune.keras3.backend import keras_on_torch
from actprune.keras3.compiled import compile_like
from actprune.keras3.inside import rebuilt_inside
from actprune.keras3.own import is_own
from actprune.keras3.places import Placed
from actprune.keras3.table import Cut, fields
from actprune.plan import Plan
from actprune.surgery.slicing import sliced


def check_rebuildable(model: Any) -> None:
    """Refuse, by name, what its config doesn't describe.

    Raises:
        UnsupportedModelError: a subclassed model, or one that holds one.
    """
    keras = keras_on_torch()
    for layer in model._flatten_layers():
        if getattr(layer, "stateful", False):
            raise UnsupportedModelError(
                f"{type(layer).__name__} {layer.name!r} can't be pruned: it keeps its state from call to call.",
                expected="layers whose outputs depend on their inputs alone",
                got="stateful=True",
                where=layer.name,
                hint="prune the same model with stateful=False, and give the weights of the result to a stateful one",
            )
        if isinstance(layer, keras.Model) and not _is_described(layer):
            raise UnsupportedModelError(
                f"{type(layer).__name__} {layer.name!r} can't be rebuilt: its config doesn't say how its layers are "
                "connected.",
                expected="a Sequential or a functional model",
                got=f"the subclass {type(layer).__name__}",
                where=layer.name,
                hint="write it with keras.Input and keras.Model(inputs, outputs); where its class is a functional "
                "model inside, keras.Model(model.inputs, model.outputs) will do",
            )


def _is_described(model: Any) -> bool:
    from keras.src.models.functional import Functional  # it has no public name

    return type(model) in (keras_on_torch().Sequential, Functional)


def rebuild(model: Any, places: Sequence[Placed], calls: Mapping[str, str], plan: Plan) -> Any:
    """The model with smaller layers, compiled as before, its variables not yet filled.

    Args:
        calls: own name of what is called and is no layer → its name in the plan.

    Raises:
        PlanError: a layer can't be built in that size.
    """
    return _Rebuilding(places, calls, plan).model(model)


_WITHIN = (("layer", "layer"), ("layer", "forward_layer"), ("backward_layer", "backward_layer"), ("cell", "cell"))
"""Fields of a config that hold the config of a layer, and the attribute with that layer."""


class _Within:
    """Stands for a model within a model, a layer that wraps one, or one of the user's own class that is cut, until its
    inputs, and so their sizes, are known."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer


class _Rebuilding:
    """One rebuild; layers that are shared are made once."""

    def __init__(self, places: Sequence[Placed], calls: Mapping[str, str], plan: Plan) -> None:
        self.plan, self.calls = plan, calls
        self.paths = {id(place.layer): place.path for place in places}
        variables = {place.full(name): held[0] for place in places for name, held in place.variables.items()}
        self.names = {id(variable): name for name, variable in variables.items()}
        self.shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
        self.shapes |= {name: plan.shape(name) for name in plan.dims}
        self.edits: dict[str, dict[tuple[Any, ...], int]] = {}
        for edit in plan.edits.attributes:
            self.edits.setdefault(edit.module, {})[edit.path] = edit.value
        self.made: dict[int, Any] = {}

    def model(self, model: Any, inputs: Any = None) -> Any:
        """The new model for an old one.

        Args:
            inputs: symbolic tensors that a model within a model is called on; its own inputs take their shapes.
        """
        keras = keras_on_torch()
        compiled, model.compiled = model.compiled, False  # Keras would compile by names, not with the same objects
        try:
            made = (
                self._sequential(model, inputs)
                if isinstance(model, keras.Sequential)
                else keras.models.clone_model(
                    model, input_tensors=_inputs(model, inputs), clone_function=self._called, call_function=self._call
                )
            )
        except PlanError:
            raise
        except Exception as error:  # whatever a layer raises on shapes it doesn't expect
            raise _misfit(model.name, error) from error
        finally:
            model.compiled = compiled
        return made

    def _sequential(self, model: Any, inputs: Any) -> Any:
        keras = keras_on_torch()
        made, start = keras.Sequential(name=model.name), _inputs(model, inputs)
        made.add(start)
        for layer in model.layers:
            new = self._called(layer)
            if isinstance(new, _Within):
                made._maybe_rebuild()
                new = self._built(new, made.outputs[0] if made.layers else start)
            made.add(new, rebuild=False)
        made._maybe_rebuild()
        return made

    def _built(self, within: _Within, *args: Any, **kwargs: Any) -> Any:
        key, layer = id(within), within.layer
        if key not in self.made:
            inputs = args[0] if args else next(iter(kwargs.values()))
            if is_own(layer):
                self.made[key] = self._inside(layer, args, kwargs)
            else:
                is_model = isinstance(layer, keras_on_torch().Model)
                self.made[key] = self.model(layer, inputs) if is_model else self._like(layer, inputs)
        return self.made[key]

    def _called(self, layer: Any) -> Any:
        """As `layer`, of one that the model itself calls."""
        if id(layer) not in self.made and is_own(layer) and self._cut_within(layer):
            self.made[id(layer)] = _Within(layer)
        return self.layer(layer)

    def _cut_within(self, layer: Any) -> bool:
        """Whether a layer holds others, and a variable that the plan cuts."""
        path = self.paths[id(layer)]
        return bool(layer._layers) and any(name.startswith(f"{path}.") for name in self.plan.dims)

    def _inside(self, layer: Any, args: Any, kwargs: Any) -> Any:
        try:
            return rebuilt_inside(
                layer, self._unbuilt, lambda variable: self.shapes[self.names[id(variable)]], args, kwargs
            )
        except PlanError:
            raise
        except Exception as error:  # whatever a class raises on layers that it doesn't expect
            raise _misfit(layer.name, error) from error

    def _unbuilt(self, layer: Any) -> Any:
        keras = keras_on_torch()
        if isinstance(layer, keras.Sequential):
            return keras.Sequential([self._unbuilt(inner) for inner in layer.layers], name=layer.name)
        return self.model(layer) if isinstance(layer, keras.Model) else self._like(layer)

    def layer(self, layer: Any) -> Any:
        """The new layer for an old one; a call that is no layer, such as `keras.ops.reshape`, likewise."""
        if id(layer) not in self.made:
            self.made[id(layer)] = self._layer(layer)
        return self.made[id(layer)]

    def _layer(self, layer: Any) -> Any:
        keras = keras_on_torch()
        if _holds_model(layer):
            return _Within(layer)
        return self._like(layer) if isinstance(layer, keras.Layer) else self._operation(layer)

    def _like(self, layer: Any, inputs: Any = None) -> Any:
        """A layer of the same class, smaller.

        Args:
            inputs: what it is called on, where it wraps a model.
        """
        keras = keras_on_torch()
        try:
            if isinstance(layer, keras.layers.Lambda):  # its config holds code, which isn't read back
                return type(layer)(
                    layer.function, output_shape=layer._output_shape, mask=layer.mask, arguments=layer.arguments,
                    name=layer.name, dtype=layer.dtype_policy,
                )  # fmt: skip
            config = self._config(layer, inputs)
            if isinstance(layer, keras.layers.Wrapper):
                return type(layer)(config.pop("layer"), **config)
            return type(layer).from_config(config)
        except PlanError:
            raise
        except Exception as error:  # a config without what the class needs
            raise _misfit(layer.name, error) from error

    def _config(self, layer: Any, inputs: Any) -> dict[str, Any]:
        keras = keras_on_torch()
        path = self.paths.get(id(layer)) or str(layer.name)
        config = dict(layer.get_config())
        # what is wrapped may be shared, or hold code, so it is no copy; the others copy what they are given
        whole = isinstance(layer, keras.layers.Wrapper)
        for field, inner in _wrapped(layer).items():
            if field in config:
                new = self.layer(inner)
                new = self._built(new, _trailing(new.layer, inputs)) if isinstance(new, _Within) else new
                config[field] = new if whole else keras.saving.serialize_keras_object(new)
        if cells := [cell for cell in getattr(layer, "cells", ()) if isinstance(cell, keras.Layer)]:
            config["cells"] = [keras.saving.serialize_keras_object(self.layer(cell)) for cell in cells]
        own = {name[len(path) + 1 :]: shape for name, shape in self.shapes.items() if name.startswith(f"{path}.")}
        config |= fields(Cut(layer, path, own, self.plan)) if own else {}
        for (field, *rest), value in self.edits.get(path, {}).items():
            config[field] = _with_entry(config[field], rest, value)
        return config

    def _operation(self, operation: Any) -> Any:
        edits = self.edits.get(self.calls.get(operation.name, operation.name))
        if not edits:
            return operation
        try:
            config = dict(operation.get_config())  # it is what a saved file holds, whatever the attributes say
            for (field, *rest), value in edits.items():
                config[field] = _with_entry(config[field], rest, value)
            return type(operation).from_config(config)
        except Exception as error:  # a config without what the class needs
            raise _misfit(operation.name, error) from error

    def _call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, _Within):
            layer = self._built(layer, *args, **kwargs)
        try:
            return layer(*args, **kwargs)
        except Exception as error:  # whatever a layer raises on a width that it doesn't expect
            raise _misfit(layer.name, error) from error


def _inputs(model: Any, given: Any) -> Any:
    """New inputs for a model, like its own but of the sizes of what it is given, if anything."""
    keras = keras_on_torch()
    old = model.inputs
    new = old if given is None else keras.tree.flatten(given)
    shapes = [(was.shape[0], *now.shape[1:]) for was, now in zip(old, new, strict=True)]
    made = [keras.Input(**{**_shape_of(was), "batch_shape": shape}) for was, shape in zip(old, shapes, strict=True)]
    return made[0] if isinstance(model, keras.Sequential) else keras.tree.pack_sequence_as(model._inputs_struct, made)


def _wrapped(layer: Any) -> dict[str, Any]:
    """Field of the config → the layer that is held in it."""
    held = ((field, getattr(layer, attribute, None)) for field, attribute in _WITHIN)
    return {field: inner for field, inner in held if isinstance(inner, keras_on_torch().Layer)}


def _holds_model(layer: Any) -> bool:
    """Whether it is a model, or wraps one."""
    return isinstance(layer, keras_on_torch().Model) or any(map(_holds_model, _wrapped(layer).values()))


def _trailing(layer: Any, given: Any) -> Any:
    """What a wrapped model is called on: of each step of a sequence, of each part of a batch."""
    keras = keras_on_torch()
    if not isinstance(layer, keras.Model):
        return given
    pairs = zip(layer.inputs, keras.tree.flatten(given), strict=True)
    return [keras.KerasTensor((None, *now.shape[len(now.shape) - len(was.shape) + 1 :])) for was, now in pairs]


def _shape_of(tensor: Any) -> dict[str, Any]:
    """What an Input layer is made of; the tensor has another name than its layer where that was not named."""
    layer = tensor._keras_history.operation
    return {"batch_shape": tensor.shape, "dtype": tensor.dtype, "name": layer.name}


def _with_entry(value: Any, path: Sequence[Any], new: int) -> Any:
    """`value`, or the entry of a tuple that `path` leads to, replaced."""
    if not path:
        return new
    return type(value)(_with_entry(v, path[1:], new) if i == path[0] else v for i, v in enumerate(value))


def filled(new: Sequence[Placed], old: Sequence[Placed], plan: Plan, tensors: Mapping[str, Tensor]) -> None:
    """Give a rebuilt model its weights, trainable flags and the state of its optimizer.

    Raises:
        PlanError: a variable hasn't the size that the plan predicts.
    """
    pairs: list[tuple[Any, Any, str]] = []
    for made, was in zip(new, old, strict=True):
        made.layer.trainable = was.layer._trainable  # of the layers within too, whose own turn comes later
        for name, (variable, _) in made.variables.items():
            full = made.full(name)
            source = was.variables[name][0]
            value = tensors.get(full)
            value = source.value.detach() if value is None else value
            if tuple(variable.shape) != tuple(value.shape):
                raise PlanError(
                    f"Layer {made.path!r} can't be rebuilt in the size that the plan leaves.",
                    expected=f"{name} of shape {tuple(value.shape)}",
                    got=f"{tuple(variable.shape)}, as {type(made.layer).__name__} makes it from its config",
                    where=f"{made.path}, a {type(made.layer).__name__}",
                    hint="protect it, or give the class a config that holds its size",
                )
            with torch.no_grad():
                variable.value.copy_(value)
            pairs.append((variable, source, full))
    for variable, source, _ in pairs:
        variable.trainable = source.trainable
    compile_like(new[0].layer, old[0].layer, _slicer(plan, pairs))


def _slicer(plan: Plan, pairs: Iterable[tuple[Any, Any, str]]) -> Any:
    """A function from an old variable and a tensor of its shape to that tensor, cut like the variable."""
    names = {id(source): name for _, source, name in pairs}

    def cut(variable: Any, value: Tensor) -> Tensor:
        return sliced(value, plan.indices(names[id(variable)]))

    return cut


def _misfit(name: str, error: Exception) -> PlanError:
    said = next((line for line in str(error).splitlines() if line.strip()), "")
    return PlanError(
        f"Layer {name!r} can't be rebuilt in the size that the plan leaves.",
        expected="a layer that its config describes, and that takes inputs of the new size",
        got=f"{type(error).__name__}: {said[:200]}",
        where=name,
        hint="protect the layers that feed it, or write it without a fixed size",
    )
