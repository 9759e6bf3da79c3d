"""What can be cut in a captured model, and why the rest can't: the content of `actprune inspect`, as plain data.

Every parameter is counted once: as prunable where some group can take it, else as frozen, under one reason. That

    prunable + the sum over the reasons = all parameters

is how a reader knows that nothing was skipped in silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

from actprune.axes.capture import Graph
from actprune.axes.expr import leaves, size
from actprune.axes.groups import Group
from actprune.axes.site import Dims, Site
from actprune.errors import DataError
from actprune.graph.program import Program
from actprune.report.reasons import ReasonEntry, reasons_of

SCHEMA = "actprune.inspection/1"

ROOT = "the model"
"""The name of the module that holds the others, as in messages."""


@dataclass(frozen=True)
class GroupEntry:
    """One group.

    Attributes:
        width: number of units.
        params, macs: what would be gone if the whole group went; multiply-adds are per sample. A weight between two
            groups is governed by both, so these numbers do not add up over groups.
        share: `params` as a share of the model's parameters, 0–1.
        peers: the other groups of which as many units have to stay, because one number counts them.
        producers, consumers: the modules that make the units and those that sum over them.
        carriers: other modules with parameters for each unit, such as norms.
    """

    name: str
    kind: str
    width: int
    params: int
    macs: int
    share: float
    peers: tuple[str, ...]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    carriers: tuple[str, ...]


@dataclass(frozen=True)
class ModuleEntry:
    """One module with weights of its own: how many parameters they are, and how many of these are frozen."""

    name: str
    params: int
    frozen: int


@dataclass(frozen=True)
class Inspection:
    """What `inspect` finds; `print` shows it as tables.

    Attributes:
        model: class name.
        params: parameters of the model, tied ones once.
        macs: multiply-adds per sample.
        prunable: parameters that some group can take; the others are frozen.
        groups: in the order of the forward pass.
        reasons: why parameters are frozen, those that hold most of them first.
        modules: in the order of the forward pass, unused ones last.
        unknown_ops: ops without a rule.
    """

    model: str
    params: int
    macs: int
    prunable: int
    groups: tuple[GroupEntry, ...] = field(repr=False)
    reasons: tuple[ReasonEntry, ...] = field(repr=False)
    modules: tuple[ModuleEntry, ...] = field(repr=False)
    unknown_ops: tuple[str, ...] = ()

    @property
    def frozen(self) -> int:
        """Parameters that no group can take."""
        return self.params - self.prunable

    @property
    def summary(self) -> str:
        """One line."""
        share = 100 * self.prunable / max(self.params, 1)
        return f"{share:.1f} % of parameters prunable ({self.prunable:,} of {self.params:,})"

    def to_data(self) -> dict[str, Any]:
        """JSON values, with the schema first."""
        return {"schema": SCHEMA, **asdict(self), "frozen": self.frozen, "summary": self.summary}

    def to_json(self) -> str:
        return json.dumps(self.to_data(), indent=1, allow_nan=False)

    def to_dot(self) -> str:
        """A drawing of the groups for Graphviz."""
        from actprune.report.drawing import dot

        return dot(self)

    def to_html(self) -> str:
        """A page with a drawing of the groups and the tables; it needs nothing else to be shown.

        Raises:
            ActpruneError: jinja2 is not installed.
        """
        from actprune.report.drawing import page

        return page(self)

    def __str__(self) -> str:
        from actprune.report.table import render_inspection  # rich is only needed to show it

        return render_inspection(self)


def inspect(graph: Graph) -> Inspection:
    """What can be cut in a captured model, what that would take with it, and why the rest can't be cut."""
    if not isinstance(graph, Graph):
        raise DataError(
            "This is no captured graph.",
            expected="what actprune.capture(model, example_inputs) gives",
            got=type(graph).__name__,
            where="inspect",
            hint="inspect(capture(model, x)), with a batch x of the model's inputs",
        )
    program = graph.program
    params = {name: graph.tensor_axes[name] for name in program.tensors if name in program.parameters}
    keys = {group.key for group in graph.groups}
    frozen = {name: _left(dims, keys) for name, dims in params.items()}
    total = sum(map(_count, params.values()))
    terms = [(term.axes, term.factor / program.batch_size) for term in graph.terms]
    gone = _governed(((dims, 1) for dims in params.values()), keys)
    macs = _governed(terms, keys)
    return Inspection(
        model=program.model_name,
        params=total,
        macs=round(sum(factor * _count(axes) for axes, factor in terms)),
        prunable=total - sum(frozen.values()),
        groups=tuple(_group(graph, group, round(gone[group.key]), round(macs[group.key])) for group in graph.groups),
        reasons=tuple(reasons_of(graph, frozen)),
        modules=tuple(_modules(graph, params, frozen)),
        unknown_ops=graph.unknown_ops,
    )


def _count(dims: Dims) -> int:
    return prod(size(axis) for axis in dims)


def _left(dims: Dims, keys: Iterable[int]) -> int:
    """How many elements stay if all these groups go."""
    without = dict.fromkeys(keys, 0)
    return prod(size(axis, without) for axis in dims)


def _governed(products: Iterable[tuple[Dims, float]], keys: set[int]) -> dict[int, float]:
    """Group key → how much of the sum of `factor` × the product of the sizes of `axes` goes with the group."""
    gone = dict.fromkeys(keys, 0.0)
    for axes, factor in products:
        for key in {leaf.key for axis in axes for leaf in leaves(axis)} & keys:
            gone[key] += factor * (_count(axes) - _left(axes, [key]))
    return gone


def _group(graph: Graph, group: Group, params: int, macs: int) -> GroupEntry:
    program = graph.program
    makers, readers = _owners(_weights(group.producers)), _owners(_weights(group.consumers))
    carriers = _owners(member.tensor for member in group.members if member.tensor in program.parameters)
    return GroupEntry(
        name=group.name,
        kind=group.kind,
        width=group.width,
        params=params,
        macs=macs,
        share=params / max(sum(program.tensors[name].numel() for name in program.parameters), 1),
        peers=tuple(name for name in graph.peers[group.name] if name != group.name),
        producers=makers,
        consumers=readers,
        carriers=tuple(name for name in carriers if name not in {*makers, *readers}),
    )


def _weights(sites: Iterable[Site]) -> Iterator[str]:
    return (site.weight for site in sites)


def _owners(tensors: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(owner(name) for name in tensors))


def owner(tensor: str) -> str:
    """The module that holds a tensor."""
    return tensor.rpartition(".")[0] or ROOT


# -- module by module ------------------------------------------------------------------------------


def _modules(graph: Graph, params: dict[str, Dims], frozen: dict[str, int]) -> Iterator[ModuleEntry]:
    programs = [program for program in (graph.program, graph.training) if program is not None]
    weights = {site.weight for group in graph.groups for site in (*group.producers, *group.consumers)}  # or buffers
    ordered = dict.fromkeys(n for program in programs for n in _read(program) if n in params or n in weights)
    modules: dict[str, list[str]] = {}
    for name in {**ordered, **dict.fromkeys(params)}:
        modules.setdefault(owner(name), []).append(name)
    for module, names in modules.items():
        own = [name for name in names if name in params]
        yield ModuleEntry(module, sum(_count(params[name]) for name in own), sum(frozen[name] for name in own))


def _read(program: Program) -> Iterator[str]:
    """The tensors in the order in which calls read them."""
    for node in program.nodes:
        if node.op == "call_function":
            yield from (program.bindings[n.name] for n in node.all_input_nodes if n.name in program.bindings)
