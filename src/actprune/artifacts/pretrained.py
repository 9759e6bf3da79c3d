"""A Hugging Face folder of a pruned model, which stock transformers loads without actprune: config and weights.

A configuration has one number for all layers of a kind. Which of its numbers say the smaller widths is not looked up in
a list of names but found out: the class is built from candidates on the meta device, and those whose tensors have the
shapes of the pruned ones are taken. The folder is only kept once `from_pretrained` gives the same outputs from it.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from actprune.allocation.space import role
from actprune.artifacts.folder import check_output, new_folder
from actprune.artifacts.opened import open_pretrained, transformers
from actprune.artifacts.weights import tied
from actprune.errors import ActpruneError, ArtifactError
from actprune.graph.keep import copied
from actprune.graph.rebuilt import name_of
from actprune.graph.trace import call_arguments
from actprune.mapped import any_mapped, letting_go
from actprune.plan import GroupPlan, Plan
from actprune.proof.compare import relative_error
from actprune.proof.trial import first_samples
from actprune.shards import SHARD_BYTES, write_shards

TOLERANCE = 1e-4
"""Relative error of the outputs in the model's own precision."""

Shapes = dict[str, tuple[int, ...]]

Field = tuple[str, str, int]
"""The configuration inside a configuration, or "", the name of an entry (`name[2]`: of a list), and another value."""


def save_pretrained(
    model: nn.Module,
    plan: Plan,
    example_inputs: Any,
    folder: str | Path,
    card: str | None = None,
    instead: str = "keep the run folder instead: actprune.load reads any widths",
) -> Path:
    """Write a pruned transformers model as a folder for `from_pretrained`: all of it, or nothing.

    Args:
        model: what `prune` or `load` returned for `plan`; left as it was.
        example_inputs: as for `capture`; outputs are compared on them.
        card: the text of README.md.
        instead: what else to do with the model, for messages.

    Raises:
        ArtifactError: the folder exists, the model is none of transformers, no configuration of its class says these
            widths, or what is loaded gives other outputs; nothing is written then.
    """
    path = check_output(folder)
    cls = _stock_class(model)
    wanted = _shapes(model)
    config, missed, chosen = _configuration(cls, model, plan, wanted)
    if missed:
        raise _no_configuration(path, cls.__name__, plan, missed, wanted, _built(cls, config) or {}, instead)
    told: list[ArtifactError] = []
    for without in ((), *((field,) for field in reversed(chosen))):  # half the heads have the shapes of half their size
        if without:
            config, missed, _ = _configuration(cls, model, plan, wanted, without)
        if not missed:
            try:
                return _written(path, cls, config, model, example_inputs, card, instead)
            except _OtherOutputsError as error:
                told.append(error.told)
    raise told[0]  # of the configuration that comes first


class _OtherOutputsError(Exception):
    """A configuration gives the shapes, and another network; never seen by the caller of `save_pretrained`."""

    def __init__(self, told: ArtifactError) -> None:
        super().__init__()
        self.told = told


def _written(
    path: Path, cls: Any, config: Any, model: nn.Module, example_inputs: Any, card: str | None, instead: str
) -> Path:
    with torch.no_grad(), new_folder(path) as scratch:
        try:
            again = (_in_shards if any_mapped(model.parameters()) else _by_its_class)(cls, config, model, scratch)
            error = _difference(model, again, example_inputs)
        except ActpruneError:
            raise
        except Exception as error:  # whatever a class of transformers raises, or the disk
            got = f"{type(error).__name__}: {str(error)[:300]}"
            hint = "make room on the disk, then save again" if isinstance(error, OSError) else instead
            raise _failed(path, f"a {cls.__name__} that saves and loads", got, hint) from error
        if not error <= TOLERANCE:
            got = f"a relative error of {error:.1e}"
            expected = f"outputs of the loaded model as of this one, to {TOLERANCE:g}"
            raise _OtherOutputsError(_failed(path, expected, got, instead))
        if card is not None:
            (scratch / "README.md").write_text(card, "utf-8")
    return path


def _by_its_class(cls: Any, config: Any, model: Any, scratch: Path) -> nn.Module:
    """Written by the class itself, and loaded again."""
    stock = cls(config).to(next(model.parameters()).dtype).eval()
    stock.load_state_dict(model.state_dict(), strict=True)
    if getattr(model, "generation_config", None) is not None:
        stock.generation_config = model.generation_config
    stock.save_pretrained(scratch)
    return cls.from_pretrained(scratch, local_files_only=True).eval()


def _in_shards(cls: Any, config: Any, model: Any, scratch: Path) -> nn.Module:
    """Written tensor by tensor, as weights that lie in files are, and opened again without reading them."""
    state = model.state_dict()
    write_shards(scratch, {names[0]: state[names[0]] for names in tied(state).values()}, SHARD_BYTES)
    config = copy.deepcopy(config)
    config.architectures = [cls.__name__]
    config.dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    config.save_pretrained(scratch)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(scratch)
    return open_pretrained(scratch, cls)


def _stock_class(model: nn.Module) -> Any:
    """The class of transformers that a model is of, without what a cut has put before it."""
    hub = transformers("save_pretrained")
    for cls in type(model).__mro__:
        if hasattr(cls, "config_class") and getattr(hub, cls.__name__, None) is cls:
            return cls
    raise ArtifactError(
        f"{name_of(model)} is no model of transformers.",
        expected="a class that transformers exports, such as LlamaForCausalLM",
        got=f"{type(model).__module__}.{type(model).__name__}",
        where="save_pretrained",
        hint="save the run folder, or export to ONNX or pt2",
    )


def _configuration(
    cls: Any, model: Any, plan: Plan, wanted: Shapes, without: Collection[Field] = ()
) -> tuple[Any, list[str], list[Field]]:
    """The configuration that comes nearest, the tensors whose shapes it misses, and what is changed in it.

    Args:
        without: changes that are not made.
    """
    dense, groups = model.config, [group for group in plan.groups.values() if len(group.kept) < group.width]

    def nearest(config: Any) -> tuple[Any, list[str], list[Field]]:
        chosen, missed, start = list[Field](), _missed(wanted, _built(cls, config)), config
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
        for field in _agreeing(cls, config, fields, wanted):
            return _with(config, field), missed, [*chosen, field]
    return found


def _agreeing(cls: Any, config: Any, fields: Iterable[Field], wanted: Shapes) -> Iterator[Field]:
    """The numbers any one of which makes a configuration pass its own check, and leaves the shapes.

    Of the heads of a Falcon-H1's Mamba and their size, say, the tensors show the product alone.
    """
    for field in fields:
        changed = _with(config, field)
        if _valid(changed) and not _missed(wanted, _built(cls, changed)):
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
    shapes, touched = _built(cls, config) or {}, dict[tuple[str, str], set[str]]()
    for field in fields:
        if not touched.get(field[:2]):  # else another value of it told
            found = _built(cls, config, field)
            own = wanted.keys() if found is None else [one for one in wanted if found.get(one) != shapes.get(one)]
            touched[field[:2]] = set(own)
    deciding = {one: sum(one in own for own in touched.values()) for one in wanted}

    def left(missed: list[str]) -> tuple[int, ...]:
        counts = Counter(deciding[one] for one in missed)
        return tuple(counts[n] for n in range(len(touched) + 1))

    missed, chosen = _missed(wanted, shapes), list[Field]()
    while missed:
        open_ones = [field for field in fields if not touched[field[:2]].isdisjoint(missed)]
        found = [(_missed(wanted, _built(cls, config, field)), field) for field in open_ones]
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
    whole = _built(cls, config)
    numbers = [held for owner, _, held in _held(config) if not owner and isinstance(held, int) and held > 1]
    quotients = sorted({a // b for a in numbers for b in numbers if a % b == 0 and a > b})
    found: list[Field] = []
    for name in (
        *_asked_in_vain(cls, config),
        *(name for owner, name, held in _held(config) if not owner and held is None),
    ):
        if all(_built(cls, config, ("", name, value)) == whole for value in quotients[:2]):
            continue  # no size
        same = [value for value in quotients if _built(cls, config, ("", name, value)) == whole]
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


def _built(cls: Any, config: Any, field: Field | None = None) -> Shapes | None:
    """The shapes of the class for a configuration, with another value in one of its entries; None where it takes none
    such."""
    try:
        with torch.device("meta"):
            return _shapes(cls(copy.deepcopy(config) if field is None else _with(config, field)))
    except Exception:  # a width that its heads do not divide, say, or a number where it wants a name
        return None


def _shapes(model: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}


def _missed(wanted: Shapes, found: Shapes | None) -> list[str]:
    given: Mapping[str, tuple[int, ...]] = found or {}
    return [name for name, shape in wanted.items() if given.get(name) != shape]


def _difference(model: nn.Module, other: nn.Module, example_inputs: Any) -> float:
    """The largest relative error of the outputs, the model in eval mode."""
    plain = copied(model, sharing=True).eval()
    if any_mapped(model.parameters()):  # one sample says as much of a large model
        tensors = [leaf for leaf in pytree.tree_leaves(example_inputs) if isinstance(leaf, Tensor) and leaf.dim()]
        example_inputs = first_samples(example_inputs, len(tensors[0]) if tensors else 1, 1)
    args, kwargs = call_arguments(plain, example_inputs)
    with letting_go():
        sides = [
            [leaf for leaf in pytree.tree_leaves(net(*args, **kwargs)) if isinstance(leaf, Tensor)]
            for net in (plain, other.to(next(plain.parameters()).device))
        ]
    return relative_error(*sides)


def _no_configuration(
    path: Path, cls: str, plan: Plan, missed: list[str], wanted: Shapes, found: Shapes, instead: str
) -> ArtifactError:
    name, modules = missed[0], {one.rpartition(".")[0] for one in missed}
    cut = [name for name, own in plan.groups.items() if len(own.kept) < own.width]
    patterns = dict.fromkeys(f"'{role(group)}'" for group in cut if group.partition("#")[0] in modules)
    given = f"shape {found[name]}" if name in found else "no such shape"
    named = f" ({', '.join(f'--protect {one}' for one in patterns)})" if patterns else ""
    widths = (
        "prune with equal_widths=True (--equal-widths), and if that was done protect what the configuration has "
        f"no number for{named}; or "
    )
    if cut and patterns.keys() >= {f"'{role(group)}'" for group in plan.groups} and _equal(plan):
        widths = (
            f"no cut of a {cls} can be loaded by stock transformers, for none of its groups has a number of its own; "
        )
    return ArtifactError(
        f"No configuration of {cls} has these widths, so stock transformers could not load them.",
        expected=f"tensors as a configuration makes them: {name} of {given} in the nearest one",
        got=f"shape {wanted[name]}, and {len(missed) - 1} other tensors that differ",
        where=str(path),
        hint=f"{widths if cut else ''}{instead}",
    )


def _equal(plan: Plan) -> bool:
    """Whether the groups of one role have one width."""
    widths: dict[str, set[int]] = {}
    for name, group in plan.groups.items():
        widths.setdefault(role(name), set()).add(len(group.kept))
    return all(len(found) == 1 for found in widths.values())


def _failed(path: Path, expected: str, got: str, hint: str) -> ArtifactError:
    return ArtifactError("The folder is not written.", expected=expected, got=got, where=str(path), hint=hint)
