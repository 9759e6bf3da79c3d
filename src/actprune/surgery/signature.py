"""How a graph form is called: as the model's class was when it was captured."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.fx.graph import CodeGen, _PyTreeCodeGen, _PyTreeInfo

from actprune.graph.program import Program


def calling(model: nn.Module, program: Program) -> _PyTreeCodeGen:
    """The code generator of a graph that is called like `model`."""
    count = program.positional
    parameters = [*inspect.signature(model.forward).parameters]
    first = [*parameters[:count], *(f"arg{i}" for i in range(len(parameters), count))]
    info = _PyTreeInfo([*first, *program.kwarg_names], program.in_spec, program.out_spec)
    return _Calling(info, _written(parameters, first, program.kwarg_names, program.added))


def _written(
    parameters: Sequence[str], first: Sequence[str], named: Sequence[str], added: Mapping[str, Any]
) -> list[str]:
    """The arguments as `def` has them.

    Args:
        parameters: those of the class.
        first: what the capture was given by place; named: by name.
        added: of those, what it added by itself, which nobody has to give.
    """
    places = list(first)
    for name in parameters[len(first) :]:
        if name not in named or name in added:
            break  # behind one that is missing, places would not be those of the class
        places.append(name)
    others = [f"{name}={added[name]!r}" if name in added else name for name in named if name not in places]
    return [*places, *(["*"] if others else []), *others]


class _Calling(_PyTreeCodeGen):
    def __init__(self, info: _PyTreeInfo, written: Sequence[str]) -> None:
        super().__init__(info)
        self.written = written

    def gen_fn_def(self, free_vars: list[str], maybe_return_annotation: str, *, expanded_def: bool = False) -> str:
        names = self.pytree_info.orig_args
        head = CodeGen.gen_fn_def(self, list(self.written), maybe_return_annotation)
        return head + self.gen_var_bindings(names, free_vars, expanded_def)
