"""A layer, or model, of the user's own class, copied attribute by attribute, with smaller layers and weights in it.

Most classes that users write can't be made again from a config: `def __init__(self)` takes none of what Keras writes
there, others are given layers. What an instance holds says all of it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache, partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from actprune.keras3.backend import keras_on_torch
from actprune.keras3.compiled import like_tuple, own_again
from actprune.keras3.exchange import put, variable_like
from actprune.keras3.from_config import given_functions
from actprune.keras3.own import variables_within
from actprune.keras3.places import placed
from actprune.keras3.resized import (
    as_resized,
    at,
    inner_layers,
    own_layers,
    own_variables,
    serialized,
    set_numbers,
)
from actprune.keras3.unread import build_unread
from actprune.keras3.wrapping import holds_own

Like = Callable[[Any], Any]
Anew = Callable[[Any, Any], Any]
Shape = tuple[int, ...]


class Copying:
    """One copy.

    Attributes:
        like: a layer of Keras → a new one, smaller and not yet built; the same one each time.
        anew: a model that is connected, and what it is called on → a new one, smaller.
        wanted: a variable → its shape in the copy.
        again: as `like`, but another one each time.
        made: id of a layer, variable or metric, or of an object that holds such → what takes its place.
        later: stand-ins for connected models, until it is known what they are called on.
    """

    def __init__(self, like: Like, anew: Anew, wanted: Callable[[Any], Shape], again: Like) -> None:
        self.like, self.anew, self.wanted, self.again = like, anew, wanted, again
        self.made: dict[int, Any] = {}
        self.later: list[Any] = []

    def copy(self, layer: Any) -> Any:
        """The layer with its variables; what it holds of Keras's is built as it is called."""
        keras = keras_on_torch()
        kind: Any = type(layer)
        new = self.made[id(layer)] = kind.__new__(kind)
        base = keras.Model if isinstance(layer, keras.Model) else keras.Layer
        base.__init__(new, name=layer.name, dtype=layer.dtype_policy, activity_regularizer=layer.activity_regularizer)
        for inner in layer._layers:
            self._inner(inner)
        for variable in own_variables(layer):
            self.made[id(variable)] = variable_like(new, variable, self.wanted(variable))
        for metric in layer._metrics:
            self.made[id(metric)] = own_again(metric)
        for inner in layer._layers:
            for name, function in given_functions(inner).items():
                if (other := self.value(function)) is not function:  # it closes over what has a copy
                    setattr(self.made[id(inner)], name, other)
        known = _of_keras(base)
        for name, value in [*vars(layer).items(), *layer._modules.items()]:
            if name not in known:
                setattr(new, name, self.value(value))
            elif name in _STATE:
                vars(new)[name] = value
        self._in_order(new, layer)
        return new

    def _inner(self, layer: Any) -> None:
        keras = keras_on_torch()
        if id(layer) in self.made:
            return
        if holds_own(layer):
            self.copy(layer)
        elif isinstance(layer, keras.Model):
            self.made[id(layer)] = _later(layer, self.anew)
            self.later.append(self.made[id(layer)])
        else:
            self.made[id(layer)] = self.like(layer)

    def value(self, value: Any) -> Any:
        """What an attribute of the copy holds for one of the layer: nothing that training changes belongs to both."""
        if id(value) in self.made:
            return self.made[id(value)]
        if isinstance(value, tuple):
            return like_tuple(value, [*map(self.value, value)])
        if isinstance(value, list | set):
            kind = list if isinstance(value, list) else set
            return kind(map(self.value, value))
        if isinstance(value, deque):
            return deque(map(self.value, value), value.maxlen)
        if isinstance(value, dict):
            kind = OrderedDict if isinstance(value, OrderedDict) else dict
            return kind((key, self.value(entry)) for key, entry in value.items())
        again = own_again(value)
        if again is value:
            return self._of_users(value) if self._leads(value, set()) else value
        self.made[id(value)] = again  # of an optimizer under two names there is one, too
        return again

    def _of_users(self, value: Any) -> Any:
        """The same of a function or an object that holds layers."""
        if isinstance(value, MethodType):
            return MethodType(value.__func__, self.value(value.__self__))
        if isinstance(value, partial):
            return partial(self.value(value.func), *map(self.value, value.args), **self.value(value.keywords))
        if isinstance(value, FunctionType):  # a lambda of `self`
            cells = tuple(CellType(self.value(cell)) for cell in _cells(value)) or value.__closure__
            made = FunctionType(
                value.__code__, value.__globals__, value.__name__, self.value(value.__defaults__), cells
            )
            made.__kwdefaults__ = self.value(value.__kwdefaults__)
            return made
        made = self.made[id(value)] = object.__new__(type(value))
        vars(made).update((name, self.value(entry)) for name, entry in vars(value).items())
        return made

    def _leads(self, value: Any, seen: set[int]) -> bool:
        """Whether what a value holds is, or holds, something that has a copy."""
        if id(value) in self.made:
            return True
        if id(value) in seen:
            return False
        seen.add(id(value))
        return any(self._leads(entry, seen) for entry in _held(value))

    def _in_order(self, new: Any, layer: Any) -> None:
        """What is tracked, as the layer tracks it: also what no attribute of it holds any more."""
        for store in ("layers", "trainable_variables", "non_trainable_variables"):
            held = [self.made[id(one)] for one in layer._tracker.config[store][1]]
            new._tracker.config[store][1][:] = held
            new._tracker.stored_ids[store] = {*map(id, held)}
        if layer._tracker.locked:
            new._lock_state()


def _held(value: Any) -> Iterable[Any]:
    """What a value of the user's holds."""
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list | tuple | set | deque):
        return value
    if isinstance(value, MethodType):
        return [value.__self__]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, FunctionType):
        return [*_cells(value), *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    closed = isinstance(value, type | ModuleType | nn.Module | Tensor)
    return [] if closed or type(value).__module__.startswith("keras.") else [*getattr(value, "__dict__", {}).values()]


def _cells(function: FunctionType) -> list[Any]:
    """What a function closes over; nothing where some of it isn't there yet."""
    try:
        return [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:
        return []


_STATE = (
    "_auto_config _build_shapes_dict _input_spec _supports_masking _trainable autocast built supports_jit "
    "_allow_non_tensor_positional_args _convert_input_args _path"
).split()
"""Attributes of Keras's own that say something of a layer."""


def copied(layer: Any, copying: Copying, numbers: Mapping[str, Any], args: Any, kwargs: Any) -> Any:
    """The copy, called once on these (symbolic) arguments, and with these numbers (place and attribute) in it."""
    made = copying.copy(layer)
    set_numbers(made, numbers)
    _run(made, args, kwargs)
    if layer._call_has_training_arg and not all(place.layer.built for place in placed(made)):
        with suppress(Exception):  # whatever a call raises that takes more in training
            _run(made, args, {**kwargs, "training": True})
    for later in copying.later:
        for _, holder in own_layers(made):
            if holder._tracker.is_in_store("layers", later):
                put(holder, later, later.made_of())
    for place, inner in inner_layers(layer):
        if inner.built and not at(made, place).built:  # it isn't called
            build_unread(at(made, place), inner, [*map(copying.wanted, variables_within(inner))], copying.again)
    small: dict[str, Any] = {
        place: at(made, place)
        for place, inner in inner_layers(layer)
        if [v.shape for v in at(made, place).variables] != [v.shape for v in inner.variables]
    }
    for place, own in own_layers(layer):
        for i, variable in enumerate(own_variables(own)):
            if tuple(variable.shape) != copying.wanted(variable):
                small[f"{place}.#{i}".lstrip(".")] = [*copying.wanted(variable)]
    with suppress(Exception):  # whatever a class raises that has no config: then it can't be saved, cut or not
        as_resized(made, serialized(layer, {**small, **numbers}))
    return made


def _run(layer: Any, args: Any, kwargs: Any) -> None:
    """Call it on zeros, two samples if that goes: layers may compute constants as they are built, for which there must
    be values. Else without values."""
    keras = keras_on_torch()

    def zeros(value: Any, batch: int | None) -> Any:
        if not isinstance(value, keras.KerasTensor):
            return value
        first, *rest = value.shape or (None,)
        shape = [4 if size is None else size for size in (first if batch is None else batch, *rest)]
        return keras.ops.zeros(shape if value.shape else (), dtype=value.dtype)

    for batch in (2, None):
        try:
            given = keras.tree.map_structure(lambda value, batch=batch: zeros(value, batch), (args, kwargs))
            layer.call(*given[0], **given[1])
            return
        except Exception as error:  # whatever a call raises on other samples than it knows
            refused = error
    try:
        keras.Operation.compute_output_spec(layer, *args, **kwargs)
    except Exception:  # likewise; the first says more
        raise refused from None


def _later(layer: Any, anew: Anew) -> Any:
    """Stands for a connected model until it is called."""

    class Later(keras_on_torch().layers.Layer):
        def made_of(self) -> Any:
            return held.get("made") or anew(layer, None)

        def call(self, *args: Any, **kwargs: Any) -> Any:
            if "made" not in held:
                held["made"] = anew(layer, args[0] if args else next(iter(kwargs.values())))
            return held["made"](*args, **kwargs)

    held: dict[str, Any] = {}
    return Later(name=layer.name)


@cache
def _of_keras(base: Any) -> frozenset[str]:
    """The attributes that Keras gives a layer or model, training included."""
    keras, one = keras_on_torch(), base()
    if isinstance(one, keras.Model):
        one.compile("sgd", "mse")
    late = "_torch_params history stop_training stop_predicting stop_evaluating _compiled_trainable_state"
    more = "_eval_epoch_iterator _epoch_iterator _actprune_parts"
    return frozenset({*vars(one), *one._modules, *late.split(), *more.split()})
