"""A graph in the form that the later stages know best: biases and batch norms in one call, channels in dimension 1.

Keras on torch adds a bias in a call of its own, writes batch norm out in elementary calls, and permutes every map to
channels-first and back around each convolution. The same function, said otherwise:

    permute(relu(permute(conv(x)) + b))  =  relu(conv(x, b))        where the permutes are inverse

so that a refit finds the bias that it may change, and the norm and the ReLU behind a convolution are found behind it.
Nothing is merged that computes another function: weights keep their names, shapes and places.
"""

from __future__ import annotations

from math import prod
from string import ascii_letters
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, Node

from actprune.graph.program import named_arguments, shape
from actprune.graph.rewriting import ATEN, inverse, is_call, make_call, permuted, reshaped

_LAYOUT_ONLY = ("aten.contiguous.", "aten.to.dtype", "aten._to_copy.")
_RESHAPES = ("aten.reshape.", "aten.view.", "aten._unsafe_view.")
_CONVOLUTIONS = ("aten.conv1d.", "aten.conv2d.", "aten.conv3d.", "aten.conv_transpose")


def make_canonical(graph: Graph, statistics: set[str], weights: set[str]) -> None:
    """Rewrite `graph` in place.

    Args:
        statistics: the placeholders of tensors that no training step changes, such as running means.
        weights: the placeholders of all tensors of the model.
    """
    _drop_copies(graph)
    for node in list(graph.nodes):
        _norm_in_one_call(graph, node, statistics, weights)
        _projection_as_matrix(graph, node, weights)
        _bias_in_one_call(graph, node, weights)
    _sink_permutes(graph)
    graph.eliminate_dead_code()
    graph.lint()


# -- copies that change nothing --------------------------------------------------------------------


def _drop_copies(graph: Graph) -> None:
    """Leave out casts to the dtype that a value has, and `contiguous` where no view of the result needs it."""
    for node in list(graph.nodes):
        if not is_call(node, *_LAYOUT_ONLY):
            continue
        source: Any = node.args[0]
        before, after = source.meta["val"], node.meta["val"]
        viewed = any(is_call(user, "aten.view.", "aten.as_strided", "aten.view_as") for user in node.users)
        if before.dtype == after.dtype and before.device == after.device and not viewed:
            node.replace_all_uses_with(source)
            graph.erase_node(node)


# -- vectors of the model, as they are broadcast ---------------------------------------------------


def _vector(node: Any, holders: set[str]) -> tuple[Node, int] | None:
    """The placeholder of a vector of the model that `node` is, and which of its dimensions, from the end, the vector
    runs along; dimensions of size 1 may stand around it."""
    sizes = shape(node)
    source = node.args[0] if is_call(node, *_RESHAPES) else node
    if not isinstance(source, Node) or source.name not in holders or len(shape(source)) != 1:
        return None
    wide = [d for d, n in enumerate(sizes) if n != 1]
    if len(wide) > 1 or prod(sizes) != shape(source)[0]:
        return None
    # a vector of one entry may stand for any dimension: it stands for the last
    return source, (wide[0] if wide else len(sizes) - 1) - len(sizes)


def _pair(node: Node) -> list[Any]:
    """The two operands of an addition or a product, or none."""
    given = named_arguments(node)
    return [given["self"], given["other"]] if given.get("alpha", 1) == 1 else []


def _with_other(node: Node, own: Node) -> Any:
    """What `own` is combined with in a call of two operands."""
    return next((value for value in _pair(node) if value is not own), None)


# -- projections -----------------------------------------------------------------------------------


def _projection_as_matrix(graph: Graph, node: Node, weights: set[str]) -> None:
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


# -- biases ----------------------------------------------------------------------------------------


def _bias_in_one_call(graph: Graph, node: Node, weights: set[str]) -> None:
    """`conv(x, w) + b` → `conv(x, w, b)`, and `x @ w + b` → `linear(x, wᵀ, b)`, a permute between them or not."""
    if not is_call(node, "aten.add.Tensor"):
        return
    for made in _pair(node):
        if is_call(made, "aten.reshape.") and _bias_of_several(graph, node, cast("Node", made), weights):
            return
        found = _vector(_with_other(node, made), weights) if isinstance(made, Node) else None
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
    layer, bias = cast("Node", made.args[0]), _with_other(node, made)
    held = bias.args[0] if is_call(bias, *_RESHAPES) else bias
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


# -- batch norm ------------------------------------------------------------------------------------


def _norm_in_one_call(graph: Graph, node: Node, statistics: set[str], weights: set[str]) -> None:
    """(x − mean) · (rsqrt(var + ε) · γ) + β → batch_norm, with the running statistics of the model.

    `node` is the rsqrt.
    """
    if not is_call(node, "aten.rsqrt.") or not is_call(node.args[0], "aten.add."):
        return
    variance, eps = named_arguments(cast("Node", node.args[0]))["self"], named_arguments(node.args[0])["other"]  # type: ignore[arg-type]
    spread = _vector(variance, statistics)
    factor, gain = _one_of(node, "aten.mul.", weights, 1.0)
    product = next(iter(factor.users), None) if factor is not None and len(factor.users) == 1 else None
    if spread is None or not isinstance(eps, float) or factor is None or not is_call(product, "aten.mul."):
        return
    centred = _with_other(cast("Node", product), factor)
    shifted, offset = _one_of(cast("Node", product), "aten.add.", weights, 0.0)
    if shifted is None or not is_call(centred, "aten.sub.", "aten.subtract.") or len(centred.users) != 1:
        return
    x, mean = centred.args[0], _vector(centred.args[1], statistics)
    vectors = [found for found in (mean, spread, gain, offset) if found is not None]
    same = len({dim for _, dim in vectors}) == 1 and shape(x) == shape(shifted)
    if mean is None or not same or len(shape(x)) < 2:
        return
    if any(vector.meta["val"].dtype != x.meta["val"].dtype for vector, _ in vectors):
        return
    rank = len(shape(x))
    channels = rank + spread[1]
    order = [0, channels, *(d for d in range(1, rank) if d != channels)]
    if channels == 0:
        return
    held = [None if found is None else found[0] for found in (gain, offset)]
    with graph.inserting_before(shifted):
        first = permuted(graph, x, order)
        norm = make_call(
            graph, ATEN.batch_norm.default, (first, *held, mean[0], spread[0], False, 0.1, eps, False),
            shifted, first.meta["val"],
        )  # fmt: skip
        shifted.replace_all_uses_with(permuted(graph, norm, inverse(order), shifted))


def _one_of(node: Node, op: str, weights: set[str], neutral: float) -> tuple[Node | None, tuple[Node, int] | None]:
    """The one call that combines `node` with a vector of the model, and that vector; none where it is constant.

    Args:
        neutral: what the constant consists of: Keras makes ones for a γ, zeros for a β that isn't there.
    """
    user = next(iter(node.users), None)
    if len(node.users) != 1 or user is None or not is_call(user, op):
        return None, None
    other = _with_other(user, node)
    if is_call(other, "aten.ones_like." if neutral else "aten.zeros_like."):
        return user, None
    found = _vector(other, weights)
    return (user, found) if found is not None else (None, None)


# -- permutes --------------------------------------------------------------------------------------


def _sink_permutes(graph: Graph) -> None:
    """Element-wise calls go in front of the permutes of their operands, so that inverse permutes meet and cancel."""
    for node in list(graph.nodes):
        if is_call(node, "aten.permute.") and is_call(node.args[0], "aten.permute."):
            inner = cast("Node", node.args[0])
            order = [_order(inner)[d] for d in _order(node)]
            with graph.inserting_before(node):
                node.replace_all_uses_with(permuted(graph, cast("Node", inner.args[0]), order, node))
            graph.erase_node(node)
        elif (order := _common_order(node)) is not None:
            _exchange(graph, node, order)


def _order(node: Node) -> list[int]:
    return [d % len(shape(node)) for d in cast("list[int]", node.args[1])]


def _common_order(node: Node) -> list[int] | None:
    """The order in which all operands of an element-wise call, or of a concatenation, are permuted."""
    if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
        return None
    if torch.Tag.pointwise not in getattr(node.target, "tags", ()) and not is_call(node, "aten.cat."):
        return None
    operands = [n for n in node.all_input_nodes if len(shape(n)) > 0]
    if not operands or any(not is_call(n, "aten.permute.") or len(shape(n)) != len(shape(node)) for n in operands):
        return None
    orders = [_order(n) for n in operands]
    return orders[0] if all(order == orders[0] for order in orders) else None


def _exchange(graph: Graph, node: Node, order: list[int]) -> None:
    back = inverse(order)
    with graph.inserting_before(node):
        made = graph.node_copy(node, lambda n: cast("Node", n.args[0]) if len(shape(n)) > 0 else n)
        if is_call(made, "aten.cat."):
            dim = int(cast("int", named_arguments(node)["dim"])) % len(order)
            made.args, made.kwargs = (made.args[0], order[dim]), {}
        made.meta = {**node.meta, "val": node.meta["val"].permute(*back)}
        node.replace_all_uses_with(permuted(graph, made, order, node))
    graph.erase_node(node)
