"""From axes to groups: every leaf that may be cut, with all that carries it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import gcd, lcm

from actprune.axes.expr import Axis, Concat, Leaf, Product, leaves, product, size
from actprune.axes.inference import Inference
from actprune.axes.site import Site


@dataclass(frozen=True)
class Member:
    """One dimension of one tensor that contains the group's units."""

    tensor: str
    dim: int


@dataclass(frozen=True)
class Group:
    """Units that can only be removed together: one prunable leaf axis.

    Attributes:
        name: the module that makes these units first, e.g. `layer1.0.conv1`.
        key: the leaf's key in axis expressions.
        width: number of units in the dense network.
        kind: "channels" (made by a convolution), "neurons", "heads" (they run beside each other through an
            attention; with grouped queries one unit is a key-value head with its queries), "head dims" (what
            the products of an attention sum over), or "width" (what norms run over).
        members: every tensor dimension that holds them.
        producers: the contractions whose output they are.
        consumers: the contractions with a parameter that sum over them; none where only masked products do.
        multiple: of what a width below the dense one has to be a multiple.
    """

    name: str
    key: int
    width: int
    kind: str
    members: tuple[Member, ...]
    producers: tuple[Site, ...]
    consumers: tuple[Site, ...]
    multiple: int = 1

    @property
    def widths(self) -> range:
        """The widths below the dense one that the group can have, ascending."""
        return range(self.multiple, self.width, self.multiple)


def find_groups(inference: Inference, sites: Iterable[Site], used: frozenset[str], unused: str) -> tuple[Group, ...]:
    """The groups of a finished inference, in the order of the forward pass.

    A group's units are made by some parameter, and removed at every sum over them: by zero columns of a weight, or
    by a mask.

    Leaves that nothing in `used` reads (for the reason `unused`), that no contraction makes or consumes, or that
    stand twice in one product are frozen here, so that afterwards every leaf is either a group's or frozen.
    """
    algebra, tensors = inference.algebra, _resolved(inference)
    sites = list(sites)
    members: dict[int, list[Member]] = {}
    found: dict[int, Leaf] = {}
    for name, dims in tensors.items():
        for d, axis in enumerate(dims):
            for leaf in leaves(axis):
                found[leaf.key] = leaf
                if Member(name, d) not in members.setdefault(leaf.key, []):
                    members[leaf.key].append(Member(name, d))
            for leaf in _squared(axis):  # one index would belong to two units of it
                algebra.freeze(leaf, f"stands twice in a dimension of {name}")
    producers = _by_leaf((site, site.out_axis(tensors[site.weight])) for site in sites)
    consumers = _by_leaf((site, site.in_axis(tensors[site.weight])) for site in sites if site.reads)
    mixed = _leaves_of(inference, (inference.operand_axis(m) for m in inference.mixings))
    normalized = _leaves_of(inference, inference.normalized)
    parallel = _leaves_of(inference, inference.parallel)
    multiples = _multiples(inference)
    groups: list[Group] = []
    order = {site: i for i, site in enumerate(sites)}
    for key, leaf in found.items():
        if not any(member.tensor in used for member in members[key]):
            algebra.freeze(leaf, unused)
        elif key not in consumers and key not in mixed:
            algebra.freeze(leaf, "no linear layer or convolution consumes it")
        elif key not in producers:
            algebra.freeze(leaf, "no linear layer or convolution makes it")
        elif key in multiples and multiples[key] >= leaf.size:
            algebra.freeze(leaf, f"its width has to stay a multiple of {multiples[key]}")
        if algebra.frozen(leaf) is None:
            made, read = producers[key], consumers.get(key, [])
            kind = "channels" if any("conv" in site.kind for site in made) else "neurons"
            kind = (
                "width" if key in normalized else "heads" if key in parallel else "head dims" if key in mixed else kind
            )
            name = made[0].module or made[0].weight
            carried = tuple(members[key]), tuple(made), tuple(read)
            groups.append(Group(name, key, leaf.size, kind, *carried, multiples.get(key, 1)))
    groups.sort(key=lambda group: (order[group.producers[0]], _place(tensors, group)))
    return tuple(_with_unique_names(groups))


def _place(tensors: Mapping[str, tuple[Axis, ...]], group: Group) -> int:
    """Where a group stands among those of its first producer: heads in front of their dimensions, where both are
    dimensions of its weight; else in the order in which they were found."""
    made = group.producers[0]
    if not made.parted:
        return group.key
    return [leaf.key for leaf in leaves(made.out_axis(tensors[made.weight]))].index(group.key)


def _multiples(inference: Inference) -> dict[int, int]:
    """Leaf key → of what its width has to stay a multiple, so that every axis with such a demand meets it."""
    found: dict[int, int] = {}

    def demand(axis: Axis, units: int) -> None:
        match axis:
            case Leaf():
                found[axis.key] = lcm(found.get(axis.key, 1), units)
            case Product(parts):  # what doesn't change brings its share
                fixed = [part for part in parts if all(inference.algebra.frozen(leaf) for leaf in leaves(part))]
                rest = units // gcd(units, size(product(fixed)))
                for part in parts:
                    if part not in fixed:
                        demand(part, rest)
            case Concat(parts):
                for part in parts:
                    demand(part, units)

    for axis, units in inference.multiples:
        demand(inference.algebra.resolve(axis), units)
    return found


def _squared(axis: Axis) -> Iterator[Leaf]:
    """Leaves that two factors of one product contain, as in a bilinear pooling of C × C."""
    if isinstance(axis, Leaf):
        return
    for i, part in enumerate(axis.parts):
        yield from _squared(part)
        if isinstance(axis, Product):
            others = {leaf.key for other in axis.parts[:i] for leaf in leaves(other)}
            yield from (leaf for leaf in leaves(part) if leaf.key in others)


def _leaves_of(inference: Inference, axes: Iterable[Axis]) -> set[int]:
    return {leaf.key for axis in axes for leaf in leaves(inference.algebra.resolve(axis))}


def _by_leaf(pairs: Iterable[tuple[Site, Axis]]) -> dict[int, list[Site]]:
    found: dict[int, list[Site]] = {}
    for site, axis in pairs:
        for leaf in leaves(axis):
            if site not in found.setdefault(leaf.key, []):
                found[leaf.key].append(site)
    return found


def _with_unique_names(groups: list[Group]) -> Iterable[Group]:
    """Two groups made by one module (q | k | v, or heads × head_dim) are told apart by a number."""
    total, seen = Counter(group.name for group in groups), Counter[str]()
    for group in groups:
        name = group.name
        if total[name] > 1:
            seen[name] += 1
            name = f"{name}#{seen[name]}"
        yield replace(group, name=name)


def _resolved(inference: Inference) -> Mapping[str, tuple[Axis, ...]]:
    resolve = inference.algebra.resolve
    return {name: tuple(resolve(axis) for axis in dims) for name, dims in inference.tensors.items()}
