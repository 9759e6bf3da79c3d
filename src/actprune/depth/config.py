"""The configuration of a transformers model that was shortened: the number of layers, and lists with one entry each.

Which number says how many there are is not looked up in a list of names but found out, as for widths
(`actprune.artifacts.pretrained`): the class is built on the meta device from candidates, and the one that makes
containers of the right lengths is taken. A model that is none of transformers, or has no such number, stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from actprune.depth.blocks import containers


def update_configuration(net: nn.Module, path: str, count: int, positions: Sequence[int]) -> None:
    """Have the configurations in `net` say that of `count` items of the container at `path` these are left.

    Args:
        net: a model whose container is shortened already.
        positions: the items that stay, ascending.
    """
    owner = _owner(net, path)
    if owner is None:
        return
    wanted = _lengths(owner)
    config: Any = owner.config
    for inner, name in _candidates(config, count):
        trial = copy.deepcopy(config)
        _change(_inside(trial, inner), name, count, positions)
        if _built(type(owner), trial) == wanted:
            said = _inside(config, inner).to_dict()
            alike = [one for one in _configurations(net) if one.to_dict() == said]  # some modules hold copies
            for one in alike:
                _change(one, name, count, positions)
            return


def _owner(net: nn.Module, path: str) -> Any:
    """The outermost transformers model that holds a container; None where there is none."""
    parts = path.split(".") if path else []
    for i in range(len(parts)):
        module = net.get_submodule(".".join(parts[:i]))
        if hasattr(type(module), "config_class") and hasattr(getattr(module, "config", None), "to_dict"):
            return module
    return None


def _candidates(config: Any, count: int) -> Iterator[tuple[str, str]]:
    """(configuration inside this one or "", its number): every number that is the count."""
    for inner in ("", *(name for name, held in vars(config).items() if hasattr(held, "to_dict"))):
        for name, held in vars(_inside(config, inner)).items():
            if isinstance(held, int) and not isinstance(held, bool) and held == count and not name.startswith("_"):
                yield inner, name


def _change(config: Any, name: str, count: int, positions: Sequence[int]) -> None:
    """Lists with an entry for each layer first: some configurations compare their length with the number."""
    for other, held in list(vars(config).items()):
        if isinstance(held, list | tuple) and len(held) == count and "layer" in other:
            setattr(config, other, type(held)(held[i] for i in positions))
    setattr(config, name, len(positions))


def _built(cls: Any, config: Any) -> dict[str, int] | None:
    """The lengths of the containers of a class for a configuration; None where it takes none such."""
    try:
        with torch.device("meta"):
            return _lengths(cls(config))
    except Exception:  # whatever a class raises for numbers that do not go together
        return None


def _lengths(model: nn.Module) -> dict[str, int]:
    return {path: len(container._modules) for path, container in containers(model)}


def _inside(config: Any, inner: str) -> Any:
    return getattr(config, inner) if inner else config


def _configurations(net: nn.Module) -> list[Any]:
    """Every configuration that a module holds, and those inside them."""
    held = [value for module in net.modules() for value in vars(module).values() if _is_configuration(value)]
    inner = [value for config in held for value in vars(config).values() if _is_configuration(value)]
    return list({id(config): config for config in [*held, *inner]}.values())


def _is_configuration(value: Any) -> bool:
    return hasattr(value, "to_dict") and hasattr(value, "attribute_map")
