"""Two programs that should compute the same, run in float64 and compared: how far apart, and where first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor

from actprune.graph.keep import forked_random, seed_torch
from actprune.graph.program import Batch, Program
from actprune.graph.run import run
from actprune.graph.values import as_real, is_float
from actprune.mapped import alongside
from actprune.proof.by_call import Sides, behind_whole_numbers, first_difference, inside
from actprune.proof.difference import TOLERANCE, relative_error, varies

CHAOTIC, SHARE = 1e-5, 10
"""Where the network itself makes more of rounding, as recurrent ones over many steps do, the error may be so many times
what it makes of weights that are rounded otherwise, up to this."""


def compare(sides: Sides, varied: bool = False) -> tuple[float, str | None]:
    """Relative error of the outputs, and the first difference where it is too large.

    Args:
        varied: outputs that are all constant prove nothing, and fail.
    """
    try:
        expected = seeded(sides.dense.program, sides.batch, sides.reference)
    except Exception as error:  # whatever an op raises
        return float("inf"), f"the dense graph does not run in float64: {_first_line(error)}"
    try:
        found = seeded(sides.cut, sides.batch, sides.tensors)
    except Exception as error:
        return float("inf"), f"the graph of the cut model does not run: {_first_line(error)}"
    floats = _floats(expected)
    unbounded = any(not bool(e.isfinite().all()) for e in floats) and _has_unbounded_weights(sides.dense.program)
    if unbounded or any(bool(e.isnan().any()) or not bool(e.isfinite().any()) for e in floats):
        return float("inf"), f"an output is not finite on {sides.what}"
    several = [as_real(e) for e in floats or _tensors(expected) if e.numel() > 1]
    constant = varied and bool(several) and not any(map(varies, several))
    worst = relative_error(expected, found)
    if not floats and worst == 0 and (inner := behind_whole_numbers(sides)) is not None:
        worst, constant = inner, False
    silent = constant or (varied and bool(floats) and all(map(_same_for_all, floats)))
    if silent and worst <= TOLERANCE and (inner := inside(sides)) is not None:
        worst, constant = max(worst, inner), False
    if constant:
        return float("inf"), f"every output is constant on {sides.what}: nothing would be proved"
    rounding = _rounding(sides, expected) if TOLERANCE < worst < inf else 0.0
    if worst <= max(TOLERANCE, min(CHAOTIC, SHARE * rounding)):
        return worst, None
    chaos = f"; weights that are rounded otherwise make {rounding:.2g}" if rounding > TOLERANCE else ""
    return worst, f"{first_difference(sides)} (on {sides.what}{chaos})"


def _rounding(sides: Sides, expected: Sequence[Any]) -> float:
    """Relative error, in float64, of the dense graph against itself with every weight rounded otherwise; 0 if it
    has none."""
    generator, program = torch.Generator().manual_seed(0), sides.dense.program

    def shaken(own: Tensor) -> Tensor:
        wide = own.detach().to("cpu", torch.promote_types(own.dtype, torch.float64))
        noise = torch.randn(wide.shape, generator=generator, dtype=torch.float64)
        return alongside(wide * (1 + torch.finfo(torch.float64).eps * noise), own)

    held = {name: sides.reference.get(name, own) for name, own in program.tensors.items()}
    rounded = {name: shaken(own) for name, own in held.items() if is_float(own) and own.layout == torch.strided}
    found = relative_error(expected, seeded(program, sides.batch, {**sides.reference, **rounded}))
    return found if isfinite(found) else 0.0  # a class that is another one tells nothing of the numbers


def seeded(program: Program, batch: Batch, tensors: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """In float64, and with the same random numbers on both sides: some forward passes draw noise in training mode."""
    with forked_random():
        seed_torch(0)
        return run(program, batch, tensors, lifted=True)


def _has_unbounded_weights(program: Program) -> bool:
    """Whether infinite outputs may come of weights, and hide what they should show."""
    return any(not bool(program.tensors[name].isfinite().all()) for name in program.parameters)


def _floats(values: tuple[Any, ...]) -> list[Tensor]:
    return [value for value in _tensors(values) if is_float(value)]


def _tensors(values: tuple[Any, ...]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor) and value.numel()]


def _same_for_all(value: Tensor) -> bool:
    """Whether there are several samples (entries along the first dimension), and all are the same."""
    return value.dim() > 0 and len(value) > 1 and torch.equal(value, value[:1].expand_as(value))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
