"""Buffers that are named after the parameters of a module, one for each: the old weights and the Fisher information of
elastic weight consolidation, the moving average of a diffusion model. They are cut as the parameters are.

A buffer's name holds no dot: `net.0.weight` becomes "net__0__weight_mean", or "net0weight".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, nn

from actprune.graph.rebuilt import Rebuilt

_JOINTS = ("", "_", "__")
"""What stands in the place of a dot."""


def named_after(model: nn.Module, used: Iterable[str]) -> dict[str, str]:
    """Name of a buffer that the forward pass leaves out → name of the parameter that it is named after.

    Nothing of buffers that could be those of two modules.
    """
    modules, used = [] if isinstance(model, Rebuilt) else [*model.named_modules()], {*used}
    owners = [(f"{path}." if path else "", dict(module.named_parameters())) for path, module in modules]
    trained = [(start, {name: one for name, one in own.items() if one.requires_grad}) for start, own in owners]
    several = [(start, own) for start, own in trained if len(own) > 1 and any(f"{start}{name}" in used for name in own)]
    found: dict[str, set[str]] = {}
    for (start, _), (_, module) in zip(owners, modules, strict=True):
        idle = {name: one for name, one in module.named_buffers(recurse=False) if f"{start}{name}" not in used}
        for prefix, own in several if len(idle) > 1 else ():
            for buffer, name in _matches(idle, own) if len(own) <= len(idle) else ():
                found.setdefault(f"{start}{buffer}", set()).add(f"{prefix}{name}")
    return {buffer: min(names) for buffer, names in found.items() if len(names) == 1}


def _matches(buffers: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """(buffer, parameter) of sets of buffers that have the names of all parameters between the same letters."""
    first = next(iter(parameters))
    for joint in _JOINTS:
        plain = first.replace(".", joint)
        for before, after in (name.split(plain, 1) for name in buffers if plain in name):
            pairs = {f"{before}{name.replace('.', joint)}{after}": name for name in parameters}
            if all(b in buffers and buffers[b].shape == parameters[name].shape for b, name in pairs.items()):
                yield from pairs.items()
