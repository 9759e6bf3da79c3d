"""A Keras model built anew from its config, with the sizes that a plan leaves, and with its own weights in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from actprune.errors import PlanError
from actprune.keras3.as_class import of_same_class
from actprune.keras3.attributes import is_attribute, numbers_within
from actprune.keras3.backend import keras_on_torch
from actprune.keras3.copied import Copying, copied
from actprune.keras3.from_config import FromConfig, Within
from actprune.keras3.inputs import Given, as_built, has_own_call, of_sizes
from actprune.keras3.inside import lightly, own_classes, put_inside, rebuilt_inside, share_others, twin_of
from actprune.keras3.own import is_own, shapes_of, variables_within
from actprune.keras3.places import Placed, placed
from actprune.keras3.reconnect import is_functional, is_plain
from actprune.keras3.refusal import misfit, uncalled
from actprune.keras3.resized import Resized, as_config, config_of, serialized
from actprune.keras3.unread import inputs_of, widths
from actprune.keras3.wrapping import holds_model
from actprune.plan import Plan


def rebuild(
    model: Any, places: Sequence[Placed], calls: Mapping[str, str], plan: Plan, given: Given | None = None
) -> Any:
    """The model with smaller layers, compiled as before, its variables not yet filled.

    Args:
        calls: own name of what is called and is no layer → its name in the plan.
        given: what a model with a `call` of its own is called on, if that is known.

    Raises:
        PlanError: a layer can't be built in that size.
    """
    made = _Rebuilding(places, calls, plan)
    new = made.of_own_call(model, given) if has_own_call(model) else made.model(model)
    new._called = model._called  # Keras exports no model to ONNX that was never called
    return new


class _Rebuilding(FromConfig):
    """One rebuild; layers that are shared are made once.

    Attributes:
        edited: paths of layers of which attributes or the source of methods change.
        made: id of an old layer → the new one.
        spare: id of an old layer of the user's own class → one of the old sizes, as the class of its model makes it.
        within: id of a layer made of such a one, or of a model of the user's own class → configs of what is put there.
    """

    def __init__(self, places: Sequence[Placed], calls: Mapping[str, str], plan: Plan) -> None:
        super().__init__(places, calls, plan)
        self.edited = {e.module for e in (*filter(is_attribute, plan.edits.attributes), *plan.edits.methods)}
        self.made: dict[int, Any] = {}
        self.spare: dict[int, Any] = {}
        self.within: dict[int, dict[str, Any]] = {}

    def model(self, model: Any, inputs: Any = None) -> Any:
        """The new model for an old one.

        Args:
            inputs: symbolic tensors that a model within a model is called on; its own inputs take their shapes.
        """
        keras = keras_on_torch()
        compiled, model.compiled = model.compiled, False  # Keras would compile by names, not with the same objects
        try:
            if isinstance(model, keras.Sequential):
                return self._sequential(model, inputs)
            if is_plain(model):
                return self._connected(model, inputs)
            made = self._of_class(model, inputs)
            return of_same_class(self._connected(model, inputs), model, self._copying()) if made is None else made
        except PlanError:
            raise
        except Exception as error:  # whatever a layer raises on shapes it doesn't expect
            raise misfit(model.name, error) from error
        finally:
            model.compiled = compiled

    def of_own_call(self, model: Any, given: Given | None) -> Any:
        """The new model for one whose `call` is its own."""
        compiled, model.compiled = model.compiled, False  # see `model`
        try:
            tried = [given] if given is not None else list(as_built(model))
            if not tried:
                raise uncalled(model.name)
            for args, kwargs in tried[:-1]:
                with suppress(PlanError):
                    return self._inside(model, args, kwargs)
            return self._inside(model, *tried[-1])
        finally:
            model.compiled = compiled

    def _inputs(self, model: Any, given: Any) -> Any:
        """New inputs for a model, like its own but of the sizes of what it is given, if anything."""
        keras = keras_on_torch()
        new = model.inputs if given is None else keras.tree.flatten(given)
        shapes = [(was.shape[0], *now.shape[1:]) for was, now in zip(model.inputs, new, strict=True)]
        made = [self._input(was, shape) for was, shape in zip(model.inputs, shapes, strict=True)]
        return (
            made[0] if isinstance(model, keras.Sequential) else keras.tree.pack_sequence_as(model._inputs_struct, made)
        )

    def _input(self, tensor: Any, shape: Any) -> Any:
        layer = tensor._keras_history.operation  # the tensor has another name than it where that was not named
        made = self.made.get(id(layer))  # one may be that of a model and of one within
        if made is None or made.shape != shape:
            keras = keras_on_torch()
            made = self.made[id(layer)] = keras.Input(batch_shape=shape, dtype=tensor.dtype, name=layer.name)
        return made

    def _connected(self, model: Any, inputs: Any) -> Any:
        made = keras_on_torch().models.clone_model(
            model, input_tensors=self._inputs(model, inputs), clone_function=self._called, call_function=self._call
        )
        if isinstance(made, Resized):  # what it is made of tells its config
            made.__class__ = next(kind for kind in type(made).__bases__ if kind is not Resized)
        return made

    def _of_class(self, model: Any, inputs: Any) -> Any:
        """A functional model of the user's own class: the class makes one of the old sizes, and smaller layers take
        places in it. None where the class gives no config for that, or where the sizes of its inputs change."""
        keras = keras_on_torch()
        new = [] if inputs is None else zip(model.inputs, keras.tree.flatten(inputs), strict=True)
        if any(was.shape[1:] != now.shape[1:] for was, now in new):
            return None
        held = self.made, self.spare, self.within
        with own_classes(model):

            def changed() -> dict[str, Any] | None:
                self.made, self.spare, self.within = ({**one} for one in held)
                return self._config_of_class(model)

            config = lightly(changed)
            if config is None:
                return None
            made = Resized.from_config(config) if config["within"] else twin_of(model)
        share_others(model, made)
        return made

    def _config_of_class(self, model: Any) -> dict[str, Any] | None:
        twin = twin_of(model)
        if twin is None:
            return None
        pairs = zip(placed(model), placed(twin), strict=True)
        self.spare |= {id(old.layer): new.layer for old, new in pairs if is_own(old.layer)}
        self._connected(model, None)
        self.within[id(model)] = self._changed(model, twin)
        return serialized(twin, self.within[id(model)])

    def _changed(self, model: Any, twin: Any) -> dict[str, Any]:
        """The places in a model of the user's own class that other layers take, and their configs."""
        keras, found = keras_on_torch(), dict[str, Any]()
        for i, (old, same) in enumerate(zip(model.operations, twin.operations, strict=True)):
            new = same if isinstance(old, keras.layers.InputLayer) else self.made.get(id(old), same)
            new = self.made[id(new)] if isinstance(new, Within) else new
            if id(old) in self.within:
                found |= {f"{i}.{place}": config for place, config in self.within[id(old)].items()}
            elif is_functional(old) and _shapes_in(new) == _shapes_in(same):
                found |= {f"{i}.{place}": config for place, config in self._changed(old, same).items()}
            elif new is not same and self._differs(new, same, self.paths.get(id(old)) or old.name):
                found[str(i)] = config_of(new)
        return found

    def _differs(self, new: Any, same: Any, path: str) -> bool:
        is_layer = isinstance(new, keras_on_torch().Layer)
        return self.calls.get(path, path) in self.edits or (is_layer and shapes_of(new) != shapes_of(same))

    def _sequential(self, model: Any, inputs: Any) -> Any:
        keras = keras_on_torch()
        if not model.built and inputs is None:  # training alone calls it, and hasn't yet
            return keras.Sequential([self.layer(layer) for layer in model.layers], name=model.name)
        made, start = keras.Sequential(name=model.name), self._inputs(model, inputs)
        made.add(start)
        for layer in model.layers:
            new = self._called(layer)
            if isinstance(new, Within):
                made._maybe_rebuild()
                new = self.built(new, made.outputs[0] if made.layers else start)
            made.add(new, rebuild=False)
        made._maybe_rebuild()
        return made

    def built(self, within: Within, *args: Any, **kwargs: Any) -> Any:
        key, layer = id(within), within.layer
        if key not in self.made:
            inputs = args[0] if args else next(iter(kwargs.values()))
            if is_own(layer):
                self.made[key] = self._inside(layer, args, kwargs)
            else:
                is_model = isinstance(layer, keras_on_torch().Model)
                self.made[key] = self.model(layer, inputs) if is_model else self.like(layer, inputs)
        return self.made[key]

    def _called(self, layer: Any) -> Any:
        """As `layer`, of one that the model itself calls."""
        if id(layer) not in self.made and is_own(layer) and self._cut_within(layer):
            self.made[id(layer)] = Within(layer)
        return self.layer(layer)

    def _cut_within(self, layer: Any) -> bool:
        """Whether a layer holds others, and a variable that the plan cuts, or what its code says changes."""
        path = self.paths[id(layer)]
        if self.edited.intersection(self.paths[id(place.layer)] for place in placed(layer)):
            return True
        return bool(layer._layers) and any(name.startswith(f"{path}.") for name in self.plan.dims)

    def _inside(self, layer: Any, args: Any, kwargs: Any) -> Any:
        numbers = dict(numbers_within(layer, self.plan.edits, self.paths))
        # what its code computes was solved for with the attributes as they are, and a config that changes sets others
        edited = any(isinstance(value, list) for value in numbers.values()) and self.paths[id(layer)] in self.edits
        copies = edited or has_own_call(layer)
        try:
            if copies:
                return copied(layer, self._copying(), numbers, args, kwargs)
            if (spare := self._spare(layer)) is None:
                return rebuilt_inside(layer, self._unbuilt, self._wanted, numbers, args, kwargs)
            small = put_inside(spare, layer, self._unbuilt, self._wanted, numbers, args, kwargs)
            self.within[id(layer)] = {place: as_config(one) for place, one in small.items()}
            return spare
        except Exception as error:  # whatever a class raises on layers that it doesn't expect
            with suppress(Exception):
                if not copies:
                    return copied(layer, self._copying(), numbers, args, kwargs)
            raise error if isinstance(error, PlanError) else misfit(layer.name, error) from error

    def _copying(self) -> Copying:
        return Copying(self.layer, self._anew, self._wanted, self.like)

    def _anew(self, model: Any, inputs: Any) -> Any:
        """A connected model in one of the user's own class, called on tensors of known shapes."""
        if id(model) not in self.made or isinstance(self.made[id(model)], Within):
            keras = keras_on_torch()
            given = None if inputs is None else of_sizes(model, keras.tree.flatten(inputs))
            self.made[id(model)] = self._unread(model) if given is None else self.model(model, given)
        return self.made[id(model)]

    def _unread(self, model: Any) -> Any:
        """A connected model that no `call` reaches, for inputs of the width with which it is as the plan wants it."""
        wanted, held = [*map(self._wanted, variables_within(model))], self.made
        for width in widths(wanted) if model.built else ():
            self.made = {**held}
            with suppress(PlanError):
                made = self.model(model, None if width is None else inputs_of(model, width))
                if shapes_of(made) == wanted:
                    return made
        self.made = held
        return self.model(model)

    def _spare(self, layer: Any) -> Any:
        """None where the plan changes numbers in the config of the layer, which then makes it."""
        return None if self.paths.get(id(layer)) in self.edits else self.spare.get(id(layer))

    def _wanted(self, variable: Any) -> tuple[int, ...]:
        return self.shapes[self.names[id(variable)]]

    def _unbuilt(self, layer: Any) -> Any:
        keras = keras_on_torch()
        if isinstance(layer, keras.Sequential):
            return keras.Sequential([self._unbuilt(inner) for inner in layer.layers], name=layer.name)
        return self.model(layer) if isinstance(layer, keras.Model) and not is_own(layer) else self.like(layer)

    def layer(self, layer: Any) -> Any:
        """The new layer for an old one; a call that is no layer, such as `keras.ops.reshape`, likewise."""
        if id(layer) not in self.made:
            self.made[id(layer)] = self._layer(layer)
        return self.made[id(layer)]

    def _layer(self, layer: Any) -> Any:
        keras = keras_on_torch()
        if holds_model(layer):
            return Within(layer)
        if (spare := self._spare(layer)) is not None:
            return spare
        if not isinstance(layer, keras.Layer):
            return self.operation(layer)
        try:
            return self.like(layer)
        except PlanError:
            if is_own(layer):  # its class can't make it again
                return Within(layer)
            raise

    def _call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, Within):
            layer = self.built(layer, *args, **kwargs)
        try:
            return layer(*args, **kwargs)
        except Exception as error:  # whatever a layer raises on a width that it doesn't expect
            raise misfit(layer.name, error) from error


def _shapes_in(model: Any) -> list[Any]:
    return [tensor.shape for tensor in model.inputs]
