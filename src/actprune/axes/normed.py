"""Which axes may be cut although a norm or a mean runs over them.

The statistics are then those of the units that stay. Within a branch that is a small matter: one layer makes the units
(the hidden ones of an MLP in front of its norm, the queries of an attention), and what reads them is refitted. A
stream, to which several layers add and which most norms run over, changes them all: it is cut only on request. So are
units that nothing but a mean reads (those of an ensemble, whose mean is the output): nothing could make up for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from torch.fx import Node

from actprune.axes.expr import Axis, Leaf, leaves
from actprune.axes.inference import Inference
from actprune.axes.site import Mixing, flat
from actprune.errors import CaptureError
from actprune.graph.program import Program, place

NORMS: tuple[bool | str, ...] = (False, "auto", True)
"""What may be cut of all that norms run over, from less to more: nothing, what lies within a branch, streams too."""

Maker: TypeAlias = tuple[str, frozenset[str]]
"""A layer that makes units: its weight, and the names of the activations that it reads."""


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
    at their norms. Of a norm over a stream and a branch behind one another, the stream alone is not cut.
    """
    found = Inference(norms is not False)
    found.walk(program)
    means = _means(found)
    if not means:
        return found
    over = over_streams(means, found, program)
    if norms is True:
        found.streams = [leaf for mixing, joined in over.items() for leaf in _of(mixing, joined, found)]
        return found
    beside = {mixing.node for mixing, joined in over.items() if _free(found.operand_axis(mixing), found) - joined}
    whole = frozenset(m.node for m in over if m.node not in beside) | {m.node for m in over_unread(means, found)}
    if whole:
        found = Inference(True, whole)
        found.walk(program)
    for mixing, joined in over_streams([m for m in _means(found) if m.node in beside], found, program).items():
        for leaf in _of(mixing, joined, found):
            found.algebra.freeze(leaf, f"normalised over by {place(mixing.node)}")
    return found


def _of(mixing: Mixing, keys: set[int], inference: Inference) -> list[Leaf]:
    """Those of the leaves that a mean runs over."""
    return [leaf for leaf in leaves(inference.operand_axis(mixing)) if leaf.key in keys]


def _means(inference: Inference) -> list[Mixing]:
    return [mixing for mixing in inference.mixings if mixing.twin is not None]


def over_streams(means: Sequence[Mixing], inference: Inference, program: Program) -> dict[Mixing, set[int]]:
    """Those of the means that are over a stream, with the leaves (by key) of it."""
    over = {mixing: set(_keys([inference.operand_axis(mixing)], inference)) for mixing in means}
    joined = streams(inference, program, set[int]().union(*over.values()))
    return {mixing: keys & joined for mixing, keys in over.items() if keys & joined}


def streams(inference: Inference, program: Program, among: set[int]) -> set[int]:
    """The leaves (by key) whose units come together, in some activation, from layers with different inputs.

    Layers with one input are the parts of one branch (a gate), and so are the calls of one layer. A depthwise
    convolution makes no units: it passes them on. That one number counts two axes doesn't make them one stream.
    """
    weights: dict[tuple[str, int], set[str]] = {}
    for site in inference.sites:
        made = site.out_axis(inference.tensors[site.weight])
        for key in among.intersection(_keys([made], inference, site.groups)):
            weights.setdefault((site.node, key), set()).add(site.weight)
    found, makers = set[int](), dict[tuple[Node, int], set[Maker]]()
    for node in program.nodes:
        sources = frozenset(node.all_input_nodes)
        read = frozenset(source.name for source in sources if source.name not in program.bindings)
        for key in among.intersection(_keys(flat(inference.axes.get(node, ())), inference)) - found:
            made = {(weight, read) for weight in weights.get((node.name, key), ())}
            made = made or set[Maker]().union(*(makers.get((source, key), ()) for source in sources))
            if made and all(len(set(values)) > 1 for values in zip(*made, strict=True)):
                found.add(key)
            makers[node, key] = made
    return found


def over_unread(means: Sequence[Mixing], inference: Inference) -> list[Mixing]:
    """Those of the means that are over units that a layer makes and that neither a layer nor a product reads."""
    sites, tensors = inference.sites, inference.tensors
    made = set(_keys((site.out_axis(tensors[site.weight]) for site in sites), inference))
    into = [site.in_axis(tensors[site.weight]) for site in sites if site.reads]
    into += [inference.operand_axis(mixing) for mixing in inference.mixings if mixing.twin is None]
    unread = made.difference(_keys(into, inference))

    return [mixing for mixing in means if _free(inference.operand_axis(mixing), inference) & unread]


def _free(axis: Axis, inference: Inference) -> set[int]:
    """The leaves (by key) that nothing has frozen yet."""
    algebra = inference.algebra
    return {leaf.key for leaf in leaves(algebra.resolve(axis)) if algebra.frozen(leaf) is None}


def _keys(axes: Iterable[Axis], inference: Inference, more_than: int = 1) -> Iterator[int]:
    """Of the leaves with more units than that."""
    resolve = inference.algebra.resolve
    return (leaf.key for axis in axes for leaf in leaves(resolve(axis)) if leaf.size > more_than)
