"""`save` and `load`: a cut model as a folder of three files, without pickle and without code.

    weights.safetensors  the state dict of the cut model; its metadata holds the digest of the plan
    plan.json            the plan, with the SHA-256 of weights.safetensors in its note
    report.json          what happened, for people and tables

`load` replays the plan on a fresh dense model. Each file vouches for the other, so that damage to either, or a mix
of two runs, is noticed. It is no signature: who can write both files can make any weights pass, but nothing run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from torch import Tensor, nn

from actprune.artifacts.files import read_text, sha256, unreadable
from actprune.artifacts.fill import fill
from actprune.artifacts.folder import AGAIN, PLAN, PLAN_BYTES, REPORT, WEIGHTS, check_output, file_of, new_folder
from actprune.artifacts.replay import replay
from actprune.artifacts.weights import Weights, read_weights, write_weights
from actprune.axes.capture import Graph
from actprune.axes.expr import ONE, Indices, Leaf, leaves, size
from actprune.errors import ArtifactError, PlanError
from actprune.graph.names import plain_slots
from actprune.graph.program import architecture
from actprune.graph.rebuilt import Rebuilt, name_of
from actprune.graph.weight_norm import weights_of
from actprune.plan import STATISTICS, Plan
from actprune.proof.check import Proof, dense_graph, verify
from actprune.rewrite import Rewrite
from actprune.surgery.tensors import held_in, tensor_slots

__all__ = ["check_output", "load", "proved", "proved_folder", "save"]

SCHEMA = "actprune.weights/1"

WEIGHTS_SHA256 = "weights_sha256"
"""The key in the plan's note. The digest in the weights' metadata is that of the plan without it."""

MOST_UNITS = 1 << 28  # in one dimension of a tensor that contains a group


def save(
    folder: str | Path,
    model: nn.Module,
    plan: Plan,
    report: Mapping[str, Any],
    *,
    overwrite: bool = False,
    more: Mapping[str, Callable[[Path], Any]] | None = None,
) -> Path:
    """Write a cut model as a run folder: all of it, or nothing.

    Args:
        model: the model that `cut` returned for `plan`, fine-tuned or not.
        report: JSON values; numbers that are not finite become null, which JSON has no other word for.
        overwrite: replace `folder` if it is a run folder or empty. Anything else is never touched.
        more: further files: name, one of `RUN_FILES` → what writes it.

    Returns:
        The absolute path of the folder.

    Raises:
        ArtifactError: `folder` exists, it can't be written, or the model is not the one that the plan makes.
    """
    path = check_output(folder, overwrite)
    state = _state(model, plan)
    _check_cut(model, state, plan)
    try:
        # As it will be read: digests are of the text, in which numbers as keys have become strings.
        plan = _without_hash(Plan.from_json(plan.to_json()))
        with new_folder(path, overwrite) as scratch:
            write_weights(scratch / WEIGHTS, state, {"schema": SCHEMA, "plan": plan.digest})
            final = plan.with_note(**{WEIGHTS_SHA256: sha256(scratch / WEIGHTS, AGAIN)})
            _write_text(scratch / PLAN, final.to_json())
            for name, write in (more or {}).items():
                write(scratch / name)
            _write_text(scratch / REPORT, json.dumps(finite(report), indent=1, allow_nan=False))
    except (OSError, SafetensorError, PlanError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        raise ArtifactError(
            "The run folder can't be written; what was there before is as it was.",
            expected=f"{WEIGHTS}, {PLAN} and {REPORT}, written whole",
            got=f"{type(error).__name__}: {error}",
            where=str(path),
            hint="make room, check the disk and what the plan's note and the report hold, then save again",
        ) from error
    return path


def load(folder: str | Path, model: nn.Module, example_inputs: Any = None) -> nn.Module:
    """`actprune.load` of a torch model: see `actprune.keras3.bridge.load`, which takes Keras models as well."""
    where = Path(folder)
    if not where.is_dir():
        got = "a file" if where.is_file() else "nothing"
        raise unreadable(where, f"a run folder with {WEIGHTS} and {PLAN}", got, "pass the folder that save wrote")
    plan, digest = _read_plan(file_of(where, PLAN))
    if isinstance(model, Rebuilt) and architecture(model.state_dict()) != plan.architecture:
        model = model.named_for(_read_weights(file_of(where, WEIGHTS), plan, digest).tensors)
    _check_model(model, plan)
    plan = _before_a_run(model, plan)
    _check_dense(model, plan, where / PLAN)
    weights = _read_weights(file_of(where, WEIGHTS), plan, digest)
    target = replay(model, plan, example_inputs, where / PLAN)
    fill(target, weights, where / WEIGHTS)
    return target


def proved_folder(folder: str | Path, model: nn.Module, small: nn.Module, inputs: Any) -> Proof:
    """`proved` for the plan of a run folder.

    Args:
        model: the dense model.
        small: what `load` made of it.
        inputs: one batch, as for `capture`.

    Raises:
        EquivalenceError: the proof fails.
        ArtifactError: the plan can't be read.
        CaptureError: the model can't be traced with these inputs.
    """
    plan, _ = _read_plan(file_of(Path(folder), PLAN))
    return proved(plan, dense_graph(model, plan, inputs), model, small, inputs)


def proved(plan: Plan, graph: Graph, model: nn.Module, small: nn.Module, inputs: Any) -> Proof:
    """Prove a cut network after any training: its weights, put back into the dense shape, against the plan.

    Raises:
        EquivalenceError: the proof fails.
    """
    saved = {name: tensor for name, tensor in _state(small, plan).items() if isinstance(tensor, Tensor)}
    if plan.note.get("form") != "graph":  # which holds the weights themselves
        saved |= weights_of(graph.program.normed, saved)
    dense = {n: t for n, t in graph.program.tensors.items() if n in saved}
    tensors = {name: _scattered(own, saved[name], plan.indices(name)) for name, own in dense.items()}
    return verify(model, small, plan, inputs, rewrite=Rewrite(tensors), graph=graph)


def _scattered(dense: Tensor, saved: Tensor, indices: list[Indices | None]) -> Tensor:
    """`saved` in the shape of the dense tensor; what was cut is as it was, since a norm of zeros would be 0 / 0."""
    where = [range(n) if i is None else i for n, i in zip(dense.shape, indices, strict=False)]
    where += [range(n) for n in dense.shape[len(where) :]]
    if not where:
        return saved.detach().clone()
    found = dense.detach().cpu().to(saved.dtype, copy=True)
    found[np.ix_(*map(np.asarray, where))] = saved.detach().cpu()
    return found.to(dense.dtype)


# ---- writing


def _check_cut(model: nn.Module, state: Mapping[str, Any], plan: Plan) -> None:
    shapes = {name: tuple(state[name].shape) for name in plan.dims if isinstance(state.get(name), Tensor)}
    wrong = [name for name, shape in shapes.items() if shape != plan.shape(name)]
    if wrong or (plan.dims and not shapes):
        name = (wrong or list(plan.dims))[0]
        raise ArtifactError(
            "The model is not the one that the plan makes, so it could not be loaded again.",
            expected=f"{name} of shape {plan.shape(name)}",
            got=f"shape {shapes[name]}" if wrong else f"{name_of(model)} without a tensor of that name",
            where=name,
            hint="save the model that was cut by this plan, without a wrapper (DDP, torch.compile) around it",
        )


def _state(model: nn.Module, plan: Plan) -> dict[str, Any]:
    """The state dict, and what training keeps in plain attributes, which no state dict holds."""
    names = plan.note.get(STATISTICS, ())
    slots = plain_slots(model) if names else {}
    return {**model.state_dict(keep_vars=True), **{name: held_in(slots[name]) for name in names if name in slots}}


def _write_text(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")


def finite(value: Any) -> Any:
    """JSON values with null for numbers that are not finite, which JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    return [finite(entry) for entry in value] if isinstance(value, list | tuple) else value


def _without_hash(plan: Plan) -> Plan:
    return replace(plan, note={key: value for key, value in plan.note.items() if key != WEIGHTS_SHA256})


# ---- reading


def _read_plan(path: Path) -> tuple[Plan, str]:
    """The plan, and the digest that the weights' metadata has to hold."""
    text = read_text(path, PLAN_BYTES, AGAIN)
    try:
        plan = Plan.from_json(text, str(path))
        for name, axes in plan.dims.items():
            for axis in axes:
                # The replay makes an index of that many numbers.
                if any(leaf.size < 1 for leaf in leaves(axis)) or size(axis) > MOST_UNITS:
                    raise ValueError(f"a dimension of {name} of an impossible size")
        return plan, _without_hash(plan).digest
    except PlanError as error:
        got = error.got or error.problem
        raise ArtifactError(
            f"{path.name} can't be read.", expected=error.expected, got=got, where=error.where, hint=AGAIN
        ) from error
    except Exception as error:  # numbers too long for Python, nesting too deep for the digest
        raise unreadable(path, "a plan written by actprune", f"{type(error).__name__}: {error}", AGAIN) from error


def _check_model(model: Any, plan: Plan) -> None:
    if not isinstance(model, nn.Module):
        raise ArtifactError(
            "load needs a model to replay the plan on.",
            expected=f"a dense {plan.model}, as an instance",
            got=repr(model)[:100],
            where="model",
            hint=f"for example load(folder, {plan.model}())",
        )


def _before_a_run(model: nn.Module, plan: Plan) -> Plan:
    """The plan for a model that did not run yet, as the one that was pruned may have: it is without tensors that are
    not saved and not there yet (the state of a recurrent layer, a cache in an attribute), and a cache may be shorter
    where it loses no units."""
    saved, slots, plain = model.state_dict().keys(), tensor_slots(model), plain_slots(model)

    def is_empty(name: str) -> bool:
        return held_in(slots[name]).numel() == 0 if name in slots else _may_come(name)

    dims = {name: axes for name, axes in plan.dims.items() if name in saved or not is_empty(name)}
    for name in dims.keys() & plain.keys():
        found = zip(dims[name], plan.indices(name), held_in(plain[name]).shape, strict=False)
        dims[name] = tuple(axis if index is not None else Leaf(length, ONE.key) for axis, index, length in found)
    return replace(plan, dims=dims)


def _may_come(name: str) -> bool:
    """Whether a run may make an attribute of this name, or an entry of one; a forged plan may say anything."""
    return all(part.isidentifier() or part.isdigit() for part in name.split("."))


def _check_dense(model: nn.Module, plan: Plan, path: Path) -> None:
    """That the plan was made for this architecture, and its axes fit the tensors: only then is it replayed."""
    tensors: dict[str, Tensor] = {name: held_in(slot) for name, slot in tensor_slots(model).items()}
    if on_meta := next((name for name, tensor in tensors.items() if tensor.is_meta), None):
        raise ArtifactError(
            "load needs a model whose tensors have memory to be filled.",
            expected="a model on a device such as cpu or cuda",
            got=f"{on_meta} on the meta device",
            where="model",
            hint="build the model on the CPU, or call model.to_empty(device='cpu') first",
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    planned = {name: tuple(size(axis) for axis in axes) for name, axes in plan.dims.items() if name in shapes}
    differs = next((name for name in planned if shapes[name] != planned[name]), None)
    got = architecture(model.state_dict())
    if got != plan.architecture or differs is not None:
        detail = [f", {differs} of shape {held[differs]}" if differs else "" for held in (planned, shapes)]
        raise ArtifactError(
            "The saved plan is for another architecture.",
            expected=f"a dense {plan.model} with state dict {plan.architecture[:16]}…{detail[0]}",
            got=f"{name_of(model)} with state dict {got[:16]}…{detail[1]}",
            where=str(path),
            hint="build the dense model with the same class, arguments and dtype as before pruning",
        )


def _read_weights(path: Path, plan: Plan, digest: str) -> Weights:
    expected, got = plan.note.get(WEIGHTS_SHA256), sha256(path, AGAIN)
    if got != expected:
        raise _mismatch(f"{path.name} is not the file that {PLAN} names.", f"SHA-256 {expected}", got, path)
    weights = read_weights(path, AGAIN)
    schema, planned = weights.metadata.get("schema"), weights.metadata.get("plan")
    if schema != SCHEMA:
        raise unreadable(path, f"weights of schema {SCHEMA}", f"schema {schema}", AGAIN)
    if planned != digest:
        problem = f"{PLAN} is not the plan that the weights were saved with."
        raise _mismatch(problem, f"a plan with digest {planned}", digest, path.with_name(PLAN))
    return weights


def _mismatch(problem: str, expected: str, got: str, path: Path) -> ArtifactError:
    return ArtifactError(problem, expected=expected, got=got, where=str(path), hint=AGAIN)
