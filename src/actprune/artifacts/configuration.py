"""Which configuration of a class of transformers says the widths of a pruned model: found out, not looked up.

The class is built from candidates on the meta device, and those whose tensors have the shapes of the pruned ones are
taken.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import Any, cast

import torch
from torch import Tensor, nn

from actprune.plan import GroupPlan, Plan

Shapes = dict[str, tuple[int, ...]]

Field = tuple[str, str, int]
"""The configuration inside a configuration, or "", the name of an entry (`name[2]`: of a list), and another value."""


def configuration(
    cls: Any, model: Any, plan: Plan, wanted: Shapes, without: Collection[Field] = ()
) -> tuple[Any, list[str], list[Field]]:
    """The configuration that comes nearest, the tensors whose shapes it misses, and what is changed in it.

    Args:
        without: changes that are not made.
    """
    dense, groups = model.config, [group for group in plan.groups.values() if len(group.kept) < group.width]

    def nearest(config: Any) -> tuple[Any, list[str], list[Field]]:
        chosen, missed, start = list[Field](), _missed(wanted, built(cls, config)), config
        for fields in (_numbers(start, groups), _unset(start, groups), _entries(start, groups)):
            if missed:
                allowed = [field for field in fields if field not in without]
                config, missed, more = _nearest(cls, config, allowed, wanted)
                chosen += more
        return config, missed, chosen

    found = nearest(copy.deepcopy(dense))
    if found[1] and (absent := _defaults(cls, dense)):
        explicit = dense
        for field in absent:
            explicit = _with(explicit, field)
        found = min(found, nearest(explicit), key=lambda one: len(one[1]))
    config, missed, chosen = found
    if not missed and not _valid(config):
        fields = (field for field in _numbers(config, groups) if field not in without)
        if (field := next(_agreeing(cls, config, fields, wanted), None)) is not None:
            return _with(config, field), missed, [*chosen, field]
    return found


def _agreeing(cls: Any, config: Any, fields: Iterable[Field], wanted: Shapes) -> Iterator[Field]:
    """The numbers any one of which makes a configuration pass its own check, and leaves the shapes.

    Of the heads of a Falcon-H1's Mamba and their size, say, the tensors show the product alone.
    """
    for field in fields:
        changed = _with(config, field)
        if _valid(changed) and not _missed(wanted, built(cls, changed)):
            yield field


def _valid(config: Any) -> bool:
    """Whether a configuration passes its own check, without which it is not saved."""
    try:
        getattr(config, "validate", lambda: None)()
    except Exception:  # whatever a class of transformers raises
        return False
    return True


def _nearest(cls: Any, config: Any, fields: list[Field], wanted: Shapes) -> tuple[Any, list[str], list[Field]]:
    """The configuration after those changes that mend most.

    What one number alone decides is mended first: a size that is a product, such as heads × their size, can be had in
    several ways.
    """
    before, touched = built(cls, config) or {}, dict[tuple[str, str], set[str]]()
    for field in fields:
        if not touched.get(field[:2]):  # else another value of it told
            found = built(cls, config, field)
            own = wanted.keys() if found is None else [one for one in wanted if found.get(one) != before.get(one)]
            touched[field[:2]] = set(own)
    deciding = {one: sum(one in own for own in touched.values()) for one in wanted}

    def left(missed: list[str]) -> tuple[int, ...]:
        counts = Counter(deciding[one] for one in missed)
        return tuple(counts[n] for n in range(len(touched) + 1))

    missed, chosen = _missed(wanted, before), list[Field]()
    while missed:
        open_ones = [field for field in fields if not touched[field[:2]].isdisjoint(missed)]
        found = [(_missed(wanted, built(cls, config, field)), field) for field in open_ones]
        best, field = min(found, key=lambda one: left(one[0]), default=(missed, None))
        if field is None or left(best) >= left(missed):
            break
        missed, config = best, _with(config, field)
        chosen = [one for one in chosen if one[:2] != field[:2]] + [field]
    return config, missed, chosen


def _numbers(config: Any, groups: Iterable[GroupPlan]) -> Iterator[Field]:
    """Each number, times a share that is kept."""
    kept = {Fraction(len(group.kept), group.width) for group in groups}
    shares = sorted(kept | {a * b for a in kept for b in kept})  # heads × queries of each, say
    for owner, name, held in _held(config):
        if isinstance(held, int) and not isinstance(held, bool) and held > 1:
            for value in [held * share for share in shares] + [Fraction(held)]:
                if value.denominator == 1:
                    yield owner, name, int(value)


def _unset(config: Any, groups: Iterable[GroupPlan]) -> Iterator[Field]:
    """Each entry that is None (`n_inner` of a GPT-2: four times the width), with the widths that are kept."""
    widths = sorted({len(group.kept) for group in groups})
    yield from ((owner, name, width) for owner, name, held in _held(config) if held is None for width in widths)


def _entries(config: Any, groups: Iterable[GroupPlan]) -> Iterator[Field]:
    """Each entry of a list (`conv_dim` of a Wav2Vec2) that is the width of a cut group, with the width that is kept."""
    kept = sorted({(group.width, len(group.kept)) for group in groups})
    for owner, name, held in _held(config):
        if isinstance(held, list | tuple):
            for place, entry in enumerate(cast("Sequence[Any]", held)):
                yield from ((owner, f"{name}[{place}]", after) for before, after in kept if entry == before)


def _defaults(cls: Any, config: Any) -> list[Field]:
    """Entries that the class asks for and the configuration lacks (`head_dim` of a Qwen2) or has as None, with the one
    value, a quotient of two of its numbers, that changes no shape: what the class computes in its absence."""
    whole = built(cls, config)
    numbers = [held for owner, _, held in _held(config) if not owner and isinstance(held, int) and held > 1]
    quotients = sorted({a // b for a in numbers for b in numbers if a % b == 0 and a > b})
    found: list[Field] = []
    for name in (
        *_asked_in_vain(cls, config),
        *(name for owner, name, held in _held(config) if not owner and held is None),
    ):
        if all(built(cls, config, ("", name, value)) == whole for value in quotients[:2]):
            continue  # no size
        same = [value for value in quotients if built(cls, config, ("", name, value)) == whole]
        found += [("", name, value) for value in same if len(same) == 1]
    return found


def _asked_in_vain(cls: Any, config: Any) -> list[str]:
    """The names that the class looks up in a configuration without finding them."""
    names: dict[str, None] = {}

    def missing(self: Any, name: str) -> Any:
        if not name.startswith("_"):
            names[name] = None
        raise AttributeError(name)

    spied = copy.deepcopy(config)
    spied.__class__ = type(type(config).__name__, (type(config),), {"__getattr__": missing})
    with suppress(Exception), torch.device("meta"):
        cls(spied)
    return list(names)


def _held(config: Any) -> Iterator[tuple[str, str, Any]]:
    """(configuration inside this one or "", name, value)."""
    inner = [name for name, held in vars(config).items() if hasattr(held, "to_dict")]
    for owner in ("", *inner):
        own = vars(getattr(config, owner) if owner else config)
        yield from ((owner, name, held) for name, held in own.items() if not name.startswith("_"))


def _with(config: Any, field: Field) -> Any:
    owner, place, value = field
    changed = copy.deepcopy(config)
    part, (name, _, position) = getattr(changed, owner) if owner else changed, place.partition("[")
    if position:
        entries = list(getattr(part, name))
        entries[int(position.rstrip("]"))] = value
        setattr(part, name, entries)
    else:
        setattr(part, name, value)
    return changed


def built(cls: Any, config: Any, field: Field | None = None) -> Shapes | None:
    """The shapes of the class for a configuration, with another value in one of its entries; None where it takes none
    such."""
    try:
        with torch.device("meta"):
            return shapes(cls(copy.deepcopy(config) if field is None else _with(config, field)))
    except Exception:  # a width that its heads do not divide, say, or a number where it wants a name
        return None


def shapes(model: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}


def _missed(wanted: Shapes, found: Shapes | None) -> list[str]:
    given: Mapping[str, tuple[int, ...]] = found or {}
    return [name for name, shape in wanted.items() if given.get(name) != shape]
