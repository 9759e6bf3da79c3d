"""What a tracer gives, whichever it was: a graph, and what its placeholders stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.fx import Graph
from torch.utils import _pytree as pytree

from actprune.graph.size_recorder import Recorder


@dataclass(frozen=True, eq=False)
class Traced:
    """A graph of ATen calls as it comes from the tracer.

    Attributes:
        graph: the calls; every tensor comes in through a placeholder.
        module: what the names of its subgraphs refer to.
        inputs: the placeholders of the user's inputs, flattened.
        bindings: the other placeholders → tensor names.
        constants: name → tensor, for those that are not the model's.
        out_spec: pytree of the outputs.
        source: the tracer, "export" or "real".
        recorder: what noted the sizes that the forward pass writes down, if it did.
    """

    graph: Graph
    module: nn.Module
    inputs: tuple[str, ...]
    bindings: Mapping[str, str]
    constants: Mapping[str, Tensor]
    out_spec: pytree.TreeSpec
    source: str
    recorder: Recorder | None = None


class Refused(Exception):
    """Raised by a tracer that takes the model, but whose graph is of no use; the message says why."""


class MadeKnown(Exception):
    """A signal, not an error: pytree has just been told of a class of the outputs, so that export may take it now."""
