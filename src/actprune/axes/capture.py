"""`capture`: model → Graph. The first stage of the house, and all that the later ones need of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

from torch import nn

from actprune.axes import rules  # noqa: F401  # pyright: ignore[reportUnusedImport]  (fills the table of rules)
from actprune.axes.account import Account, account
from actprune.axes.components import components
from actprune.axes.counting import settle
from actprune.axes.expr import Leaf, leaves
from actprune.axes.groups import Group, Survey, find_groups, survey
from actprune.axes.inference import Inference
from actprune.axes.masks import Mask, with_masks
from actprune.axes.normed import asked, inferred
from actprune.axes.site import Dims, Site, Term
from actprune.axes.trained import training_branches
from actprune.graph.kept_copies import kept_copies
from actprune.graph.named_after import named_after
from actprune.graph.program import Program
from actprune.graph.rebuilt import Rebuilt
from actprune.graph.sizes import TRAINING
from actprune.graph.trace import trace


@dataclass(frozen=True, eq=False)
class Graph:
    """A captured model with its axes and groups.

    Attributes:
        program: the forward pass as ATen calls.
        groups: what can be cut, in the order of the forward pass.
        sites: every contraction of an activation with a parameter.
        tensor_axes: tensor name → the axis expression of each of its dimensions.
        node_axes: node name → the same for its result; `training/` precedes the names of `training`'s.
        stacks: the names of stacks, whose slices have units of their own → the axes of one slice, which has the sizes
            of all.
        terms: the multiply-adds of every call as products of axes.
        frozen: leaf key → why it can't be cut.
        unknown_ops: ops without a rule; what they touch is frozen.
        training: the forward pass of training mode, where tensors exist that only it uses (auxiliary heads); else
            None.
        masks: tensor name → the factor of ones under that name, which takes away units that no weight reads.
        training_sites: the contractions with those parameters; `training/` precedes their nodes' names.
        counted: the groups (by leaf key) that one number of the class counts: as many units stay of each.
    """

    program: Program
    groups: tuple[Group, ...]
    sites: tuple[Site, ...]
    tensor_axes: Mapping[str, Dims]
    node_axes: Mapping[str, Dims | list[Dims]]
    stacks: Mapping[str, Dims]
    terms: tuple[Term, ...]
    frozen: Mapping[int, str]
    unknown_ops: tuple[str, ...] = ()
    training: Program | None = None
    training_sites: tuple[Site, ...] = ()
    masks: Mapping[str, Mask] = field(default_factory=dict[str, Mask])
    counted: tuple[tuple[int, ...], ...] = ()

    def __getitem__(self, name: str) -> Group:
        """The group of that name; a KeyError where there is none."""
        return self._by_name[name]

    @cached_property
    def sites_of(self) -> Mapping[str, Sequence[Site]]:
        """Name of a call → its sites: several of a recurrent one."""
        found: dict[str, list[Site]] = {}
        for site in self.sites:
            found.setdefault(site.node, []).append(site)
        return found

    @cached_property
    def _by_name(self) -> Mapping[str, Group]:
        return {group.name: group for group in self.groups}

    @property
    def used(self) -> frozenset[str]:
        """The tensors that some captured run reads."""
        return self.program.used if self.training is None else self.program.used | self.training.used

    def __repr__(self) -> str:
        units = sum(group.width for group in self.groups)
        return f"Graph({self.program.model_name}: {units:,} units in {len(self.groups)} groups)"

    def __str__(self) -> str:
        """A line for every group."""
        width = max((len(group.name) for group in self.groups), default=0)
        rows = [f"{g.name:<{width}}  {g.width:>6} {g.kind}" for g in self.groups]
        return "\n".join([f"{self.program.model_name}: {len(self.groups)} groups", *rows])

    def sizes(self, name: str) -> Dims | list[Dims]:
        """Axes that have the sizes of a call's result; its units too where it is no stack."""
        return self.stacks.get(name) or self.node_axes.get(name, ())

    @cached_property
    def peers(self) -> Mapping[str, tuple[str, ...]]:
        """Group name → the names of all groups of which as many units have to stay, itself among them, in order."""
        names = {group.key: group.name for group in self.groups}
        found = (tuple(names[key] for key in keys) for keys in components(names, self.counted))
        return {name: own for own in found for name in own}

    def together(self, names: Iterable[str]) -> list[str]:
        """These groups with all of which as many units have to stay, each once."""
        return [*dict.fromkeys(peer for name in names for peer in self.peers[name])]

    @cached_property
    def batch(self) -> tuple[str, Leaf] | None:
        """An input and the axis of the samples in it; None for a single sample, or where they are no axis of their own.

        The input is given by the name of its placeholder.
        """
        return self.batches[0] if self.batches else None

    @cached_property
    def batches(self) -> tuple[tuple[str, Leaf], ...]:
        """The same for each of these axes: of images and texts that only meet in a table of all pairs there are two."""
        found: dict[int, tuple[str, Leaf]] = {}
        for i, name in enumerate(self.program.inputs):
            dims = self.node_axes.get(name)
            first = dims[0] if isinstance(dims, tuple) and self.program.is_batched(i) else None
            if isinstance(first, Leaf) and first.size > 1:
                found.setdefault(first.key, (name, first))
        return tuple(found.values())

    def without(self, reasons: Mapping[str, str]) -> Graph:
        """The same graph with some groups frozen, and those of which as many units stay: group name → reason."""
        reasons = {peer: reason for name, reason in reasons.items() for peer in self.peers.get(name, ())} | {**reasons}
        frozen = {group.key: reasons[group.name] for group in self.groups if group.name in reasons}
        kept = tuple(group for group in self.groups if group.name not in reasons)
        return replace(self, groups=kept, frozen={**self.frozen, **frozen})

    def account(self) -> Account:
        """Every dimension of every tensor: which groups cut it, or why none does."""
        program = self.program
        sizes = {name: tuple(int(n) for n in program.tensors[name].shape) for name in self.tensor_axes}
        return account(self.tensor_axes, sizes, program.parameters, self.groups, self.frozen)


def capture(model: nn.Module, example_inputs: Any, *, norms: bool | str = "auto", like: Program | None = None) -> Graph:
    """Capture `model` as a graph and find what can be cut in it.

    Args:
        model: any module that runs on these inputs; it is left as it was.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments, batch first.
        norms: which axes that a norm or a mean runs over may be cut: see `actprune.axes.normed`.
        like: a program of the same class: the way that it was captured is tried first.

    Raises:
        CaptureError: the model can't be exported with these inputs, or `norms` is none of these.
    """
    norms = asked(norms)
    program = trace(model, example_inputs, like=like)
    program = replace(program, copies=kept_copies(model, program.used) | named_after(model, program.used))
    inference = inferred(program, norms)
    every, terms = tuple(inference.sites), tuple(inference.terms)
    mixings = list(inference.mixings)
    nodes = set(inference.axes)
    training, unused = training_branches(model, program)
    extra: tuple[Site, ...] = ()
    if training is not None:
        inference.walk(training)
        found = (site for site in inference.sites[len(every) :] if site.weight not in program.used)
        extra = tuple(replace(site, node=f"{TRAINING}{site.node}") for site in found)
        program = replace(program, sizes=program.sizes.with_training(training.sizes))
    used = program.used if training is None else program.used | training.used
    later = inference.mixings[len(mixings) :]
    read = (*mixings, *(mixing for mixing in later if mixing.twin is None))

    def surveyed() -> Survey:
        return survey(inference, (*every, *extra), read, used, unused)

    counted, known = settle(inference, surveyed)
    groups = find_groups(inference, known, mixings)
    keys = {group.key for group in groups}
    program, masks = with_masks(program, mixings, inference.operand_axis, keys)
    if training is not None:
        training, more = with_masks(training, later, inference.operand_axis, keys, TRAINING)
        masks |= more
    resolve = _resolver(inference)
    tensors = {tensor: resolve(dims) for tensor, dims in inference.tensors.items()}
    held = {leaf for dims in tensors.values() for axis in dims for leaf in leaves(axis)}
    named = {node: node.name if node in nodes else f"{TRAINING}{node.name}" for node in inference.axes}
    mixed = {node for node in inference.stacks if inference.is_mixed(node)}
    graph = Graph(
        program=program,
        groups=groups,
        sites=tuple(site for site in every if site.reads),
        tensor_axes={tensor: tensors[tensor] for tensor in program.tensors if tensor in tensors},
        node_axes={
            named[node]: list(map(resolve, dims)) if isinstance(dims, list) else resolve(dims)
            for node, dims in inference.axes.items()
            if node not in mixed
        },
        stacks={named[node]: resolve(s.slices[0]) for node, s in inference.stacks.items() if node in mixed},
        terms=tuple(Term(resolve(term.axes), term.factor) for term in terms),
        frozen={leaf.key: why for leaf in held if (why := inference.algebra.frozen(leaf)) is not None},
        unknown_ops=tuple(sorted(inference.unknown)),
        training=training,
        training_sites=tuple(site for site in extra if site.reads),
        masks=masks,
        counted=counted,
    )
    return _without_teachers(graph, extra, trained=isinstance(model, Rebuilt))


def _resolver(inference: Inference) -> Callable[[Dims], Dims]:
    """Axes as they are in the end: nothing is refined any more, and most occur many times."""
    resolve = cache(inference.algebra.resolve)
    return lambda dims: tuple(map(resolve, dims))


def _without_teachers(graph: Graph, extra: Sequence[Site], trained: bool) -> Graph:
    """Without the groups that training alone makes (a teacher, a discriminator): nothing deployed needs their cut.

    Args:
        extra: the sites of training mode.
        trained: also those with weights that have gradients: an auxiliary head is cut beside what it reads.
    """
    held = graph.program.tensors

    def is_left(site: Site) -> bool:
        weight = held.get(site.weight)
        return site in extra and (trained or (weight is not None and not weight.requires_grad))

    alone = (group.name for group in graph.groups if all(map(is_left, group.producers)))
    return graph.without(dict.fromkeys(alone, "made in training alone"))
