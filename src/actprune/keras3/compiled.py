"""What `compile` has given a Keras model, given to the rebuilt one, with the state of its optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy, deepcopy
from functools import partial
from random import Random
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from actprune.keras3.backend import keras_on_torch
from actprune.surgery.optimizers import hand_over

Slicer = Callable[[Any, Tensor], Tensor]
"""(variable of the dense model, a tensor of its shape) → that tensor, cut like the variable."""


def compile_like(new: Any, old: Any, cut: Slicer) -> None:
    """Compile `new` as `old` was: the same losses, metrics and settings, optimizers of its own with their state."""
    settings = getattr(getattr(old, "_compile_config", None), "config", None)
    if old.compiled and settings is not None:
        keras = keras_on_torch()
        again = {key: _own(keras, value) for key, value in settings.items()}
        of_keras = type(old).compile is keras.Model.compile
        optimizer = getattr(old, "optimizer", None)
        if optimizer is not None:
            again["optimizer"] = own_again(optimizer)
        (new.compile if of_keras else partial(keras.Model.compile, new))(**again)  # one that takes more has set others
        new.loss = old.loss
    else:
        for name in ("optimizer", "loss"):  # names that Keras uses, and so may who trains by themselves
            if getattr(old, name, None) is not None:
                setattr(new, name, own_again(getattr(old, name)))
    twins = {id(old.optimizer): new.optimizer} if getattr(old, "optimizer", None) is not None else {}
    for name, value in vars(old).items():  # what a `compile` of its own keeps
        if name not in vars(new) and not name.startswith("_") and _is_kept(value):
            setattr(new, name, _again(value, twins))
    places = {id(variable): i for i, variable in enumerate(old.variables)}
    _of_torch(new, old, cut)
    for made, was in _optimizers(vars(new), vars(old), keras_on_torch().optimizers.Optimizer):
        # what it was built for, which what trains by now need not be
        trained = [places.get(id(variable)) for variable in was._trainable_variables] if was.built else [None]
        if None not in trained and not made.built:
            made.build([new.variables[place] for place in trained])
            _take_state(made, was, cut)


def _is_kept(value: Any) -> bool:
    """Whether it is what a functional model of the user's own class may hold beside its layers, which its config does
    not tell."""
    if isinstance(value, list | tuple | dict):
        return all(map(_is_kept, value.values() if isinstance(value, dict) else value))
    keras = keras_on_torch()
    of_keras = keras.optimizers.Optimizer, keras.losses.Loss, keras.metrics.Metric
    return value is None or isinstance(value, (*of_keras, FunctionType, int, float, str))


def _again(value: Any, made: dict[int, Any]) -> Any:
    """`own_again` of it, or of all in it; of what has two names there is one, too.

    Args:
        made: id of an object of the old model → that of the new one.
    """
    if id(value) not in made:
        if isinstance(value, dict):
            again: Any = {key: _again(entry, made) for key, entry in value.items()}
        elif isinstance(value, list | tuple):
            again = [_again(entry, made) for entry in value]
            again = like_tuple(value, again) if isinstance(value, tuple) else again
        else:
            again = own_again(value)
        made[id(value)] = again
    return made[id(value)]


def like_tuple(value: tuple[Any, ...], entries: list[Any]) -> tuple[Any, ...]:
    """A tuple of these, with the names that the entries of `value` have."""
    kind: Any = type(value)
    return kind(*entries) if hasattr(value, "_fields") else tuple(entries)


def _of_torch(new: Any, old: Any, cut: Slicer) -> None:
    """Optimizers of torch that a class keeps step the weights of their own model, with their moments cut alike."""
    found = [*_optimizers({**vars(new), **new._modules}, {**vars(old), **old._modules}, torch.optim.Optimizer)]
    weights = zip(new.variables, old.variables, strict=True) if found else ()
    pairs = {id(was.value): (made.value, partial(cut, was)) for made, was in weights}
    for made, was in found:
        hand_over(made, was, pairs)


def _optimizers(new: Any, old: Any, kind: Any) -> Iterator[tuple[Any, Any]]:
    """The optimizers in an attribute of the old model, lists and dicts too, each with that of the new one."""
    if isinstance(old, kind):
        if type(new) is type(old) and new is not old:
            yield new, old
    elif isinstance(old, dict):
        for key in old.keys() & new.keys() if isinstance(new, dict) else ():
            yield from _optimizers(new[key], old[key], kind)
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple):
        for pair in zip(new, old, strict=False):
            yield from _optimizers(*pair, kind)


def own_again(value: Any) -> Any:
    """Metrics, optimizers (torch's too), generators of random numbers and arrays hold state, so each model has its
    own; else the value."""
    keras = keras_on_torch()
    if isinstance(value, keras.metrics.Metric):
        return _metric(value)
    if isinstance(value, keras.optimizers.Optimizer | keras.random.SeedGenerator):
        return type(value).from_config(value.get_config())
    if isinstance(value, torch.optim.Optimizer):  # of the old weights, until the new ones are there
        made = copy(value)
        made.param_groups = [dict(group) for group in value.param_groups]
        made.state = type(value.state)(dict)
        return made
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return value.detach().clone()
    return deepcopy(value) if isinstance(value, np.ndarray | np.random.Generator | Random) else value


def _metric(metric: Any) -> Any:
    """Another one, that has seen nothing."""
    try:
        return type(metric).from_config(metric.get_config())
    except Exception:  # whatever a class raises whose config doesn't make it again, as that of a lambda
        kind: Any = type(metric)
        made = kind.__new__(kind)
        keras_on_torch().metrics.Metric.__init__(made, dtype=metric.dtype, name=metric.name)
        known = {id(held): _metric(held) for held in metric._metrics}
        for held in metric._variables:
            known[id(held)] = made.add_variable(held.shape, "zeros", dtype=held.dtype, name=held.name)
            known[id(held)].assign(held)
        for name, value in vars(metric).items():
            if name not in vars(made):
                setattr(made, name, known.get(id(value), own_again(value)))
        made.reset_state()
        return made


def _own(keras: Any, value: Any) -> Any:
    if isinstance(value, keras.metrics.Metric):
        return own_again(value)
    if isinstance(value, dict):
        return {key: _own(keras, entry) for key, entry in value.items()}
    return [_own(keras, entry) for entry in value] if isinstance(value, list | tuple) else value


@torch.no_grad()
def _take_state(new: Any, old: Any, cut: Slicer) -> None:
    """Moments of the weights are cut like the weights; counters are taken over; what has another shape starts anew."""
    slots: dict[int, Any] = {}
    inside = old
    while inside is not None:  # one that scales the loss holds another one, whose moments they are
        trained = inside._trainable_variables
        for held in vars(inside).values():
            if isinstance(held, list) and len(held) == len(trained):
                slots |= {id(slot): v for slot, v in zip(held, trained, strict=True) if slot is not None}
        inside = getattr(inside, "inner_optimizer", None)
    for made, was in zip(new.variables, old.variables, strict=True):
        value = was.value.detach()
        variable = slots.get(id(was))
        if variable is not None and tuple(was.shape) == tuple(variable.shape):
            value = cut(variable, value)
        if tuple(made.shape) == tuple(value.shape):
            made.value.copy_(value)
