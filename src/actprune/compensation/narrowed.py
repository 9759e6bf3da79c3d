"""Some calls in the widths that stay: what they give there is the same, in fewer multiply-adds.

The cut stream has the dense network's shapes, with zeros in the columns of its readers. That is one way for all
networks, and a dear one where the derivatives of a few calls are taken again and again. These calls then get only the
places that stay of whatever they read, and grouped ones the groups that stay. Where one of them has a size among its
arguments (a reshape), it would not run, or give another shape: shapes are tried without data, and the calls stay as
they are unless all of them come out right.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.axes.expr import Indices, blocks, left_of, size
from actprune.axes.site import Dims
from actprune.graph.program import named_arguments, op_name, shape
from actprune.graph.run import arguments, call

Places = tuple[Tensor | None, ...]
"""For every dimension the indices that stay, or None where all do."""

_GROUPED = {
    **{f"aten.{op}{d}d.": ("groups", "weight", 0) for op in ("conv", "conv_transpose") for d in (1, 2, 3)},
    "aten.convolution.": ("groups", "weight", 0),
    "aten.group_norm.": ("num_groups", "input", 1),
}
"""Op → the argument that counts groups, and where they lie: an argument and its dimension, groups outermost."""


@dataclass(frozen=True, eq=False)
class Narrowed:
    """What stays of the values that some calls read and make; nothing is left out of those that it does not name.

    Attributes:
        values: call or placeholder → places.
        tensors: tensor of the model → places.
        groups: call with fewer groups than before → the argument that counts them, and what stays of it.
    """

    values: Mapping[Node, Places]
    tensors: Mapping[str, Places]
    groups: Mapping[Node, Mapping[str, int]]

    def __bool__(self) -> bool:
        return bool(self.values or self.tensors)

    def value(self, node: Node, value: Tensor) -> Tensor:
        """What stays of the value of a node."""
        return _taken(value, self.values.get(node, ()))

    def tensor(self, name: str, tensor: Tensor) -> Tensor:
        """What stays of a tensor of the model."""
        return _taken(tensor, self.tensors.get(name, ()))

    def call(self, node: Node, values: Mapping[Node, Any]) -> Any:
        """What a call makes of what stays of all that it reads."""
        return _called(node, values, self.groups.get(node))

    def shape(self, node: Node) -> tuple[int, ...]:
        """The shape of what stays of the value of a call."""
        return _left(shape(node), self.values.get(node, ()))

    def left(self, name: str, tensor: Tensor) -> tuple[int, ...]:
        """The shape of what stays of a tensor of the model."""
        return _left(tensor.shape, self.tensors.get(name, ()))

    def put(self, name: str, change: Tensor, like: Tensor) -> Tensor:
        """A change of what stays of a tensor, as one of the whole tensor: zero elsewhere."""
        places, shape = self.tensors.get(name, ()), list(change.shape)
        for d, index in enumerate(places):
            if index is not None:
                shape[d] = like.shape[d]
                change = change.new_zeros(shape).index_copy_(d, index, change)
        return change


WHOLE = Narrowed({}, {}, {})
"""The calls as they are."""


def narrowed(graph: Graph, kept: Mapping[int, Indices], calls: Sequence[Node], besides: Iterable[str] = ()) -> Narrowed:
    """These calls with the kept units alone; `WHOLE` where nothing is left out, or not all of them run so.

    Args:
        kept: leaf key → units.
        calls: in order.
        besides: tensors of the model that none of them reads.
    """
    values: dict[Node, Places] = {}
    tensors = {name: _places(graph.tensor_axes[name], kept, graph.program.tensors[name]) for name in besides}
    known: dict[Node, Any] = {}
    made = set(calls)
    for node in _all_read(calls):
        name = graph.program.bindings.get(node.name)
        dims = graph.node_axes.get(node.name) if name is None else graph.tensor_axes.get(name)
        held = node.meta.get("val") if name is None else graph.program.tensors[name]
        if node in made and not isinstance(held, Tensor):
            continue  # several values, which other calls take apart
        if not isinstance(dims, tuple) or not isinstance(held, Tensor):
            return WHOLE
        places = _places(dims, kept, held)
        if places:
            values[node] = places
            if name is not None:
                tensors[name] = places
        known[node] = torch.empty(_left(held.shape, places), dtype=held.dtype, device="meta")
    if not values:
        return WHOLE
    groups = {node: left for node in calls if (left := _groups_left(graph, node, kept))}
    for node in calls:
        try:
            with torch.no_grad():
                known[node] = _called(node, known, groups.get(node))
        except Exception:  # whatever an operator says of sizes that it was not recorded with
            return WHOLE
        if not _is_left(known[node], node.meta["val"], graph.node_axes.get(node.name), kept):
            return WHOLE
    return Narrowed(values, tensors, groups)


def _is_left(found: Any, val: Any, dims: Any, kept: Mapping[int, Indices]) -> bool:
    """Whether a call gives what stays of its value, or of each of its values."""
    if isinstance(val, (tuple, list)):
        several = isinstance(found, (tuple, list)) and isinstance(dims, (tuple, list)) and len(found) == len(dims)
        return several and all(_is_left(*one, kept) for one in zip(found, val, dims, strict=True))
    if not isinstance(found, Tensor) or not isinstance(dims, tuple):
        return False
    return found.shape == _left(val.shape, _places(dims, kept, val))


def _groups_left(graph: Graph, node: Node, kept: Mapping[int, Indices]) -> Mapping[str, int]:
    """The argument that counts the groups of a convolution or a norm, and those that stay; nothing where all do."""
    counted = next((found for op, found in _GROUPED.items() if op_name(node).startswith(op)), None)
    if counted is None:
        return {}
    argument, source, dim = counted
    given = named_arguments(node)
    name = graph.program.bindings.get(given[source].name)
    dims = graph.node_axes.get(given[source].name) if name is None else graph.tensor_axes.get(name)
    axis = dims[dim] if isinstance(dims, tuple) else None
    if axis is None or left_of(axis, kept) is None:
        return {}
    left = blocks(axis, size(axis) // given[argument], {key: len(units) for key, units in kept.items()})
    return {} if left == given[argument] else {argument: left}


def _called(node: Node, values: Mapping[Node, Any], groups: Mapping[str, int] | None) -> Any:
    """A call with these values, and with another number of groups where one is given."""
    args, kwargs = arguments(node, {source: values[source] for source in node.all_input_nodes})
    if not groups:
        return call(node, args, kwargs)
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    return call(node, (), {**dict(zip(names, args, strict=False)), **kwargs, **groups})


def _all_read(calls: Iterable[Node]) -> list[Node]:
    """What they read and make, once each."""
    return list(dict.fromkeys(node for made in calls for node in (*made.all_input_nodes, made)))


def _places(dims: Dims, kept: Mapping[int, Indices], like: Tensor) -> Places:
    found = [left_of(axis, kept) for axis in dims]
    if all(index is None for index in found):
        return ()
    return tuple(None if index is None else torch.as_tensor(index, device=like.device) for index in found)


def _left(sizes: Sequence[int], places: Places) -> tuple[int, ...]:
    if not places:
        return tuple(sizes)
    return tuple(n if index is None else len(index) for n, index in zip(sizes, places, strict=True))


def _taken(value: Tensor, places: Places) -> Tensor:
    for d, index in enumerate(places):
        if index is not None:
            value = value.index_select(d, index)
    return value
