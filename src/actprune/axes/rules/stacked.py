"""Products of an activation with several matrices of a parameter at once, which are one layer for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from actprune.axes.call import Call
from actprune.axes.expr import size
from actprune.axes.site import Form, Split
from actprune.graph.program import named_arguments, op_name, shape

Letters = Sequence[str]


def stacked(call: Call, operands: Sequence[Any], terms: Sequence[Letters], result: Letters) -> Letters:
    """Note the site of a product that is one for each matrix of a weight; what it sums over, nothing if it is none.

    Every letter of the activation numbers the matrices, is summed over with the weight, or is left in the result; so is
    every letter of the weight, or it is an output.
    """
    held = [found for operand in operands if (found := call.inference.stored.find(operand)) is not None]
    if len(operands) != 2 or len(held) != 1 or any(len(set(term)) < len(term) for term in (*terms, result)):
        return ()
    own = 0 if call.inference.stored.find(operands[0]) is not None else 1
    source, weight, of_source, of_weight = operands[1 - own], operands[own], terms[1 - own], terms[own]
    sizes = dict(zip(of_weight, map(size, call.axes(weight)), strict=True))
    ins = [x for x in of_weight if x not in result and x in of_source]
    made = [x for x in of_weight if x in result and x not in of_source and x[0] != "."]
    outs = [x for x in made if sizes[x] > 1] or made[:1]  # a single output is one, too
    stack = [x for x in of_weight if x in result and x not in outs and sizes[x] > 1]
    rest = [x for x in of_source if x in result and x not in stack]
    wide = [sizes[x] == call.shape(source)[of_source.index(x)] for x in ins]
    plain = call.node.meta["val"].is_floating_point() and weight.meta["val"].is_floating_point()
    if not (ins and outs and all(wide) and plain) or not set(of_source) <= {*ins, *stack, *rest}:
        return ()
    if any(sizes[x] > 1 for x in set(of_weight) - {*ins, *outs, *stack}) or not set(result) <= {*outs, *stack, *rest}:
        return ()
    places = {x: of_weight.index(x) for x in of_weight}
    ins, outs = (sorted(letters, key=lambda x: held[0][1][places[x]]) for letters in (ins, outs))
    splits = _split(of_source, stack, rest, ins), _split(result, stack, rest, outs)
    call.stacked(
        weight, [places[x] for x in ins], [places[x] for x in outs], [places[x] for x in stack],
        Form(source.name, (), *splits, bias=_added(call, result, [*stack, *outs])),
    )  # fmt: skip
    return ins


def _split(letters: Letters, *parts: Letters) -> Split:
    stack, rest, last = (tuple(letters.index(x) if x in letters else -1 for x in part) for part in parts)
    return stack, rest, last


def _added(call: Call, result: Letters, wanted: Letters) -> tuple[str, tuple[int, ...]] | None:
    """The tensor that alone reads the result and adds to it a number for each of these letters, in their order."""
    users = list(call.node.users)
    if len(users) != 1 or not op_name(users[0]).startswith("aten.add.Tensor"):
        return None
    asked = named_arguments(users[0])
    other = next((asked[key] for key in ("self", "other") if asked[key] is not call.node), None)
    found = call.inference.stored.find(other)
    if not isinstance(other, Node) or found is None or asked.get("alpha", 1) != 1 or shape(users[0]) != call.shape():
        return None
    letters = list(result)[len(result) - len(shape(other)) :]
    wide = {x: d for d, x in enumerate(letters) if shape(other)[d] > 1}
    return (found[0], tuple(found[1][wide[x]] for x in wanted)) if sorted(wide) == sorted(wanted) else None
