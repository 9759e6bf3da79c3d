"""What a class's own `train_step` computes, run so that it can be captured: it calls layers that no `call` does.

Nothing is trained, and no variable changes: Keras notes what is assigned, optimizers apply nothing, and where gradients
would be taken the losses are kept, which are what comes of the step. What else a step does to the model, the caller
puts back (`unchanged`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from actprune.keras3.backend import keras_on_torch
from actprune.keras3.inputs import Data
from actprune.keras3.refusal import said
from actprune.keras3.unchanged import reached, unchanged


def in_training(model: Any, inputs: tuple[Any, ...], named: dict[str, Any], data: Data | str | None) -> Any:
    """What comes of a step of its own; where it has none, or none that runs on what is known, of a call in training
    mode.

    Args:
        data: as `data_for` gives it.
    """
    with _GradientsAsTheyAre():
        if callable(data):
            return step(model, data(_together(inputs, named)))
        outputs = model(*inputs, **named, training=True)
    return outputs, [loss for layer in model._flatten_layers() for loss in layer._losses]


def data_for(model: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> Data | str | None:
    """Data on which its own step runs: the inputs alone, or with labels (and weights of the samples), of which only
    shapes matter here; or why it can't be followed on any. None where it has no step of its own."""
    keras, refused = keras_on_torch(), list[str]()
    if all(getattr(type(model), name) is getattr(keras.Model, name) for name in ("train_step", "compute_loss")):
        return None
    with torch.no_grad():
        shapes = keras.tree.map_structure(lambda out: list(out.shape[1:]), model(*inputs, **named, training=False))
        for data in _forms(shapes):
            try:
                unnoted = _unnoted(model, data(_together(inputs, named)))
            except Exception as error:  # whatever a step raises on data that it doesn't expect
                refused.append(said(error))
            else:
                return unnoted or data
    return refused[1]


def _unnoted(model: Any, data: Any) -> str | None:
    """What a step does to weights that Keras does not note, if anything: no capture could follow that."""
    weights = [*map(id, model.weights)]
    with unchanged(model) as before, _Reading() as reading:
        own = {id(weight.value) for weight in model.weights}
        counts = [(one, one.tensor._version) for one in before if id(one.tensor) in own]
        step(model, data)
        if [*map(id, model.weights)] != weights:
            return "it makes weights, as a first step does"
        if any(one.tensor._version != count or not one.holds() for one, count in counts):
            return "it writes to weights by itself, not by assign()"
        if reading.numbers:
            return "it reads a number off a tensor, and may decide by it: another network's step would go another way"
    return None


def _together(inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return named or (inputs[0] if len(inputs) == 1 else inputs)


def _forms(outputs: Any) -> Iterator[Data]:
    tree = keras_on_torch().tree

    def samples(x: Any) -> int:
        return tree.flatten(x)[0].shape[0]

    def like_outputs(x: Any) -> Any:
        return tree.map_shape_structure(lambda shape: torch.zeros(samples(x), *shape), outputs)

    yield lambda x: x
    yield lambda x: (x, like_outputs(x))
    yield lambda x: (x, torch.zeros(samples(x), dtype=torch.int64))
    yield lambda x: (x, like_outputs(x), torch.ones(samples(x)))
    yield lambda x: (x, x)
    yield lambda x: (x,)


def step(model: Any, data: Any) -> list[Tensor]:
    """The losses of a step; and for each weight that it assigns something to, as to a moving average, a zero that is
    made of both, for they have the same units."""
    keras = keras_on_torch()
    with keras.StatelessScope() as scope, _untrained(model), _Losses() as losses:
        model.train_step(data)
        model._clear_losses()
    assigned = ((weight.value, scope.get_current_value(weight)) for weight in model.weights)
    return [*losses.found, *((was + now).new_zeros(()) for was, now in assigned if now is not None)]


_GRADIENT = vars(torch._C.TensorBase)["grad"].__get__


class _Losses(TorchFunctionMode):
    """Keeps the tensors of which gradients would be taken; those that are asked for are zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.backward:
            self.found.append(args[0])
            return None
        if func is torch.autograd.grad:
            self.found += pytree.tree_leaves(args[0])
            return tuple(map(torch.zeros_like, pytree.tree_leaves(args[1])))
        if func == _GRADIENT:
            return torch.zeros_like(args[0])
        return func(*args, **(kwargs or {}))


class _GradientsAsTheyAre(TorchFunctionMode):
    """Drops calls that turn gradients off where they are off, as Keras does for every statistic that it assigns: export
    makes a graph of each stretch between two, and compiles all of them again for each (EfficientNet: 90 s)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled and args[0] == torch.is_grad_enabled():
            return None
        return func(*args, **(kwargs or {}))


class _Reading(TorchFunctionMode):
    """Tells whether a number is read off a tensor of floats."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = getattr(func, "__name__", "") in ("__bool__", "__float__", "__int__", "item", "tolist", "numpy")
        self.numbers |= read and (args[0].is_floating_point() or args[0].dtype == torch.bool)
        return func(*args, **(kwargs or {}))


@contextmanager
def _untrained(model: Any) -> Iterator[None]:
    """Optimizers apply nothing; gradients stay as they are, and so do metrics; a penalty on weights is none of what is
    computed with units."""
    keras = keras_on_torch()
    quiet: list[tuple[Any, str, Any]] = [(model, "zero_grad", None), (model, "compute_metrics", {})]
    quiet += [(layer, "_get_regularization_losses", []) for layer in (model, *model._flatten_layers())]
    quiet += [(one, "apply", None) for one in reached(model) if isinstance(one, keras.optimizers.Optimizer)]
    of_torch = [one for one in reached(model) if isinstance(one, torch.optim.Optimizer)]
    quiet += [(one, name, None) for one in of_torch for name in ("step", "zero_grad")]
    with ExitStack() as stack:
        for holder, name, given in quiet:
            stack.enter_context(_giving(holder, name, given))
        yield


@contextmanager
def _giving(holder: Any, name: str, value: Any) -> Iterator[None]:
    """A method that gives this, behind the back of Keras, which tracks what is set."""
    before = vars(holder).get(name)
    vars(holder)[name] = lambda *args, **kwargs: value
    try:
        yield
    finally:
        if before is None:
            del vars(holder)[name]
        else:
            vars(holder)[name] = before
