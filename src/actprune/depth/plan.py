"""Which blocks stay: plain data, JSON, and all that surgery needs to know."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from actprune.depth.blocks import containers
from actprune.depth.bypass import Block
from actprune.depth.surgery import names_left, shortened
from actprune.errors import PlanError
from actprune.graph.program import architecture

SCHEMA = "actprune.depth/1"


@dataclass(frozen=True)
class DepthPlan:
    """The items that stay in every container that is shortened.

    Attributes:
        kept: module path of the container → positions of its items that stay, ascending, at least one.
        items: the same path → the names of all its items in the dense network, in order.
        architecture: hash of the dense state dict's names, shapes and dtypes.
        model: class name of the dense model, for messages.
        note: how the plan came about; JSON values only.
    """

    kept: Mapping[str, tuple[int, ...]]
    items: Mapping[str, tuple[str, ...]] = field(repr=False)
    architecture: str = field(repr=False)
    model: str = ""
    note: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)

    def apply(self, model: nn.Module) -> nn.Module:
        """The shorter model, of a dense one: a copy of the class, modes and devices of `model`, which stays as it was.

        Raises:
            PlanError: the plan is for another model.
            UnsupportedModelError: the model can't be copied.
        """
        self.check(model)
        return shortened(model, self.kept)

    def check(self, model: nn.Module) -> None:
        """That the plan is for this dense model.

        Raises:
            PlanError: it is not.
        """
        found = {path: tuple(container._modules) for path, container in containers(model) if path in self.kept}
        if architecture(model.state_dict()) != self.architecture or found != self.items:
            raise PlanError(
                "The plan does not fit this model.",
                expected=f"the dense {self.model or 'model'} that the plan was made for",
                got=f"a {type(model).__name__} with other tensors or blocks",
                where="DepthPlan.apply",
                hint="build the model with the arguments of the dense one",
            )

    def dense_name(self, name: str) -> str:
        """What a tensor of the shorter model is called in the dense one, where containers number their items."""
        for path in sorted(self.kept, key=len):  # those around others first: paths are the dense ones
            prefix = f"{path}." if path else ""
            own, dot, rest = name.removeprefix(prefix).partition(".")
            old = dict(zip(names_left(self.items[path], self.kept[path]), self.kept[path], strict=True))
            if name.startswith(prefix) and own in old:
                name = f"{prefix}{self.items[path][old[own]]}{dot}{rest}"
        return name

    def to_json(self) -> str:
        """The plan as JSON text, versioned by `schema`."""
        data = {
            "schema": SCHEMA,
            "model": self.model,
            "architecture": self.architecture,
            "containers": {
                path: {"items": list(self.items[path]), "kept": list(own)} for path, own in self.kept.items()
            },
            "note": dict(self.note),
        }
        return json.dumps(data, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, where: str = "depth.json") -> DepthPlan:
        """The plan that `to_json` wrote, or that a person edited.

        Raises:
            PlanError: not JSON, another schema, or positions that make no plan; the message says which.
        """
        try:
            data = json.loads(text)
            schema = data["schema"]
            kept = {path: tuple(own["kept"]) for path, own in data["containers"].items()}
            items = {path: tuple(own["items"]) for path, own in data["containers"].items()}
            hashed, model, note = data["architecture"], data["model"], data["note"]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise _malformed(where, "what DepthPlan.to_json writes", f"{type(error).__name__}: {error}") from error
        if schema != SCHEMA:
            raise _malformed(f"{where}: schema", SCHEMA, repr(schema))
        if not isinstance(hashed, str) or not isinstance(model, str) or not isinstance(note, dict):
            raise _malformed(where, "architecture and model as text, note as an object", "something else")
        for path, own in kept.items():
            if not (own and all(isinstance(name, str) for name in items[path]) and _ascend(own, len(items[path]))):
                expected = f"names, and positions below {len(items[path])}, ascending, one at least"
                raise _malformed(f"{where}: containers/{path}/kept", expected, repr(list(own)))
        return cls(kept, items, hashed, model, note)


def make_depth_plan(model: nn.Module, gone: Iterable[Block], note: Mapping[str, Any] | None = None) -> DepthPlan:
    """The plan for a dense model without some of its blocks."""
    positions: dict[str, set[int]] = {}
    for block in gone:
        positions.setdefault(block.container, set()).add(block.position)
    items = {path: tuple(own._modules) for path, own in containers(model) if path in positions}
    kept = {path: tuple(i for i in range(len(own)) if i not in positions[path]) for path, own in items.items()}
    return DepthPlan(kept, items, architecture(model.state_dict()), type(model).__name__, dict(note or {}))


def _ascend(positions: Sequence[Any], count: int) -> bool:
    whole = all(isinstance(i, int) and not isinstance(i, bool) for i in positions)
    return whole and list(positions) == sorted(set(positions)) and positions[0] >= 0 and positions[-1] < count


def _malformed(where: str, expected: str, got: str) -> PlanError:
    return PlanError(
        "The plan can't be read.",
        expected=expected,
        got=got if len(got) <= 300 else f"{got[:300]}…",
        where=where,
        hint="restore the file, or make a new plan with actprune.shorten",
    )
