"""The plan of a run folder replayed on a fresh dense model, in the form that it was made for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from actprune.artifacts.files import unreadable
from actprune.artifacts.folder import AGAIN
from actprune.errors import ArtifactError, CaptureError, DataError, PlanError, UnsupportedModelError
from actprune.forms import replayed_graph
from actprune.plan import Plan
from actprune.surgery.slicing import cut


def replay(model: nn.Module, plan: Plan, inputs: Any, path: Path) -> nn.Module:
    """`model` cut by `plan`.

    Args:
        inputs: example inputs, for a graph; else None will do.
        path: of the plan, for messages.

    Raises:
        ArtifactError: a senseless plan, no inputs for a graph, or another graph than the plan's.
        UnsupportedModelError: the model can't be copied.
    """
    form = plan.note.get("form", "class")
    try:
        if form == "class":
            return cut(model, plan)
        if form == "graph":
            return _graph(model, plan, inputs, path)
    except (ArtifactError, UnsupportedModelError):
        raise
    except Exception as error:  # whatever the replay of a senseless plan raises
        raise unreadable(path, "a plan that can be replayed", f"{type(error).__name__}: {error}", AGAIN) from error
    raise unreadable(path, "the form of a class or a graph", f"the form {form!r}", AGAIN)


def _graph(model: nn.Module, plan: Plan, inputs: Any, path: Path) -> nn.Module:
    if inputs is None:
        raise ArtifactError(
            "The saved network is a captured graph: it takes inputs to capture it again.",
            expected=f"example inputs of shapes {plan.note.get('inputs')}",
            got="none",
            where="load(example_inputs=…)",
            hint="pass one batch as it was pruned with: load(folder, model, inputs)",
        )
    try:
        return replayed_graph(model, plan, inputs)
    except (CaptureError, DataError, PlanError) as error:
        raise ArtifactError(
            f"The saved graph can't be made again: {error.problem}",
            expected=error.expected,
            got=error.got,
            where=f"{path}, with inputs of shapes {plan.note.get('inputs')} then",
            hint=error.hint,
        ) from error
