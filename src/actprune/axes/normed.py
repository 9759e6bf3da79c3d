"""Which axes may be cut although a norm or a mean runs over them.

The statistics are then those of the units that stay. Within a branch that is a small matter: one layer makes the units
(the hidden ones of an MLP in front of its norm, the queries of an attention), and what reads them is refitted. A
stream, to which several layers add and which most norms run over, changes them all: it is cut only on request. So are
units that nothing but a mean reads (those of an ensemble, whose mean is the output): nothing could make up for them.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch.fx import Node

from actprune.axes.expr import Axis, leaves
from actprune.axes.inference import Inference
from actprune.errors import CaptureError
from actprune.graph.program import Program

NORMS: tuple[bool | str, ...] = (False, "auto", True)
"""What may be cut of all that norms run over, from less to more: nothing, what lies within a branch, streams too."""


def most(asked: Iterable[bool | str]) -> bool | str:
    """Which of them cuts most."""
    return max(asked, key=NORMS.index)


def asked(norms: object) -> bool | str:
    """The one of `NORMS` that was asked for, also as numpy's True or False.

    Raises:
        CaptureError: it is none of them.
    """
    if norms not in NORMS or (isinstance(norms, int | float) and not isinstance(norms, bool)):
        raise CaptureError(
            "norms is none of what can be asked for.",
            expected='"auto", True or False',
            got=repr(norms),
            where="capture(norms=…)",
            hint="leave it out for the default",
        )
    return NORMS[NORMS.index(norms)]  # type: ignore[arg-type]


def inferred(program: Program, norms: bool | str) -> Inference:
    """The axes of a program, cut under norms as far as that is asked for (one of `NORMS`).

    Only all the axes tell what is a stream: where some are not to be cut, the program is walked again, and they freeze
    at their norms.
    """
    found = Inference(norms is not False)
    found.walk(program)
    streams = over_streams(found, program)
    whole = streams | over_unread(found)
    if norms == "auto" and whole:
        found = Inference(True, whole)
        found.walk(program)
    found.streams = [axis for node, axis in found.normalized if node in streams]
    return found


def over_streams(inference: Inference, program: Program) -> frozenset[Node]:
    """The calls that take a mean over a stream: over units that layers with different inputs make.

    Layers with one input are the parts of one branch (a gate), and so are the calls of one layer. A depthwise
    convolution makes no units: it passes them on.
    """
    resolve = inference.algebra.resolve
    over = [(node, {leaf.key for leaf in leaves(resolve(axis))}) for node, axis in inference.normalized]
    made: dict[int, dict[str, frozenset[str]]] = {key: {} for _, keys in over for key in keys}
    nodes = {node.name: node for node in program.nodes}
    for site in inference.sites:
        for leaf in leaves(resolve(site.out_axis(inference.tensors[site.weight]))):
            if leaf.key in made and site.groups < leaf.size:
                made[leaf.key][site.weight] = _read(nodes[site.node], program)
    streams = {key for key, by in made.items() if len(set(by.values())) > 1}
    return frozenset(node for node, keys in over if not streams.isdisjoint(keys))


def _read(call: Node, program: Program) -> frozenset[str]:
    """The activations that a call reads."""
    names = {source.name for source in call.all_input_nodes}
    return frozenset(names - program.bindings.keys())


def over_unread(inference: Inference) -> frozenset[Node]:
    """The calls that take a mean over units that a layer makes and that neither a layer nor a product reads."""
    resolve, tensors = inference.algebra.resolve, inference.tensors
    made = {leaf.key for site in inference.sites for leaf in leaves(resolve(site.out_axis(tensors[site.weight])))}
    into = [resolve(site.in_axis(tensors[site.weight])) for site in inference.sites if site.reads]
    into += [inference.operand_axis(mixing) for mixing in inference.mixings if mixing.twin is None]
    read = {leaf.key for axis in into for leaf in leaves(axis)}

    def alone(axis: Axis) -> bool:
        free = [leaf for leaf in leaves(resolve(axis)) if inference.algebra.frozen(leaf) is None]
        return any(leaf.key in made - read for leaf in free)

    return frozenset(node for node, axis in inference.normalized if alone(axis))
