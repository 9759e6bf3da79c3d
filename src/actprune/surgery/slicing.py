"""`cut`: the user's own class with every tensor sliced as the plan says. The last, mechanical step."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from actprune.axes.expr import Indices, leaves, size
from actprune.errors import PlanError, UnsupportedModelError
from actprune.graph.keep import copied, copied_by, held_values, preserved, refresh, unless_failed
from actprune.graph.names import Slot
from actprune.graph.program import architecture
from actprune.graph.rebuilt import Rebuilt, name_of
from actprune.graph.weight_norm import lengths, weights_of
from actprune.hints import hint_for
from actprune.mapped import is_mapped
from actprune.plan import Plan, check_plan
from actprune.rewrite import Rewrite
from actprune.surgery.attention import adapt_attention
from actprune.surgery.attributes import edit_attributes
from actprune.surgery.by_name import kept_by_name
from actprune.surgery.listed import follow
from actprune.surgery.modules import group_count, stated, update
from actprune.surgery.optimizers import hand_over
from actprune.surgery.source import edit_sources
from actprune.surgery.tensors import held_as, held_in, replacement, sliced, tensor_slots


def cut(model: nn.Module, plan: Plan, rewrite: Rewrite | None = None, *, inplace: bool = False) -> nn.Module:
    """Slice `model` to the units that `plan` keeps.

    Args:
        model: the dense model that the plan was made for.
        rewrite: dense-shaped tensors to slice instead of the model's own (compensated weights).
        inplace: change `model` itself instead of a deep copy; nothing is changed where an error is raised.

    Returns:
        A model of the same class, modes and devices; tied parameters stay tied. Sizes that its modules write down
        (`num_heads`, a literal in a reshape) are changed as the plan's edits say.

    Raises:
        PlanError: the plan or the rewrite is for a model with other names, shapes or dtypes.
        UnsupportedModelError: the model can't be deep-copied.
    """
    check_plan(plan, "cut")
    overrides = rewrite.tensors if rewrite is not None else {}
    _check_fits(model, plan, overrides)
    if isinstance(model, Rebuilt):
        return _rebuilt(model, plan, overrides, inplace)
    if inplace:
        with unless_failed(model):
            _rearrange(model, plan, overrides, own_files=False)
        return model
    target = _copied(model)  # what lies in files is still the model's own there
    _rearrange(target, plan, overrides, own_files=True)
    return target


class _Change(NamedTuple):
    """A tensor that takes the place of another one: all names of that, and what stays of each of its dimensions."""

    names: Sequence[str]
    new: Tensor
    kept: Sequence[Indices | None] = ()


def _rearrange(target: nn.Module, plan: Plan, overrides: Mapping[str, Tensor], own_files: bool) -> None:
    """Slice the tensors of a model where they are, and make its modules say so.

    Args:
        own_files: what lies in files and is not sliced is copied into files of its own.
    """
    slots = tensor_slots(target)
    holders: dict[int, list[str]] = {}
    for name, slot in slots.items():
        holders.setdefault(id(held_in(slot)), []).append(name)
    changes = _changes(slots, holders, plan, overrides)
    moved = _own_files(slots, holders, {name for change in changes for name in change.names}) if own_files else ()
    modules = _resized(target, changes)
    said = [(stated(module), group_count(module)) for module, _ in modules]  # before any edit of it
    _repair(target, plan.edits.methods, edit_sources)  # first, since it may refuse
    _repair(target, plan.edits.attributes, edit_attributes)
    _put(target, slots, (*changes, *moved))
    for (module, path), (names, groups) in zip(modules, said, strict=True):
        update(module, f"{path}." if path else "", plan, names, groups)
    adapt_attention(target, plan)
    for path, module in target.named_modules():
        resize = hint_for(module)
        prefix = f"{path}." if path else ""
        if resize is not None and any(f"{inner}.".startswith(prefix) for _, inner in modules):
            resize(module)
    with preserved(target):
        refresh(target, False)  # what a class has cached in eval mode has the dense sizes


def _changes(
    slots: Mapping[str, Slot], holders: Mapping[int, list[str]], plan: Plan, overrides: Mapping[str, Tensor]
) -> list[_Change]:
    """The tensors that the plan cuts or that are given, under every name: those that the capture found to share their
    memory, and those that hold this very object.

    Args:
        holders: id of a tensor → the names that hold it.
    """
    overrides = {**_weights_of_norms(slots, plan), **overrides}
    made: dict[str, Tensor] = {}
    for name in dict.fromkeys((*plan.dims, *overrides)):
        indices = plan.indices(name)
        if name in overrides or any(index is not None for index in indices):
            old = held_in(slots[name])
            made[name] = replacement(old, overrides.get(name, old), indices)
    made |= _lengths(plan, slots, made)
    known = {name: [alias for alias in plan.aliases.get(name, ()) if alias in slots] for name in made}
    names = {name: list(dict.fromkeys([*known[name], *holders[id(held_in(slots[name]))]])) for name in made}
    return [_Change(names[name], new, plan.indices(name)) for name, new in made.items()]


def _own_files(
    slots: Mapping[str, Slot], holders: Mapping[int, list[str]], changed: Container[str]
) -> Iterator[_Change]:
    """Copies of the other tensors that lie in files."""
    for names in holders.values():
        held = held_in(slots[names[0]])
        if is_mapped(held) and not any(name in changed for name in names):
            yield _Change(names, replacement(held, held, []))


def _resized(target: nn.Module, changes: Iterable[_Change]) -> list[tuple[nn.Module, str]]:
    """The modules whose sizes these tensors decide, and a path of each."""
    known = dict(target.named_modules(remove_duplicate=False))
    paths = (path for change in changes for name in change.names for path in _users(name) if path in known)
    return list({id(known[path]): (known[path], path) for path in paths}.values())


def _put(target: nn.Module, slots: Mapping[str, Slot], changes: Iterable[_Change]) -> None:
    """Let new tensors take their places, wherever the model and the optimizers in it hold the old ones; and cut what it
    keeps for every parameter likewise."""
    put = {name: change for change in changes for name in change.names}
    new = {name: held_as(held_in(slots[name]), change.new) for name, change in put.items()}
    old = {name: held_in(slots[name]) for name in new}  # alive until all are replaced
    places = {(id(box), key) for box, key in map(slots.__getitem__, new)}
    cuts = {name: change.kept for name, change in put.items()}
    beside = [
        ((box, key), replacement(box[key], box[key], kept))
        for (box, key), kept in kept_by_name(target, slots.values(), cuts)
        if (id(box), key) not in places
    ]
    for (box, key), tensor in [*((slots[name], tensor) for name, tensor in new.items()), *beside]:
        box[key] = tensor
    follow(target, {id(dense): new[name] for name, dense in old.items()})
    pairs = {id(dense): (new[name], partial(sliced, indices=cuts[name])) for name, dense in old.items()}
    for optimizer in (value for value in held_values(target) if isinstance(value, torch.optim.Optimizer)):
        hand_over(optimizer, optimizer, pairs)


def _weights_of_norms(slots: Mapping[str, Slot], plan: Plan) -> dict[str, Tensor]:
    """What stands in the place of the directions of every weight norm that the plan cuts: the weight itself."""
    sliced_ones = {g: own for g, own in plan.normed.items() if any(i is not None for i in plan.indices(own.weight))}
    names = {name for g, own in sliced_ones.items() for name in (g, own.weight)}
    return weights_of(sliced_ones, {name: held_in(slots[name]) for name in names})


def _lengths(plan: Plan, slots: Mapping[str, Slot], changed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The name and the value of the lengths of every normed weight that is changed."""
    found: dict[str, Tensor] = {}
    for name, normed in plan.normed.items():
        weight = changed.get(normed.weight)
        if weight is not None:
            length = lengths(weight, normed.dim)
            weight.detach().masked_fill_(length == 0, 1)  # in any direction but none, whose length would be 0 / 0
            found[name] = replacement(held_in(slots[name]), length, [])
    return found


def _rebuilt(model: Rebuilt, plan: Plan, overrides: Mapping[str, Tensor], inplace: bool) -> nn.Module:
    if inplace:
        raise UnsupportedModelError(
            f"{name_of(model)} can't be changed in place.",
            expected="inplace=False",
            got="inplace=True",
            where="cut",
            hint="use the model that is returned: it is built anew from the description of this one",
        )
    held = {name: held_in(slot).detach() for name, slot in tensor_slots(model).items()}
    changed = dict.fromkeys((*plan.dims, *overrides))
    return model.rebuilt(plan, {name: sliced(overrides.get(name, held[name]), plan.indices(name)) for name in changed})


def _users(name: str) -> tuple[str, ...]:
    """Paths of the modules whose sizes a tensor decides: the one that holds it, or the one it parametrizes as well."""
    holder = name.rpartition(".")[0]
    owner, parametrized, _ = f".{holder}".rpartition(".parametrizations.")
    return (holder, owner[1:]) if parametrized else (holder,)


def _check_fits(model: nn.Module, plan: Plan, overrides: Mapping[str, Tensor]) -> None:
    slots = tensor_slots(model)
    if architecture(model.state_dict()) != plan.architecture:
        raise _misfit(plan, f"{name_of(model)} with other ones")
    for name, axes in plan.dims.items():
        if name not in slots or tuple(map(size, axes)) != tuple(held_in(slots[name]).shape):
            raise _misfit(plan, f"axes of sizes {tuple(map(size, axes))} for {name}")
    held = {leaf.key: leaf.size for axes in plan.dims.values() for axis in axes for leaf in leaves(axis)}
    for name, group in plan.groups.items():
        if held.get(group.key) != group.width:
            raise _misfit(plan, f"a group {name} of {group.width} units that no tensor holds")
    for name, tensor in overrides.items():
        if name not in slots or tensor.shape != held_in(slots[name]).shape:
            raise PlanError(
                "The rewrite does not fit this model.",
                expected="tensors under the model's names, of the dense shapes",
                got=f"{name} of shape {tuple(tensor.shape)}",
                where="cut",
                hint="make the rewrite from this model's graph",
            )


def _misfit(plan: Plan, got: str) -> PlanError:
    return PlanError(
        "The plan does not fit this model.",
        expected=f"a dense {plan.model} with the parameter names, shapes and dtypes of the plan",
        got=got,
        where="cut",
        hint="pass the dense model that was captured, built with the same arguments",
    )


def _repair(model: nn.Module, edits: Sequence[Any], make: Callable[[nn.Module, Any], None]) -> None:
    try:
        make(model, edits)
    except (AttributeError, KeyError, IndexError) as error:
        raise PlanError(
            "The plan does not fit this model.",
            expected="the attributes that the plan changes",
            got=f"{type(error).__name__}: {error}",
            where="cut",
            hint="pass the dense model that was captured, built with the same code and arguments",
        ) from error


def _copied(model: nn.Module) -> nn.Module:
    hint = "pass inplace=True, or remove what can't be copied from the model's attributes"
    return copied_by(partial(copied, sharing=True), model, "cut", hint)
