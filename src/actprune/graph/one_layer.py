"""Projections and biases as one call of a layer: what a class writes with `einsum`, or adds behind the product."""

from __future__ import annotations

from math import prod
from string import ascii_letters
from typing import Any, cast

from torch.fx import Graph, Node

from actprune.graph.program import named_arguments, shape
from actprune.graph.rewriting import (
    ATEN,
    RESHAPES,
    is_call,
    make_call,
    operands,
    permuted,
    reshaped,
    vector_of,
    with_other,
)

_CONVOLUTIONS = ("aten.conv1d.", "aten.conv2d.", "aten.conv3d.", "aten.conv_transpose")


def projection_as_matrix(graph: Graph, node: Node, weights: set[str]) -> None:
    """`einsum("btcd,cde->bte", x, w)` → x @ w with c and d as one, which is a linear layer like any other; and
    `einsum("btc,cde->btde", x, w)` → x @ w with d and e as one, which are two again afterwards."""
    if not is_call(node, "aten.einsum."):
        return
    given = named_arguments(node)
    operands, equation = given["tensors"], _spelled(str(given["equation"]), [len(shape(x)) for x in given["tensors"]])
    held = [i for i, operand in enumerate(operands) if operand.name in weights]
    if len(operands) != 2 or len(held) != 1 or equation is None:
        return
    terms, result = equation
    x, weight = operands[1 - held[0]], operands[held[0]]
    of_x, of_weight = terms[1 - held[0]], terms[held[0]]
    summed, made = (
        "".join(letter for letter in of_weight if letter not in others and letter in own)
        for own, others in ((of_x, result), (result, of_x))
    )
    batch = "".join(letter for letter in result if letter not in made)
    as_one = of_weight in (summed + made, made + summed) and sorted(batch + summed) == sorted(of_x)
    if not (as_one and summed and made and batch) or any(len(set(term)) < len(term) for term in (*terms, result)):
        return
    sizes = {**dict(zip(result, shape(node), strict=True)), **dict(zip(of_weight, shape(weight), strict=True))}
    if [sizes[letter] for letter in of_x] != list(shape(x)):
        return
    before, ins, outs = (tuple(sizes[letter] for letter in letters) for letters in (batch, summed, made))
    with graph.inserting_before(node):
        first = permuted(graph, x, [of_x.index(letter) for letter in batch + summed])
        flat = reshaped(graph, first, (*before, prod(ins)), node)
        if of_weight == summed + made:
            matrix = reshaped(graph, weight, (prod(ins), prod(outs)), node)
        else:
            matrix = permuted(graph, reshaped(graph, weight, (prod(outs), prod(ins)), node), (1, 0))
        value = flat.meta["val"].new_empty((*before, prod(outs)), dtype=node.meta["val"].dtype)
        product = make_call(graph, ATEN.matmul.default, (flat, matrix), node, value)
        parted = reshaped(graph, product, (*before, *outs), node)
        node.replace_all_uses_with(permuted(graph, parted, [(batch + made).index(letter) for letter in result], node))


def _spelled(equation: str, ranks: list[int]) -> tuple[list[str], str] | None:
    """The letters of each operand and of the result, with letters of its own for what "..." stands for; None where the
    result is not told, or one operand alone has dots."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    counts = {rank - len(t.replace("...", "")) for t, rank in zip(terms, ranks, strict=True) if "..." in t}
    if not arrow or len(counts) > 1:
        return None
    free = [letter for letter in ascii_letters if letter not in equation][: max(counts, default=0)]
    return [term.replace("...", "".join(free)) for term in terms], result.replace("...", "".join(free))


def bias_in_one_call(graph: Graph, node: Node, weights: set[str]) -> None:
    """`conv(x, w) + b` → `conv(x, w, b)`, and `x @ w + b` → `linear(x, wᵀ, b)`, a permute between them or not."""
    if not is_call(node, "aten.add.Tensor"):
        return
    for made in operands(node):
        if is_call(made, "aten.reshape.") and _bias_of_several(graph, node, cast("Node", made), weights):
            return
        found = vector_of(with_other(node, made), weights) if isinstance(made, Node) else None
        if found is None or shape(made) != shape(node) or len(made.users) != 1:
            continue
        bias, dim = found
        order = list(range(len(shape(made))))
        layer = made
        if is_call(made, "aten.permute."):
            order, layer = [d % len(order) for d in cast("list[int]", made.args[1])], cast("Node", made.args[0])
        if len(layer.users) == 1 and order[dim] == _output_dim(layer, weights) and _suits(layer, bias):
            with graph.inserting_before(node):
                node.replace_all_uses_with(permuted(graph, _biased(graph, layer, bias), order, node))
            return


def _bias_of_several(graph: Graph, node: Node, made: Node, weights: set[str]) -> bool:
    """`reshape(x @ w) + b` with b (d, e), or with dimensions of size 1 before, → `reshape(linear(x, wᵀ, b as one))`."""
    layer, bias = cast("Node", made.args[0]), with_other(node, made)
    held = bias.args[0] if is_call(bias, *RESHAPES) else bias
    if not isinstance(held, Node) or held.name not in weights or shape(made) != shape(node):
        return False
    outs = shape(held)
    ends = shape(made)[-len(outs) :] == outs and shape(bias) == (1,) * (len(shape(bias)) - len(outs)) + outs
    whole = shape(layer)[:-1] + outs == shape(made) and _output_dim(layer, weights) == len(shape(layer)) - 1
    if not (outs and ends and whole) or {len(layer.users), len(made.users)} != {1}:
        return False
    with graph.inserting_before(node):
        flat = reshaped(graph, held, (prod(outs),), node)
        if not _suits(layer, flat):
            return False
        node.replace_all_uses_with(reshaped(graph, _biased(graph, layer, flat), shape(node), node))
    return True


def _output_dim(layer: Node, weights: set[str]) -> int | None:
    """The dimension that holds the outputs of a layer without a bias; None for any other call."""
    given = named_arguments(layer) if layer.op == "call_function" else {}
    if is_call(layer, *_CONVOLUTIONS):
        return len(shape(layer)) - len(shape(given["weight"])) + 1 if given["bias"] is None else None
    if is_call(layer, "aten.matmul.") and _is_weight(given["other"], weights):
        return len(shape(layer)) - 1
    return None


def _is_weight(node: Any, weights: set[str]) -> bool:
    """Whether a matrix is one of the model's, transposed perhaps, or with several dimensions as one."""
    source = node.args[0] if is_call(node, "aten.permute.", "aten.t.", "aten.transpose.", "aten.reshape.") else node
    return isinstance(source, Node) and source.name in weights and len(shape(node)) == 2


def _suits(layer: Node, bias: Node) -> bool:
    given = named_arguments(layer)
    units = shape(layer)[-1] if is_call(layer, "aten.matmul.") else shape(layer)[-(len(shape(given["weight"])) - 1)]
    return shape(bias)[0] == units and bias.meta["val"].dtype == layer.meta["val"].dtype


def _biased(graph: Graph, layer: Node, bias: Node) -> Node:
    value = layer.meta["val"]
    if is_call(layer, "aten.matmul."):
        source, weight = cast("tuple[Node, Node]", layer.args)
        return make_call(graph, ATEN.linear.default, (source, permuted(graph, weight, (1, 0)), bias), layer, value)
    return make_call(graph, layer.target, (*layer.args[:2], bias, *layer.args[3:]), layer, value)
