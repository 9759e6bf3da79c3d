"""From axes to groups: every leaf that may be cut, with all that carries it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd, lcm

from actprune.axes.expr import Axis, Concat, Leaf, Product, leaves, product, size
from actprune.axes.inference import Inference
from actprune.axes.site import Dims, Mixing, Site


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
            attention; with grouped queries one unit is a key-value head with its queries), "head dims" (those of
            queries and keys, or of values, in each of them), or "width" (a stream that norms run over).
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


@dataclass(frozen=True)
class Survey:
    """What is known of every leaf, once the axes are.

    Attributes:
        sites: all contractions, in the order of the forward pass.
        tensors: tensor name → the axes of its dimensions.
        leaves: leaf key → the leaf.
        members: leaf key → the dimensions of tensors that contain it.
        producers, consumers: leaf key → the contractions that make it, and that sum over it.
        mixed: those that products of two activations sum over, and norms and means.
        multiples: leaf key → of what its width has to stay a multiple.
        whole: leaf key → why it can't be cut.
    """

    sites: Sequence[Site]
    tensors: Mapping[str, Dims]
    leaves: Mapping[int, Leaf]
    members: Mapping[int, Sequence[Member]]
    producers: Mapping[int, Sequence[Site]]
    consumers: Mapping[int, Sequence[Site]]
    mixed: set[int]
    multiples: Mapping[int, int]
    whole: Mapping[int, str]

    @cached_property
    def cut(self) -> set[int]:
        """The leaves that can be cut, each by itself."""
        return self.leaves.keys() - self.whole.keys()


def survey(
    inference: Inference, sites: Iterable[Site], mixings: Iterable[Mixing], used: frozenset[str], unused: str
) -> Survey:
    """A group's units are made by some parameter, and removed at every sum over them: by zero columns of a weight, or
    by a mask.

    Args:
        mixings: those that read units: the mean of a loss, which training alone takes, does not.
        used: the tensors that the forward pass reads; what is in none of them is whole for the reason `unused`.
    """
    tensors, sites = _resolved(inference), list(sites)
    members: dict[int, list[Member]] = {}
    found: dict[int, Leaf] = {}
    for name, dims in tensors.items():
        for d, axis in enumerate(dims):
            for leaf in leaves(axis):
                found[leaf.key] = leaf
                if Member(name, d) not in members.setdefault(leaf.key, []):
                    members[leaf.key].append(Member(name, d))
            for leaf in _squared(axis):  # one index would belong to two units of it
                inference.algebra.freeze(leaf, f"stands twice in a dimension of {name}")
    producers = _by_leaf((site, site.out_axis(tensors[site.weight])) for site in sites)
    consumers = _by_leaf((site, site.in_axis(tensors[site.weight])) for site in sites if site.reads)
    mixed = _leaves_of(inference, (inference.operand_axis(m) for m in mixings))
    multiples = _multiples(inference)

    def why(key: int, leaf: Leaf) -> str | None:
        if (reason := inference.algebra.frozen(leaf)) is not None:
            return reason
        if not any(member.tensor in used for member in members[key]):
            return unused
        if key not in consumers and key not in mixed:
            return "no linear layer or convolution consumes it"
        if key not in producers:
            return "no linear layer or convolution makes it"
        if multiples.get(key, 1) >= leaf.size:
            return f"its width has to stay a multiple of {multiples[key]}"
        return None

    whole = {key: reason for key, leaf in found.items() if (reason := why(key, leaf)) is not None}
    return Survey(sites, tensors, found, members, producers, consumers, mixed, multiples, whole)


def find_groups(inference: Inference, known: Survey, mixings: Iterable[Mixing]) -> tuple[Group, ...]:
    """The groups of a finished inference, in the order of the forward pass.

    Leaves that can't be cut are frozen here, so that afterwards every leaf is either a group's or frozen.

    Args:
        mixings: those of the forward pass alone: what meets in a penalty on weights, say, are no head dims.
    """
    streams = _leaves_of(inference, inference.streams)
    parallel = _leaves_of(inference, inference.parallel)
    computed = {site.node for site in known.sites if site.kind == "computed"}  # by a mask as well
    products = [m for m in mixings if m.twin is None and m.node.name not in computed]
    meet = _leaves_of(inference, map(inference.operand_axis, products))
    within = {key for dims in known.tensors.values() for axis in dims for key in _beside(axis, parallel)}
    groups: list[Group] = []
    for key, leaf in known.leaves.items():
        if key in known.whole:
            inference.algebra.freeze(leaf, known.whole[key])
            continue
        made, read = known.producers[key], known.consumers.get(key, ())
        kind = "channels" if any("conv" in site.kind for site in made) else "neurons"
        kind = "head dims" if key in meet or key in within else kind
        kind = "width" if key in streams else "heads" if key in parallel else kind
        name = made[0].module or made[0].weight
        carried = tuple(known.members[key]), tuple(made), tuple(read)
        groups.append(Group(name, key, leaf.size, kind, *carried, known.multiples.get(key, 1)))
    order = {site: i for i, site in enumerate(known.sites)}
    with_heads = {group.producers[0] for group in groups if group.kind == "heads"}
    groups.sort(key=lambda group: (order[group.producers[0]], _place(known.tensors, group, with_heads)))
    return tuple(_with_unique_names(groups))


def _beside(axis: Axis, parallel: set[int]) -> Iterator[int]:
    """The leaves that factors beside heads have: the dimensions of each."""
    if isinstance(axis, Leaf):
        return
    for part in axis.parts:
        yield from _beside(part, parallel)
    heads = [part for part in axis.parts if not parallel.isdisjoint(leaf.key for leaf in leaves(part))]
    if isinstance(axis, Product) and heads:
        yield from (leaf.key for part in axis.parts if part not in heads for leaf in leaves(part))


def _place(tensors: Mapping[str, tuple[Axis, ...]], group: Group, with_heads: Container[Site]) -> int:
    """Where a group stands among those of its first producer: heads in front of their dimensions, by the dimension that
    it makes (they may be found in another order for a batch of one sample); else in the order in which they were found.
    """
    made = group.producers[0]
    if not made.parted and made not in with_heads:
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
