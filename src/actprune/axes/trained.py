"""The forward pass of training mode, where it tells of a cut what that of eval mode doesn't."""

from __future__ import annotations

from contextlib import suppress

from torch import nn
from torch.utils import _pytree as pytree

from actprune.errors import CaptureError
from actprune.graph.in_training import draws
from actprune.graph.program import Program
from actprune.graph.rebuilt import Rebuilt, as_trained, refused_step
from actprune.graph.trace import trace

UNUSED = "not used by the forward pass"

UNSEEN = f"{UNUSED} (that of training mode can't be captured with these inputs)"
"""Said of parameters that only a training branch may use: it may no longer fit what is cut."""


def training_branches(model: nn.Module, program: Program) -> tuple[Program | None, str]:
    """Some tensors only work in training (auxiliary heads), and some sizes are only given there (those of noise): what
    they share must be cut with them.

    Returns:
        The forward pass of training mode; None where it says nothing new, or can't be captured.
        What is to be said of tensors that neither uses.
    """
    unread = _unread(program) - (model.resting() if isinstance(model, Rebuilt) else frozenset())
    drawn = draws(model)
    if not unread and not drawn:
        return None, UNUSED
    training = _captured(model, program)
    if training is None:
        return None, UNSEEN if unread else UNUSED
    # a run on real tensors takes the branches that chance gives it
    says_more = not training.used <= program.used or (drawn and training.source == "export")
    return training if says_more else None, UNUSED


def _unread(program: Program) -> set[str]:
    """The tensors of the model that its forward pass leaves out, and training may read: parameters, and buffers of
    numbers (a mask of dropout), but no counters and no tables of places."""

    def may_be_read(name: str) -> bool:
        tensor = program.tensors[name]
        return name in program.parameters or (tensor.is_floating_point() and tensor.dim() > 0)

    return {name for name in program.held - program.used if may_be_read(name)}


def _captured(model: nn.Module, program: Program) -> Program | None:
    """Training mode as a program; None where it can't be captured. A step of training that can't be is tried once
    more as its forward pass alone.

    BatchNorm can't train on a single sample, so a batch of one is tried twice over.
    """
    for times in (1, 2) if program.batch_size == 1 else (1,):
        args, kwargs = pytree.tree_unflatten(list(program.repeated(program.example, times)), program.in_spec)
        while True:
            known = None
            with suppress(CaptureError), as_trained(model, args, kwargs):
                known = refused_step(model)
                return trace(model, kwargs or args, training=True, like=program)
            if refused_step(model) == known:
                break
    return None
