"""The plan: which units of every group stay. Plain data, JSON, and all that surgery needs to know.

A plan holds, for every tensor that changes, the axis expression of each of its dimensions over group names.
From these and the kept units follow the kept indices of every dimension; so a plan can be replayed on a fresh
dense model without capturing it again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from actprune.axes.capture import Graph
from actprune.axes.expr import Axis, Concat, Indices, Leaf, Product, leaves, left_of, size
from actprune.errors import PlanError
from actprune.graph.kept_copies import with_copies
from actprune.graph.program import Normed
from actprune.json_fields import array_in, field_of, malformed, names_in, object_in, shown, text_in, whole_in
from actprune.kept import checked_units, possible
from actprune.repair.edits import Edits
from actprune.repair.solve import repair

SCHEMA = "actprune.plan/1"

STATISTICS = "statistics"
"""The key in a plan's note of the tensors that no state dict holds, and that a run folder therefore does."""


@dataclass(frozen=True)
class GroupPlan:
    """What happens to one group.

    Attributes:
        key: the leaf key that stands for it in the plan's axis expressions.
        width: units in the dense network.
        kept: the units that stay, ascending, at least one.
    """

    key: int
    width: int
    kept: tuple[int, ...]

    @property
    def states(self) -> str:
        """One "1" per kept and one "0" per removed unit."""
        stay = set(self.kept)
        return "".join("01"[unit in stay] for unit in range(self.width))


@dataclass(frozen=True)
class Plan:
    """Kept units of every group, and where they stand in the model's tensors.

    Attributes:
        groups: group name → its plan.
        dims: tensor name → one axis expression per dimension, for the tensors that contain a group.
        aliases: tensor name → every name that the model knows the tensor by.
        architecture: hash of the dense state dict's names, shapes and dtypes.
        model: class name of the dense model, for messages.
        edits: what must change in the class beside its tensors.
        note: how the plan came about (method, allocation, budget, predicted costs); JSON values only.
        normed: name of the lengths of a weight norm → its weight, see `actprune.graph.weight_norm`.
    """

    groups: Mapping[str, GroupPlan]
    dims: Mapping[str, tuple[Axis, ...]]
    aliases: Mapping[str, tuple[str, ...]]
    architecture: str
    model: str = ""
    edits: Edits = field(default_factory=Edits)
    note: Mapping[str, Any] = field(default_factory=dict[str, Any])
    normed: Mapping[str, Normed] = field(default_factory=dict[str, Normed])

    def __repr__(self) -> str:
        """In one line; `widths` and `groups` say all."""
        kept, all_units = (f"{sum(each):,}" for each in (self.widths.values(), [g.width for g in self.groups.values()]))
        return f"Plan({self.model}: {kept} of {all_units} units stay, in {len(self.groups)} groups)"

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def widths(self) -> dict[str, int]:
        """Group name → number of units that stay."""
        return {name: len(group.kept) for name, group in self.groups.items()}

    @cached_property
    def kept(self) -> dict[int, Indices]:
        """Leaf key → kept units, for `kept_indices`."""
        return {g.key: np.asarray(g.kept, dtype=np.int64) for g in self.groups.values() if len(g.kept) < g.width}

    @property
    def norms(self) -> bool | str:
        """What was cut under norms: see `actprune.axes.normed`."""
        asked = self.note.get("norms")
        return asked if isinstance(asked, bool) else "auto"

    def indices(self, tensor: str) -> list[Indices | None]:
        """For each dimension of a tensor the indices that stay, or None where all do."""
        kept = self.kept
        return [left_of(axis, kept) for axis in self.dims.get(tensor, ())]

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The predicted shape of a tensor of the cut model."""
        widths = {group.key: len(group.kept) for group in self.groups.values()}
        return tuple(size(axis, widths) for axis in self.dims[tensor])

    def with_note(self, **note: Any) -> Plan:
        """The same plan with more said about how it came about."""
        return replace(self, note={**self.note, **note})

    def to_json(self) -> str:
        """The plan as JSON text, one group or tensor a line's worth of data, versioned by `schema`."""
        return json.dumps(self._as_data(), indent=1, sort_keys=True)

    @property
    def digest(self) -> str:
        """SHA-256 of the plan's content, the same before and after it was written and read."""
        data = json.loads(json.dumps(self._as_data()))  # whose keys are text
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    def _as_data(self) -> dict[str, Any]:
        normed = {name: asdict(normed) for name, normed in self.normed.items()}
        return {
            "schema": SCHEMA,
            "model": self.model,
            "architecture": self.architecture,
            "groups": {name: asdict(group) for name, group in self.groups.items()},
            "dims": {name: [_axis_data(axis) for axis in dims] for name, dims in self.dims.items()},
            "aliases": {name: list(names) for name, names in self.aliases.items()},
            "edits": self.edits.as_data(),
            "note": dict(self.note),
            **({"normed": normed} if normed else {}),  # without, the digest is that of plans from before
        }

    @classmethod
    def from_json(cls, text: str, where: str = "plan.json") -> Plan:
        """The plan that `to_json` wrote, or that a person edited.

        Raises:
            PlanError: not JSON, another schema, or values that make no plan; the message says which.
        """
        if str(text).endswith(".json"):
            raise PlanError(
                "from_json takes a plan, not the name of its file.",
                expected="the text that to_json wrote",
                got=repr(str(text)),
                where="from_json",
                hint=f"Plan.from_json(Path({str(text)!r}).read_text())",
            )
        try:
            data = json.loads(text)
            return _read_plan(data, where)
        except (ValueError, RecursionError) as error:  # also numbers too long for Python
            raise malformed(where, "JSON", f"{type(error).__name__}: {error}") from error


def check_plan(plan: Any, where: str) -> None:
    """A dict of widths or of kept units is what is most easily taken for a plan."""
    if not isinstance(plan, Plan):
        raise PlanError(
            "This is no plan.",
            expected="a Plan",
            got=type(plan).__name__,
            where=where,
            hint="make_plan(graph, {'conv1': [0, 2]}) makes one of the units that stay, "
            "allocate(graph, guide, keep={'conv1': 2}) of widths",
        )


def make_plan(graph: Graph, kept: Mapping[str, Iterable[int]], **note: Any) -> Plan:
    """The plan that keeps these units; groups that are not named stay whole.

    Args:
        kept: group name → the numbers of its units that stay, in any order.

    Raises:
        PlanError: an unknown group, a unit that is no whole number or outside it, a group left empty or of a width
            that the model's kernels can't take, or that differs from that of another with which one number counts it.
    """
    stays = checked_units(graph, kept)
    groups = {group.name: GroupPlan(group.key, group.width, stays[group.name]) for group in graph.groups}
    keys = {group.key for group in groups.values()}
    units = {g.key: np.asarray(g.kept, dtype=np.int64) for g in groups.values() if len(g.kept) < g.width}
    dims = {
        name: axes
        for name, axes in graph.tensor_axes.items()
        if any(leaf.key in keys for axis in axes for leaf in leaves(axis))
    }
    statistics = sorted(graph.program.statistics)
    return Plan(
        groups=groups,
        dims=dims,
        aliases={name: graph.program.aliases[name] for name in dims},
        architecture=graph.program.architecture,
        model=graph.program.model_name,
        edits=repair(graph, units).edits.mapped(lambda edits: with_copies(edits, graph.program.copies)),
        note={STATISTICS: statistics, **note} if statistics else note,
        normed=graph.program.normed,
    )


def _axis_data(axis: Axis) -> Any:
    """A leaf as [size, key], a product as {"product": […]}, a concatenation as {"concat": […]}."""
    match axis:
        case Leaf():
            return [axis.size, axis.key]
        case Product(parts):
            return {"product": [_axis_data(part) for part in parts]}
        case Concat(parts):
            return {"concat": [_axis_data(part) for part in parts]}


def _read_plan(data: Any, where: str) -> Plan:
    fields = object_in(data, where) if isinstance(data, dict) else dict[str, Any]()
    if fields.get("schema") != SCHEMA:
        raise malformed(where, f'"schema": "{SCHEMA}"', f'"schema": {shown(fields.get("schema"))}')
    groups = {
        name: _read_group(name, entry, where) for name, entry in object_in(*field_of(fields, "groups", where)).items()
    }
    widths = {group.key: group.width for group in groups.values()}
    if len(widths) < len(groups):
        raise malformed(f"{where}: groups", "a key of its own for every group", "a key that occurs twice")
    dims = object_in(*field_of(fields, "dims", where))
    aliases = object_in(*field_of(fields, "aliases", where))
    normed = object_in(fields.get("normed", {}), f"{where}: normed")  # plans from before have none
    return Plan(
        groups=groups,
        dims={name: _read_dims(name, axes, widths, where) for name, axes in dims.items()},
        aliases={name: tuple(names_in(names, f"{where}: aliases/{name}")) for name, names in aliases.items()},
        architecture=text_in(*field_of(fields, "architecture", where)),
        model=text_in(*field_of(fields, "model", where)),
        edits=_read_edits(*field_of(fields, "edits", where)),
        note=object_in(*field_of(fields, "note", where)),
        normed={name: _read_normed(name, entry, where) for name, entry in normed.items()},
    )


def _read_normed(name: str, data: Any, where: str) -> Normed:
    place = f"{where}: normed/{name}"
    entry = object_in(data, place)
    return Normed(text_in(*field_of(entry, "weight", place, "/")), whole_in(*field_of(entry, "dim", place, "/")))


def _read_edits(data: Any, where: str) -> Edits:
    try:
        return Edits.from_data(object_in(data, where))
    except (ValueError, KeyError, TypeError) as error:
        raise malformed(where, "the edits that Plan.to_json writes", f"{type(error).__name__}: {error}") from error


def _read_group(name: str, data: Any, where: str) -> GroupPlan:
    place = f"{where}: groups/{name}"
    entry = object_in(data, place)
    key, width = (whole_in(*field_of(entry, field_name, place, "/")) for field_name in ("key", "width"))
    kept, kept_place = field_of(entry, "kept", place, "/")
    units = tuple(whole_in(unit, f"{kept_place}/{i}") for i, unit in enumerate(array_in(kept, kept_place)))
    return GroupPlan(key, width, possible(name, width, units, where))


def _read_dims(name: str, data: Any, widths: Mapping[int, int], where: str) -> tuple[Axis, ...]:
    place = f"{where}: dims/{name}"
    axes = tuple(_read_axes(data, widths, place))
    if any(leaf.size < 0 for axis in axes for leaf in leaves(axis)):
        raise malformed(place, "sizes of no less than nothing", f"a dimension of {name} of an impossible size")
    return axes


def _read_axes(data: Any, widths: Mapping[int, int], where: str) -> list[Axis]:
    return [_read_axis(axis, widths, f"{where}/{i}") for i, axis in enumerate(array_in(data, where))]


def _read_axis(data: Any, widths: Mapping[int, int], where: str) -> Axis:
    if isinstance(data, dict):
        entry = object_in(data, where)
        kind = next(iter(entry), "")
        if len(entry) != 1 or kind not in ("product", "concat"):
            raise malformed(where, '{"product": […]} or {"concat": […]}', json.dumps(list(entry)))
        parts = tuple(_read_axes(entry[kind], widths, f"{where}/{kind}"))
        if len(parts) < 2:
            raise malformed(f"{where}/{kind}", "two axes or more", str(len(parts)))
        return Product(parts) if kind == "product" else Concat(parts)
    pair = array_in(data, where)
    if len(pair) != 2:
        raise malformed(where, "[size, key]", shown(pair))
    units, key = (whole_in(number, f"{where}/{i}") for i, number in enumerate(pair))
    if widths.get(key, units) != units:
        raise malformed(where, f"a size of {widths[key]}, as its group has", str(units))
    return Leaf(units, key)
