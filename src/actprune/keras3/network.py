"""A Keras model as the engine sees it: a torch module whose tensors have the names of the layers that hold them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph

from actprune.errors import CaptureError
from actprune.graph.keep import apart
from actprune.graph.rebuilt import Rebuilt
from actprune.graph.sizes import Sizes
from actprune.keras3.attributes import of_attributes
from actprune.keras3.backend import keras_on_torch
from actprune.keras3.calls import annotated, without_dropout
from actprune.keras3.dtypes import plain_numbers
from actprune.keras3.fill import filled
from actprune.keras3.inputs import CalledOn, as_given, by_position, has_own_call
from actprune.keras3.noise import torchs_generator
from actprune.keras3.places import Placed, operations, placed, quantization
from actprune.keras3.rebuild import rebuild
from actprune.keras3.refusal import check_rebuildable, misfit, said
from actprune.keras3.sizes import written_sizes
from actprune.keras3.stepping import data_for, in_training
from actprune.keras3.unchanged import unchanged
from actprune.keras3.wrapping import holds_own
from actprune.plan import Plan


class KerasNetwork(Rebuilt):
    """`model` with its variables under names such as `conv2d_1.kernel`; they share the model's memory.

    It is called like the model: with one input, with several in order, or with keywords where they have names.

    Attributes:
        model: the `keras.Model`.
        places: its layers, under the paths that the dense model gave them.
        calls: what is called in it and is no layer: its own name → the name that the dense model gave it.
        called_on: of a model with a `call` of its own, what it was called on.
        stepping: whether it computes in training mode what a step of training does.
    """

    model: Any
    places: list[Placed]
    calls: dict[str, str]
    called_on: CalledOn
    stepping: bool

    @property
    def called(self) -> str:
        return type(self.model).__name__

    @property
    def input_names(self) -> list[str]:
        if has_own_call(self.model):
            return []
        return [tensor._keras_history.operation.name for tensor in self.model.inputs]

    def __init__(
        self,
        model: Any,
        like: list[Placed] | None = None,
        calls: Mapping[str, str] | None = None,
        called_on: CalledOn | None = None,
    ) -> None:
        """
        Args:
            like: the layers of the network that `model` was rebuilt from: its own have the names that they have there.
            calls: those that have another name there, as the attribute.
            called_on: as the attribute, where it is known.

        Raises:
            UnsupportedModelError: Keras doesn't compute with torch, or the model can't be rebuilt from its config.
            CaptureError: the model has no variables yet.
        """
        super().__init__()
        keras_on_torch()
        if like is None:
            check_rebuildable(model)
        if not model.built or not model.weights:  # `build` of a class without one makes no variables
            raise CaptureError(
                f"{model.name} has no variables yet.",
                expected="a model that is built",
                got="one that was never called",
                where="model",
                hint="give it an Input layer, or call it once on a batch",
            )
        vars(self)["model"] = model
        vars(self)["places"] = placed(model) if like is None else _named_alike(placed(model), like)
        vars(self)["called_on"] = called_on or CalledOn()
        vars(self)["stepping"] = False
        vars(self)["calls"] = {op.name: op.name for op in operations(model)} | dict(calls or {})
        for place in self.places:
            holder = _module(self, place.path)
            for name, (variable, trainable) in place.variables.items():
                if trainable:
                    holder.register_parameter(name, variable.value)
                elif variable.name != "seed_generator_state":
                    holder.register_buffer(name, variable.value.detach())
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs, named = self._arguments(args, kwargs)
        given = as_given(inputs, named) if has_own_call(self.model) and self.called_on.given is None else None
        with annotated(self._named()), plain_numbers(), torchs_generator():
            if self.stepping and self.training:
                outputs = in_training(self.model, inputs, named, self.called_on.data)
            else:
                outputs = self.model(*inputs, **named, training=self.training)
        if given is not None:  # a part of a batch, which is tried first, need not be what the class runs on
            self.called_on.given = given
        return outputs

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the model is called on, by position and by name."""
        several = has_own_call(self.model) and by_position(self.model) > 1
        inputs = args if several and args else (kwargs or (args[0] if len(args) == 1 else list(args)),)
        return inputs, kwargs if several else {}

    @contextmanager
    def as_trained(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if self.called_on.data is None:
            with apart(0), torchs_generator():
                self.called_on.data = data_for(self.model, *self._arguments(args, kwargs))
        vars(self)["stepping"] = True
        try:
            with unchanged(self.model):
                yield
        except CaptureError as error:
            if callable(self.called_on.data):
                self.called_on.data = said(error)
            raise
        finally:
            vars(self)["stepping"] = False

    @property
    def refused_step(self) -> str | None:
        return self.called_on.data if isinstance(self.called_on.data, str) else None

    def _named(self) -> Iterator[tuple[str, Any]]:
        """Everything that is called in the model, and its path."""
        yield from ((one.path, one.layer) for one in self.places if one.path)
        yield from ((self.calls[op.name], op) for op in operations(self.model))

    def __deepcopy__(self, memo: dict[int, Any]) -> KerasNetwork:
        return self.rebuilt(Plan({}, {}, {}, ""), {})

    def rebuilt(self, plan: Plan, tensors: Mapping[str, Tensor]) -> KerasNetwork:
        made = rebuild(self.model, self.places, self.calls, plan, self.called_on.given)
        made = KerasNetwork(made, self.places, self.calls, self.called_on)
        filled(made.places, self.places, plan, tensors)
        return made.train(self.training)

    def named_for(self, names: Iterable[str]) -> KerasNetwork:
        """Keras numbers the layers of a session: a model that is built once more has `dense_2` for `dense`.

        Args:
            names: of tensors, `dense.kernel`, or of layers and calls, `dense` and `reshape`.
        """
        wanted = {part for name in names for part in name.split(".")[:-1] or [name]}
        own = {part for place in self.places for part in place.path.split(".") if part} | {*self.calls.values()}
        found = {part: part for part in own}
        for base in {_base(part)[0] for part in own}:
            mine, theirs = (sorted((p for p in parts if _base(p)[0] == base), key=_base) for parts in (own, wanted))
            if len(mine) == len(theirs):
                found |= dict(zip(mine, theirs, strict=True))
        made = [
            replace(place, path=".".join(found.get(part, part) for part in place.path.split(".")))
            for place in self.places
        ]
        calls = {name: found[called] for name, called in self.calls.items()}
        return KerasNetwork(self.model, made, calls, self.called_on)

    def without_dropout(self) -> AbstractContextManager[None]:
        return without_dropout(place.layer for place in self.places)

    def resting(self) -> frozenset[str]:
        kind = keras_on_torch().layers.Normalization  # it keeps constants that it makes of them
        return frozenset(one.full(name) for one in self.places if type(one.layer) is kind for name in one.variables)

    def uncut(self) -> frozenset[str]:
        quantized = (one for one in self.places if quantization(one.layer) is not None)
        return frozenset(one.full(name) for one in quantized for name in one.variables)

    def own_modules(self) -> dict[str, nn.Module]:
        return {place.path: place.layer for place in self.places if holds_own(place.layer)}

    def written(self, graph: Graph, recorded: Sizes) -> Sizes:
        found = written_sizes(self.places, {self.calls[op.name]: op for op in operations(self.model)}, graph)
        more = of_attributes(recorded, [*self.own_modules()])
        return Sizes((*found.uses, *more.uses), {**found.attributes, **more.attributes}, {}, True, found.optional)


def _module(root: nn.Module, path: str) -> nn.Module:
    """The module at a path, made where there is none."""
    for name in filter(None, path.split(".")):
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root._modules[name]  # type: ignore[assignment]
    return root


def _base(name: str) -> tuple[str, int]:
    """A name without the counter at its end, and the counter: the first of a kind has none."""
    base, _, number = name.rpartition("_")
    return (base, int(number)) if base and number.isdecimal() else (name, 0)


def _named_alike(found: list[Placed], like: list[Placed]) -> list[Placed]:
    """Layers under the paths and names of others: a layer may name its sublayers by a counter.

    Raises:
        PlanError: they aren't as many, or hold more or fewer variables: some are only made as they are called.
    """
    for new, old in zip(found, like, strict=False):
        if len(new.variables) != len(old.variables):
            raise misfit(old.path, ValueError(f"{len(new.variables)} variables where there were {len(old.variables)}"))
    if len(found) != len(like):
        raise misfit(like[0].layer.name, ValueError(f"{len(found)} layers where there were {len(like)}"))
    return [Placed(old.path, new.layer, _variables_alike(new, old)) for new, old in zip(found, like, strict=True)]


def _variables_alike(new: Placed, old: Placed) -> dict[str, tuple[Any, bool]]:
    """By name where they have the same, for a quantized layer makes its own in another order once more; else in order,
    since names of the user's may count."""
    if new.variables.keys() == old.variables.keys():
        return {name: new.variables[name] for name in old.variables}
    return dict(zip(old.variables, new.variables.values(), strict=True))
