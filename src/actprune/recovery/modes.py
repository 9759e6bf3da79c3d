"""What trainings share: the modes that networks are in meanwhile, and the refusal of one that has nothing to train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from actprune.errors import DataError
from actprune.graph.dropping import NothingDropped
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
        if not dropout:
            stack.enter_context(_without_dropout(model))
        yield


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Dropout modules, those of torch and of others, are in eval mode, recurrent layers and attention drop nothing, and
    neither do calls of torch's functions."""
    rates: list[tuple[nn.Module, float]] = []
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, Rebuilt):
                stack.enter_context(module.without_dropout())
            elif isinstance(module, nn.RNNBase | nn.MultiheadAttention):
                rates.append((module, module.dropout))
                vars(module)["dropout"] = 0.0
            elif isinstance(module, _DropoutNd) or _drops(module):
                module.training = False
        stack.enter_context(NothingDropped())
        try:
            yield
        finally:
            for module, rate in rates:
                vars(module)["dropout"] = rate


def _drops(module: nn.Module) -> bool:
    """Whether a module is a dropout by its name (`DropPath`, `DropBlock2d`, `StochasticDepth`), and holds nothing that
    could be of another use."""
    name = type(module).__name__.lower()
    holds = any(True for _ in chain(module.parameters(), module.buffers(), module.children()))
    return not holds and (name.startswith("drop") or name == "stochasticdepth")


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
