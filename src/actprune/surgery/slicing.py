"""`cut`: the user's own class with every tensor sliced as the plan says. The last, mechanical step."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from actprune.axes.expr import Indices
from actprune.errors import PlanError, UnsupportedModelError
from actprune.graph.program import architecture
from actprune.plan import Plan
from actprune.rewrite import Rewrite
from actprune.surgery.modules import update


def cut(model: nn.Module, plan: Plan, rewrite: Rewrite | None = None, *, inplace: bool = False) -> nn.Module:
    """Slice `model` to the units that `plan` keeps.

    Args:
        model: the dense model that the plan was made for.
        rewrite: dense-shaped tensors to slice instead of the model's own (compensated weights).
        inplace: change `model` itself instead of a deep copy.

    Returns:
        A model of the same class, modes and devices; tied parameters stay tied.

    Raises:
        PlanError: the plan is for a model with other names, shapes or dtypes.
        UnsupportedModelError: the model can't be deep-copied.
    """
    if architecture(model.state_dict()) != plan.architecture:
        raise PlanError(
            "The plan does not fit this model.",
            expected=f"a dense {plan.model} with the parameter names, shapes and dtypes of the plan",
            got=f"{type(model).__name__} with other ones",
            where="cut",
            hint="pass the dense model that was captured, built with the same arguments",
        )
    target = model if inplace else _copied(model)
    overrides = rewrite.tensors if rewrite is not None else {}
    slots = tensor_slots(target)
    touched: set[str] = set()
    for name in {**plan.dims, **overrides}:
        indices = plan.indices(name)
        if name not in overrides and all(index is None for index in indices):
            continue
        aliases = [alias for alias in plan.aliases.get(name, (name,)) if alias in slots]
        if not aliases:
            continue
        old = slots[aliases[0]][0]._parameters.get(slots[aliases[0]][1])
        held = old if old is not None else slots[aliases[0]][0]._buffers[slots[aliases[0]][1]]
        source = overrides.get(name, held)
        if source is None or held is None:
            continue
        new: Tensor = sliced(source, indices).to(held.device, held.dtype)
        if old is not None:
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        for alias in aliases:
            module, attribute = slots[alias]
            (module._parameters if old is not None else module._buffers)[attribute] = new  # type: ignore[assignment]
            touched.add(alias.rpartition(".")[0])
    for path in touched:
        update(target.get_submodule(path), f"{path}." if path else "", plan)
    return target


def sliced(tensor: Tensor, indices: list[Indices | None]) -> Tensor:
    """A copy of `tensor` that holds, in each dimension, the indices given there (all where None)."""
    result = tensor.detach()
    for dim, index in enumerate(indices):
        if index is not None:
            result = result.index_select(dim, torch.as_tensor(index, device=result.device))
    return result.clone(memory_format=torch.contiguous_format)


def tensor_slots(model: nn.Module) -> Mapping[str, tuple[nn.Module, str]]:
    """Name of a parameter or buffer → the module that holds it, and its attribute there."""
    slots: dict[str, tuple[nn.Module, str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for attribute in (*module._parameters, *module._buffers):
            slots[f"{path}.{attribute}" if path else attribute] = (module, attribute)
    return slots


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever a user's __deepcopy__ or a non-leaf tensor raises
        raise UnsupportedModelError(
            f"{type(model).__name__} can't be copied.",
            expected="a model that copy.deepcopy takes",
            got=f"{type(error).__name__}: {error}",
            where="cut",
            hint="pass inplace=True, or remove non-leaf tensors from the model's attributes",
        ) from error
