"""Leaving a model as it was: modes, buffers, attributes, and the random state, also after an error."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import random
from collections import deque
from collections.abc import Callable, Iterator
from threading import RLock
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from actprune.errors import UnsupportedModelError
from actprune.graph.ambience import own_modes, uncast
from actprune.graph.boxes import LEVELS, MANY, attributes, entries, put_back
from actprune.graph.closures import Rebound
from actprune.graph.copies import copies, write_back
from actprune.graph.names import identity
from actprune.graph.quiet import unwarned
from actprune.graph.rebuilt import name_of
from actprune.mapped import alongside, is_mapped

ONE_AT_A_TIME = RLock()
"""Held while a model is captured or pruned: torch has one random state for all threads, and its tracers change
`nn.Module` for all of them, for good where two of them overlap."""


@contextlib.contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Put back every module's train/eval mode, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Put back every module's train/eval mode and the global random state, also after an error."""
    with forked_random(), kept_modes(model):
        yield


@contextlib.contextmanager
def forked_random() -> Iterator[None]:
    """Put back torch's random state, that of every device: `torch.manual_seed` begins them all anew."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=devices):
        yield


@contextlib.contextmanager
def kept_random() -> Iterator[None]:
    """Put back the random state of Python and NumPy as well, also after an error."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with forked_random():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put back the model's modes and every global random state, whatever the user's own functions do. Gradients can be
    taken inside, also where the caller is in inference mode, and nothing is rounded by an autocast of the caller's.
    Other threads wait."""
    with ONE_AT_A_TIME, kept_random(), kept_modes(model), torch.inference_mode(False), own_modes():
        yield


def seed_all(seed: int) -> None:
    """Begin the random state of Python, NumPy and torch anew."""
    random.seed(seed)
    np.random.seed(seed)
    seed_torch(seed)


def seed_torch(seed: int) -> None:
    """Begin torch's random state anew, on every device that this build of torch knows.

    `torch.manual_seed` keeps a call, with its stack, for every kind of accelerator that hasn't started, also for those
    that a build for the CPU never starts.
    """
    if torch.accelerator.current_accelerator() is None:
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


@contextlib.contextmanager
def apart(*seed: int) -> Iterator[None]:
    """Random numbers by a seed of several numbers; the streams outside go on afterwards as if nothing were drawn."""
    with kept_random():
        seed_all(int.from_bytes(hashlib.sha256(repr(seed).encode()).digest()[:4]))
        yield


@contextlib.contextmanager
def unless_failed(model: nn.Module) -> Iterator[None]:
    """Undo what was assigned to a model's modules, and their classes, where an error is raised."""
    held, kinds = _held(model), [(module, type(module)) for module in model.modules()]
    try:
        yield
    except BaseException:
        for module, kind in kinds:
            module.__class__ = kind
        for box, own in held:
            put_back(box, own)
        raise


@contextlib.contextmanager
def kept_buffers(model: nn.Module, *, parameters: bool = False) -> Iterator[None]:
    """Put back every buffer and attribute that a call of the model changes or replaces, also after an error.

    Caches, counters and the last input count: a tracer would leave fake tensors there, and a run leaves tensors
    of one batch size. Containers and objects among the attributes get their contents back, tensors their values,
    generators their states; the values of parameters only where `parameters` asks for it (some models clip their
    weights as they run).
    """
    held = _held(model)
    generators = [v for _, own in held for v in own.values() if isinstance(v, torch.Generator)]
    states = [(generator, generator.get_state()) for generator in generators]
    kept = copies(v for _, own in held for v in own.values() if parameters or not isinstance(v, nn.Parameter))
    try:
        yield
    finally:
        for box, own in held:
            put_back(box, own)
        write_back(kept)
        for generator, state in states:
            generator.set_state(state)


@contextlib.contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    """A model in eval mode, without gradients or autocast, to be run for a look; it is left as it was."""
    with preserved(model), kept_buffers(model, parameters=True), torch.no_grad(), uncast():
        model.eval()
        yield


def copied(model: nn.Module, *, sharing: bool = False) -> nn.Module:
    """A deep copy. Of what a module has computed with gradients (the weight under torch's older weight norm, features
    of its last call), which torch refuses to copy, the copy holds the values.

    Args:
        sharing: tensors that lie in files are the copy's as well, for a while; else it gets files of its own.
    """
    tensors = [value for value in held_values(model) if isinstance(value, Tensor)]
    known: dict[int, Any] = {id(t): t.detach().clone() for t in tensors if not t.is_leaf}
    for tensor in tensors:
        if id(tensor) not in known and is_mapped(tensor):
            known[id(tensor)] = _as_held(tensor.detach() if sharing else copied_values(tensor), tensor)
    own = {identity(value): value for value in tensors if isinstance(value, nn.Parameter)}
    for tensor in tensors:  # `weight.data` in another attribute, which torch would give memory of its own
        if not isinstance(tensor, nn.Parameter) and identity(tensor) in own:
            known[id(tensor)] = copy.deepcopy(own[identity(tensor)], known).detach()
    return _deep_copy(model, known)


def twin(model: nn.Module) -> nn.Module:
    """A copy of the modules around the memory of the model's own tensors, to be rearranged and run in its place."""
    tensors = [value for value in held_values(model) if isinstance(value, Tensor)]
    return _deep_copy(model, {id(tensor): _as_held(tensor.detach(), tensor) for tensor in tensors})


def _deep_copy(model: nn.Module, known: dict[int, Any]) -> nn.Module:
    """Hooks, and functions among the attributes, are the copy's own: they run its modules.

    Args:
        known: id of an object → what is to stand for it in the copy.
    """
    with unwarned():
        made = copy.deepcopy(model, known)
    for module in model.modules():  # a `__setstate__` that makes it anew (the layers of einops) sets training mode
        if isinstance(own := known.get(id(module)), nn.Module):
            own.training = module.training
    _with_classes_of_their_own(made)
    rebound = Rebound(known)  # by now it knows of every object that was copied
    for box, held in _held(made):
        for key, value in held.items():
            if isinstance(value, FunctionType) and not isinstance(box, tuple) and (own := rebound(value)) is not value:
                box[key] = own
    return made


def _with_classes_of_their_own(made: nn.Module) -> None:
    """For parametrized modules torch makes a class each, which a deep copy shares: to take a weight norm off the small
    network would leave the dense one without its weight."""
    for module in made.modules():
        if is_parametrized(module):
            shared = type(module)
            own: Any = type(shared.__name__, shared.__bases__, dict(vars(shared)))
            module.__class__ = own


def copied_by(how: Callable[[nn.Module], nn.Module], model: nn.Module, where: str, hint: str) -> nn.Module:
    """A copy of a user's model, made by `copied` or `twin`.

    Args:
        where, hint: for the message.

    Raises:
        UnsupportedModelError: it can't be copied.
    """
    try:
        return how(model)
    except Exception as error:  # whatever a user's __deepcopy__ or a handle of the system raises
        raise UnsupportedModelError(
            f"{name_of(model)} can't be copied.",
            expected="a model that copy.deepcopy takes",
            got=f"{type(error).__name__}: {error}",
            where=where,
            hint=hint,
        ) from error


def copied_values(tensor: Tensor) -> Tensor:
    """The values of a tensor in memory of their own; in a file, where its own are in one."""
    return alongside(tensor.detach().clone(), tensor)


def _as_held(values: Tensor, like: Tensor) -> Tensor:
    """A parameter like `like`, or a buffer."""
    if not isinstance(like, nn.Parameter):
        return values
    made = nn.Parameter(values, requires_grad=like.requires_grad)
    vars(made).update(vars(like))
    return made


def _held(model: nn.Module) -> list[tuple[Any, dict[Any, Any]]]:
    """What every module holds in its attributes, and in the containers and objects among them, such as a cache of keys
    and values for each layer: (box, its entries).

    Objects farther within such an object than `LEVELS` are passed by: what a trainer leads to is no part of the model.
    So is what containers of more than `MANY` entries hold: vocabularies and samples.
    """
    modules = list(model.modules())
    found: list[tuple[Any, dict[Any, Any]]] = [(vars(module), entries(vars(module))) for module in modules]
    seen = {*map(id, modules)}
    waiting = deque((value, 1, False) for _, held in found for value in held.values())
    while waiting:  # what is nearest comes first
        value, level, inside = waiting.popleft()
        contained = isinstance(value, dict | list | deque | tuple)
        box = value if contained else attributes(value) if level <= LEVELS or not inside else None
        if box is None or id(value) in seen:
            continue
        seen.add(id(value))
        found.append((box, entries(box)))
        if len(box) <= MANY:
            waiting += ((inner, level + 1, inside or not contained) for inner in found[-1][1].values())
    return found


def held_values(model: nn.Module) -> list[Any]:
    """What the attributes of a model's modules are, and what the containers and objects among them hold."""
    return [value for _, held in _held(model) for value in held.values()]


def refresh(model: nn.Module, training: bool) -> None:
    """Make modules that cache something in eval mode (a position bias) forget it.

    They do so in a `train()` of their own, which is called where a class has one. What it does to parameters
    (merged low-rank weights) is undone, and with it what the module says of them; but of one that comes from eval mode
    training shall see what it then says, "not merged". The caller sets the modes afterwards: a `train()` may keep some
    modules in eval mode.
    """
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule) or type(module).train is nn.Module.train:
            continue
        before, parameters = entries(vars(module)), entries(module._parameters)
        kept = copies(parameters.values())
        with contextlib.suppress(Exception):  # whatever the class raises; then the module is captured as it is
            module.train(not training)
            module.train(training)
        changed, others = write_back(kept), parameters != module._parameters
        if others or (changed and (before["training"] or not training)):
            put_back(vars(module), before)
            put_back(module._parameters, parameters)
