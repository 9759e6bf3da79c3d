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
from typing import Any

import numpy as np

from actprune.axes.capture import Graph
from actprune.axes.expr import Axis, Concat, Indices, Leaf, Product, kept_indices, leaves, size
from actprune.errors import PlanError

SCHEMA = "actprune.plan/1"


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


@dataclass(frozen=True)
class Plan:
    """Kept units of every group, and where they stand in the model's tensors.

    Attributes:
        groups: group name → its plan.
        dims: tensor name → one axis expression per dimension, for the tensors that contain a group.
        aliases: tensor name → every name that the model knows the tensor by.
        architecture: hash of the dense state dict's names, shapes and dtypes.
        model: class name of the dense model, for messages.
        note: how the plan came about (method, allocation, budget, predicted costs); JSON values only.
    """

    groups: Mapping[str, GroupPlan]
    dims: Mapping[str, tuple[Axis, ...]] = field(repr=False)
    aliases: Mapping[str, tuple[str, ...]] = field(repr=False)
    architecture: str = field(repr=False)
    model: str = ""
    note: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)

    @property
    def widths(self) -> dict[str, int]:
        """Group name → number of units that stay."""
        return {name: len(group.kept) for name, group in self.groups.items()}

    @property
    def kept(self) -> dict[int, Indices]:
        """Leaf key → kept units, for `kept_indices`."""
        return {g.key: np.asarray(g.kept, dtype=np.int64) for g in self.groups.values() if len(g.kept) < g.width}

    def indices(self, tensor: str) -> list[Indices | None]:
        """For each dimension of a tensor the indices that stay, or None where all do."""
        kept = self.kept
        return [
            kept_indices(axis, kept) if any(leaf.key in kept for leaf in leaves(axis)) else None
            for axis in self.dims.get(tensor, ())
        ]

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
        """SHA-256 of the plan's content."""
        return hashlib.sha256(json.dumps(self._as_data(), sort_keys=True).encode()).hexdigest()

    def _as_data(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "model": self.model,
            "architecture": self.architecture,
            "groups": {name: asdict(group) for name, group in self.groups.items()},
            "dims": {name: [_axis_data(axis) for axis in dims] for name, dims in self.dims.items()},
            "aliases": {name: list(names) for name, names in self.aliases.items()},
            "note": dict(self.note),
        }

    @classmethod
    def from_json(cls, text: str, where: str = "plan.json") -> Plan:
        """The plan that `to_json` wrote, or that a person edited.

        Raises:
            PlanError: not JSON, another schema, or values that make no plan; the message says which.
        """
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise _malformed(where, "JSON", str(error)) from error
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema != SCHEMA:
            raise _malformed(where, f'"schema": "{SCHEMA}"', f'"schema": {json.dumps(schema)}')
        try:
            groups = {str(name): _read_group(name, entry, where) for name, entry in data["groups"].items()}
            widths = {group.key: group.width for group in groups.values()}
            return cls(
                groups=groups,
                dims={str(n): tuple(_read_axis(a, widths, where) for a in d) for n, d in data["dims"].items()},
                aliases={str(name): tuple(map(str, names)) for name, names in data["aliases"].items()},
                architecture=str(data["architecture"]),
                model=str(data["model"]),
                note=dict(data["note"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise _malformed(where, "the fields that Plan.to_json writes", f"{type(error).__name__}: {error}") from error


def make_plan(graph: Graph, kept: Mapping[str, Iterable[int]], **note: Any) -> Plan:
    """The plan that keeps these units; groups that are not named stay whole.

    Raises:
        PlanError: an unknown group, a unit outside it, or a group left empty.
    """
    names = {group.name for group in graph.groups}
    for name in kept:
        if name not in names:
            raise PlanError(
                f"There is no group named {name!r}.",
                expected=f"one of {', '.join(sorted(names)[:20])}",
                got=repr(name),
                where="plan",
                hint="graph.groups lists the groups of the captured model",
            )
    groups: dict[str, GroupPlan] = {}
    for group in graph.groups:
        units = tuple(sorted({int(unit) for unit in kept.get(group.name, range(group.width))}))
        groups[group.name] = _checked(group.name, GroupPlan(group.key, group.width, units), "plan")
    keys = {group.key for group in groups.values()}
    dims = {
        name: axes
        for name, axes in graph.tensor_axes.items()
        if any(leaf.key in keys for axis in axes for leaf in leaves(axis))
    }
    return Plan(
        groups=groups,
        dims=dims,
        aliases={name: graph.program.aliases[name] for name in dims},
        architecture=graph.program.architecture,
        model=graph.program.model_name,
        note=note,
    )


def _checked(name: str, group: GroupPlan, where: str) -> GroupPlan:
    inside = group.kept and 0 <= group.kept[0] and group.kept[-1] < group.width
    ascending = all(a < b for a, b in zip(group.kept, group.kept[1:], strict=False))
    if not (inside and ascending):
        raise PlanError(
            f"Group {name!r} would keep an impossible set of units.",
            expected=f"at least one of the units 0 to {group.width - 1}, ascending, none twice",
            got=f"{len(group.kept)} units: {list(group.kept)[:10]}",
            where=f"{where}: groups/{name}/kept",
            hint="every group keeps at least one unit",
        )
    return group


def _read_group(name: str, entry: Any, where: str) -> GroupPlan:
    numbers = [entry["key"], entry["width"], *entry["kept"]]
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        raise _malformed(f"{where}: groups/{name}", "whole numbers", "something else")
    return _checked(name, GroupPlan(entry["key"], entry["width"], tuple(entry["kept"])), where)


def _axis_data(axis: Axis) -> Any:
    """A leaf as [size, key], a product as {"product": […]}, a concatenation as {"concat": […]}."""
    match axis:
        case Leaf():
            return [axis.size, axis.key]
        case Product(parts):
            return {"product": [_axis_data(part) for part in parts]}
        case Concat(parts):
            return {"concat": [_axis_data(part) for part in parts]}


def _read_axis(data: Any, widths: Mapping[int, int], where: str) -> Axis:
    if isinstance(data, dict):
        ((kind, parts),) = data.items()
        axes = tuple(_read_axis(part, widths, where) for part in parts)
        if kind not in ("product", "concat") or len(axes) < 2:
            raise _malformed(where, "product or concat of several axes", repr(kind))
        return Product(axes) if kind == "product" else Concat(axes)
    units, key = data
    if not isinstance(units, int) or not isinstance(key, int) or widths.get(key, units) != units:
        raise _malformed(where, "an axis of the same size as its group", repr(data))
    return Leaf(units, key)


def _malformed(where: str, expected: str, got: str) -> PlanError:
    return PlanError(
        "The plan can't be read.",
        expected=expected,
        got=got,
        where=where,
        hint="restore the file, or make a new plan with actprune.prune",
    )
