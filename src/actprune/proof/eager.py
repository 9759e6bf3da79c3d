"""The eager cut model against its own graph, each computed in the model's precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from actprune.graph.dropping import NothingDropped
from actprune.graph.keep import in_eval
from actprune.graph.lift import lift
from actprune.graph.program import Batch, Program
from actprune.graph.rebuilt import Rebuilt
from actprune.graph.run import run
from actprune.graph.trace import call_arguments
from actprune.graph.weight_norm import as_called, weights_of
from actprune.mapped import letting_go
from actprune.proof.difference import relative_error

EAGER_TOLERANCE = 1e-4
"""The relative error up to which they are the same."""

AS_ROUNDED, COARSE = 4, 0.05
"""Of a rebuilt network in half precision it may be so many times what that precision makes of the graph, or of a sum of
two numbers, since a graph may be lucky in all its outputs; up to this."""


def eager_against_graph(small: nn.Module, program: Program, inputs: Any, batch: Batch) -> tuple[float, str | None]:
    """Relative error of the cut model as it runs against its own graph, and what to say where it is too large.

    No graph has dropout, so none is made here either: some models ask for it in eval mode too (Monte Carlo dropout).
    Other random numbers are the same on both sides, which begin at the same random state.
    """
    args, kwargs = pytree.tree_map_only(Tensor, Tensor.clone, call_arguments(small, inputs))
    try:
        with in_eval(small), letting_go(), NothingDropped():
            eager = tuple(pytree.tree_leaves(small(*args, **kwargs)))
    except Exception as error:  # whatever the user's forward raises
        return float("inf"), f"the cut model does not run: {type(error).__name__}: {error}"
    weights = weights_of(program.normed, state_of(small), as_called)
    graph = run(program, batch, weights, native=True)
    error = relative_error(lift(eager), lift(graph))
    if error <= EAGER_TOLERANCE:
        return error, None
    # the graph of a model that is rebuilt has one call for a product and a bias, which round twice in the model
    halves = {tensor.dtype for tensor in map(program.tensors.__getitem__, program.parameters)} & _HALVES
    if isinstance(small, Rebuilt) and halves:
        exact = run(program, tuple(map(lift, batch)), lift(weights), lifted=True)
        rounding = max(relative_error(exact, lift(graph)), *(2 * torch.finfo(kind).eps for kind in halves))
        if error <= min(COARSE, AS_ROUNDED * rounding):
            return error, None
    return error, "the eager cut model against its own graph"


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a model under all their names."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


_HALVES = {torch.float16, torch.bfloat16}
