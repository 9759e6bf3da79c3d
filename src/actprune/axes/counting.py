"""Which leaves one number counts: those of equal parts of a chunk, of the layers of a recurrent network.

As many units stay of each of them, but not the same ones. Where one of them can't be cut by itself, where no tensor of
the model has it, or where two axes are built differently, they are one axis: then what is cut of one is cut of all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from actprune.axes.expr import Axis, Leaf, size
from actprune.axes.groups import Survey
from actprune.axes.inference import Inference


def settle(inference: Inference, look: Callable[[], Survey]) -> tuple[tuple[tuple[int, ...], ...], Survey]:
    """The leaves (by key) of which equally many stay, and what is then known of all leaves.

    Args:
        look: what can be cut by itself, by what the axes are by now; asked again whenever some became one.
    """
    apart = list(inference.counted)
    while True:
        known = look()
        found = [_side_by_side([inference.algebra.resolve(axis) for axis in axes]) for axes in apart]
        alike = [at is not None and all(_alike(own, inference, known) for own in at) for at in found]
        if all(alike):
            each = (tuple(leaf.key for leaf in own if leaf.key in known.cut) for at in found for own in at or ())
            return tuple(keys for keys in each if len(keys) > 1), known
        for axes, same in zip(apart, alike, strict=True):
            if not same:
                inference.merge(axes, "one number in the class")
        apart = [axes for axes, same in zip(apart, alike, strict=True) if same]


def _alike(own: Sequence[Leaf], inference: Inference, known: Survey) -> bool:
    """Whether each leaf can be cut by itself, or none whatever it is one with.

    One that no tensor of the model has can't: no mask would reach it where it is summed over, as in
    `ones_like(x).sum(-1)`.
    """
    whole = all(inference.algebra.frozen(leaf) is not None for leaf in own)
    return whole or known.cut.issuperset(leaf.key for leaf in own)


def _side_by_side(axes: Sequence[Axis]) -> list[tuple[Leaf, ...]] | None:
    """The leaves of all axes at every place, each once; None where they are built differently."""
    if any(isinstance(axis, Leaf) for axis in axes):
        own = dict.fromkeys(axis for axis in axes if isinstance(axis, Leaf) and axis.size == size(axes[0]))
        return [tuple(own)] if all(axis in own for axis in axes) else None
    built = [axis for axis in axes if not isinstance(axis, Leaf)]
    if len({(type(axis), len(axis.parts)) for axis in built}) > 1:
        return None
    found = [_side_by_side(parts) for parts in zip(*(axis.parts for axis in built), strict=True)]
    return None if None in found else [own for at in found for own in at or ()]
