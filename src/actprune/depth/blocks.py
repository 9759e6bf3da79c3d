"""Which blocks of a network can be left out: found in one run, not by their names.

A *block* is an item of an `nn.ModuleList` or `nn.Sequential` that is made of modules itself, and whose class another
item of the container has as well. It can be left out where, in a run on real inputs,

- it is called once, and the blocks of its container are called in their order;
- it returns one tensor, of the shape and dtype of the first tensor that it is given;
- a way from that input to that output goes past its weights: what is lost with it is a residual branch, or a gate.

Blocks within blocks count, not those around them: of a stage of residual blocks each block is one, the stage is none.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from actprune.depth.bypass import Block, Form, first_tensor, replaced


def find_blocks(net: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[Block], dict[str, str]]:
    """The blocks that can be left out, and module path → reason of those that can't.

    Args:
        net: a twin (`actprune.graph.keep.twin`) in eval mode: its parameters will require gradients.
        args, kwargs: what it is called with. Gradients are recorded, as in training.
    """
    watched = {path: _Watch(path, container, i, module) for path, container, i, module in _items(net)}
    for parameter in net.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    clock: list[str] = []
    with ExitStack() as hooks, torch.enable_grad():
        for one in watched.values():
            for handle in one.hooks(clock):
                hooks.callback(handle.remove)
        net(*args, **kwargs)
    homes = _homes(net)
    reasons = {path: one.refusal() or _shared(one.module, homes) for path, one in watched.items()}
    _refuse_disorder(watched, reasons, clock)
    able = [path for path, reason in reasons.items() if reason is None]
    for path in able:
        if any(other.startswith(f"{path}.") for other in able):
            reasons[path] = "blocks within it can be left out one by one"
    found = [
        Block(path, one.container, one.position, one.form)
        for path, one in watched.items()
        if reasons[path] is None and one.form is not None
    ]
    return found, {path: reason for path, reason in reasons.items() if reason is not None}


def containers(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Module path and module of every list or sequence of modules."""
    for path, module in net.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            yield path, module


def _items(net: nn.Module) -> Iterator[tuple[str, str, int, nn.Module]]:
    """Path, path of the container, position and module of what may be a block."""
    for path, container in containers(net):
        items = list(container._modules.items())
        kinds = [type(module) for _, module in items]
        for i, (name, module) in enumerate(items):
            if module is not None and module._modules and kinds.count(type(module)) > 1:
                yield f"{path}.{name}" if path else name, path, i, module


def _homes(net: nn.Module) -> dict[int, int]:
    """id of a module → how many attributes of modules hold it."""
    found: dict[int, int] = {}
    for holder in net.modules():
        for module in holder._modules.values():
            found[id(module)] = found.get(id(module), 0) + 1
    return found


def _shared(module: nn.Module, homes: Mapping[int, int]) -> str | None:
    places = homes.get(id(module), 0)
    return f"{places} modules hold it: taken out of one, it would stay in the others" if places > 1 else None


def _refuse_disorder(watched: Mapping[str, _Watch], reasons: dict[str, str | None], clock: list[str]) -> None:
    """Refuse the blocks of containers that are not called in their order."""
    for container in {one.container for one in watched.values()}:
        own = [path for path, one in watched.items() if one.container == container and reasons[path] is None]
        called = [path for path in clock if path in own]
        if called != own:
            reasons |= dict.fromkeys(own, f"the items of {container} are not called in their order")


@dataclass(eq=False)
class _Watch:
    """What is seen of one module in a run."""

    path: str
    container: str
    position: int
    module: nn.Module
    calls: int = 0
    names: tuple[str, ...] = ()
    given: Tensor | None = None
    mark: Any = None
    form: Form | None = None
    reason: str | None = None

    def hooks(self, clock: list[str]) -> Iterator[Any]:
        """Begin to watch; every call adds the path to `clock`."""
        self.names = tuple(inspect.signature(self.module.forward).parameters)

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            clock.append(self.path)
            self.calls += 1
            self.given = first_tensor(self.names, args, kwargs)
            if self.given is None or not self.given.is_floating_point():
                return None
            source = self.given if self.given.requires_grad else self.given.detach().requires_grad_(True)
            marked = source.clone()  # the way back to the input ends at this call
            self.mark = marked.grad_fn
            return replaced((args, kwargs), self.given, marked)

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self.reason = self._wrong(output)
            if self.reason is None:
                self.form = Form.of(self.names, output)

        yield self.module.register_forward_pre_hook(before, with_kwargs=True)
        yield self.module.register_forward_hook(after, with_kwargs=True)

    def _wrong(self, output: Any) -> str | None:
        """Why the input can't take the place of the output."""
        if self.given is None or not self.given.is_floating_point():
            return "it is given no float tensor"
        if self.mark is None:
            return "it runs without gradients, so that a way past its weights can't be seen"
        tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
        if len(tensors) != 1:
            return f"it returns {len(tensors)} tensors, and nothing would stand for the others"
        made, given = tensors[0], self.given
        if (made.shape, made.dtype) != (given.shape, given.dtype):
            return f"it makes {tuple(made.shape)} {made.dtype} of {tuple(given.shape)} {given.dtype}"
        return None if _passes(made, self.mark) else "no way from its input to its output goes past its weights"

    def refusal(self) -> str | None:
        """Why the module can't be left out, as far as its own calls tell."""
        if self.calls != 1:
            return f"it is called {self.calls} times" if self.calls else "it is not called"
        return self.reason


def _passes(made: Tensor, mark: Any) -> bool:
    """Whether the calls that made a tensor lead back to `mark` without one that multiplies by a weight matrix.

    Which calls these are is not told by their names: one of their inputs is a parameter of two or more dimensions, or
    is computed from parameters alone, such a one among them. Gains and biases, which norms have, are vectors.
    """
    kinds: dict[Any, _Kind] = {}
    for node, sources in _record(made.grad_fn, mark):
        own = [kinds[source] for source in sources]
        held = getattr(node, "variable", None)
        if node is mark:
            kinds[node] = _Kind(passes=True)
        elif isinstance(held, nn.Parameter):
            kinds[node] = _Kind(constant=True, matrix=sum(n > 1 for n in held.shape) > 1)
        else:
            kinds[node] = _Kind(
                passes=any(kind.passes for kind in own) and not any(kind.constant and kind.matrix for kind in own),
                constant=bool(own) and all(kind.constant for kind in own),
                matrix=any(kind.matrix for kind in own),
            )
    return kinds[made.grad_fn].passes if made.grad_fn is not None else False


@dataclass(frozen=True)
class _Kind:
    """What a call's result is.

    Attributes:
        passes: the input of the block, perhaps through norms and additions.
        constant: computed from parameters alone.
        matrix: from a parameter of two or more dimensions among others.
    """

    passes: bool = False
    constant: bool = False
    matrix: bool = False


def _record(last: Any, mark: Any) -> list[tuple[Any, list[Any]]]:
    """The calls that autograd recorded, from `mark` (or parameters) to `last`, each after its sources."""
    order: dict[Any, list[Any]] = {}
    ahead = [last] if last is not None else []
    while ahead:  # no recursion: the record of a deep network is deep
        node = ahead[-1]
        sources = [] if node is mark else [source for source, _ in node.next_functions if source is not None]
        waiting = [source for source in sources if source not in order]
        if waiting:
            ahead += waiting
        else:
            order.setdefault(ahead.pop(), sources)
    return list(order.items())
