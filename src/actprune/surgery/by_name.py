"""Tensors that a class keeps for every parameter of a module, in dicts by its names or lists in its order, beside the
state dict: the Fisher information and the old weights of elastic weight consolidation, a moving average (`shadow`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

from actprune.axes.expr import Indices
from actprune.graph.names import Slot

Cuts: TypeAlias = "Mapping[str, Sequence[Indices | None]]"
"""Name of a tensor of the model → what stays of each of its dimensions."""


def kept_by_name(
    model: nn.Module, slots: Iterable[Slot], cuts: Cuts
) -> Iterator[tuple[Slot, Sequence[Indices | None]]]:
    """Where such a tensor is, in a model that is not yet cut, and how it is cut: as what it is named after.

    Whose names they are is known where a module has all of them, or all in this order, in these shapes. Where several
    have, these must be cut alike.

    Args:
        slots: where the model's tensors are.
    """
    boxes: dict[int, tuple[Any, dict[Any, Tensor]]] = {}
    for box, key in slots:
        boxes.setdefault(id(box), (box, {}))[1][key] = box[key]
    named = [(box, held) for box, held in boxes.values() if any(isinstance(k, int) or "." in k for k in held)]
    parts = [_Part(path, module) for path, module in model.named_modules()] if named else []
    for box, held in named:
        found = [names for part in parts if (names := part.names(held))]
        for key in held if found else ():
            first, *others = (cuts.get(names[key], ()) for names in found)
            if all(kept is None for kept in first):
                continue  # it stays the very object: torch's recurrent layers call their weights from such a list
            if all(_as_lists(first) == _as_lists(other) for other in others):
                yield (box, key), first


def _as_lists(cut: Sequence[Indices | None]) -> list[list[int] | None]:
    return [None if kept is None else kept.tolist() for kept in cut]


class _Part:
    """A module and its tensors."""

    def __init__(self, path: str, module: nn.Module) -> None:
        self.prefix = f"{path}." if path else ""
        self.tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self.trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]

    def names(self, held: Mapping[Any, Tensor]) -> dict[Any, str]:
        """Key of what is held → name of the model's tensor that it is kept for; nothing where it is for another one."""
        ordered = len(held) > 1 and [*held] == [*range(len(self.trained))]
        own = {key: self.trained[key] if ordered else key for key in held}
        alike = all(name in self.tensors and self.tensors[name].shape == held[key].shape for key, name in own.items())
        return {key: f"{self.prefix}{name}" for key, name in own.items()} if alike else {}
