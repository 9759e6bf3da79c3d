"""Sizes in the attributes of layers of the user's own class, which their code gives to calls.

A config and an attribute may have one name and two values: heads of `width // heads` stay as wide with three of four.
So the path of an attribute begins with a dot.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import replace
from typing import Any

from actprune.graph.numbers import Expr, variables
from actprune.graph.sizes import Sizes
from actprune.keras3.resized import SOURCE
from actprune.keras3.wrapping import holds_own
from actprune.repair.edits import AttributeEdit, Edits


def of_attributes(recorded: Sizes, own: Container[str | None]) -> Sizes:
    """What was recorded in the code of these layers, by path; their attributes with a dot before their names.

    Also what a layer of Keras's does that they make as they are called: `Reshape((1, 1, self.filters))(x)`.
    """
    uses = [
        replace(use, expr=_dotted(use.expr, recorded))
        for use in recorded.uses
        if use.place.module in own or any(leaf[0] == "attr" and leaf[1] in own for leaf in variables(use.expr))
    ]
    attributes = {_dotted(leaf, recorded): value for leaf, value in recorded.attributes.items() if _is_layers(leaf)}
    return Sizes(tuple(uses), attributes)


def is_attribute(edit: AttributeEdit) -> bool:
    """Whether it is of an attribute, and not of a config."""
    return str(edit.path[0]).startswith(".")


def numbers_within(
    layer: Any, edits: Edits, paths: dict[int, str], place: str = ""
) -> Iterator[tuple[str, int | list[Any]]]:
    """The attributes to be set in a layer and in those within: ("2.0.heads", 3) is of the first layer in its third.

    What changes in the source of its methods stands there as if it were one more attribute, see `resized.SOURCE`.
    """
    if holds_own(layer):
        for edit in edits.attributes:
            if edit.module == paths[id(layer)] and is_attribute(edit):
                first, *rest = edit.path
                yield ".".join([*filter(None, [place]), str(first)[1:], *map(str, rest)]), edit.value
        sources = tuple(edit for edit in edits.sources if edit.module == paths[id(layer)])
        calls = tuple(edit for edit in edits.calls if edit.module == paths[id(layer)])
        if sources or calls:
            yield ".".join([*filter(None, [place]), SOURCE]), [Edits((), sources, calls).as_data()]
        for i, inner in enumerate(layer._layers):
            yield from numbers_within(inner, edits, paths, f"{place}.{i}" if place else str(i))


def _is_layers(leaf: Any) -> bool:
    return isinstance(leaf[1], str)


def _dotted(expr: Expr, recorded: Sizes) -> Any:
    if isinstance(expr, int | float) or expr[0] == "shape":
        return expr
    if expr[0] != "attr":
        return (expr[0], _dotted(expr[1], recorded), _dotted(expr[2], recorded))
    if not _is_layers(expr):  # of an object that layers share
        return recorded.attributes[expr]
    first, *rest = expr[2]
    return ("attr", expr[1], (f".{first}", *rest))
