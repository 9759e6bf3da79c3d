"""The captured program: plain data that the rest of the house reads.

A `Program` is an `torch.fx` graph of pure ATen calls, the tensors it reads (by their names in the model), and
how a user's arguments map onto its inputs. It holds references to the model's own tensors, never copies.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from actprune.errors import DataError
from actprune.graph.rebuilt import LINE, PATH, STATE
from actprune.graph.sizes import Sizes

Batch = tuple[Any, ...]
"""The model's inputs for one batch, flattened: one entry per input placeholder of the program."""


@dataclass(frozen=True)
class Normed:
    """Where a weight that is normed is stored, see `actprune.graph.weight_norm`.

    Attributes:
        weight: name of its directions, whose value in the program is the weight.
        dim: the dimension whose slices have a length each.
    """

    weight: str
    dim: int


@dataclass(frozen=True, eq=False)
class Program:
    """A model's forward pass as data.

    Attributes:
        graph: ATen calls in order; running them changes neither the model's tensors nor the inputs.
        tensors: parameter, buffer or constant name → the model's own tensor; a storage that has several
            names (tied weights, a module used under two paths) is listed once, under its first. Under the name of the
            directions of a weight norm stands the weight that it computes.
        aliases: that first name → every name, itself included.
        bindings: placeholder node name → tensor name.
        parameters: the names in `tensors` that are parameters (`nn.Parameter`).
        held: the names in `tensors` that are parameters or buffers; the others are constants of the forward pass.
        persistent: those of them that the state dict holds.
        architecture: hash of the names, shapes and dtypes in the state dict.
        subgraphs: node name → the module that stands for the branch or region of a higher-order op.
        source: the tracer: "export", or "real" for a run on real tensors (branches and sizes are those of the example).
        tracer: its number among those that are tried, in their order.
        added: keyword arguments that were added to the user's: a decoder is told not to return its cache.
        normed: name of the lengths of a weight norm → where its weight is, see `actprune.graph.weight_norm`.
        statistics: those of `held` in plain attributes that training computes, see `actprune.graph.remembered`.
        copies: path of a module that follows another one's weights → path of that, see `actprune.graph.kept_copies`;
            and name of a buffer → name of a parameter, see `actprune.graph.named_after`.
        inputs: names of the placeholders that take the user's inputs, flattened.
        kwarg_names: the keyword arguments at capture, in order.
        in_spec: pytree of `(args, kwargs)`.
        out_spec: pytree of the outputs.
        example: the inputs at capture (flattened), for shapes.
        batch_size: number of samples in the example; inputs must come in batches of it.
        model_name: class name, for messages.
    """

    graph: torch.fx.Graph = field(repr=False)
    tensors: Mapping[str, Tensor] = field(repr=False)
    aliases: Mapping[str, tuple[str, ...]] = field(repr=False)
    bindings: Mapping[str, str] = field(repr=False)
    parameters: frozenset[str] = field(repr=False)
    held: frozenset[str] = field(repr=False)
    persistent: frozenset[str] = field(repr=False)
    inputs: tuple[str, ...]
    kwarg_names: tuple[str, ...]
    in_spec: pytree.TreeSpec = field(repr=False)
    out_spec: pytree.TreeSpec = field(repr=False)
    example: Batch = field(repr=False)
    batch_size: int
    model_name: str
    architecture: str
    sizes: Sizes = field(default_factory=Sizes, repr=False)
    subgraphs: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    source: str = "export"
    tracer: int = 0
    added: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    normed: Mapping[str, Normed] = field(default_factory=dict[str, Normed], repr=False)
    copies: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    statistics: frozenset[str] = field(default=frozenset(), repr=False)

    @property
    def nodes(self) -> list[Node]:
        return list(self.graph.nodes)

    @property
    def outputs(self) -> tuple[Any, ...]:
        """The nodes (or constants) that the program returns, flattened."""
        (returned,) = self.graph.output_node().args
        return tuple(returned) if isinstance(returned, tuple | list) else (returned,)

    @property
    def positional(self) -> int:
        """How many arguments the captured call has by position."""
        return len(self._by_position)

    @property
    def takes_several_as_one(self) -> bool:
        """Whether its only argument by position is a list or tuple."""
        return self.positional == 1 and self._by_position[0].type in (list, tuple)

    @property
    def _by_position(self) -> list[pytree.TreeSpec]:
        args, _ = cast("tuple[pytree.TreeSpec, Any]", self.in_spec.children())
        return args.children()

    @property
    def used(self) -> frozenset[str]:
        """The tensors that some call reads; lengths with the weight that they belong to."""
        read = {self.bindings[n.name] for n in self.nodes if n.name in self.bindings and n.users}
        return frozenset(read | {name for name, own in self.normed.items() if own.weight in read})

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Batch:
        """The flat inputs for a call `model(*args, **kwargs)`.

        Raises:
            DataError: the structure is not that of the capture. (`data.fit` sees to the shapes.)
        """
        ordered = {name: kwargs[name] for name in self.kwarg_names if name in kwargs}
        leaves, spec = pytree.tree_flatten((tuple(args), ordered))
        if spec != self.in_spec:
            raise DataError(
                f"The inputs do not have the structure that {self.model_name} was captured with.",
                expected=str(self.in_spec),
                got=str(spec),
                where="calibration batch",
                hint="pass batches of the same form as the example inputs, or say with forward= how to call the model",
            )
        return tuple(leaves)

    def repeated(self, batch: Batch, times: int) -> Batch:
        """The same samples several times over."""
        return tuple(torch.cat([v] * times) if self.is_batched(i) else v for i, v in enumerate(batch))

    def resized(self, samples: int) -> Batch:
        """The example with so many samples: the first ones, or all of them several times over."""
        chosen = torch.arange(samples) % self.batch_size
        return tuple(v[chosen.to(v.device)] if self.is_batched(i) else v for i, v in enumerate(self.example))

    def is_batched(self, position: int) -> bool:
        """Whether flat input `position` carries the batch in its first dimension."""
        return holds_samples(self.example[position], self.batch_size)


def holds_samples(value: Any, count: int) -> bool:
    """Whether an input holds `count` samples in its first dimension; a sparse one is a matrix as a whole."""
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == count and value.layout == torch.strided


def architecture(state: Mapping[str, Any]) -> str:
    """SHA-256 over the names, shapes and dtypes of a state dict: two models that agree take the same plan."""
    lines = (f"{name} {tuple(t.shape)} {t.dtype}\n" for name, t in state.items() if isinstance(t, Tensor))
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def op_name(node: Node) -> str:
    """The op of a call node as `aten.conv2d.default`; other node kinds by their kind."""
    if node.op != "call_function":
        return node.op
    target = node.target
    return str(target) if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))


def named_arguments(node: Node) -> dict[str, Any]:
    """The call's arguments under their schema names, defaults filled in."""
    return named_as(node.target, node)


def named_as(target: Any, node: Node) -> dict[str, Any]:
    """The same for a call of `target` with these arguments."""
    if not isinstance(target, torch._ops.OpOverload):
        return {str(i): value for i, value in enumerate(node.args)} | dict(node.kwargs)
    named: dict[str, Any] = {}
    for i, argument in enumerate(target._schema.arguments):
        if i < len(node.args):
            named[argument.name] = node.args[i]
        else:
            named[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return named


_LIKE = tuple(f"aten.{name}_like." for name in "zeros ones full empty".split())
_NEW = tuple(f"aten.new_{name}." for name in "zeros ones full empty".split())
_PARTS = ("aten.slice.", "aten.select.", "aten.unsqueeze.")


def read_for_sizes(node: Node) -> bool:
    """Whether nothing but sizes is read of what `node` makes: of `x[:, :1]` in `torch.ones_like(x[:, :1])`."""
    reads = (
        op_name(user).startswith((*_LIKE, *_NEW)) or (op_name(user).startswith(_PARTS) and read_for_sizes(user))
        for user in node.users
    )
    return all(reads)


def module_path(node: Node) -> str:
    """The module that a node was called in, e.g. `layer1.0.conv1`; empty for the model itself."""
    annotated = (node.meta.get("custom") or {}).get(PATH)
    if annotated is not None:
        return annotated
    stack = node.meta.get("nn_module_stack") or {}
    return next((path for path, _ in reversed(list(stack.values()))), "")


def modules_around(name: str) -> list[str]:
    """The modules around a tensor: `a.b.weight` → `a`, `a.b`."""
    return list(accumulate(name.split(".")[:-1], "{}.{}".format))


def leading_to(nodes: Sequence[Node], results: Iterable[Node]) -> list[Node]:
    """Those of some nodes in the order of a run that these results depend on, these among them."""
    wanted = set(results)
    for node in reversed(nodes):
        if node in wanted:
            wanted |= set(node.all_input_nodes)
    return [node for node in nodes if node in wanted]


_OTHERS = ("/torch/nn/", "/keras/src/", *(str(Path(__file__).parents[1] / own) + os.sep for own in ("graph", "keras3")))
"""Where layers of a library run, and where graphs are made: a user looks for lines of the model."""


def place(node: Node) -> str:
    """Where a node comes from, for messages: op, module path, and the last source line of the user's model."""
    path = module_path(node)
    trace = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    files = [line for line in trace if line.startswith("File ") and not any(own in line for own in _OTHERS)]
    noted = node.meta.get("custom") or {}
    where = f"{op_name(node)} at {path or 'the model'}" + (f" ({noted[STATE]})" if noted.get(STATE) else "")
    line = noted.get(LINE)
    if line is not None:
        where += f", {line}"
    elif files:
        name, line = files[-1].split('"')[1], files[-1].split("line ")[1].split(",")[0]
        where += f", {name.rsplit('/', 1)[-1]}:{line}"
    return where


def shape(node: Any) -> tuple[int, ...]:
    """The shape of the tensor that a node gives; empty for anything else."""
    value = node.meta.get("val") if isinstance(node, Node) else node
    return tuple(int(n) for n in value.shape) if isinstance(value, Tensor) else ()
