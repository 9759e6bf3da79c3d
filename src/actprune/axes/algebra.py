"""The algebra: making axis expressions equal, refining leaves on demand.

A union-find over leaves whose representatives are expressions. `unify(a, b)` says "these two
dimensions are the same one"; where one side is finer than the other, the coarser leaf is refined (bound
to a Product or a Concat of new leaves). Where two refinements can't be reconciled, both sides are frozen
with a reason. Nothing is guessed.
"""

from __future__ import annotations

from math import gcd

from actprune.axes.expr import ONE, Axis, Concat, Leaf, Product, concat, leaves, product, size

_FEW = 32
"""So many units of an axis may be frozen, to be written out as copies of what each of them holds."""


class Algebra:
    """The state of one inference: which leaves stand for what, and which are frozen why."""

    def __init__(self) -> None:
        self._bound: dict[int, Axis] = {}
        self._frozen: dict[int, str] = {}
        self._next = 1

    def leaf(self, units: int, frozen: str | None = None) -> Axis:
        """A new leaf of `units` units; frozen from birth where a reason is given."""
        if units == 1:
            return ONE
        leaf = Leaf(units, self._next)
        self._next += 1
        if frozen is not None:
            self._frozen[leaf.key] = frozen
        return leaf

    def resolve(self, axis: Axis) -> Axis:
        """`axis` with every bound leaf replaced by what it stands for, in normal form."""
        match axis:
            case Leaf():
                if axis.key not in self._bound:
                    return axis
                found = self.resolve(self._bound[axis.key])
                self._bound[axis.key] = found  # path compression
                return found
            case Product(parts):
                return product(self.resolve(part) for part in parts)
            case Concat(parts):
                return concat(self.resolve(part) for part in parts)

    def freeze(self, axis: Axis, reason: str) -> None:
        """Forbid cutting any unit of `axis`; the first reason stays."""
        for leaf in leaves(self.resolve(axis)):
            if leaf.size > 1:
                self._frozen.setdefault(leaf.key, reason)

    def frozen(self, leaf: Leaf) -> str | None:
        """Why `leaf` can't be cut, or None if it can."""
        return "it has a single unit" if leaf.size <= 1 else self._frozen.get(leaf.key)

    def unify(self, a: Axis, b: Axis, where: str) -> None:
        """Make `a` and `b` one dimension. What can't be reconciled is frozen, naming `where`."""
        a, b = self.resolve(a), self.resolve(b)
        if a == b:
            return
        if size(a) != size(b):
            self._clash(a, b, f"sizes {size(a)} and {size(b)} meet at {where}")
        elif isinstance(a, Leaf) or isinstance(b, Leaf):
            self._bind(a, b, where)
        elif isinstance(a, Product) and isinstance(b, Product):
            self._align_factors(a, b, where)
        elif isinstance(a, Concat) and isinstance(b, Concat):
            self._align_parts(a, b, where)
        elif isinstance(a, Product) and isinstance(b, Concat):
            self._product_with_concat(a, b, where)
        elif isinstance(a, Concat) and isinstance(b, Product):
            self._product_with_concat(b, a, where)

    def split(self, axis: Axis, sizes: list[int], where: str) -> list[Axis]:
        """`axis` as a Product of factors of these sizes (outer → inner): what a view or unflatten does."""
        factors = [self.leaf(n) for n in sizes]
        self.unify(axis, product(factors), where)
        return [self.resolve(factor) for factor in factors]

    def sections(self, axis: Axis, sizes: list[int], where: str) -> list[Axis]:
        """`axis` as a Concat of parts of these sizes: what split, chunk and narrow do."""
        parts = [self.leaf(n) for n in sizes]
        self.unify(axis, concat(parts), where)
        return [self.resolve(part) for part in parts]

    # -- the cases of unify ------------------------------------------------------------------------

    def _bind(self, a: Axis, b: Axis, where: str) -> None:
        if isinstance(a, Leaf) and isinstance(b, Leaf):
            a, b = (a, b) if a.key > b.key else (b, a)  # the younger follows the older: deterministic
        elif not isinstance(a, Leaf):
            a, b = b, a
        if not isinstance(a, Leaf) or any(leaf.key == a.key for leaf in leaves(b)):
            self._clash(a, b, f"an axis would have to contain itself at {where}")
            return
        self._bound[a.key] = b
        reason = self._frozen.pop(a.key, None)
        if reason is not None:
            self.freeze(b, reason)

    def _align_factors(self, a: Product, b: Product, where: str) -> None:
        """Factor by factor from the innermost, splitting off what divides both; if nothing does, the rest clashes."""
        left, right = list(a.parts), list(b.parts)
        while left and right:
            x, y = self._pop_factor(left), self._pop_factor(right)
            if size(x) == size(y):
                self.unify(x, y, where)
                continue
            (x, rest_x), (y, rest_y) = sorted(((x, left), (y, right)), key=lambda pair: size(pair[0]))
            common = gcd(size(x), size(y))
            peeled_y = self._peel(y, common) if common > 1 else None
            peeled_x = (ONE, x) if common == size(x) else self._peel(x, common) if peeled_y is not None else None
            if peeled_x is None or peeled_y is None:
                reason = f"factors {size(x)} and {size(y)} can't be reconciled at {where}"
                self._clash(product([*rest_x, x]), product([*rest_y, y]), reason)
                return
            for rest, (outer, _) in ((rest_x, peeled_x), (rest_y, peeled_y)):
                if size(outer) > 1:
                    rest.append(outer)
            self.unify(peeled_x[1], peeled_y[1], where)

    def _pop_factor(self, factors: list[Axis]) -> Axis:
        """The innermost factor, resolved: it may have been refined since the list was made."""
        factor = self.resolve(factors.pop())
        if isinstance(factor, Product):
            factors.extend(factor.parts[:-1])
            return factor.parts[-1]
        return factor

    def _peel(self, axis: Axis, inner: int) -> tuple[Axis, Axis] | None:
        """`axis` as outer × inner, refining it; None where that isn't possible."""
        axis = self.resolve(axis)
        match axis:
            case Leaf():
                pair = self.leaf(axis.size // inner), self.leaf(inner)
                self._bind(axis, product(pair), "a split")
                return self.resolve(pair[0]), self.resolve(pair[1])
            case Product(parts):
                last = size(parts[-1])
                if last == inner:
                    return product(parts[:-1]), parts[-1]
                if last % inner == 0:
                    peeled = self._peel(parts[-1], inner)
                    return peeled and (product([*parts[:-1], peeled[0]]), peeled[1])
                if inner % last == 0:
                    peeled = self._peel(product(parts[:-1]), inner // last)
                    return peeled and (peeled[0], product([peeled[1], parts[-1]]))
                return None
            case Concat(parts):
                if any(size(part) % inner for part in parts):
                    return None
                peeled_parts = [self._peel(part, inner) for part in parts]
                pairs = [pair for pair in peeled_parts if pair is not None]
                if len(pairs) < len(parts):
                    return None
                for _, other in pairs[1:]:
                    self.unify(pairs[0][1], other, "a split of a concatenation")
                return concat(self.resolve(outer) for outer, _ in pairs), self.resolve(pairs[0][1])

    def _align_parts(self, a: Concat, b: Concat, where: str) -> None:
        """Part by part from the front, cutting the longer of two at the end of the shorter."""
        left, right = list(a.parts), list(b.parts)
        while left and right:
            x, y = self._pop_part(left), self._pop_part(right)
            if size(x) == size(y):
                self.unify(x, y, where)
                continue
            (x, rest_x), (y, rest_y) = sorted(((x, left), (y, right)), key=lambda pair: size(pair[0]))
            count = self._filling(rest_x, size(y) - size(x)) if isinstance(y, Leaf) else 0
            if count:  # one by one, a leaf of hundreds of parts would be as many leaves within each other
                self.unify(y, concat([x, *rest_x[:count]]), where)
                del rest_x[:count]
                continue
            cleaved = self._cleave(y, size(x), where)
            if cleaved is None:
                reason = f"parts of {size(x)} and {size(y)} can't be reconciled at {where}"
                self._clash(concat([x, *rest_x]), concat([y, *rest_y]), reason)
                return
            head, tail = cleaved
            rest_y.insert(0, tail)
            self.unify(x, head, where)

    @staticmethod
    def _filling(parts: list[Axis], room: int) -> int:
        """How many of the first parts are of this size together; 0 where no number of them is."""
        for count, part in enumerate(parts, 1):
            room -= size(part)
            if room <= 0:
                return 0 if room else count
        return 0

    def _pop_part(self, parts: list[Axis]) -> Axis:
        part = self.resolve(parts.pop(0))
        if isinstance(part, Concat):
            parts[:0] = part.parts[1:]
            return part.parts[0]
        return part

    def _cleave(self, axis: Axis, head: int, where: str) -> tuple[Axis, Axis] | None:
        """`axis` as head | tail, refining it; None where that isn't possible."""
        axis = self.resolve(axis)
        match axis:
            case Leaf():
                pair = self.leaf(head), self.leaf(axis.size - head)
                self._bind(axis, concat(pair), "a split")
                return self.resolve(pair[0]), self.resolve(pair[1])
            case Product(parts):
                inner = product(parts[1:])
                if head % size(inner):
                    copies = self._copies(axis, where)
                    return None if copies is None else self._cleave(copies, head, where)
                cleaved = self._cleave(parts[0], head // size(inner), where)
                if cleaved is None:
                    return None
                return product([cleaved[0], inner]), product([cleaved[1], inner])
            case Concat(parts):
                done: list[Axis] = []
                for i, part in enumerate(parts):
                    if head < size(part):
                        cleaved = self._cleave(part, head, where) if head else None
                        if head and cleaved is None:
                            return None
                        middle = list(cleaved) if cleaved else [part]
                        cut = 1 if cleaved else 0
                        return concat([*done, *middle[:cut]]), concat([*middle[cut:], *parts[i + 1 :]])
                    done.append(part)
                    head -= size(part)
                return None

    def _copies(self, axis: Product, where: str) -> Concat | None:
        """A frozen outer factor of n is n copies of the rest, one after the other.

        A few units are frozen for it: where a part ends within one of them, as a channel of a concatenation may within
        the groups of a convolution, none of them can go, and what goes from one goes from all.
        """
        outer, rest = axis.parts[0], product(axis.parts[1:])
        if size(outer) <= _FEW:
            self.freeze(outer, f"parts of a concatenation divide its units at {where}")
        if all(self.frozen(leaf) for leaf in leaves(outer)):
            return Concat((rest,) * size(outer))
        return None

    def _product_with_concat(self, a: Product, b: Concat, where: str) -> None:
        inner = product(a.parts[1:])
        if all(size(part) % size(inner) == 0 for part in b.parts):
            peeled = self._peel(b, size(inner))
            if peeled is not None:
                outer, b_inner = peeled
                self.unify(b_inner, inner, where)
                self.unify(outer, a.parts[0], where)
                return
        copies = self._copies(a, where)
        if copies is None:
            self._clash(a, b, f"a product and a concatenation can't be reconciled at {where}")
        else:
            self._align_parts(copies, b, where)

    def _clash(self, a: Axis, b: Axis, reason: str) -> None:
        self.freeze(a, reason)
        self.freeze(b, reason)
