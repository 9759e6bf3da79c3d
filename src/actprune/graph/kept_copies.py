"""Modules that a class keeps as copies of others, which its forward pass leaves out: a target network, the moving
average of an encoder. What follows another module's weights is cut as that is: else it can't follow them any more."""

from __future__ import annotations

import dis
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from types import CodeType
from typing import Any

from torch import nn

from actprune.graph.in_training import own_codes
from actprune.graph.rebuilt import Rebuilt

_LISTING = {"parameters", "named_parameters", "buffers", "named_buffers", "state_dict", "load_state_dict"}
"""What a method calls of the modules whose weights it copies or averages."""

_TOGETHER = {"zip", "load_state_dict", "_foreach_copy_", "_foreach_lerp_"}
"""What goes through the weights of two modules at once: `self.target.load_state_dict(self.net.state_dict())`."""

_WRITING = {"data", "copy_", "mul_", "add_", "lerp_", *_TOGETHER} - {"zip"}
"""What it does with the weights."""

_ENDS = ("STORE_", "POP_TOP", "GET_ITER", "RETURN_")
"""What ends a statement, or what a loop goes through."""


def kept_copies(model: nn.Module, used: Iterable[str]) -> dict[str, str]:
    """Path of a copy → path of what it is a copy of.

    The class says so: it makes the one by `copy.deepcopy` of the other and freezes it, or a method copies or averages
    the weights of these two. And both hold tensors of the same names and sizes, of which a forward pass uses those of
    one alone.

    Args:
        used: names of the tensors that the forward pass in eval mode reads.
    """
    found: dict[str, str] = {}
    for path, module in () if isinstance(model, Rebuilt) else model.named_modules():
        for pair in sorted({pair for code in own_codes(module) for pair in _pairs(module, code)}):
            one, other = (f"{path}.{name}" if path else name for name in pair)
            if _is_idle(one, used) is not _is_idle(other, used):
                copy, of = (one, other) if _is_idle(one, used) else (other, one)
                found[copy] = of
    return found


def counterpart(copies: Mapping[str, str], name: str) -> str | None:
    """The name in a copied module of what has this name in its copy; None where it is in none."""
    return next((of + name[len(copy) :] for copy, of in copies.items() if f"{name}.".startswith(f"{copy}.")), None)


def with_copies(edits: tuple[Any, ...], copies: Mapping[str, str]) -> tuple[Any, ...]:
    """Edits of modules, and the same ones of their copies."""
    more = (
        replace(edit, module=name)
        for edit in edits
        for copy, of in copies.items()
        if (name := counterpart({of: copy}, edit.module)) is not None
    )
    return tuple(dict.fromkeys((*edits, *more)))


def _pairs(module: nn.Module, code: CodeType) -> Iterator[tuple[str, str]]:
    """Names of submodules of which a method makes one of the other, or has it follow."""
    parts, called = dict(module.named_children()), {*code.co_names}
    for copy, of in _deep_copies(code) if "deepcopy" in called else ():
        frozen = copy in parts and not any(p.requires_grad for p in parts[copy].parameters())
        if frozen and of in parts and _built(parts[copy]) == _built(parts[of]):
            yield copy, of
    for names in _followed(code, parts) if called & _LISTING and called & _WRITING else ():
        pairs = combinations(sorted(names), 2)
        alike = [(one, other) for one, other in pairs if _built(parts[one]) == _built(parts[other])]
        if len(alike) == 1:
            yield alike[0]


def _followed(code: CodeType, parts: Mapping[str, nn.Module]) -> Iterator[set[str]]:
    """Submodules whose weights a method goes through together, in one statement or as it has them in variables.

    What it goes through one after the other (a loop for each, to freeze or to scale it) has nothing to do with each
    other, and neither has a teacher that it only calls.
    """
    apart, named = set[str](), set[str]()
    for steps in _statements(code):
        listed = set(_listed(steps, parts))
        if len(listed) > 1 and any(isinstance(step.argval, str) and step.argval in _TOGETHER for step in steps):
            yield listed
        elif steps[-1].opname.startswith(("STORE_FAST", "STORE_DEREF")):
            named |= listed
        else:
            apart |= listed
    if len(named) > 1 or (named and len(apart - named) == 1):
        yield named | apart


def _listed(steps: Iterable[dis.Instruction], parts: Mapping[str, nn.Module]) -> Iterator[str]:
    """The submodules whose weights are asked for: `net` of `self.net["encoder"].parameters()`."""
    name = None
    for step in steps:
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            if step.argval in _LISTING and name is not None:
                yield name
            name = step.argval if step.argval in parts else name
        elif step.opname.startswith("CALL"):
            name = None


def _statements(code: CodeType) -> Iterator[list[dis.Instruction]]:
    steps: list[dis.Instruction] = []
    for step in dis.get_instructions(code):
        steps.append(step)
        if step.opname.startswith(_ENDS):
            yield steps
            steps = []


def _deep_copies(code: CodeType) -> Iterator[tuple[str, str]]:
    """(attribute, what it is made a deep copy of), both of `self`, as in `self.target = copy.deepcopy(self.net)`; in
    `self.a, self.b = copy.deepcopy(self.c), copy.deepcopy(self.d)`, the first of the first."""
    made: list[list[str]] = []
    for step in dis.get_instructions(code):
        if step.argval == "deepcopy":
            made.append([])
        elif made and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            made[-1].append(step.argval)
        elif made and step.opname.startswith("STORE_"):
            of = made.pop(0)
            if step.opname == "STORE_ATTR" and len(of) == 1:
                yield step.argval, of[0]
        elif step.opname.startswith(_ENDS):
            made = []


def _built(module: nn.Module) -> tuple[Any, ...]:
    kinds = [(name, type(part)) for name, part in module.named_modules()]
    return kinds, {name: tensor.shape for name, tensor in module.state_dict(keep_vars=True).items()}


def _is_idle(path: str, used: Iterable[str]) -> bool:
    """Whether the forward pass uses no tensor of a submodule."""
    return not any(name.startswith(f"{path}.") for name in used)
