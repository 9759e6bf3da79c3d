"""Sizes that the layers of a Keras model write down and no variable of theirs has: the record for `actprune.repair`.

The target shape of a `Reshape`, the 1/√(head size) of an attention, the one number of units of a `Bidirectional`; and
the numbers in the config of a layer of the user's own, which no table knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.fx import Graph, Node

from actprune.graph.numbers import Expr, variables
from actprune.graph.program import module_path, named_arguments, op_name, shape
from actprune.graph.sizes import Place, Sizes, SizeUse
from actprune.keras3.backend import keras_on_torch
from actprune.keras3.own import Dim, Powers, callers, own_sizes, variables_within
from actprune.keras3.places import Placed

_SCALED = {
    "MultiHeadAttention": ("key_dim", ("query",)),
    "GroupedQueryAttention": ("head_dim", ("query", "value")),
}
"""Class → the field that its scale is computed from, and the sublayers whose last output dimension has that size."""

_SCALING = {"aten.multiply.Tensor": "other", "aten.scaled_dot_product_attention.default": "scale"}
"""Op → the argument that is the scale; another tensor of one number (what a mask puts in place of scores) is none."""


def written_sizes(places: Sequence[Placed], operations: Mapping[str, Any], graph: Graph) -> Sizes:
    """The sizes that these layers and calls write down.

    Args:
        operations: the calls that are no layers, by name.
        graph: the capture, whose nodes know the layers that they were called in.
    """
    nodes: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.op == "call_function":
            nodes.setdefault(module_path(node), []).append(node)
    uses: list[SizeUse] = []
    fields: dict[Any, int] = {}
    optional: set[Any] = set()
    asked: dict[str, Powers] = {}
    own_layers = callers([place.layer for place in places])
    names = {id(variable): place.full(name) for place in places for name, (variable, _) in place.variables.items()}
    for place in places:
        if id(place.layer) in own_layers:
            numbers, found = own_sizes(place.layer, place.path, asked, own_layers[id(place.layer)])
            fields |= numbers
            uses += _numbered(place.layer, found, names)
            if own_layers[id(place.layer)][1] is None:
                optional |= {leaf for expr in found.values() for leaf in variables(expr)}  # smaller by other means
        own = nodes.get(place.path, [])
        uses += _target_shape(place.path, place.layer, "target_shape", own, 1)
        uses += _repeated(place.path, place.layer, own)
        for kind in type(place.layer).__mro__:
            if kind.__module__.startswith("keras.") and kind.__name__ in _SCALED:
                field, sources = _SCALED[kind.__name__]
                uses += _scale(place, field, sources, nodes)
        uses += _directions(place, places)
    for name, op in operations.items():
        uses += _target_shape(name, op, "newshape", nodes.get(name, []), 0)
    attributes: dict[Any, int] = {
        use.expr: use.value for use in uses if isinstance(use.expr, tuple) and use.expr[0] == "attr"
    }
    return Sizes(tuple(uses), fields | attributes, optional=frozenset(optional))


def _numbered(layer: Any, found: Mapping[Dim, Expr], names: Mapping[int, str]) -> Iterator[SizeUse]:
    """The sizes that follow from numbers in the config of a layer of the user's own."""
    held = variables_within(layer)
    code = type(layer).__init__.__code__
    for slot, ((number, dim), expr) in enumerate(found.items()):  # each by itself
        role = ("size", f"@{names[id(held[number])]}", dim)
        place = Place(None, code, (), (code.co_firstlineno, 0, 0, 0))
        yield SizeUse(held[number].shape[dim], expr, role, type(layer).__name__, slot, 1, place)


def _target_shape(path: str, layer: Any, field: str, nodes: Sequence[Node], before: int) -> Iterator[SizeUse]:
    """Every entry of a target shape but -1, which adapts; `before` dimensions of the result stand before them.

    A layer that is called several times has as many nodes, all of one shape.
    """
    target = getattr(layer, field, None)
    if not isinstance(target, tuple | list):
        return
    for node in nodes:
        if op_name(node).startswith(("aten.reshape.", "aten.view.")):
            for k, value in enumerate(target):
                if isinstance(value, int) and value > 0 and shape(node)[before + k : before + k + 1] == (value,):
                    yield _use(layer, value, ("attr", path, (field, k)), ("size", node.name, before + k), "reshape", k)


def _repeated(path: str, layer: Any, nodes: Sequence[Node]) -> Iterator[SizeUse]:
    """How often a `RepeatVector` repeats: scores of steps, once for every unit that they are multiplied with."""
    if isinstance(layer, keras_on_torch().layers.RepeatVector):
        for node in nodes:
            if len(shape(node)) == 3 and shape(node)[1] == layer.n:
                yield _use(layer, layer.n, ("attr", path, ("n",)), ("size", node.name, 1), "repeat", 0)


def _scale(place: Placed, field: str, sources: Sequence[str], nodes: dict[str, list[Node]]) -> Iterator[SizeUse]:
    """The size of a head, and the scale that is computed from it."""
    head = place.layer.get_config()[field]
    name: Expr = ("attr", place.path, (field,))
    for node in (node for source in sources for node in nodes.get(f"{place.path}.{source}", [])):
        made = op_name(node).startswith(("aten.einsum.", "aten.reshape."))  # one product, or a matrix's parted again
        if made and len(shape(node)) > 2 and shape(node)[-1] == head:
            yield _use(place.layer, head, name, ("size", node.name, len(shape(node)) - 1), "einsum", 0)
    scale: Expr = ("/", 1.0, ("**", name, 0.5))
    for node in nodes.get(place.path, []):
        given = named_arguments(node).get(_SCALING.get(op_name(node), ""))
        # with dropout it is a tensor; the rounding in it is that of `repair.scales`
        held = 1 / head**0.5 if isinstance(given, Node) and given.op == "placeholder" and not shape(given) else given
        if isinstance(held, float) and abs(held * head**0.5 - 1) < 1e-6:
            yield _use(place.layer, held, scale, ("fixed", node.name), "scale", 0)


def _directions(place: Placed, places: Sequence[Placed]) -> Iterator[SizeUse]:
    """The units of both directions of a `Bidirectional`: it takes those of the first for those of the second, too."""
    sides = [getattr(place.layer, name, None) for name in ("forward_layer", "backward_layer")]
    paths = [one.path for side in sides for one in places if one.layer is side]
    if len(paths) == 2:
        for path in paths:
            for name, kernel in _kernels(path, places):
                dim = -2 if len(kernel.shape) > 2 else 0  # a convolution's filters stand before the gates
                units = kernel.shape[dim]
                role, field = ("size", f"@{name}", dim % len(kernel.shape)), ("attr", paths[0], (_UNITS[dim],))
                yield _use(place.layer, units, field, role, "concatenate", places.index(place))  # each by itself


_UNITS = {0: "units", -2: "filters"}


def _kernels(path: str, places: Sequence[Placed]) -> list[tuple[str, Any]]:
    """The tensor by which a recurrent layer reads its own state, by name; none where it has several cells."""
    found = [
        (one.full(name), variable)
        for one in places
        if one.path == path or one.path.startswith(f"{path}.")
        for name, (variable, _) in one.variables.items()
        if name == "recurrent_kernel"
    ]
    return found if len(found) == 1 else []


def _use(layer: Any, value: Any, expr: Expr, role: tuple[Any, ...], op: str, slot: int) -> SizeUse:
    code = getattr(type(layer).call, "__code__", type(layer).__init__.__code__)
    return SizeUse(value, expr, role, op, slot, 1, Place(None, code, (), (code.co_firstlineno, 0, 0, 0)))
