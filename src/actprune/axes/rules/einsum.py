"""Sums of products by letters: `einsum`, and the products that are an einsum under another name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from actprune.axes.call import Call, rule
from actprune.axes.expr import ONE, Axis, product, size
from actprune.axes.rules.elementwise import broadcast_axes, broadcast_with
from actprune.axes.rules.shape import ones_before
from actprune.axes.rules.stacked import stacked
from actprune.axes.site import Dims

Letters = list[str]
"""One letter per dimension of an operand; a dimension that `...` stands for has a letter of dots."""


@rule("aten.einsum")
def einsum(call: Call) -> Dims:
    operands: list[Node] = list(call["tensors"])
    equation = str(call["equation"]).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = [_letters(term, len(call.shape(own))) for term, own in zip(left.split(","), operands, strict=True)]
    if arrow:
        dots = max((sum(letter[0] == "." for letter in term) for term in terms), default=0)
        return contract(call, operands, terms, _letters(right, len(right.replace("...", "")) + dots * ("." in right)))
    seen = Counter(letter for term in terms for letter in term)
    dotted = sorted((letter for letter in seen if letter[0] == "."), reverse=True)
    return contract(call, operands, terms, dotted + sorted(x for x, n in seen.items() if n == 1 and x[0] != "."))


def _letters(term: str, rank: int) -> Letters:
    """The letters of a term; `...` is counted from its last dimension on: "...", "..", "." stand for three."""
    before, dots, after = term.partition("...")
    count = rank - len(before) - len(after)
    return [*before, *("." * n for n in range(count, 0, -1) if dots), *after]


@rule("aten.bilinear")
def bilinear(call: Call) -> Dims:
    """input1 (…, I), input2 (…, J), weight (O, I, J), bias (O,) → (…, O)."""
    operands = [call["input1"], call["input2"], call["weight"]]
    batch = batch_letters(len(call.shape()) - 1)
    result = contract(call, operands, [[*batch, "i"], [*batch, "j"], ["o", "i", "j"]], [*batch, "o"], plain=False)
    if call["bias"] is not None:
        call.unify(call.axes(call["bias"])[0], result[-1])
    return result


@rule("aten.baddbmm", "aten.addbmm")
def added_product(call: Call) -> Dims:
    """self, broadcast, + batch1 (B, N, K) @ batch2 (B, K, M), which `addbmm` sums over B."""
    result = ["n", "m"] if "addbmm" in str(call.node.target).replace("baddbmm", "") else ["b", "n", "m"]
    terms = [["b", "n", "k"], ["b", "k", "m"]]
    product = contract(call, [call["batch1"], call["batch2"]], terms, result, plain=False)
    return broadcast_with(call, product, call["self"])


@rule("aten.mv", "aten.addmv")
def matrix_vector(call: Call) -> Dims:
    """(self (N,) or a number, +) matrix (N, K) @ vector (K,) → (N,)."""
    added = call["mat"] is not None
    matrix = call["mat"] if added else call["self"]
    dims = contract(call, [matrix, call["vec"]], [["n", "k"], ["k"]], ["n"], plain=not added)
    return broadcast_with(call, dims, call["self"]) if added else dims


@rule("aten.dot", "aten.vdot")
def dot(call: Call) -> Dims:
    return contract(call, call.values[:2], [["k"], ["k"]], [])


@rule("aten.outer", "aten.ger")
def outer(call: Call) -> Dims:
    return contract(call, [call["self"], call["vec2"]], [["n"], ["m"]], ["n", "m"])


@rule("aten.inner")
def inner(call: Call) -> Dims:
    """(…, K), (…, K) → both of the rest, one after the other."""
    a, b = (len(call.shape(value)) for value in call.values[:2])
    rest_a, rest_b = [f"a{n}" for n in range(a - 1)], [f"b{n}" for n in range(b - 1)]
    return contract(call, call.values[:2], [[*rest_a, "k"], [*rest_b, "k"]], [*rest_a, *rest_b])


@rule("aten.linalg_vecdot")
def vecdot(call: Call) -> Dims:
    rank = len(call.shape()) + 1
    letters = batch_letters(rank)
    d = int(call["dim"]) % rank
    operands = [call["x"], call["y"]]
    terms = [letters[rank - len(call.shape(own)) :] for own in operands]
    return contract(call, operands, terms, [*letters[:d], *letters[d + 1 :]])


@rule("aten.tensordot")
def tensordot(call: Call) -> Dims:
    """Contracts `dims_self` of the one with `dims_other` of the other, pair by pair."""
    a, b = (len(call.shape(value)) for value in (call["self"], call["other"]))
    left, right = [f"a{n}" for n in range(a)], [f"b{n}" for n in range(b)]
    for x, y in zip(call["dims_self"], call["dims_other"], strict=True):
        right[y % b] = left[x % a]
    result = [x for x in left if x not in right] + [y for y in right if y not in left]
    return contract(call, [call["self"], call["other"]], [left, right], result)


@rule("aten.kron")
def kron(call: Call) -> Dims:
    """Every dimension is the product of the two operands'."""
    rank = len(call.shape())
    a, b = (ones_before(call.axes(value), rank) for value in (call["self"], call["other"]))
    return tuple(product(pair) for pair in zip(a, b, strict=True))


@rule("aten.cdist")
def distances(call: Call) -> Dims:
    """x1 (…, P, M), x2 (…, R, M) → (…, P, R): a norm of differences, so what is zero in both counts for nothing."""
    a, b = call.axes(call["x1"]), call.axes(call["x2"])
    call.unify(a[-1], b[-1])
    call.mixes(call["x1"], -1)
    call.mixes(call["x2"], -1)
    batch = broadcast_axes(call, [a[:-2], b[:-2]], len(call.shape()) - 2)
    call.macs([*batch, a[-2], b[-2], a[-1]])
    return (*batch, a[-2], b[-2])


def batch_letters(count: int) -> Letters:
    """Letters for dimensions that broadcast, counted from the last one on."""
    return ["." * n for n in range(count, 0, -1)]


def contract(call: Call, operands: Sequence[Any], terms: list[Letters], result: Letters, plain: bool = True) -> Dims:
    """Sum over every letter that isn't in `result`, of the product of the operands.

    A parameter that is summed over and gives the result a letter of its own is read like a layer's weight, whatever
    its rank; any other sum has a mask in front of it.

    Args:
        terms: the letters of each operand; a size of 1 broadcasts.
        result: the letters of the result.
        plain: the call adds nothing to the product.
    """
    axis: dict[str, Axis] = {}
    for operand, letters in zip(operands, terms, strict=True):
        for own, letter in zip(call.axes(operand), letters, strict=True):
            known = axis.setdefault(letter, own)
            if size(known) == 1:
                axis[letter] = own
            elif size(own) != 1:
                call.unify(known, own)
            if letters.count(letter) > 1:
                call.freeze(own, "taken on a diagonal")
    read = stacked(call, operands, terms, result) if plain else ()
    for letter in axis:
        if letter not in result and letter not in read and size(axis[letter]) > 1:
            _sum(call, operands, terms, result, letter)
    if len(operands) > 1:
        call.macs(axis.values())
    return tuple(axis.get(letter, ONE) for letter in result)


def _sum(call: Call, operands: Sequence[Any], terms: list[Letters], result: Letters, letter: str) -> None:
    """Note who is summed over `letter`: the parameters that make a letter of the result, or else a mask."""
    holding = [
        i for i, letters in enumerate(terms) if letter in letters and call.shape(operands[i])[letters.index(letter)] > 1
    ]
    read = False
    for i in holding:
        others = {other for j, letters in enumerate(terms) if j != i for other in letters}
        own = [x for x in terms[i] if x in result and x not in others]
        if call.inference.stored.find(operands[i]) is not None:
            for free in own:
                call.site("product", operands[i], None, terms[i].index(letter), terms[i].index(free))
                read = True
    if not read:
        first = holding[0]
        call.mixes(operands[first], terms[first].index(letter))
        if len(operands) > 1:
            shared = Counter(x for letters in terms for x in dict.fromkeys(letters))
            call.attends(
                call.axes(operands[first])[d] for d, x in enumerate(terms[first]) if x in result and shared[x] > 1
            )
