"""What trainings share: the modes that networks are in meanwhile, and the refusal of one that has nothing to train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from actprune.errors import DataError
from actprune.graph.keep import kept_modes
from actprune.graph.rebuilt import Rebuilt, name_of


@contextmanager
def training(model: nn.Module, dropout: bool) -> Iterator[None]:
    """Training mode, with dropout only if asked for; the modes are put back afterwards.

    What is in eval mode within a model that trains (a frozen norm) stays so.
    """
    frozen = [module for module in model.modules() if not module.training] if model.training else []
    with kept_modes(model), ExitStack() as stack:
        model.train()
        for module in frozen:
            module.training = False
        for module in () if dropout else model.modules():
            if isinstance(module, _DropoutNd):
                module.eval()
            elif isinstance(module, Rebuilt):
                stack.enter_context(module.without_dropout())
        yield


@contextmanager
def evaluating(model: nn.Module | None, differentiable: bool = False) -> Iterator[None]:
    """Eval mode; the modes are put back afterwards.

    Args:
        differentiable: leave recurrent layers without dropout in training mode: on CUDA only that has a gradient.
    """
    if model is None:
        yield
        return
    with kept_modes(model):
        model.eval()
        for module in model.modules() if differentiable else ():
            if isinstance(module, nn.RNNBase) and not module.dropout:
                module.train()
        yield


def nothing_to_train(model: nn.Module, doing: str, where: str, argument: str) -> DataError:
    """Of a model without a parameter that requires gradients."""
    return DataError(
        f"There is nothing to {doing}.",
        expected="a model with at least one parameter that requires gradients",
        got=f"{name_of(model)} without one",
        where=where,
        hint=f"call model.requires_grad_(True) before pruning, or leave {argument} out",
    )
