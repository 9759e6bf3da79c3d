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

_COPYING = {"state_dict", "load_state_dict"}
_LISTING, _WRITING = {"parameters", "named_parameters", "state_dict"}, {"data", "copy_", "mul_", "add_", "lerp_"}
"""What a method calls that copies the weights of a module into another one, or averages them."""


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
    back = {of: copy for copy, of in copies.items()}
    more = (replace(edit, module=copy) for edit in edits if (copy := counterpart(back, edit.module)) is not None)
    return tuple(dict.fromkeys((*edits, *more)))


def _pairs(module: nn.Module, code: CodeType) -> Iterator[tuple[str, str]]:
    """Names of submodules of which a method makes one of the other, or has it follow."""
    names, parts = {*code.co_names}, dict(module.named_children())
    if "deepcopy" in names:
        for copy, of in _deep_copies(code):
            frozen = copy in parts and not any(p.requires_grad for p in parts[copy].parameters())
            if frozen and of in parts and _built(parts[copy]) == _built(parts[of]):
                yield copy, of
    elif names >= _COPYING or (names & _LISTING and names & _WRITING):
        alike = [(a, b) for a, b in combinations(sorted(names & {*parts}), 2) if _built(parts[a]) == _built(parts[b])]
        if len(alike) == 1:
            yield alike[0]


def _deep_copies(code: CodeType) -> Iterator[tuple[str, str]]:
    """(attribute, what it is made a deep copy of), both of `self`, as in `self.target = copy.deepcopy(self.net)`."""
    of: list[str] | None = None
    for step in dis.get_instructions(code):
        if step.argval == "deepcopy":
            of = []
        elif of is not None and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            of.append(step.argval)
        elif of is not None and step.opname.startswith("STORE_"):
            if step.opname == "STORE_ATTR" and len(of) == 1:
                yield step.argval, of[0]
            of = None


def _built(module: nn.Module) -> tuple[Any, ...]:
    kinds = [(name, type(part)) for name, part in module.named_modules()]
    return kinds, {name: tensor.shape for name, tensor in module.state_dict(keep_vars=True).items()}


def _is_idle(path: str, used: Iterable[str]) -> bool:
    """Whether the forward pass uses no tensor of a submodule."""
    return not any(name.startswith(f"{path}.") for name in used)
