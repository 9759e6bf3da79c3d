"""A Hugging Face folder of a pruned model, which stock transformers loads without actprune: config and weights.

A configuration has one number for all layers of a kind; which one says the smaller widths is found out
(`configuration`). The folder is only kept once `from_pretrained` gives the same outputs from it.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from actprune.allocation.space import role
from actprune.artifacts.configuration import Shapes, built, configuration, shapes
from actprune.artifacts.folder import check_output, new_folder
from actprune.artifacts.opened import open_pretrained, transformers
from actprune.artifacts.weights import tied
from actprune.errors import ActpruneError, ArtifactError
from actprune.graph.keep import copied
from actprune.graph.rebuilt import name_of
from actprune.graph.trace import call_arguments
from actprune.mapped import any_mapped, letting_go
from actprune.plan import Plan
from actprune.proof.difference import relative_error
from actprune.proof.trial import first_samples
from actprune.shards import SHARD_BYTES, write_shards

TOLERANCE = 1e-4
"""Relative error of the outputs in the model's own precision."""


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
    wanted = shapes(model)
    config, missed, chosen = configuration(cls, model, plan, wanted)
    if missed:
        raise _no_configuration(path, cls.__name__, plan, missed, wanted, built(cls, config) or {}, instead)
    told: list[ArtifactError] = []
    for without in ((), *((field,) for field in reversed(chosen))):  # half the heads have the shapes of half their size
        if without:
            config, missed, _ = configuration(cls, model, plan, wanted, without)
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
