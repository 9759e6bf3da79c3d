"""Modules that a class keeps as copies of others, which its forward pass leaves out: a target network, the moving
average of an encoder. What follows another module's weights is cut as that is: else it can't follow them any more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations, product
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from actprune.graph.following import copies_weights, helpers, together
from actprune.graph.in_training import own_codes
from actprune.graph.program import modules_around
from actprune.graph.rebuilt import Rebuilt

PARALLEL = 0.9
"""The cosine of the weights of a copy and of what it follows is larger; of networks of their own it is about 0."""


def kept_copies(model: nn.Module, used: Iterable[str]) -> dict[str, str]:
    """Path of a copy → path of what it is a copy of.

    The class says so: a method copies or averages the weights of these two; where it does so with several (actors and
    critics), or has a function do it, the weights say which belong together. And both hold tensors of the same names
    and sizes, of which a forward pass uses those of one alone. A copy that nothing updates, such as a frozen teacher,
    follows nobody.

    Args:
        used: names of the tensors that the forward pass in eval mode reads.
    """
    found: dict[str, str] = {}
    busy = {path for name in used for path in modules_around(name)}
    for path, module in () if isinstance(model, Rebuilt) else model.named_modules():
        prefix, parts = f"{path}." if path else "", _parts(module)
        idle = {name for name in parts if f"{prefix}{name}" not in busy}
        if len(idle) in range(1, len(parts)):
            found |= {f"{prefix}{copy}": f"{prefix}{of}" for copy, of in _pairs(module, parts, idle)}
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


def _parts(module: nn.Module) -> dict[str, nn.Module]:
    """Its submodules by name, and for an average of torch's what it averages into."""
    parts = dict(module.named_children())
    averages = {name: part.module for name, part in parts.items() if isinstance(part, AveragedModel)}
    return {(f"{name}.module" if name in averages else name): averages.get(name, part) for name, part in parts.items()}


def _pairs(module: nn.Module, parts: Mapping[str, nn.Module], idle: set[str]) -> Iterator[tuple[str, str]]:
    """(copy, what it follows) of the submodules of one, last those that a method names alone."""
    codes = [*own_codes(module)]
    if not any(map(copies_weights, (*codes, *helpers(module, codes)))):
        return
    built = {name: _signature(part) for name, part in parts.items()}
    alike = [(a, b) for a, b in product(parts, parts) if a in idle and b not in idle and built[a] == built[b]]
    mentioned = {name for code in codes for name in code.co_names}
    for one, other in alike:
        if one.partition(".")[0] in mentioned and _cosine(parts[one], parts[other]) > PARALLEL:
            yield one, other
    for names in (names for code in codes for names in together(code, parts)):
        own = [(a, b) for a, b in combinations(sorted(names), 2) if built[a] == built[b]]
        if len(own) == 1:
            yield from {own[0], own[0][::-1]} & {*alike}


def _signature(module: nn.Module) -> tuple[list[Any], dict[str, Any]]:
    """How a module is built: the classes in it, and the names and sizes of its tensors."""
    kinds = [(name, type(part)) for name, part in module.named_modules()]
    return kinds, {name: tensor.shape for name, tensor in module.state_dict(keep_vars=True).items()}


def _cosine(one: nn.Module, other: nn.Module) -> float:
    """Of the matrices and kernels of two modules alike: biases may begin with the same numbers."""
    pairs = [(a.detach(), b.detach()) for a, b in zip(one.parameters(), other.parameters(), strict=True) if a.dim() > 1]

    def products(left: int, right: int) -> float:
        return sum(float((pair[left] * pair[right]).sum()) for pair in pairs)

    if not pairs or any(tensor.is_meta for pair in pairs for tensor in pair):
        return 0.0
    return products(0, 1) / max((products(0, 0) * products(1, 1)) ** 0.5, 1e-30)
