"""The weights, flags and optimizer of a Keras model, given to the one that was built anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from actprune.errors import PlanError
from actprune.keras3.compiled import compile_like
from actprune.keras3.from_config import given_functions
from actprune.keras3.places import Placed
from actprune.plan import Plan
from actprune.surgery.tensors import sliced


def filled(new: Sequence[Placed], old: Sequence[Placed], plan: Plan, tensors: Mapping[str, Tensor]) -> None:
    """Give a rebuilt model its weights, names, trainable flags and the state of its optimizer.

    Raises:
        PlanError: a variable hasn't the size that the plan predicts.
    """
    pairs: list[tuple[Any, Any, str]] = []
    for made, was in zip(new, old, strict=True):
        made.layer.trainable = was.layer._trainable  # of the layers within too, whose own turn comes later
        made.layer.name = was.layer.name  # a class names its own sublayers, with numbers that go on
        for name, function in given_functions(was.layer).items():
            again = vars(made.layer).get(name)  # of a layer that was made of what a file would say
            if isinstance(again, FunctionType) and again.__code__ is not function.__code__:
                setattr(made.layer, name, function)
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
            vars(variable).update({key: held for key, held in vars(source).items() if key in ("_name", "_path")})
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
