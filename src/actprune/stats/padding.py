"""Which positions of a batch are padding: they are no data, in statistics, in refits and where outputs are compared.

Nothing but a mask among the inputs tells, by its name and meaning in transformers and torch (`MASKS`): two dimensions,
samples and positions, and no other entries than 0 and 1. Its positions are those of the input that it goes with; which
activations have them, the axes say. What has no dimension of samples and one of positions (pooled values, the pixels
beside a text) counts as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from actprune.axes.capture import Graph
from actprune.axes.expr import ONE, Axis, Leaf, leaves, positions
from actprune.axes.site import Site
from actprune.distance import Outputs
from actprune.graph.program import Batch, Program
from actprune.graph.run import run
from actprune.graph.values import is_float
from actprune.stats.patches import output_rows
from actprune.stats.stacked import stacked_form

MASKS = {
    "attention_mask": True,
    "decoder_attention_mask": True,
    "key_padding_mask": False,
    "src_key_padding_mask": False,
    "tgt_key_padding_mask": False,
}
"""Name of an input → what it has for a token."""

_IDS = ("input_ids", "inputs_embeds")


@dataclass(frozen=True)
class Mask:
    """A mask among the inputs.

    Attributes:
        place: among the flat inputs.
        token: what it has for one.
        keys: of the leaf axes of samples and of positions; several pairs where the axes don't say that they are one.
    """

    place: int
    token: bool
    keys: tuple[tuple[int, int], ...]

    def there(self, batch: Batch) -> Tensor | None:
        """(samples, positions) which are tokens; None where all are, or this is no such mask after all."""
        given = batch[self.place]
        if not bool(((given == 0) | (given == 1)).all()):
            return None
        there = (given != 0) == self.token
        return None if bool(there.all()) else there


class Padding:
    """The masks of a graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self._masks = graph, list(_masks(graph))
        self._known: dict[tuple[str, Mask, int], tuple[Tensor, Tensor] | None] = {}

    def of(self, name: str, batch: Batch) -> Tensor | None:
        """Which entries of a node's value are no padding, with size 1 along dimensions that don't matter; None: all."""
        found: Tensor | None = None
        for mask in self._masks:
            there = mask.there(batch)
            index = None if there is None else self._index(name, mask, len(there))
            if there is None or index is None:
                continue
            sample, position = (numbers.to(there.device) for numbers in index)
            own = there[sample.clamp_min(0), position.clamp_min(0)] | (sample < 0) | (position < 0)
            found = own if found is None else found & own
        return None if found is None or bool(found.all()) else found

    def rows(self, site: Site, node: Node, batch: Batch) -> Tensor | None:
        """(n, positions) which rows of a layer (`output_rows`), or of a norm behind it, are no padding; None: all."""
        value = node.meta["val"]
        if site.kind == "stacked":
            units = stacked_form(site).made[2]
        else:
            units = (value.dim() - 1,) if site.kind == "linear" else (1,)
        there = along(self.of(node.name, batch), value, *units)
        return None if there is None else output_rows(site, there)[..., 0]

    def given(self, site: Site, x: Tensor, batch: Batch) -> Tensor | None:
        """Which entries of the activation of a product with several matrices are no padding, see `along`; None: all.

        That is so where rows are sorted by matrix, too: whose row is whose is not known there.
        """
        form = stacked_form(site)
        return None if form.ends else along(self.of(form.source, batch), x, *form.given[2])

    def outputs(self, batches: Iterable[Batch], overrides: Mapping[str, Tensor] | None = None) -> list[Outputs]:
        """The outputs of every batch (`run_all`), with NaN for padding."""
        program = self.graph.program
        return [self.marked(run(program, batch, overrides), batch) for batch in batches]

    def marked(self, outputs: Outputs, batch: Batch) -> Outputs:
        """Flat outputs of a network with NaN for padding, which is not compared (`actprune.distance`)."""
        returned = self.graph.program.outputs
        if len(returned) != len(outputs):
            return outputs
        names = [node.name if isinstance(node, Node) else "" for node in returned]
        return self.marked_values(names, outputs, batch)

    def marked_values(self, names: Sequence[str], values: Sequence[Any], batch: Batch) -> tuple[Any, ...]:
        """The same of the values of these nodes."""
        if all(mask.there(batch) is None for mask in self._masks):
            return tuple(values)
        return tuple(_marked(value, self.of(name, batch)) for name, value in zip(names, values, strict=True))

    def _index(self, name: str, mask: Mask, samples: int) -> tuple[Tensor, Tensor] | None:
        """The sample and the position of every entry of a result, with size 1 as above and −1 for those without."""
        key = name, mask, samples
        if key not in self._known:
            dims = self.graph.node_axes.get(name, ())
            found = (_numbers(dims, *keys, samples) for keys in mask.keys) if isinstance(dims, tuple) else ()
            self._known[key] = next((one for one in found if one is not None), None)
        return self._known[key]


def counted(x: Tensor, there: Tensor | None) -> Tensor:
    """(rows, …) of x (n, positions, …): all, or those that are there."""
    return x.flatten(0, 1) if there is None else x[there]


def _marked(value: Any, there: Tensor | None) -> Any:
    if there is None or not isinstance(value, Tensor) or there.dim() != value.dim():
        return value
    return torch.where(there, value, torch.nan if is_float(value) else 0)


def along(there: Tensor | None, value: Tensor, *units: int) -> Tensor | None:
    """As large as a value, but for its dimensions of units, which have size 1; None where these matter, too."""
    if there is None or there.dim() != value.dim() or any(there.shape[d] > 1 for d in units):
        return None
    return there.expand([1 if d in units else n for d, n in enumerate(value.shape)])


def _numbers(dims: Sequence[Axis], samples: int, place: int, count: int) -> tuple[Tensor, Tensor] | None:
    """See `_index`; None for a value without the two axes, or with several dimensions of one of them."""
    found: list[Tensor] = []
    for key in (samples, place):
        if key == ONE.key and count > 1:  # captured with one sample, so that no axis tells samples apart
            return None
        if key == ONE.key:
            found.append(torch.zeros([1] * len(dims), dtype=torch.long))
            continue
        held = [d for d, axis in enumerate(dims) if any(leaf.key == key for leaf in leaves(axis))]
        if len(held) != 1:
            return None
        axis = _resized(dims[held[0]], samples, count)
        numbers = torch.as_tensor(np.asarray(positions(axis, key)))
        found.append(numbers.view([-1 if d == held[0] else 1 for d in range(len(dims))]))
    return found[0], found[1]


def _resized(axis: Axis, key: int, count: int) -> Axis:
    """With so many units of one leaf: batches may be of another size than the captured one."""
    if isinstance(axis, Leaf):
        return Leaf(count, key) if axis.key == key != ONE.key else axis
    return type(axis)(tuple(_resized(part, key, count) for part in axis.parts))


def _masks(graph: Graph) -> Iterator[Mask]:
    program, names = graph.program, _names(graph.program)
    for place, name in enumerate(names):
        if name in MASKS and isinstance(program.example[place], Tensor) and program.example[place].dim() == 2:
            own = _pair(graph, place)
            if not program.is_batched(place) or (own is not None and own[0] == own[1]):
                continue  # of positions by positions, as a causal one
            keys = tuple(dict.fromkeys(pair for pair in (own, _partner(graph, names, place)) if pair is not None))
            if keys:
                yield Mask(place, MASKS[name], keys)


def _names(program: Program) -> list[str]:
    """Of every flat input the key in a dict, keyword arguments first of all; else what `forward` calls it."""
    tree = pytree.tree_unflatten(list(range(len(program.inputs))), program.in_spec)
    keys = dict(_keys(tree))
    return [keys.get(place, name) for place, name in enumerate(program.inputs)]


def _keys(tree: Any) -> Iterator[tuple[int, str]]:
    for key, value in tree.items() if isinstance(tree, Mapping) else (("", one) for one in tree):
        if isinstance(value, int):
            yield from [(value, key)] if key else []
        elif isinstance(value, Mapping | list | tuple):
            yield from _keys(value)


def _partner(graph: Graph, names: Sequence[str], place: int) -> tuple[int, int] | None:
    """The axes of the input that a mask goes with; None where nothing tells which it is.

    It is `input_ids` or `inputs_embeds` of the same side, `src` or `tgt`; else those whose first dimensions are of the
    mask's sizes, if they all have the same axes.
    """
    name, example = names[place], graph.program.example
    side = name.removesuffix("attention_mask").removesuffix("key_padding_mask")
    like = [
        i
        for i, value in enumerate(example)
        if isinstance(value, Tensor) and value.shape[:2] == example[place].shape and names[i] not in MASKS
    ]
    named = [i for i in like if names[i] in {side.rstrip("_"), *(side + one for one in _IDS)}]
    found = {_pair(graph, i) for i in named or like}
    return found.pop() if len(found) == 1 else None


def _pair(graph: Graph, place: int) -> tuple[int, int] | None:
    """The keys of an input's first two axes."""
    dims = graph.node_axes.get(graph.program.inputs[place])
    first = [axis for axis in dims[:2] if isinstance(axis, Leaf)] if isinstance(dims, tuple) else []
    return (first[0].key, first[1].key) if len(first) == 2 and first[1].size > 1 else None
