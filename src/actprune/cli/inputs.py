"""`--input` on the command line → example inputs.

    1,3,224,224              a shape, batch first
    int64:1,16               of another dtype than float32
    input_ids=int64:1,16     given by keyword

Capture only looks at shapes and dtypes. The values are noise from a fixed seed, and ones where whole numbers or
booleans are asked for: a valid index of any embedding, and a mask that masks nothing.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from actprune.methods import known

if TYPE_CHECKING:
    from torch import nn

DTYPES = "float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()

_FORM = re.compile(r"\s*(?:(?P<name>\w+)\s*=\s*)?(?:(?P<dtype>[a-z]\w*)\s*:)?\s*(?P<shape>\d+(?:\s*,\s*\d+)*)\s*")


@dataclass(frozen=True)
class Input:
    """One input: its keyword or None, its dtype, and its shape with the batch first."""

    name: str | None
    dtype: str
    shape: tuple[int, ...]


def parse_inputs(texts: Sequence[str]) -> list[Input]:
    """Read every `--input`. `typer.BadParameter` where one has another form, or only some have a name."""
    inputs = [_parse(text) for text in texts]
    named = [one.name for one in inputs if one.name is not None]
    if 0 < len(named) < len(inputs):
        raise typer.BadParameter("give all inputs by name, or all of them by position")
    if len(set(named)) < len(named):
        raise typer.BadParameter(f"every name once; got {', '.join(named)}")
    return inputs


def _parse(text: str) -> Input:
    found = _FORM.fullmatch(text)
    shape = () if found is None else tuple(map(int, found["shape"].split(",")))
    if found is None or min(shape) < 1:
        raise typer.BadParameter(f"{text!r} is no shape; expected 1,3,224,224, int64:1,16 or input_ids=int64:1,16")
    dtype = found["dtype"] or DTYPES[0]
    if dtype not in DTYPES:
        near = difflib.get_close_matches(dtype, DTYPES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise typer.BadParameter(f"there is no dtype {dtype!r} among {', '.join(DTYPES)}{hint}")
    return Input(found["name"], dtype, shape)


def make_inputs(inputs: Sequence[Input], model: nn.Module) -> Any:
    """Example inputs for `capture`: a tuple of tensors, or a dict of them where the inputs have names.

    Raises:
        PlanError: `model` takes no keyword of such a name. (Capture drops those, as a batch may hold labels.)
    """
    import torch

    parameters = inspect.signature(model.forward).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for one in inputs:
            if one.name is not None:
                known(one.name, parameters, "input")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    noise = torch.Generator().manual_seed(0)

    def tensor(one: Input) -> Any:
        dtype = getattr(torch, one.dtype)
        values = torch.randn(one.shape, generator=noise) if dtype.is_floating_point else torch.ones(one.shape)
        return values.to(device=device, dtype=dtype)

    if all(one.name is None for one in inputs):
        return tuple(map(tensor, inputs))
    return {one.name: tensor(one) for one in inputs}
