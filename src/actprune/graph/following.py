"""What the methods of a class say of weights that follow others: which submodules they copy or average together."""

from __future__ import annotations

import dis
import sys
from collections.abc import Container, Iterable, Iterator
from types import CodeType, FunctionType

from torch import nn

_LISTING = {"parameters", "named_parameters", "buffers", "named_buffers", "state_dict", "load_state_dict"}
"""What a method calls of the modules whose weights it copies or averages."""

_TOGETHER = {"zip", "load_state_dict", "_foreach_copy_", "_foreach_lerp_"}
"""What goes through the weights of two modules at once: `self.target.load_state_dict(self.net.state_dict())`."""

_WRITING = {"data", "copy_", "mul_", "add_", "lerp_", *_TOGETHER} - {"zip"}
"""What it does with the weights."""

_ENDS = ("STORE_", "POP_TOP", "GET_ITER", "RETURN_")
"""What ends a statement, or what a loop goes through."""


def copies_weights(code: CodeType) -> bool:
    """Whether a method, or a function such as `soft_update(net, target, tau)`, copies or averages some weights."""
    names = {*code.co_names}
    listing, writing = names & (_LISTING - {"load_state_dict"}), names & _WRITING
    return bool(listing and writing) or "update_parameters" in names


def helpers(module: nn.Module, codes: Iterable[CodeType]) -> Iterator[CodeType]:
    """The code of the functions that methods call by a name of their module."""
    space = vars(sys.modules.get(type(module).__module__, sys))
    called = (space.get(name) for code in codes for name in code.co_names)
    return (function.__code__ for function in called if isinstance(function, FunctionType))


def together(code: CodeType, parts: Container[str]) -> Iterator[set[str]]:
    """Submodules whose weights a method goes through together, in one statement or as it has them in variables.

    What it goes through one after the other (a loop for each, to freeze or to scale it) has nothing to do with each
    other, and neither has a teacher that it only calls.

    Args:
        parts: names of submodules.
    """
    called = {*code.co_names}
    if not (called & _LISTING and called & _WRITING):
        return
    apart, named = set[str](), set[str]()
    for steps in _statements(code):
        listed = set(_listed(steps, parts))
        if len(listed) > 1 and any(isinstance(step.argval, str) and step.argval in _TOGETHER for step in steps):
            yield listed
        elif steps[-1].opname.startswith(("STORE_FAST", "STORE_DEREF")):
            named |= listed
        else:
            apart |= listed
    if len(named) > 1 or (named and len(apart - named) == 1):
        yield named | apart


def _listed(steps: Iterable[dis.Instruction], parts: Container[str]) -> Iterator[str]:
    """The submodules whose weights are asked for: `net` of `self.net["encoder"].parameters()`."""
    name = None
    for step in steps:
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            if step.argval in _LISTING and name is not None:
                yield name
            name = step.argval if step.argval in parts else name
        elif step.opname.startswith("CALL"):
            name = None


def _statements(code: CodeType) -> Iterator[list[dis.Instruction]]:
    steps: list[dis.Instruction] = []
    for step in dis.get_instructions(code):
        steps.append(step)
        if step.opname.startswith(_ENDS):
            yield steps
            steps = []
