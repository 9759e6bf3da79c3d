"""Calibration batches of another size than they came in, where they are one or two, or small.

What is fitted is judged on batches that are held out. Of one batch there are none: fits would interpolate the samples
that they are judged by, and the search would find the widths at which that is easiest. Small batches of a small network
take several times as long as larger ones: every call has its own cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from actprune.data.batches import chunk
from actprune.data.samples import Samples
from actprune.graph.keep import in_eval
from actprune.graph.outputs import register_containers
from actprune.mapped import any_mapped

FEW_BATCHES = 3
"""Fewer are divided: of two, half would be held out."""

PARTS = 8
"""So many batches are made of few, and at least of small ones; of two samples or more."""

LARGER = 64
"""Batches of half as many samples or fewer are joined to as many as this."""

ROOM = 2**25
"""Bytes that the outputs of all layers may take for a joined batch: with more, it isn't the calls that cost."""


def rebatched(model: nn.Module, samples: Samples) -> Samples:
    """The samples in batches of a better size, where the model makes of a part of a batch what it makes of it in the
    whole. A class may take no batch but its own, and samples may look at each other: nodes of a graph do."""
    came, size = samples.batch_size, _size(samples)
    if size == came or samples.as_they_came or any_mapped(model.parameters()):
        return samples
    few, many = sorted((came, size))
    start = min(few, many - few)  # the first steps of a causal model would be what they are in the whole
    try:
        part, taken = _outputs(model, samples, start, start + few)
        if size > came and taken * size > ROOM * came:
            return samples
        whole, _ = _outputs(model, samples, 0, many)
        same = bool(whole) and len(whole) == len(part) and all(map(_Within(start, few, size < came), part, whole))
    except Exception:  # of a forward, or of sparse outputs; of batches as they came, the capture says what is wrong
        return samples
    return replace(samples, batch_size=size) if same else samples


def _size(samples: Samples) -> int:
    """Samples of a batch."""
    count, came = samples.count, samples.batch_size
    most = max(count // PARTS, 2)
    if count // came < FEW_BATCHES:
        size = min(chunk(count, most), came)
        return size if count // size > 1 else came  # of three samples two would be left
    size = chunk(count, min(most, LARGER))
    return size if size >= 2 * came and count // size >= FEW_BATCHES else came


def _outputs(model: nn.Module, samples: Samples, start: int, stop: int) -> tuple[list[Tensor], int]:
    """(what the model makes of these samples in eval mode, bytes of the outputs of its layers); it is left as it
    was."""
    flat = [value.clone() if isinstance(value, Tensor) else value for value in samples.batch(start, stop)]
    args, kwargs = pytree.tree_unflatten(flat, samples.spec)
    with in_eval(model), _weighed(model) as taken:
        outputs = model(*args, **kwargs)
        register_containers(outputs)
    # a number alone is of no sample: the loss beside the logits
    return [out for out in pytree.tree_leaves(outputs) if isinstance(out, Tensor) and out.dim()], sum(taken)


@contextmanager
def _weighed(model: nn.Module) -> Iterator[list[int]]:
    """The bytes of what every layer returns."""
    taken: list[int] = []

    def weigh(_module: nn.Module, _args: Any, output: Any) -> None:
        taken.extend(value.nbytes for value in pytree.tree_leaves(output) if isinstance(value, Tensor))

    hooks = [module.register_forward_hook(weigh) for module in model.modules() if not any(module.children())]
    try:
        yield taken
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class _Within:
    """Whether what the model makes of the samples from `start` on, so many of them, is what it makes of them in the
    whole, up to rounding. Any dimension may count samples, or several entries for each (batch times heads).

    Attributes:
        pairs: two may, as in a table of all pairs: what one costs and how far it is from another grows with the batch,
            so that larger ones are not made of such.
    """

    start: int
    count: int
    pairs: bool

    def __call__(self, part: Tensor, whole: Tensor) -> bool:
        if part.dim() != whole.dim() or part.dtype != whole.dtype:
            return False
        sizes = list(zip(part.shape, whole.shape, strict=True))
        if not self.pairs and sum(own != other for own, other in sizes) > 1:
            return False
        for dim, (own, other) in enumerate(sizes):
            start = 0 if own == other else self.start * own // self.count
            if start + own > other:
                return False
            whole = whole.narrow(dim, start, own)
        if not part.is_floating_point():
            return torch.equal(part, whole)
        digits = torch.finfo(part.dtype).eps ** 0.5
        return torch.allclose(part, whole, rtol=0, atol=digits * _largest(whole), equal_nan=True)


def _largest(values: Tensor) -> float:
    found = values[values.isfinite()].abs()
    return float(found.max()) if found.numel() else 0.0
