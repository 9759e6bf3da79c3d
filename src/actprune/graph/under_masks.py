"""What a mask takes and writes back, entry by entry: a choice between two values of the full shape.

`out[m] = exp(-x[m])` takes as many entries as the data says, in a row in which no unit has a place. The same function,
said otherwise:

    index_put(out, m, exp(-x[m]))  =  where(m, exp(-where(m, x, 1)), out)

so that units keep their place. Entries that the mask does not take are 1 within: they are thrown away, but a logarithm
of them might have no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from actprune.graph.program import named_arguments, shape
from actprune.graph.rewriting import ATEN, is_call, make_call


def written_as_choices(graph: Graph) -> None:
    """Rewrite `graph` in place; masks of whole rows, of fewer dimensions, are left as they are."""
    for node in list(graph.nodes):
        given = named_arguments(node) if is_call(node, "aten.index_put.") else {}
        if not given or given["accumulate"] or (mask := _mask(given, given["self"])) is None:
            continue
        made: dict[Node, Node] = {}
        chosen = _of_full_shape(graph, given["values"], mask, made)
        if chosen is None or not made:
            continue
        with graph.inserting_before(node):
            node.replace_all_uses_with(
                make_call(graph, ATEN.where.self, (mask, chosen, given["self"]), node, node.meta["val"])
            )
        for old in (node, *reversed(made)):
            if not old.users:
                graph.erase_node(old)


def _mask(given: dict[str, Any], source: Node) -> Node | None:
    """The one index of a call, where it is a mask of all dimensions of `source`."""
    mask = given["indices"][0]
    whole = len(given["indices"]) == 1 and isinstance(mask, Node) and shape(mask) == shape(source) != ()
    return mask if whole and mask.meta["val"].dtype == torch.bool else None


def _of_full_shape(graph: Graph, value: Any, mask: Node, made: dict[Node, Node]) -> Any:
    """What stands for `value`, entries under `mask`, in the full shape; None where something else takes part.

    Args:
        made: what was made so far, by what it stands for; filled.
    """
    if is_call(value, "aten.view.", "aten.reshape.") and shape(value) == ():
        # `out[m] = …` takes the shape off a single entry, and in the example the mask may take just one
        single = _of_full_shape(graph, value.args[0], mask, made)
        if single in made.values():
            made[value] = single
            return single
    if not isinstance(value, Node) or (shape(value) == () and isinstance(value.meta["val"], Tensor)):
        return value
    if value in made or value.op != "call_function":
        return made.get(value)
    if is_call(value, "aten.index.Tensor"):
        given = named_arguments(value)
        own, target = _mask(given, given["self"]), ATEN.where.ScalarOther
        operands: tuple[Any, ...] | None = (own, given["self"], 1) if own is not None and _same(own, mask) else None
    elif torch.Tag.pointwise in getattr(value.target, "tags", ()) and not value.kwargs:
        parts = [_of_full_shape(graph, part, mask, made) if isinstance(part, Node) else part for part in value.args]
        known = all(new is not None for new, old in zip(parts, value.args, strict=True) if isinstance(old, Node))
        target, operands = value.target, tuple(parts) if known else None
    else:
        return None
    if operands is not None:
        with graph.inserting_before(value):
            full = mask.meta["val"].new_empty(shape(mask), dtype=value.meta["val"].dtype)
            made[value] = make_call(graph, target, operands, value, full)
    return made.get(value)


def _same(one: Any, other: Any) -> bool:
    """Whether two masks are one, or two calls of one comparison: `x[x > 0] = f(x[x > 0])` writes it twice."""
    if not (isinstance(one, Node) and isinstance(other, Node)) or one is other:
        return one is other or (not isinstance(one, Node) and one == other)
    alike = one.target == other.target and torch.Tag.pointwise in getattr(one.target, "tags", ())
    known = alike and not (one.kwargs or other.kwargs) and len(one.args) == len(other.args)
    return known and all(_same(a, b) for a, b in zip(one.args, other.args, strict=True))
