"""Leaving blocks out of a run: what they are given is passed on in the form of what they would return."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree


@dataclass(frozen=True, eq=False)
class Form:
    """How a module is called and what it returns.

    Attributes:
        names: the arguments of its `forward`, in order.
        leaves: its flat output; None where the tensor stands.
        position: that of the tensor among them.
        spec: pytree of the output.
    """

    names: tuple[str, ...]
    leaves: tuple[Any, ...]
    position: int
    spec: pytree.TreeSpec

    @classmethod
    def of(cls, names: tuple[str, ...], output: Any) -> Form:
        """From an output with one tensor."""
        leaves, spec = pytree.tree_flatten(output)
        position = next(i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
        return cls(names, tuple(None if i == position else leaf for i, leaf in enumerate(leaves)), position, spec)

    def around(self, value: Tensor | None) -> Any:
        """The output with another tensor in it."""
        leaves = [value if i == self.position else leaf for i, leaf in enumerate(self.leaves)]
        return pytree.tree_unflatten(leaves, self.spec)


@dataclass(frozen=True)
class Block:
    """A block that can be left out.

    Attributes:
        path: its module path, `model.layers.3`.
        container: that of the container, `model.layers`.
        position: its place among all items of the container, from 0.
        form: how it is called and what it returns.
    """

    path: str
    container: str
    position: int
    form: Form = field(repr=False)


def first_tensor(names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The first tensor of a call, in the order of the signature."""
    ordered = [kwargs[name] for name in names if name in kwargs]
    rest = [value for name, value in kwargs.items() if name not in names]
    leaves = pytree.tree_leaves((args, ordered, rest))
    return next((leaf for leaf in leaves if isinstance(leaf, Tensor)), None)


def replaced(call: Any, old: Tensor, new: Tensor) -> Any:
    """A call, or its arguments, with another tensor in every place of `old`."""
    return pytree.tree_map(lambda leaf: new if leaf is old else leaf, call)


@contextmanager
def bypassed(net: nn.Module, blocks: Iterable[Block]) -> Iterator[None]:
    """Have `net`, a twin, run without these blocks, as long as the context lasts."""
    passed = [(net.get_submodule(block.path), block.form) for block in blocks]
    held = [(module, vars(module).get("forward")) for module, _ in passed]
    for module, form in passed:
        module.forward = _identity(form)
    try:
        yield
    finally:
        for module, forward in held:
            if forward is None:
                del module.forward
            else:
                module.forward = forward


def _identity(form: Form) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return form.around(first_tensor(form.names, args, kwargs))

    return forward
