"""The torch module in a `TorchModuleWrapper`: cut like any torch module, by the part of the plan that is of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from actprune.axes.expr import leaves
from actprune.graph.program import architecture
from actprune.plan import Plan
from actprune.surgery.slicing import cut


class Buffer:
    """A buffer of a torch module, such as a running mean, as if it were a variable: Keras knows parameters alone."""

    trainable = False

    def __init__(self, module: nn.Module, path: str) -> None:
        owner, _, self._key = path.rpartition(".")
        self.name, self._owner = path.replace(".", "_"), module.get_submodule(owner)

    @property
    def value(self) -> Tensor:
        return self._owner._buffers[self._key]  # type: ignore[return-value]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)


def buffers(layer: Any) -> dict[str, Buffer]:
    """Path in the module that a layer wraps → its buffer, the same object each time; none of other layers."""
    module = vars(layer).get("_modules", {}).get("module") if type(layer).__name__ == "TorchModuleWrapper" else None
    if module is None:
        return {}
    known: dict[str, Buffer] = vars(layer).setdefault("_actprune_buffers", {})
    for path, _ in module.named_buffers():
        known.setdefault(path, Buffer(module, path))
    return known


def small_module(layer: Any, names: Mapping[int, str], plan: Plan) -> nn.Module:
    """Another module of the same class, with what the plan leaves of its parameters and buffers.

    Args:
        names: id of a variable of Keras's, or of a `Buffer` → its name in the plan.

    Raises:
        PlanError, UnsupportedModelError: as `cut`.
    """
    module = layer.module
    known = {id(variable.value): names[id(variable)] for variable in layer.variables if id(variable) in names}
    own = {name: known.get(id(parameter), "") for name, parameter in module.named_parameters()}
    own |= {name: names.get(id(buffer), "") for name, buffer in buffers(layer).items()}
    dims = {name: plan.dims[full] for name, full in own.items() if full in plan.dims}
    keys = {leaf.key for axes in dims.values() for axis in axes for leaf in leaves(axis)}
    groups = {name: group for name, group in plan.groups.items() if group.key in keys}
    aliases = {name: (name,) for name in dims}
    return cut(module, Plan(groups, dims, aliases, architecture(module.state_dict()), type(module).__name__))
