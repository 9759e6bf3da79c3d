"""The axis algebra: hand-derived cases, then random ones against brute force."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actprune.axes.algebra import Algebra
from actprune.axes.expr import (
    ONE,
    Axis,
    Concat,
    Indices,
    Leaf,
    Product,
    concat,
    kept_indices,
    leaves,
    positions,
    product,
    size,
)

A, B, C = Leaf(4, 1), Leaf(3, 2), Leaf(2, 3)


def keep(**units: list[int]) -> dict[int, Indices]:
    """Kept units of A, B and C by their names."""
    keys = {"a": 1, "b": 2, "c": 3}
    return {keys[name]: np.array(indices) for name, indices in units.items()}


# ---- expressions


def test_normal_forms_are_flat() -> None:
    assert product([A, product([B, C])]) == Product((A, B, C))
    assert product([ONE, A, ONE]) == A
    assert product([]) == product([ONE, ONE]) == ONE
    assert concat([concat([A, B]), C]) == Concat((A, B, C))
    assert concat([A, Leaf(0, 9)]) == A
    assert concat([]) == ONE
    assert size(concat([ONE, ONE])) == 2


def test_a_size_follows_the_widths() -> None:
    axis = concat([product([A, B]), A, C])
    assert size(axis) == 4 * 3 + 4 + 2
    assert size(axis, {1: 2, 3: 1}) == 2 * 3 + 2 + 1


def test_kept_indices_of_a_channel_major_flatten_are_runs() -> None:
    """(C = 4, H·W = 3): channels 1 and 3 are columns 3 to 5 and 9 to 11."""
    assert kept_indices(product([A, B]), keep(a=[1, 3])).tolist() == [3, 4, 5, 9, 10, 11]


def test_kept_indices_of_a_channel_minor_flatten_are_strided() -> None:
    """(H·W = 3, C = 4): channels 1 and 3 are columns 1, 3, 5, 7, 9 and 11."""
    assert kept_indices(product([B, A]), keep(a=[1, 3])).tolist() == [1, 3, 5, 7, 9, 11]


def test_kept_indices_of_a_concatenation_are_shifted() -> None:
    assert kept_indices(concat([B, A, C]), keep(a=[0, 3], c=[1])).tolist() == [0, 1, 2, 3, 6, 8]


def test_positions_name_the_unit_of_every_index() -> None:
    assert positions(product([C, B]), key=2).tolist() == [0, 1, 2, 0, 1, 2]
    assert positions(product([C, B]), key=3).tolist() == [0, 0, 0, 1, 1, 1]
    assert positions(concat([A, C]), key=3).tolist() == [-1, -1, -1, -1, 0, 1]
    assert positions(A, key=7).tolist() == [-1, -1, -1, -1]


def test_an_axis_of_hundreds_of_slices() -> None:
    """Each slice makes leaves for what is before and behind it: those in front are of one slice after the other."""
    algebra = Algebra()
    axis = algebra.leaf(800)
    for start in range(0, 800, 2):
        _, part, _ = algebra.sections(axis, [start, 2, 798 - start], "a slice")
        assert size(part) == 2
    found = algebra.resolve(axis)
    assert isinstance(found, Concat) and len(found.parts) == 400


# ---- unify, by hand


def test_two_leaves_become_one() -> None:
    algebra = Algebra()
    a, b = algebra.leaf(5), algebra.leaf(5)
    algebra.unify(b, a, "here")
    assert algebra.resolve(a) == algebra.resolve(b) == a


def test_a_frozen_leaf_freezes_what_it_is_unified_with() -> None:
    algebra = Algebra()
    a, b, c = algebra.leaf(5), algebra.leaf(5, "model input"), algebra.leaf(5)
    algebra.unify(a, b, "here")
    algebra.unify(c, a, "there")
    assert reasons(algebra, c) == {"model input"}


def test_the_first_reason_stays() -> None:
    algebra = Algebra()
    a = algebra.leaf(5)
    algebra.freeze(a, "first")
    algebra.freeze(a, "second")
    assert reasons(algebra, a) == {"first"}


def test_a_single_unit_can_not_be_cut() -> None:
    algebra = Algebra()
    assert algebra.leaf(1) == ONE
    assert reasons(algebra, ONE) == {"it has a single unit"}


def test_a_split_refines_a_leaf_into_heads_and_head_dim() -> None:
    algebra = Algebra()
    width = algebra.leaf(12)
    heads, inner = algebra.split(width, [3, 4], "view")
    assert algebra.resolve(width) == Product((heads, inner))
    assert (size(heads), size(inner)) == (3, 4)


def test_a_split_is_refined_by_a_finer_one() -> None:
    """(2, 12) against (8, 3): 24 = 2 × 4 × 3."""
    algebra = Algebra()
    width = algebra.leaf(24)
    coarse = algebra.split(width, [2, 12], "first view")
    fine = algebra.split(width, [8, 3], "second view")
    assert [size(leaf) for leaf in leaves(algebra.resolve(width))] == [2, 4, 3]
    assert algebra.resolve(product(coarse)) == algebra.resolve(product(fine))
    assert all(reasons(algebra, axis) == {None} for axis in coarse + fine)


def test_views_that_can_not_be_reconciled_freeze() -> None:
    """15 = 3 × 5 = 5 × 3: no common refinement of whole numbers."""
    algebra = Algebra()
    width = algebra.leaf(15)
    algebra.split(width, [3, 5], "first view")
    algebra.split(width, [5, 3], "second view")
    assert reasons(algebra, width) == {"factors 3 and 5 can't be reconciled at second view"}


def test_of_views_that_can_not_be_reconciled_the_part_inside_both_stays_free() -> None:
    """24 = 4 × 6 = 6 × 4: both count pairs innermost, and the twelve pairs in ways that no refinement has."""
    algebra = Algebra()
    width = algebra.leaf(24)
    algebra.split(width, [4, 6], "first view")
    algebra.split(width, [6, 4], "second view")
    *outer, pair = leaves(algebra.resolve(width))
    assert (prod(leaf.size for leaf in outer), pair.size) == (12, 2)
    assert {algebra.frozen(leaf) for leaf in outer} == {"factors 2 and 3 can't be reconciled at second view"}
    assert algebra.frozen(pair) is None


def test_sizes_that_differ_freeze_both_sides() -> None:
    algebra = Algebra()
    a, b = algebra.leaf(5), algebra.leaf(6)
    algebra.unify(a, b, "add at block.0")
    assert reasons(algebra, a) == reasons(algebra, b) == {"sizes 5 and 6 meet at add at block.0"}


def test_sections_cut_a_leaf_at_common_boundaries() -> None:
    """[4 | 5] against [3 | 6]: 3 | 1 | 5."""
    algebra = Algebra()
    width = algebra.leaf(9)
    algebra.sections(width, [4, 5], "split")
    algebra.sections(width, [3, 6], "split")
    assert [leaf.size for leaf in leaves(algebra.resolve(width))] == [3, 1, 5]


def test_a_section_of_nothing_or_of_everything() -> None:
    algebra = Algebra()
    width = algebra.leaf(9)
    empty, whole = algebra.sections(width, [0, 9], "split")
    assert (size(empty), algebra.resolve(whole)) == (0, algebra.resolve(width))


def test_sections_of_a_product_cut_its_outer_factor() -> None:
    """[q | k] of 2 heads × 3 each, out of 4 × 3."""
    algebra = Algebra()
    outer, inner = algebra.leaf(4), algebra.leaf(3)
    q, k = algebra.sections(product([outer, inner]), [6, 6], "chunk")
    assert [size(part) for part in leaves(algebra.resolve(outer))] == [2, 2]
    assert list(leaves(q))[1] == list(leaves(k))[1] == inner


def test_sections_inside_a_factor_need_a_fixed_outer_one() -> None:
    """A frozen outer factor of 2 is two copies of the inner one, which the sections then cut alike."""
    algebra = Algebra()
    times, inner = algebra.leaf(2, "repeated"), algebra.leaf(4)
    algebra.sections(product([times, inner]), [1, 3, 1, 3], "split")
    assert [leaf.size for leaf in leaves(algebra.resolve(inner))] == [1, 3]
    assert reasons(algebra, inner) == {None, "it has a single unit"}


def test_sections_inside_a_factor_freeze_the_outer_one() -> None:
    """[1 | 7] of 2 × 4: as (1 | 3 | 1 | 3), both outer units hold the same two parts."""
    algebra = Algebra()
    outer, inner = algebra.leaf(2), algebra.leaf(4)
    algebra.sections(product([outer, inner]), [1, 7], "split")
    assert reasons(algebra, outer) == {"parts of a concatenation divide its units at split"}
    assert [leaf.size for leaf in leaves(algebra.resolve(inner))] == [1, 3]
    assert reasons(algebra, inner) == {None, "it has a single unit"}


def test_sections_inside_a_factor_of_many_outer_ones_freeze() -> None:
    algebra = Algebra()
    outer, inner = algebra.leaf(100), algebra.leaf(4)
    algebra.sections(product([outer, inner]), [1, 399], "split")
    assert reasons(algebra, outer) == reasons(algebra, inner)
    assert reasons(algebra, inner) == {"a product and a concatenation can't be reconciled at split"}


def test_a_product_against_a_concatenation_splits_every_part() -> None:
    """Channel shuffle after a concatenation: cat(4, 4) viewed as (2, 4) makes both halves one axis."""
    algebra = Algebra()
    a, b = algebra.leaf(4), algebra.leaf(4)
    algebra.split(concat([a, b]), [2, 4], "shuffle")
    assert algebra.resolve(a) == algebra.resolve(b)
    assert reasons(algebra, a) == {None}


def test_rotating_halves_makes_one_half() -> None:
    """RoPE: cat(-x2, x1) added to cat(x1, x2) makes the two halves one axis."""
    algebra = Algebra()
    width = algebra.leaf(8)
    first, second = algebra.sections(width, [4, 4], "chunk")
    algebra.unify(width, concat([second, first]), "add")
    assert algebra.resolve(first) == algebra.resolve(second)
    assert algebra.resolve(width) == Concat((first, first))


# ---- random expressions against brute force

SIZES = st.integers(1, 5)
LEAVES = st.builds(lambda units, key: Leaf(units, 10 * units + key), SIZES, st.integers(0, 2))


def _combined(children: st.SearchStrategy[Axis]) -> st.SearchStrategy[Axis]:
    parts = st.lists(children, min_size=2, max_size=3)
    return st.one_of(parts.map(product), parts.map(concat))


EXPRESSIONS: st.SearchStrategy[Axis] = st.recursive(LEAVES, _combined, max_leaves=5).filter(
    lambda axis: size(axis) <= 500
)


def kept_mask(axis: Axis, kept: Mapping[int, Indices]) -> np.ndarray:
    """(size,) which indices stay, from outer products and concatenations of masks."""
    if isinstance(axis, Leaf):
        mask = np.zeros(axis.size, dtype=bool)
        mask[kept.get(axis.key, np.arange(axis.size))] = True
        return mask
    parts = [kept_mask(part, kept) for part in axis.parts]
    if isinstance(axis, Concat):
        return np.concatenate(parts)
    mask = np.ones((), dtype=bool)
    for part in parts:
        mask = mask[..., None] & part
    return mask.reshape(-1)


def some_units(data: st.DataObject, axes: list[Axis], algebra: Algebra | None = None) -> dict[int, Indices]:
    """Kept units for every leaf of `axes` that isn't frozen."""
    kept: dict[int, Indices] = {}
    for leaf in {leaf.key: leaf for axis in axes for leaf in leaves(axis)}.values():
        if leaf.size and (algebra is None or algebra.frozen(leaf) is None):
            units = data.draw(st.sets(st.integers(0, leaf.size - 1), min_size=1))
            kept[leaf.key] = np.array(sorted(units))
    return kept


@given(EXPRESSIONS, st.data())
def test_kept_indices_equal_brute_force(axis: Axis, data: st.DataObject) -> None:
    kept = some_units(data, [axis])
    found = kept_indices(axis, kept)
    assert found.tolist() == np.flatnonzero(kept_mask(axis, kept)).tolist()
    assert len(found) == size(axis, {key: len(units) for key, units in kept.items()})


@given(EXPRESSIONS, EXPRESSIONS, EXPRESSIONS)
def test_normal_forms_do_not_depend_on_nesting(a: Axis, b: Axis, c: Axis) -> None:
    assert product([product([a, b]), c]) == product([a, product([b, c])])
    assert concat([concat([a, b]), c]) == concat([a, concat([b, c])])


# ---- random inferences

UNITS = [2, 3, 4, 6, 8, 12]


@dataclass
class Walk:
    """A random inference: a pool of axes, and every pair of them that was made one."""

    algebra: Algebra = field(default_factory=Algebra)
    pool: list[Axis] = field(default_factory=list)
    pairs: list[tuple[Axis, Axis]] = field(default_factory=list)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["leaf", "product", "concat", "split", "sections", "unify", "freeze"]),
        st.integers(0, 1000),
        st.integers(0, 1000),
    ),
    min_size=3,
    max_size=25,
)


def _parts(total: int, seed: int) -> list[list[int]]:
    """The ways to write `total` as a product, or as a sum, of two numbers."""
    if seed % 2:
        return [[n, total // n] for n in range(2, total) if total % n == 0]
    return [[n, total - n] for n in range(1, total)]


def walked(steps: list[tuple[str, int, int]], swapped: bool = False) -> Walk:
    """Do these steps; `swapped` hands every pair to `unify` the other way around."""
    walk = Walk()
    algebra, pool = walk.algebra, walk.pool

    def unify(a: Axis, b: Axis) -> None:
        algebra.unify(*((b, a) if swapped else (a, b)), "somewhere")
        walk.pairs.append((a, b))

    for kind, i, j in steps:
        if kind == "leaf" or not pool:
            pool.append(algebra.leaf(UNITS[i % len(UNITS)]))
            continue
        a, b = pool[i % len(pool)], pool[j % len(pool)]
        if kind in ("product", "concat") and size(a) * size(b) <= 300:
            pool.append(product([a, b]) if kind == "product" else concat([a, b]))
        elif kind == "unify":
            same = [axis for axis in pool if size(axis) == size(a)]
            unify(a, same[j % len(same)])
        elif kind == "freeze" and j % 4 == 0:
            algebra.freeze(a, "frozen by hand")
        elif kind in ("split", "sections"):
            ways = _parts(size(a), kind == "split")
            if ways:
                parts: list[Axis] = [algebra.leaf(n) for n in ways[j % len(ways)]]
                unify(a, product(parts) if kind == "split" else concat(parts))
                pool.extend(parts)
    return walk


@settings(max_examples=200)
@given(STEPS, st.data())
def test_what_is_unified_is_cut_alike(steps: list[tuple[str, int, int]], data: st.DataObject) -> None:
    """The one law that everything rests on: two axes that were made one lose the same indices."""
    walk = walked(steps)
    resolved = [(walk.algebra.resolve(a), walk.algebra.resolve(b)) for a, b in walk.pairs]
    kept = some_units(data, [axis for pair in resolved for axis in pair], walk.algebra)
    for a, b in resolved:
        assert kept_indices(a, kept).tolist() == kept_indices(b, kept).tolist()


@given(STEPS)
def test_sizes_never_change(steps: list[tuple[str, int, int]]) -> None:
    walk = walked(steps)
    assert [size(walk.algebra.resolve(axis)) for axis in walk.pool] == [size(axis) for axis in walk.pool]


@given(STEPS)
def test_unify_does_not_care_which_side_is_which(steps: list[tuple[str, int, int]]) -> None:
    """The same sizes in the same places, and the same ones frozen."""
    assert outline(walked(steps)) == outline(walked(steps, swapped=True))


def outline(walk: Walk) -> list[tuple[object, ...]]:
    """The pool's resolved expressions, leaves numbered in order of appearance."""
    numbers: dict[int, int] = {}

    def describe(axis: Axis) -> tuple[object, ...]:
        if isinstance(axis, Leaf):
            number = numbers.setdefault(axis.key, len(numbers))
            return axis.size, number, walk.algebra.frozen(axis) is None
        return type(axis).__name__, *(describe(part) for part in axis.parts)

    return [describe(walk.algebra.resolve(axis)) for axis in walk.pool]


def reasons(algebra: Algebra, axis: Axis) -> set[str | None]:
    """Why the leaves of `axis` are frozen; None for those that aren't."""
    return {algebra.frozen(leaf) for leaf in leaves(algebra.resolve(axis))}


@pytest.mark.parametrize("depth", [50])
def test_a_long_chain_of_equal_leaves_resolves(depth: int) -> None:
    """Path compression: every link is followed once."""
    algebra = Algebra()
    chain = [algebra.leaf(4) for _ in range(depth)]
    for a, b in reversed(list(pairwise(chain))):
        algebra.unify(a, b, "here")
    assert {algebra.resolve(leaf) for leaf in chain} == {chain[0]}
