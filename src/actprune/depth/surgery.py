"""A shorter model of a dense one: containers without some of their items, and all that numbers these numbered anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from actprune.depth.config import update_configuration
from actprune.graph.keep import copied, copied_by, twin

NUMBERS = ("layer_idx", "layer_id", "layer_index", "layer_number", "block_idx", "block_id", "block_index")
"""Attributes by which a block, or a module in it, knows its place among the others (in the cache of a decoder, say)."""

COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "num_blocks", "n_blocks", "depth")
"""Attributes by which what holds a container may know how many items to call."""


def shortened(model: nn.Module, kept: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy of `model`, whose containers hold the items that stay and no others.

    Args:
        kept: module path of the container → positions of its items that stay.

    Raises:
        UnsupportedModelError: the model can't be copied.
    """
    net = twin_of(model)
    for path in sorted(kept, key=len, reverse=True):  # those within others first, as long as these have their names
        _shorten(net, path, kept[path])
    return copied(net)  # only now: what has gone is not copied


def twin_of(model: nn.Module) -> nn.Module:
    """See `actprune.graph.keep.twin`.

    Raises:
        UnsupportedModelError: the model can't be copied.
    """
    return copied_by(twin, model, "shorten", "remove what can't be copied from the model's attributes")


def _shorten(net: nn.Module, path: str, positions: Sequence[int]) -> None:
    """Take items out of one container of `net`, and renew the numbers that say which or how many they are."""
    container = net.get_submodule(path)
    items = list(container._modules.values())
    stay = [items[i] for i in positions]
    names = names_left(list(container._modules), positions)
    container._modules.clear()
    container._modules.update(zip(names, stay, strict=True))
    _renumber([item for i, item in enumerate(items) if i not in positions], stay)
    for holder in _above(net, path):
        for name in COUNTS:
            if _is(vars(holder).get(name), len(items)):
                setattr(holder, name, len(stay))
    update_configuration(net, path, len(items), positions)


def names_left(names: Sequence[str], positions: Sequence[int]) -> list[str]:
    """The names of a container's items where these stay: numbers are given anew, other names (`layer_3`) stay."""
    numbered = list(names) == [str(i) for i in range(len(names))]
    return [str(new) if numbered else names[old] for new, old in enumerate(positions)]


def _renumber(gone: Sequence[nn.Module | None], stay: Sequence[nn.Module | None]) -> None:
    """Close the gaps in the numbers that the items, and modules in them, hold: those that no item has any more."""
    for name in NUMBERS:
        lost = {value for _, value in _numbers(gone, name)} - {value for _, value in _numbers(stay, name)}
        for module, value in list(_numbers(stay, name)):
            setattr(module, name, value - sum(one < value for one in lost))


def _numbers(items: Sequence[nn.Module | None], name: str) -> Iterator[tuple[nn.Module, int]]:
    for item in items:
        for module in item.modules() if item is not None else ():
            value = vars(module).get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                yield module, value


def _above(net: nn.Module, path: str) -> Iterator[nn.Module]:
    """The modules around a module: the one that holds it, and those around that one."""
    while path:
        path = path.rpartition(".")[0]
        yield net.get_submodule(path)


def _is(value: object, count: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value == count
