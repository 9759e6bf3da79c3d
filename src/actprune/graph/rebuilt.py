"""A model that is not cut in place: it makes its smaller self anew, from a description of its own.

A Keras model is one. It is an `nn.Module` as far as capture and proof are concerned, whose tensors have the names of
the layers that hold them. Sizes that its code writes down say nothing of what can be cut, so none are recorded, and
its graph may be put into the form that the later stages know best (`graph/canonical.py`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph

from actprune.graph.sizes import Sizes

PATH = "actprune_path"
"""Under this name a node's annotations hold the path of the layer that it was called in."""

STATE = "actprune_state"
"""Under this one what there is to be said of that layer, "quantized to int8", if anything."""

LINE = "actprune_line"
"""And under this one the line of the user's own code that led to it: stack traces of export's end in a `forward`."""


class Rebuilt(nn.Module):
    """The base class of such models."""

    @property
    def called(self) -> str:
        """What messages call it."""
        return type(self).__name__

    @property
    def input_names(self) -> list[str]:
        """What files call the inputs that are given in order; none where they have no names."""
        return []

    @abstractmethod
    def rebuilt(self, plan: Any, tensors: Mapping[str, Tensor]) -> Rebuilt:
        """The smaller model.

        Args:
            plan: the `Plan`: which units stay; its edits name the numbers of the description that no tensor has.
            tensors: tensor name → its new value, for those that change.

        Raises:
            PlanError: the description can't express these sizes; the message names the layer.
        """

    def without_dropout(self) -> AbstractContextManager[None]:
        """Within it, nothing is dropped at random in training mode: no module of torch's own does it here."""
        return nullcontext()

    def as_trained(self, *args: Any, **kwargs: Any) -> AbstractContextManager[None]:
        """Within it, its forward pass in training mode, on such inputs, computes what a step of training does, where
        that is more; once a capture of that has failed, no longer."""
        return nullcontext()

    @property
    def refused_step(self) -> str | None:
        """Why a step of training, where it was tried to see what that computes, did not run; else None."""
        return None

    def resting(self) -> frozenset[str]:
        """Names of tensors that no call reads, in training neither."""
        return frozenset()

    def uncut(self) -> frozenset[str]:
        """Names of tensors that stay as they are, sizes and values, whatever calls do with them."""
        return frozenset()

    def own_modules(self) -> dict[str, nn.Module]:
        """Path → what runs code of the user's own, with attributes that `rebuilt` can set to other sizes."""
        return {}

    def named_for(self, names: Iterable[str]) -> Rebuilt:
        """The same model under these names of tensors, where its own differ from them by counters alone."""
        return self

    def written(self, graph: Graph, recorded: Sizes) -> Sizes:
        """The numbers in the description that no tensor has, and what the captured `graph` says of them.

        Args:
            recorded: the sizes that the code of `own_modules` gives to calls.
        """
        return recorded


def running(model: nn.Module) -> dict[str, nn.Module]:
    """Path → the modules whose own code a forward pass runs."""
    return model.own_modules() if isinstance(model, Rebuilt) else dict(model.named_modules())


def name_of(model: nn.Module) -> str:
    """What messages call a model: the name of its class, or of the one that it stands for."""
    return model.called if isinstance(model, Rebuilt) else type(model).__name__


def as_trained(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AbstractContextManager[None]:
    """Within it, the forward pass in training mode is a step of training, where the model has such steps."""
    return model.as_trained(*args, **kwargs) if isinstance(model, Rebuilt) else nullcontext()


def refused_step(model: nn.Module) -> str | None:
    """Why the model's step of training did not run; None where it did, or has none."""
    return model.refused_step if isinstance(model, Rebuilt) else None
