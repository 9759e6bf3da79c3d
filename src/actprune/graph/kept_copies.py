"""Modules that a class keeps as copies of others, which its forward pass leaves out: a target network, the moving
average of an encoder. What follows another module's weights is cut as that is: else it can't follow them any more."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from types import CodeType, FunctionType
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from actprune.graph.in_training import own_codes
from actprune.graph.rebuilt import Rebuilt

_COPYING = {"state_dict", "load_state_dict"}
_LISTING, _WRITING = {"parameters", "named_parameters", "state_dict"}, {"data", "copy_", "mul_", "add_", "lerp_"}
"""What a method calls that copies the weights of a module into another one, or averages them."""

PARALLEL = 0.9
"""The cosine of the weights of a copy and of what it follows is larger; of networks of their own it is about 0."""


def kept_copies(model: nn.Module, used: Iterable[str]) -> dict[str, str]:
    """Path of a copy → path of what it is a copy of.

    The class says so: it makes the one by `copy.deepcopy` of the other and freezes it, or a method copies or averages
    the weights of these two; where it does so with several (actors and critics), the weights say which belong together.
    And both hold tensors of the same names and sizes, of which a forward pass uses those of one alone.

    Args:
        used: names of the tensors that the forward pass in eval mode reads.
    """
    found: dict[str, str] = {}
    for path, module in () if isinstance(model, Rebuilt) else model.named_modules():
        prefix, parts, codes = f"{path}." if path else "", _parts(module), [*own_codes(module)]
        idle = {name for name in parts if not any(one.startswith(f"{prefix}{name}.") for one in used)}
        pairs = [pair for code in codes for pair in _pairs(parts, code) if len(idle & {*pair}) == 1]
        if len(idle) in range(1, len(parts)) and any(_copies(code) for code in (*codes, *_helpers(module, codes))):
            mentioned = {name for code in codes for name in code.co_names}
            apart = [(a, b) for a in parts if a in idle for b in parts if b not in idle]
            alike = [(a, b) for a, b in apart if _start(a) in mentioned and _built(parts[a]) == _built(parts[b])]
            pairs += [(a, b) for a, b in alike if _cosine(parts[a], parts[b]) > PARALLEL]
        for pair in sorted({*pairs}):
            copy, of = sorted(pair, key=lambda name: name not in idle)
            found[f"{prefix}{copy}"] = f"{prefix}{of}"
    return found


def counterpart(copies: Mapping[str, str], name: str) -> str | None:
    """The name in a copied module of what has this name in its copy; None where it is in none."""
    return next((of + name[len(copy) :] for copy, of in copies.items() if f"{name}.".startswith(f"{copy}.")), None)


def with_copies(edits: tuple[Any, ...], copies: Mapping[str, str]) -> tuple[Any, ...]:
    """Edits of modules, and the same ones of their copies."""
    back = {of: copy for copy, of in copies.items()}
    more = (replace(edit, module=copy) for edit in edits if (copy := counterpart(back, edit.module)) is not None)
    return tuple(dict.fromkeys((*edits, *more)))


def _parts(module: nn.Module) -> dict[str, nn.Module]:
    """Its submodules by name, and for an average of torch's what it averages into."""
    parts = dict(module.named_children())
    averages = {name: part.module for name, part in parts.items() if isinstance(part, AveragedModel)}
    return {(f"{name}.module" if name in averages else name): averages.get(name, part) for name, part in parts.items()}


def _start(name: str) -> str:
    return name.partition(".")[0]


def _copies(code: CodeType) -> bool:
    names = {*code.co_names}
    return names >= _COPYING or bool(names & _LISTING and names & _WRITING) or "update_parameters" in names


def _helpers(module: nn.Module, codes: list[CodeType]) -> Iterator[CodeType]:
    """The code of functions, such as `soft_update(net, target, tau)`, that methods call by a name of their module."""
    space = vars(sys.modules.get(type(module).__module__, sys))
    called = (space.get(name) for code in codes for name in code.co_names)
    return (function.__code__ for function in called if isinstance(function, FunctionType))


def _pairs(parts: Mapping[str, nn.Module], code: CodeType) -> Iterator[tuple[str, str]]:
    """Names of submodules of which a method makes one of the other, or has it follow."""
    names = {*code.co_names}
    if "deepcopy" in names:
        for copy, of in _deep_copies(code):
            frozen = copy in parts and not any(p.requires_grad for p in parts[copy].parameters())
            if frozen and of in parts and _built(parts[copy]) == _built(parts[of]):
                yield copy, of
    elif _copies(code):
        own = sorted(name for name in parts if _start(name) in names)
        alike = [(a, b) for a, b in combinations(own, 2) if _built(parts[a]) == _built(parts[b])]
        if len(alike) == 1:
            yield alike[0]


def _cosine(one: nn.Module, other: nn.Module) -> float:
    """Of the matrices and kernels of two modules alike: biases may begin with the same numbers."""
    pairs = [(a.detach(), b.detach()) for a, b in zip(one.parameters(), other.parameters(), strict=True) if a.dim() > 1]

    def products(left: int, right: int) -> float:
        return sum(float((pair[left] * pair[right]).sum()) for pair in pairs)

    if not pairs or any(tensor.is_meta for pair in pairs for tensor in pair):
        return 0.0
    return products(0, 1) / max((products(0, 0) * products(1, 1)) ** 0.5, 1e-30)


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
